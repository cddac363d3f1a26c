//! A look at a part of the client table that changes nothing, so that any thread may take it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entry},
    clock::Clock,
};
use balancer_core::io::ServiceId;

use super::{Again, SlotSet};
use crate::{clients::ClientTable, mapped::MappedArray, memory::Memory};

/// What is known of a service when a look begins.
struct Facts {
    id: ServiceId,
    table: Arc<[u16]>,
    clock: Clock,
    tick: u16,
    swaps: u64,
}

/// Part of a pass over the client table, with all that a look at it takes.
pub(in super::super) struct Scan {
    buckets: Arc<MappedArray<Bucket>>,
    entries: Range<usize>,
    /// By backend id: the service it belongs to.
    services: Arc<Vec<Option<ServiceId>>>,
    /// By the number of the service; `None`: there is none that remembers.
    facts: Vec<Option<Facts>>,
    again: Arc<Again>,
}

/// What a look has found.
pub(in super::super) struct Scanned {
    /// Where the next part begins.
    pub(super) end: usize,
    /// Known clients by backend, of those that have some.
    pub(super) known: Vec<(u16, u64)>,
    /// Slots in which a client is elsewhere, each once.
    pub(super) elsewhere: Vec<(ServiceId, u32)>,
    /// Entries that somebody has to look at who knows what holds by then, and may empty them.
    pub(super) doubtful: Vec<usize>,
}

impl Scan {
    /// Of these entries, as things are.
    pub(super) fn new(
        clients: &ClientTable,
        entries: Range<usize>,
        memories: &HashMap<ServiceId, Memory>,
        again: Arc<Again>,
    ) -> Self {
        let mut facts = Vec::new();
        // By number, so that the loop needs no hashing.
        facts.resize_with(memories.keys().map(|id| usize::from(id.0) + 1).max().unwrap_or(0), || None);
        for (&id, memory) in memories {
            if let (Some(clock), Some(place)) = (memory.clock, facts.get_mut(usize::from(id.0))) {
                let table = Arc::clone(&memory.table);
                *place = Some(Facts { id, table, clock, tick: memory.tick, swaps: memory.swaps });
            }
        }
        let (buckets, services) = clients.shared();
        Self { buckets, entries, services, facts, again }
    }

    /// Looks at each entry once.
    pub(super) fn run(&self) -> Scanned {
        let mut known = vec![0u64; self.services.len()];
        let mut found: Vec<Option<SlotSet>> = Vec::new();
        found.resize_with(self.facts.len(), || None);
        let (mut elsewhere, mut doubtful) = (Vec::new(), Vec::new());
        let words = self.buckets.words().get(self.entries.clone()).unwrap_or_default();
        for (index, word) in self.entries.clone().zip(words) {
            let entry = Entry(word.load(Ordering::Relaxed));
            if entry.is_empty() {
                continue;
            }
            let Some(facts) = self.facts(entry) else {
                doubtful.push(index);
                continue;
            };
            let place = slot(entry.0, facts.table.len() as u32);
            if facts.table.get(place as usize) != Some(&entry.backend()) {
                if self.again.names(index / BUCKET_ENTRIES, entry, facts.swaps) {
                    doubtful.push(index);
                    continue;
                }
                let found = found.get_mut(usize::from(facts.id.0));
                if found.is_some_and(|found| found.get_or_insert_with(|| SlotSet::of(facts.table.len())).insert(place))
                {
                    elsewhere.push((facts.id, place));
                }
            }
            if let Some(known) = known.get_mut(usize::from(entry.backend())) {
                *known += 1;
            }
        }
        let known = (0..=u16::MAX).zip(known).filter(|&(_, count)| count > 0).collect();
        Scanned { end: self.entries.end, known, elsewhere, doubtful }
    }

    /// Of the service that an entry names, which is one that remembers it.
    fn facts(&self, entry: Entry) -> Option<&Facts> {
        let service = self.services.get(usize::from(entry.backend())).copied().flatten()?;
        let facts = self.facts.get(usize::from(service.0))?.as_ref()?;
        (entry.age(facts.tick) <= facts.clock.remember).then_some(facts)
    }
}
