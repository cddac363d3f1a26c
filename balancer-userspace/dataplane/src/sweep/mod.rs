//! Sweeps: passes over the client table that count clients, forget expired clients, and clear exception flags, one part
//! of the table at a time.
//!
//! A separate thread scans each part of the table and changes nothing. The owner of the table processes a few findings
//! at a time, so that no other work of the owner waits for a sweep. The state may change after the scan, so the owner
//! empties an entry only if the present state requires it. An unnecessary flag, such as one for a slot of the previous
//! table, does no harm.
//!
//! The sweep may clear a slot's exception flag if no client of the slot is at another backend than the slot names. One
//! scan is not enough to know this: for a packet in progress, the program may write an entry that it read before the
//! sweep passed, and may use a table that has been swapped since. To clear flags, the sweep therefore needs two
//! complete passes in a row. Between these two passes, no table may be swapped. Nor may a QUIC connection move a client
//! to another backend, because a packet of such a connection may flag a slot that the scan has already passed. Each
//! pass begins only after the program has finished every packet that was in progress at the end of the previous pass or
//! that used the old table. If the sweep finds an entry at another backend than the slot's, it flags the slot in every
//! case.

mod scan;

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, atomic::Ordering},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Entry},
};
use balancer_control::io::{BackendId, ServiceId};

pub(super) use scan::{Scan, Scanned};

use super::{clients::ClientTable, memory::Memory};

#[cfg(test)]
mod tests;

/// A set of slots of one service.
#[derive(Clone, Debug)]
struct SlotSet {
    size: usize,
    /// For each slot, whether it is in the set; if the list is empty, no slot is in the set.
    slots: Vec<bool>,
}

impl SlotSet {
    /// An empty set of slots for a table of this size.
    const fn of(size: usize) -> Self {
        Self { size, slots: Vec::new() }
    }

    /// Adds a slot to the set. Returns whether the slot was not in the set before.
    fn insert(&mut self, slot: u32) -> bool {
        if self.slots.is_empty() {
            self.slots = vec![false; self.size];
        }
        self.slots.get_mut(slot as usize).is_some_and(|is| !mem::replace(is, true))
    }

    fn contains(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).copied().unwrap_or(false)
    }
}

/// The slots of a service that have a client at another backend than the slot's.
#[derive(Clone, Debug)]
struct Elsewhere {
    /// The number of table swaps of the service when the pass began.
    swaps: u64,
    /// The number of migrated clients of the service when the pass began.
    migrated: u64,
    slots: SlotSet,
}

impl Elsewhere {
    /// Whether the pass has seen all clients at other backends, because no swap and no migration has happened since the
    /// pass began.
    const fn is_current(&self, memory: &Memory) -> bool {
        self.swaps == memory.swaps && self.migrated == memory.migrated
    }
}

/// Clients that the balancer has forgotten. For a packet in progress, the program may have written the entry of a
/// forgotten client again. Therefore, if an entry names the earlier backend although the table has always named another
/// backend, the entry does not belong to a new client.
#[derive(Debug, Default)]
struct Again {
    /// The backend, and the number of table swaps of the service, by bucket and tag.
    clients: HashMap<(usize, u32), (u16, u64)>,
    /// The backends all of whose clients were forgotten.
    backends: HashMap<u16, u64>,
}

impl Again {
    fn names(&self, bucket: usize, entry: Entry, swaps: u64) -> bool {
        self.backends.get(&entry.backend()) == Some(&swaps)
            || self.clients.get(&(bucket, entry.tag())) == Some(&(entry.backend(), swaps))
    }
}

/// The result of a complete pass over the client table.
pub(super) struct Pass {
    /// The numbers of known clients, in ascending order of backend ids.
    pub(super) known: Vec<(BackendId, u64)>,
    /// The slots that have no exceptions, by service.
    pub(super) settled: Vec<(ServiceId, Vec<u32>)>,
}

