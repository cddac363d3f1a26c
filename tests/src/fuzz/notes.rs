//! Fuzzes the notes that a controller pins for its successor.

use balancer_dataplane::Notes;

/// Parses `bytes` as the row of notes. A valid row must stay the same after writing and reading.
pub fn notes(bytes: &[u8]) {
    if let Ok(Some(notes)) = Notes::read(bytes) {
        let again = serde_json::to_vec(&notes).map(|text| Notes::read(&text).ok().flatten());
        assert_eq!(again.ok().flatten(), Some(notes));
    }
}
