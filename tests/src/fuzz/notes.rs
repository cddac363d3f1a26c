//! The notes that a controller pins for the next one.

use balancer_dataplane::Notes;

/// Reads `bytes` as the row of notes; what is read must be written and read again.
pub fn notes(bytes: &[u8]) {
    if let Ok(Some(notes)) = Notes::read(bytes) {
        let again = serde_json::to_vec(&notes).map(|text| Notes::read(&text).ok().flatten());
        assert_eq!(again.ok().flatten(), Some(notes));
    }
}
