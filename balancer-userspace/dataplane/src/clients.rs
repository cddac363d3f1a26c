//! The controller's side of the client table: counting, ageing, and taking back exceptions, a part at a time.
//!
//! A slot's exception flag may be taken back when no client of the slot is at another backend than the table's. One
//! look is not enough: a packet on its way may write an entry that it has read before the sweep passed, and steer by a table
//! that has been swapped since. So it takes two complete passes in a row without a swap in between, each begun after every
//! packet that was on its way at the end of the last pass, or saw the old table, had left. And whatever the race, an entry
//! that is found elsewhere has its slot flagged at once.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entry, find},
    clock::Clock,
    map_types::{ALL_DOWN, NO_BACKEND},
};
use balancer_core::io::{BackendId, ServiceId};

use super::{Forgotten, mapped::MappedArray, memory::Memory};

/// The slots of one service in which some client is elsewhere.
#[derive(Clone, Debug)]
struct Elsewhere {
    swaps: u64,
    /// Slots of the service.
    size: usize,
    /// By slot, whether one is; empty: none is anywhere.
    slots: Vec<bool>,
}

impl Elsewhere {
    /// Takes note of one; whether it is the first of its slot.
    fn found(&mut self, slot: u32) -> bool {
        if self.slots.is_empty() {
            self.slots = vec![false; self.size];
        }
        self.slots.get_mut(slot as usize).is_some_and(|is| !std::mem::replace(is, true))
    }

    fn is_in(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).copied().unwrap_or(false)
    }
}

/// The mapped client table and how far the sweep has come.
pub(super) struct ClientTable {
    buckets: Arc<MappedArray<Bucket>>,
    /// By backend id: the service it belongs to.
    services: Vec<Option<ServiceId>>,
    next: usize,
    known: Vec<u64>,
    this_pass: HashMap<ServiceId, Elsewhere>,
    last_pass: HashMap<ServiceId, Elsewhere>,
    /// Forgotten since the pass began: for the next one.
    forgotten: Again,
    again: Again,
    entries: u64,
}

/// Who has been forgotten. A packet that was on its way may have written the entry once more; if that says what it said, and
/// the table has said something else all the time, it is no newcomer's.
#[derive(Debug, Default)]
struct Again {
    /// By bucket and tag: the backend, and the number of the service's last swap.
    clients: HashMap<(usize, u32), (u16, u64)>,
    /// All clients of a backend.
    backends: HashMap<u16, u64>,
}

impl Again {
    fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.backends.is_empty()
    }

    fn names(&self, bucket: usize, entry: Entry, swaps: u64) -> bool {
        self.backends.get(&entry.backend()) == Some(&swaps)
            || self.clients.get(&(bucket, entry.tag())) == Some(&(entry.backend(), swaps))
    }
}

/// What a part of a pass found.
pub(super) struct Part {
    /// Slots in which a client is elsewhere, each once in a pass.
    pub(super) elsewhere: Vec<(ServiceId, u32)>,
    /// With the last part.
    pub(super) pass: Option<Pass>,
}

/// What a complete pass found.
pub(super) struct Pass {
    /// Known clients, in rising order of ids.
    pub(super) known: Vec<(BackendId, u64)>,
    /// Slots without exceptions, by service.
    pub(super) settled: Vec<(ServiceId, Vec<u32>)>,
}

/// One bucket for a look from user space.
struct Look<'a>(&'a [AtomicU64]);

impl balancer_common::client_table::Entries for Look<'_> {
    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed)))
    }

    fn store(&self, index: usize, entry: Entry) {
        if let Some(word) = self.0.get(index) {
            word.store(entry.0, Ordering::Relaxed);
        }
    }
}

/// The client table as another thread may look at it.
pub struct KnownClients {
    buckets: Arc<MappedArray<Bucket>>,
    /// By backend id: its service's clock, and the present tick.
    clocks: Vec<Option<(Clock, u16)>>,
}

impl KnownClients {
    /// Calls `each` with every entry that is not expired, and the time since its client was seen.
    pub fn for_each(&self, mut each: impl FnMut(Entry, Duration)) {
        for word in self.buckets.words() {
            let entry = Entry(word.load(Ordering::Relaxed));
            if entry.is_empty() {
                continue;
            }
            let clock = self.clocks.get(usize::from(entry.backend())).copied().flatten();
            if let Some((clock, now)) = clock
                && entry.age(now) <= clock.remember
            {
                each(entry, seen(entry, now, clock));
            }
        }
    }
}

/// How long ago a client was seen, to a tick.
pub(super) fn seen(entry: Entry, now: u16, clock: Clock) -> Duration {
    Duration::from_secs(u64::from(entry.age(now)) * u64::from(clock.tick_seconds))
}

/// Empties an entry, if it is `wanted`, however often a packet rewrites it meanwhile.
pub(super) fn take(word: &AtomicU64, wanted: impl Fn(Entry) -> bool) -> Option<Entry> {
    let empty = |raw| wanted(Entry(raw)).then_some(0);
    word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, empty).ok().map(Entry)
}

