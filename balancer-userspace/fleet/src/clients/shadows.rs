//! The other members' knowledge of each entry of a client table, which takes 8 bytes for the entry, 4 bytes for the
//! epoch, and 3 bits.

use balancer_common::client_table::{BUCKET_ENTRIES, Entry};

/// The knowledge that the other members have of an entry of the client table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shadow {
    /// The entry that the other members have; 0 if this is unknown.
    pub(super) told: u64,
    /// The epoch in which the client of the entry came to its backend.
    pub(super) epoch: u32,
    /// Whether the client moved to its backend, see [`Record::moved`](crate::records::Record::moved).
    pub(super) moved: bool,
    /// Whether the other members may have forgotten the entry.
    pub(super) doubtful: bool,
    /// Whether this member must send the entry again, even if the entry does not change.
    pub(super) unheard: bool,
}

/// The shadows of all entries of a client table. Separate arrays contain those fields that a scan of the whole table
/// needs.
#[derive(Debug)]
pub(super) struct Shadows {
    told: Vec<[u64; BUCKET_ENTRIES]>,
    epochs: Vec<[u32; BUCKET_ENTRIES]>,
    /// For each bucket, one bit per entry.
    moved: Vec<u8>,
    doubtful: Vec<u8>,
    unheard: Vec<u8>,
}

const _: () = assert!(BUCKET_ENTRIES == u8::BITS as usize);

const fn bit(index: usize) -> u8 {
    1 << (index % BUCKET_ENTRIES)
}

fn set(bits: &mut [u8], index: usize, is: bool) {
    if let Some(bits) = bits.get_mut(index / BUCKET_ENTRIES) {
        *bits = *bits & !bit(index) | if is { bit(index) } else { 0 };
    }
}

fn is_set(bits: &[u8], index: usize) -> bool {
    bits.get(index / BUCKET_ENTRIES).is_some_and(|bits| bits & bit(index) != 0)
}

impl Shadows {
    pub(super) fn new(buckets: usize) -> Self {
        Self {
            told: vec![[0; BUCKET_ENTRIES]; buckets],
            epochs: vec![[0; BUCKET_ENTRIES]; buckets],
            moved: vec![0; buckets],
            doubtful: vec![0; buckets],
            unheard: vec![0; buckets],
        }
    }

    /// Returns the shadow of an entry; the shadow is empty if the index is beyond the end.
    pub(super) fn get(&self, index: usize) -> Shadow {
        let (bucket, at) = (index / BUCKET_ENTRIES, index % BUCKET_ENTRIES);
        Shadow {
            told: self.told.get(bucket).map_or(0, |told| told[at]),
            epoch: self.epochs.get(bucket).map_or(0, |epochs| epochs[at]),
            moved: is_set(&self.moved, index),
            doubtful: is_set(&self.doubtful, index),
            unheard: is_set(&self.unheard, index),
        }
    }

    /// Replaces the shadow of an entry.
    pub(super) fn set(&mut self, index: usize, shadow: Shadow) {
        let (bucket, at) = (index / BUCKET_ENTRIES, index % BUCKET_ENTRIES);
        if let (Some(told), Some(epochs)) = (self.told.get_mut(bucket), self.epochs.get_mut(bucket)) {
            (told[at], epochs[at]) = (shadow.told, shadow.epoch);
        }
        set(&mut self.moved, index, shadow.moved);
        set(&mut self.doubtful, index, shadow.doubtful);
        set(&mut self.unheard, index, shadow.unheard);
    }

    /// Marks an entry, so that this member sends it again even if the entry does not change.
    pub(super) fn mark_unheard(&mut self, index: usize) {
        set(&mut self.unheard, index, true);
    }

    /// Whether the other members know all current entries of this bucket, so that this member need not send any of
    /// them.
    pub(super) fn agree(&self, bucket: usize, entries: &[Entry; BUCKET_ENTRIES]) -> bool {
        self.unheard.get(bucket) == Some(&0) && self.told.get(bucket) == Some(&entries.map(|entry| entry.0))
    }

    /// Clears the shadows of all clients of this backend.
    pub(super) fn forget_backend(&mut self, id: u16) {
        for bucket in 0..self.told.len() {
            for at in 0..BUCKET_ENTRIES {
                if self.told.get(bucket).is_some_and(|told| Entry(told[at]).backend() == id) {
                    self.set(bucket * BUCKET_ENTRIES + at, Shadow::default());
                }
            }
        }
    }

    /// Records that the other members may have forgotten all entries.
    pub(super) fn doubt(&mut self) {
        for (doubtful, told) in self.doubtful.iter_mut().zip(&self.told) {
            *doubtful |= (0..BUCKET_ENTRIES).filter(|&at| told[at] != 0).fold(0, |bits, at| bits | bit(at));
        }
    }

    /// Marks every doubtful entry, so that this member sends it again.
    pub(super) fn confirm(&mut self) {
        for (doubtful, unheard) in self.doubtful.iter_mut().zip(&mut self.unheard) {
            *unheard |= std::mem::take(doubtful);
        }
    }
}
