//! The remaining work in the client table after a change, done in parts: it forgets clients, and converts ages to ticks
//! of another length.
//!
//! Until the controller has processed an entry, the entry's age is in ticks of the earlier length. While ages are being
//! converted, the clock of the service stands still, so that the program writes the age 0, which is the same in both
//! units.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
};

use balancer_common::{client_table::Entry, clock::Clock};
use balancer_control::{
    forgets::Forgets,
    io::{BackendId, ServiceId},
};

use super::{
    Forgotten,
    clients::{ClientTable, goes_elsewhere, seen, take},
    grace::Grace,
    memory::Memory,
};

/// An age in ticks that is greater than the age of every remembered client.
const OLDEST: u16 = 16_000;

/// The effect that a change of one service has on the service's clients.
pub(super) struct ServiceChange {
    pub(super) before: Memory,
    /// The old and the new clock for the conversion of ages.
    pub(super) ages: Option<(Clock, Clock)>,
    pub(super) forgets: Option<Forgets>,
}

/// A pass over the client table after a change.
pub(super) struct Rescan {
    services: HashMap<ServiceId, ServiceChange>,
    /// The grace period after which the program no longer records clients by the earlier state.
    grace: Option<Grace>,
    /// The entries before this position are processed.
    next: usize,
    forgotten: BTreeMap<u16, Forgotten>,
}

impl Rescan {
    /// A pass that begins when `grace` is over.
    pub(super) const fn new(services: HashMap<ServiceId, ServiceChange>, grace: Option<Grace>) -> Self {
        Self { services, grace, next: 0, forgotten: BTreeMap::new() }
    }

    /// Returns the grace period that must end before the pass can begin, if the pass has not begun.
    pub(super) const fn grace(&self) -> Option<Grace> {
        self.grace
    }

    /// Whether the pass has processed the entry at this index.
    pub(super) const fn has_read(&self, index: usize) -> bool {
        index < self.next
    }

    /// Whether the pass has processed all entries.
    pub(super) fn is_over(&self, clients: &ClientTable) -> bool {
        self.next >= clients.words().len()
    }

    /// The services whose clients the pass processes.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.services.keys().copied()
    }

    /// Processes up to `words` further entries. `memories` contains the current client memory of the services that
    /// still exist.
    pub(super) fn part(&mut self, clients: &ClientTable, memories: &HashMap<ServiceId, Memory>, words: usize) {
        let Self { services, grace, next, forgotten } = self;
        *grace = None;
        // Memories are indexed by number, so that the inner loop computes no hashes.
        let highest = services.keys().map(|id| usize::from(id.0) + 1).max().unwrap_or(0);
        let mut by_number = Vec::new();
        by_number.resize_with(highest, || None);
        for (id, change) in services.iter() {
            if let Some(place) = by_number.get_mut(usize::from(id.0)) {
                *place = Some((change, memories.get(id)));
            }
        }
        let end = next.saturating_add(words).min(clients.words().len());
        for word in clients.words().get(*next..end).unwrap_or_default() {
            let entry = Entry(word.load(Ordering::Relaxed));
            if entry.is_empty() {
                continue;
            }
            let service = clients.service_of(entry.backend()).map(|id| usize::from(id.0));
            let Some((change, after)) = service.and_then(|id| by_number.get(id).copied().flatten()) else { continue };
            if let (Some(ages), Some(after)) = (change.ages, after) {
                convert(word, entry, ages, after.tick);
            }
            if let Some(one) = change.forget(word, entry, after) {
                let of = forgotten.entry(entry.backend()).or_default();
                of.clients += one.clients;
                of.moved += one.moved;
            }
        }
        *next = end;
    }

    /// The number of clients that were forgotten for each backend.
    pub(super) fn forgotten(self) -> Vec<(BackendId, Forgotten)> {
        self.forgotten.into_iter().map(|(id, forgotten)| (BackendId(id), forgotten)).collect()
    }
}

impl ServiceChange {
    /// Empties the entry of a client that the service must forget. Counts the client as forgotten if it was known.
    fn forget(&self, word: &AtomicU64, entry: Entry, after: Option<&Memory>) -> Option<Forgotten> {
        let forgets = self.forgets?;
        // The ages are in ticks of the only clock that there is.
        let memory = after.filter(|after| after.clock.is_some()).unwrap_or(&self.before);
        let (clock, before) = (memory.clock?, self.before.clock?);
        let seen = |entry: Entry| seen(entry, memory.tick, clock);
        let was_known = |entry| seen(entry).as_secs() / u64::from(before.tick_seconds) <= u64::from(before.remember);
        let same = |other: Entry| other.backend() == entry.backend() && forgets.includes(seen(other));
        let entry = take(word, same).filter(|&entry| was_known(entry))?;
        let goes = match after {
            Some(after) if forgets.table_says_where() => goes_elsewhere(entry, after),
            Some(_) | None => true,
        };
        Some(Forgotten { clients: 1, moved: u64::from(goes) })
    }
}