/// What forgetting this entry comes to. An expired one is no known client.
fn count(entry: Entry, memory: &Memory) -> Forgotten {
    if memory.clock.is_none_or(|clock| entry.age(memory.tick) > clock.remember) {
        return Forgotten::default();
    }
    Forgotten { clients: 1, moved: u64::from(goes_elsewhere(entry, memory)) }
}

/// Whether the live table sends a client that is not known any more to another backend.
pub(super) fn goes_elsewhere(entry: Entry, memory: &Memory) -> bool {
    let live = memory.table.get(slot(entry.0, memory.table.len() as u32) as usize).copied();
    live.is_some_and(|live| live != NO_BACKEND && live != ALL_DOWN && live != entry.backend())
}

impl ClientTable {
    /// Of backends whose ids are below `backends`.
    pub(super) fn new(buckets: MappedArray<Bucket>, backends: usize) -> Self {
        Self {
            buckets: Arc::new(buckets),
            services: vec![None; backends],
            next: 0,
            known: vec![0; backends],
            this_pass: HashMap::new(),
            last_pass: HashMap::new(),
            forgotten: Again::default(),
            again: Again::default(),
            entries: 0,
        }
    }

    /// Known clients at the last complete pass.
    pub(super) const fn entries(&self) -> u64 {
        self.entries
    }

    pub(super) const fn at_start_of_pass(&self) -> bool {
        self.next == 0
    }

    pub(super) fn belongs(&mut self, backend: BackendId, service: Option<ServiceId>) {
        if let Some(of) = self.services.get_mut(usize::from(backend.0)) {
            *of = service;
        }
    }

    /// All entries, as packets change them.
    pub(super) fn words(&self) -> &[AtomicU64] {
        self.buckets.words()
    }

    /// The service of each backend, by its id.
    pub(super) fn services(&self) -> impl Iterator<Item = Option<ServiceId>> {
        self.services.iter().copied()
    }

    /// The service of a backend.
    pub(super) fn service_of(&self, backend: u16) -> Option<ServiceId> {
        self.services.get(usize::from(backend)).copied().flatten()
    }

    /// A client of this slot has come to be elsewhere, where the present pass may have been already.
    pub(super) fn found_elsewhere(&mut self, service: ServiceId, slot: u32) {
        if let Some(pass) = self.this_pass.get_mut(&service) {
            pass.found(slot);
        }
    }

    /// The number of buckets.
    pub(super) fn buckets(&self) -> u32 {
        self.buckets.len() as u32
    }