/// The present activity of the sweep.
#[derive(Debug)]
enum Stage {
    /// The sweep is doing nothing.
    Rests,
    /// The sweep is scanning a part of the client table.
    Looks,
    /// The sweep is processing the findings of a scan.
    Acts(Scanned),
}

/// The progress of the sweep through the client table.
#[derive(Debug)]
pub(super) struct Sweep {
    stage: Stage,
    /// The start of the next part.
    next: usize,
    /// The numbers of known clients, by backend id.
    known: Vec<u64>,
    this_pass: HashMap<ServiceId, Elsewhere>,
    last_pass: HashMap<ServiceId, Elsewhere>,
    /// The clients forgotten since the pass began, which the next pass needs.
    forgotten: Again,
    again: Arc<Again>,
    entries: u64,
}

impl Sweep {
    /// Makes a sweep for backends with ids below `backends`.
    pub(super) fn new(backends: usize) -> Self {
        Self {
            stage: Stage::Rests,
            next: 0,
            known: vec![0; backends],
            this_pass: HashMap::new(),
            last_pass: HashMap::new(),
            forgotten: Again::default(),
            again: Arc::default(),
            entries: 0,
        }
    }

    /// The number of known clients that the last complete pass counted.
    pub(super) const fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether no part is in progress, so that the sweep may begin the next part.
    pub(super) const fn rests(&self) -> bool {
        matches!(self.stage, Stage::Rests)
    }

    /// Whether a scan is in progress at the moment.
    pub(super) const fn looks(&self) -> bool {
        matches!(self.stage, Stage::Looks)
    }

    /// Whether the next part is the first part of a pass.
    pub(super) const fn begins_pass(&self) -> bool {
        self.next == 0
    }

    /// Records that a client of this slot is at another backend; the pass may already have scanned the client's entry.
    pub(super) fn found_elsewhere(&mut self, service: ServiceId, slot: u32) {
        if let Some(pass) = self.this_pass.get_mut(&service) {
            pass.slots.insert(slot);
        }
    }

    /// Records that the balancer has forgotten the client with this hash. The next pass checks this client again.
    pub(super) fn forgot(&mut self, bucket: usize, entry: Entry, swaps: u64) {
        self.forgotten.clients.insert((bucket, entry.tag()), (entry.backend(), swaps));
    }

    /// Records that the balancer has forgotten all clients of a backend. The next pass checks these clients again.
    pub(super) fn forgot_all(&mut self, backend: BackendId, swaps: u64) {
        self.forgotten.backends.insert(backend.0, swaps);
    }

    /// Returns the scan of the next part, which has up to `words` entries; the caller must run this scan.
    pub(super) fn part(&mut self, words: usize, clients: &ClientTable, memories: &HashMap<ServiceId, Memory>) -> Scan {
        if self.begins_pass() {
            self.begin(memories);
        }
        self.stage = Stage::Looks;
        let end = self.next.saturating_add(words).min(clients.words().len());
        Scan::new(clients, self.next..end, memories, Arc::clone(&self.again))
    }

    /// Stores the findings of the scan that the caller has run.
    pub(super) fn found(&mut self, scanned: Scanned) {
        for &(id, count) in &scanned.known {
            if let Some(known) = self.known.get_mut(usize::from(id)) {
                *known += count;
            }
        }
        self.stage = Stage::Acts(scanned);
    }

    /// Processes up to `most` findings of the scan. Returns the slots that the caller must flag. After the last
    /// finding, the sweep does nothing.
    pub(super) fn act(
        &mut self,
        most: usize,
        clients: &ClientTable,
        memories: &HashMap<ServiceId, Memory>,
    ) -> Vec<(ServiceId, u32)> {
        let Stage::Acts(mut scanned) = mem::replace(&mut self.stage, Stage::Rests) else { return Vec::new() };
        let last = scanned.elsewhere.len().saturating_sub(most);
        let slots = scanned.elsewhere.split_off(last);
        let mut elsewhere: Vec<_> = slots.into_iter().filter(|&(service, slot)| self.is_first(service, slot)).collect();
        let last = scanned.doubtful.len().saturating_sub(most);
        for index in scanned.doubtful.split_off(last) {
            elsewhere.extend(self.look_again(index, clients, memories));
        }
        if scanned.elsewhere.is_empty() && scanned.doubtful.is_empty() {
            self.next = scanned.end;
        } else {
            self.stage = Stage::Acts(scanned);
        }
        elsewhere
    }