/// Converts an age to ticks of another clock, unless the program has changed the entry in the meantime.
fn convert(word: &AtomicU64, entry: Entry, (old, new): (Clock, Clock), now: u16) {
    // Ages are rounded down, so that no client is forgotten too early.
    let age = u64::from(entry.age(now)) * u64::from(old.tick_seconds) / u64::from(new.tick_seconds);
    let aged = entry.aged(u16::try_from(age).unwrap_or(u16::MAX).min(OLDEST), now);
    let _ = word.compare_exchange(entry.0, aged.0, Ordering::Relaxed, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use balancer_common::client_table::{BUCKET_ENTRIES, Bucket};
    use proptest::prelude::*;

    use super::*;
    use crate::mapped::MappedArray;

    const BUCKETS: usize = 8;
    const ENTRIES: usize = BUCKETS * BUCKET_ENTRIES;
    const SERVICE: ServiceId = ServiceId(3);
    const OTHER: ServiceId = ServiceId(4);
    const NOW: u16 = 9000;
    const OLD: Clock = Clock { tick_seconds: 2, remember: 3600 };

    /// A table with one client in each entry, at a backend from 1 to 4, with this age in ticks. Backend 4 belongs to
    /// another service.
    fn table(clients: &[(u16, u16)]) -> ClientTable {
        let [buckets, _] = MappedArray::<Bucket>::twice(BUCKETS).unwrap();
        let mut table = ClientTable::new(buckets, 5);
        (1..5).for_each(|id| table.belongs(BackendId(id), Some(if id == 4 { OTHER } else { SERVICE })));
        for ((word, &(backend, age)), tag) in table.words().iter().zip(clients).zip(1..) {
            let entry = Entry::new(tag, backend, NOW).aged(age, NOW);
            word.store(entry.0, Ordering::Relaxed);
        }
        table
    }

    fn memory(clock: Clock) -> Memory {
        let mut memory = Memory::new(NOW);
        memory.retime(Some(clock), std::time::Duration::ZERO);
        memory.table = [1, 2, 3].into();
        memory
    }

    proptest! {
        #[test]
        fn when_ages_are_converted_in_parts_then_they_are_rounded_down_and_exactly_the_old_clients_are_forgotten(
            clients in prop::collection::vec((1u16..5, 0u16..3600), ENTRIES),
            touched in prop::collection::vec(0..ENTRIES, 0..8),
            minutes in 1u32..3000,
            part in 1usize..ENTRIES + 2,
        ) {
            let new = Clock::new(minutes * 60);
            let forgets = (u32::from(new.remember) * new.tick_seconds < 7200).then_some(Forgets::Unseen(new));
            let table = table(&clients);
            let memories = HashMap::from([(SERVICE, memory(new)), (OTHER, memory(OLD))]);
            let change = ServiceChange { before: memory(OLD), ages: Some((OLD, new)), forgets };
            let mut rescan = Rescan::new(HashMap::from([(SERVICE, change)]), None);
            let touch = |index: usize| {
                let word = &table.words()[index];
                word.store(Entry(word.load(Ordering::Relaxed)).aged(0, NOW).0, Ordering::Relaxed);
            };
            touched.iter().for_each(|&index| touch(index));
            while !rescan.is_over(&table) {
                rescan.part(&table, &memories, part);
                // A client whose entry was processed and who is still known may send another packet.
                touched.iter().filter(|&&index| rescan.has_read(index) && table.words()[index].load(Ordering::Relaxed) != 0).for_each(|&index| touch(index));
            }
            let mut forgotten = HashMap::<u16, u64>::new();
            for (index, &(backend, age)) in clients.iter().enumerate() {
                let entry = Entry(table.words()[index].load(Ordering::Relaxed));
                let age = if touched.contains(&index) { 0 } else { age };
                let seconds = u32::from(age) * 2;
                let is_old = seconds / new.tick_seconds > u32::from(new.remember);
                if backend == 4 {
                    prop_assert_eq!((entry.backend(), entry.age(NOW)), (4, age));
                } else if forgets.is_some() && is_old {
                    prop_assert!(entry.is_empty());
                    *forgotten.entry(backend).or_default() += 1;
                } else {
                    prop_assert_eq!(entry.backend(), backend);
                    prop_assert_eq!(u32::from(entry.age(NOW)), seconds / new.tick_seconds);
                }
            }
            let counted: HashMap<u16, u64> = rescan.forgotten().into_iter().map(|(id, of)| (id.0, of.clients)).collect();
            prop_assert_eq!(counted, forgotten);
        }
    }
}