    /// Forgets the clients of backends that belong to no service.
    pub(super) fn forget_strangers(&self) {
        for word in self.buckets.words() {
            let raw = word.load(Ordering::Relaxed);
            let entry = Entry(raw);
            let belongs = self.services.get(usize::from(entry.backend())).is_some_and(Option::is_some);
            if !entry.is_empty() && !belongs {
                let _ = word.compare_exchange(raw, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn known(&self, clocks: &HashMap<ServiceId, (Clock, u16)>) -> KnownClients {
        let of = |service: &Option<ServiceId>| clocks.get(&(*service)?).copied();
        KnownClients { buckets: Arc::clone(&self.buckets), clocks: self.services.iter().map(of).collect() }
    }

    /// The entry of a client, and its index.
    pub(super) fn find(&self, hash: u64) -> Option<(usize, Entry)> {
        let bucket = hash as usize & (self.buckets.len() - 1);
        let words = self.buckets.words().get(bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES)?;
        find(&Look(words), (hash >> 32) as u32).map(|(place, entry)| (bucket * BUCKET_ENTRIES + place, entry))
    }

    /// Looks at up to `words` entries. Where no slot of a service `is_flagged`, none is to be settled.
    pub(super) fn sweep(
        &mut self,
        words: usize,
        services: &HashMap<ServiceId, Memory>,
        is_flagged: impl Fn(ServiceId) -> bool,
    ) -> Part {
        if self.next == 0 {
            self.begin(services);
        }
        let all = self.buckets.words();
        let end = (self.next + words).min(all.len());
        // By number, so that the inner loop needs no hashing.
        let highest = services.keys().map(|id| usize::from(id.0) + 1).max().unwrap_or(0);
        let mut by_number: Vec<Option<(&Memory, Clock, Option<&mut Elsewhere>)>> = Vec::new();
        by_number.resize_with(highest, || None);
        let mut elsewhere: HashMap<ServiceId, &mut Elsewhere> =
            self.this_pass.iter_mut().map(|(&id, elsewhere)| (id, elsewhere)).collect();
        for (id, memory) in services {
            if let (Some(clock), Some(place)) = (memory.clock, by_number.get_mut(usize::from(id.0))) {
                *place = Some((memory, clock, elsewhere.remove(id)));
            }
        }
        let mut found = Vec::new();
        for (index, word) in (self.next..).zip(all.get(self.next..end).unwrap_or_default()) {
            let raw = word.load(Ordering::Relaxed);
            let entry = Entry(raw);
            if entry.is_empty() {
                continue;
            }
            let id = usize::from(entry.backend());
            let service = self.services.get(id).copied().flatten();
            let of = service.and_then(|service| by_number.get_mut(usize::from(service.0))).and_then(Option::as_mut);
            let Some((service, (memory, _, elsewhere))) =
                service.zip(of.filter(|of| entry.age(of.0.tick) <= of.1.remember))
            else {
                // Only if nobody has touched it since.
                let _ = word.compare_exchange(raw, 0, Ordering::Relaxed, Ordering::Relaxed);
                continue;
            };
            let place = slot(raw, memory.table.len() as u32);
            if memory.table.get(place as usize) != Some(&entry.backend()) {
                if !self.again.is_empty() && self.again.names(index / BUCKET_ENTRIES, entry, memory.swaps) {
                    let _ = word.compare_exchange(raw, 0, Ordering::Relaxed, Ordering::Relaxed);
                    continue;
                }
                if elsewhere.as_mut().is_some_and(|elsewhere| elsewhere.found(place)) {
                    found.push((service, place));
                }
            }
            if let Some(known) = self.known.get_mut(id) {
                *known += 1;
            }
        }
        self.next = end;
        let pass = (end == all.len()).then(|| self.end(services, is_flagged));
        Part { elsewhere: found, pass }
    }

    /// Forgets the client of a hash. The next pass looks again.
    pub(super) fn forget(&mut self, hash: u64, memory: &Memory) -> Forgotten {
        let bucket = hash as usize & (self.buckets.len() - 1);
        let words = self.buckets.words().get(bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES);
        let tag = (hash >> 32) as u32;
        let is_it = |entry: Entry| !entry.is_empty() && entry.tag() == tag;
        // Two CPUs may have recorded it, each in a place of its own; the first one is what packets find.
        let all = words.unwrap_or_default().iter().filter_map(|word| take(word, is_it));
        let Some(entry) = all.reduce(|first, _| first) else { return Forgotten::default() };
        self.forgotten.clients.insert((bucket, tag), (entry.backend(), memory.swaps));
        count(entry, memory)
    }

    /// Forgets the clients of a backend in `words` entries from `from` on, and says where the next part begins. The pass
    /// after the last part looks again.
    pub(super) fn forget_all(
        &mut self,
        backend: BackendId,
        from: usize,
        words: usize,
        services: &HashMap<ServiceId, Memory>,
    ) -> (Forgotten, Option<usize>) {
        let mut sum = Forgotten::default();
        let service = self.services.get(usize::from(backend.0)).copied().flatten();
        let Some(memory) = service.and_then(|service| services.get(&service)) else { return (sum, None) };
        let all = self.buckets.words();
        let end = (from + words).min(all.len());
        for word in all.get(from..end).unwrap_or_default() {
            if let Some(entry) = take(word, |entry| !entry.is_empty() && entry.backend() == backend.0) {
                let one = count(entry, memory);
                sum.clients += one.clients;
                sum.moved += one.moved;
            }
        }
        let following = (end < all.len()).then_some(end);
        if following.is_none() {
            self.forgotten.backends.insert(backend.0, memory.swaps);
        }
        (sum, following)
    }

    fn begin(&mut self, services: &HashMap<ServiceId, Memory>) {
        self.known.fill(0);
        self.again = std::mem::take(&mut self.forgotten);
        self.this_pass = services
            .iter()
            .filter(|(_, memory)| memory.clock.is_some())
            .map(|(&id, memory)| (id, Elsewhere { swaps: memory.swaps, size: memory.table.len(), slots: Vec::new() }))
            .collect();
    }

    fn end(&mut self, services: &HashMap<ServiceId, Memory>, is_flagged: impl Fn(ServiceId) -> bool) -> Pass {
        self.next = 0;
        let this = std::mem::take(&mut self.this_pass);
        let mut settled = Vec::new();
        for (&id, now) in this.iter().filter(|&(&id, _)| is_flagged(id)) {
            let unchanged = services.get(&id).is_some_and(|memory| memory.swaps == now.swaps);
            let Some(before) = self.last_pass.get(&id).filter(|before| unchanged && before.swaps == now.swaps) else {
                continue;
            };
            let slots = 0..now.size as u32;
            settled.push((id, slots.filter(|&slot| !before.is_in(slot) && !now.is_in(slot)).collect()));
        }
        self.last_pass = this;
        let known: Vec<_> = (0..=u16::MAX)
            .zip(&self.known)
            .filter(|&(_, &count)| count > 0)
            .map(|(id, &count)| (BackendId(id), count))
            .collect();
        self.entries = known.iter().map(|&(_, count)| count).sum();
        Pass { known, settled }
    }
}
