//! Scans a part of the client table without changing it, so that any thread may run the scan.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entry},
};
use balancer_control::io::ServiceId;

use super::{Again, SlotSet};
use crate::{clients::ClientTable, mapped::MappedArray, memory::Memory};

/// A part of a pass over the client table, with all data that the scan of this part needs.
#[derive(Debug)]
pub(in super::super) struct Scan {
    buckets: Arc<MappedArray<Bucket>>,
    entries: Range<usize>,
    /// The service to which each backend belongs, by backend id.
    services: Arc<Vec<Option<ServiceId>>>,
    /// The client memories by number of the service, as they were at the start of the scan.
    memories: Vec<Option<Memory>>,
    again: Arc<Again>,
}

/// The findings of the scan of one part.
#[derive(Debug)]
pub(in super::super) struct Scanned {
    /// The start of the part that follows.
    pub(super) end: usize,
    /// The numbers of known clients by backend; backends without clients are missing.
    pub(super) known: Vec<(u16, u64)>,
    /// The slots that have a client at another backend, each slot once.
    pub(super) elsewhere: Vec<(ServiceId, u32)>,
    /// The entries that may have to be emptied; the owner must check them against the present state.
    pub(super) doubtful: Vec<usize>,
}

impl Scan {
    /// Makes a scan of these entries, which uses the services and memories as they are now.
    pub(super) fn new(
        clients: &ClientTable,
        entries: Range<usize>,
        memories: &HashMap<ServiceId, Memory>,
        again: Arc<Again>,
    ) -> Self {
        let mut by_number = Vec::new();
        // Memories are indexed by number, so that the loop computes no hashes.
        by_number.resize_with(memories.keys().map(|id| usize::from(id.0) + 1).max().unwrap_or(0), || None);
        for (id, memory) in memories {
            if let Some(place) = by_number.get_mut(usize::from(id.0)) {
                *place = Some(memory.clone());
            }
        }
        let (buckets, services) = clients.shared();
        Self { buckets, entries, services, memories: by_number, again }
    }

    /// Reads each entry of the part once.
    pub(in super::super) fn run(&self) -> Scanned {
        let mut known = vec![0u64; self.services.len()];
        let slots = |memory: &Option<Memory>| SlotSet::of(memory.as_ref().map_or(0, |memory| memory.table.len()));
        let mut found: Vec<SlotSet> = self.memories.iter().map(slots).collect();
        let (mut elsewhere, mut doubtful) = (Vec::new(), Vec::new());
        let words = self.buckets.words().get(self.entries.clone()).unwrap_or_default();
        for (index, word) in self.entries.clone().zip(words) {
            let entry = Entry(word.load(Ordering::Relaxed));
            if entry.is_empty() {
                continue;
            }
            let Some((service, memory)) = self.memory(entry) else {
                doubtful.push(index);
                continue;
            };
            let place = slot(entry.0, memory.table.len() as u32);
            if memory.table.get(place as usize) != Some(&entry.backend()) {
                if self.again.names(index / BUCKET_ENTRIES, entry, memory.swaps) {
                    doubtful.push(index);
                    continue;
                }
                if found.get_mut(usize::from(service.0)).is_some_and(|found| found.insert(place)) {
                    elsewhere.push((service, place));
                }
            }
            if let Some(known) = known.get_mut(usize::from(entry.backend())) {
                *known += 1;
            }
        }
        let known = (0..=u16::MAX).zip(known).filter(|&(_, count)| count > 0).collect();
        Scanned { end: self.entries.end, known, elsewhere, doubtful }
    }

    /// The service to which an entry belongs, if the service still remembers the client.
    fn memory(&self, entry: Entry) -> Option<(ServiceId, &Memory)> {
        let service = self.services.get(usize::from(entry.backend())).copied().flatten()?;
        let memory = self.memories.get(usize::from(service.0))?.as_ref()?;
        memory.remembers(entry).then_some((service, memory))
    }
}
