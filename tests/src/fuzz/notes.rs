//! Fuzzes the notes that a controller pins in a map for the next controller.

use balancer_dataplane::Notes;

/// Parses `bytes` as the map row with the notes. Writing a valid row and reading the row again must not change the row.
pub fn notes(bytes: &[u8]) {
    if let Ok(Some(notes)) = Notes::read(bytes) {
        let again = serde_json::to_vec(&notes).map(|text| Notes::read(&text).ok().flatten());
        assert_eq!(again.ok().flatten(), Some(notes));
    }
}