    /// Ends the pass if its last part is done. If `is_flagged` returns false for a service, no slot of this service
    /// needs clearing.
    pub(super) fn end(
        &mut self,
        clients: &ClientTable,
        memories: &HashMap<ServiceId, Memory>,
        is_flagged: impl Fn(ServiceId) -> bool,
    ) -> Option<Pass> {
        if self.next < clients.words().len() {
            return None;
        }
        self.next = 0;
        let this = mem::take(&mut self.this_pass);
        let mut settled = Vec::new();
        for (&id, now) in this.iter().filter(|&(&id, _)| is_flagged(id)) {
            let Some(memory) = memories.get(&id).filter(|memory| now.is_current(memory)) else { continue };
            let Some(before) = self.last_pass.get(&id).filter(|before| before.is_current(memory)) else { continue };
            let slots = 0..now.slots.size as u32;
            settled
                .push((id, slots.filter(|&slot| !before.slots.contains(slot) && !now.slots.contains(slot)).collect()));
        }
        self.last_pass = this;
        let known: Vec<_> = (0..=u16::MAX)
            .zip(&self.known)
            .filter(|&(_, &count)| count > 0)
            .map(|(id, &count)| (BackendId(id), count))
            .collect();
        self.entries = known.iter().map(|&(_, count)| count).sum();
        Some(Pass { known, settled })
    }

    fn begin(&mut self, memories: &HashMap<ServiceId, Memory>) {
        self.known.fill(0);
        self.again = Arc::new(mem::take(&mut self.forgotten));
        let begin = |memory: &Memory| {
            let (swaps, migrated) = (memory.swaps, memory.migrated);
            Elsewhere { swaps, migrated, slots: SlotSet::of(memory.table.len()) }
        };
        let remembering = memories.iter().filter(|(_, memory)| memory.clock.is_some());
        self.this_pass = remembering.map(|(&id, memory)| (id, begin(memory))).collect();
    }

    /// Whether this pass has so far found no client of this slot at another backend.
    fn is_first(&mut self, service: ServiceId, slot: u32) -> bool {
        self.this_pass.get_mut(&service).is_some_and(|pass| pass.slots.insert(slot))
    }

    /// Counts a client, or forgets the client if the service does not remember it. Returns the client's slot if the
    /// caller must flag this slot.
    fn look_again(
        &mut self,
        index: usize,
        clients: &ClientTable,
        memories: &HashMap<ServiceId, Memory>,
    ) -> Option<(ServiceId, u32)> {
        let word = clients.words().get(index)?;
        let raw = word.load(Ordering::Relaxed);
        let entry = Entry(raw);
        if entry.is_empty() {
            return None;
        }
        // The sweep empties the entry only if the program has not changed the entry since the scan.
        let forget = || {
            let _ = word.compare_exchange(raw, 0, Ordering::Relaxed, Ordering::Relaxed);
        };
        let of = clients.service_of(entry.backend()).and_then(|id| Some((id, memories.get(&id)?)));
        let Some((service, memory)) = of.filter(|(_, memory)| memory.remembers(entry)) else {
            forget();
            return None;
        };
        let place = slot(raw, memory.table.len() as u32);
        let is_elsewhere = memory.table.get(place as usize) != Some(&entry.backend());
        if is_elsewhere && self.again.names(index / BUCKET_ENTRIES, entry, memory.swaps) {
            forget();
            return None;
        }
        if let Some(known) = self.known.get_mut(usize::from(entry.backend())) {
            *known += 1;
        }
        (is_elsewhere && self.is_first(service, place)).then_some((service, place))
    }
}
