//! The clients that other programs have reported, as far as the controller remembers the reports.

use std::collections::HashMap;

use balancer_common::client_table::Entry;

/// The clients that other programs have reported since the controller started.
#[derive(Clone, Debug, Default)]
pub(super) struct Reported {
    /// The entries as the controller wrote them, by the client's tag and its backend.
    entries: HashMap<u64, u64>,
}

impl Reported {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the entry names the backend that another program has reported for the client.
    pub(super) fn has(&self, entry: Entry) -> bool {
        self.entries.contains_key(&Self::key(entry))
    }

    /// Whether no packet has changed the entry since the controller wrote it.
    pub(super) fn is_unchanged(&self, entry: Entry) -> bool {
        self.entries.get(&Self::key(entry)) == Some(&entry.0)
    }

    /// Notes that the controller has written the entry `new` in place of `old`.
    pub(super) fn note(&mut self, old: Entry, new: Entry) {
        self.entries.remove(&Self::key(old));
        self.entries.insert(Self::key(new), new.0);
    }

    /// The entry without the time at which the client was seen.
    const fn key(entry: Entry) -> u64 {
        entry.0 >> 16
    }
}
