//! The controller's view of the client table: which clients are known, which services they belong to, and how the
//! controller makes the balancer forget them.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry, bucket, find},
    clock::Clock,
    map_types::{ALL_DOWN, NO_BACKEND},
};
use balancer_control::io::{BackendId, ServiceId};

use super::{
    Forgotten,
    mapped::{AtomicU64, MappedArray},
    memory::Memory,
    reported::Reported,
};

/// The client table, mapped into this process.
pub(super) struct ClientTable {
    buckets: Arc<MappedArray<Bucket>>,
    /// The service to which each backend belongs, by backend id. Scans of the client table that are in progress share
    /// this list.
    services: Arc<Vec<Option<ServiceId>>>,
}

/// A bucket of the client table, in the controller's mapping.
pub(super) struct Look<'a>(pub(super) &'a [AtomicU64]);

impl Look<'_> {
    /// The entry at `index`.
    pub(super) fn entry(&self, index: usize) -> Entry {
        self.load(index)
    }
}

impl Entries for Look<'_> {
    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed)))
    }

    fn store(&self, index: usize, entry: Entry) {
        if let Some(word) = self.0.get(index) {
            word.store(entry.0, Ordering::Relaxed);
        }
    }
}

/// A view of the client table that another thread can use.
pub struct KnownClients {
    buckets: Arc<MappedArray<Bucket>>,
    /// The clock and the current tick of each backend's service, by backend id.
    clocks: Vec<Option<(Clock, u16)>>,
    /// The clients that other programs have reported.
    reported: Arc<Reported>,
}

impl KnownClients {
    /// The number of buckets of the client table, a power of two.
    #[must_use]
    pub fn buckets(&self) -> u32 {
        self.buckets.len() as u32
    }

    /// Calls `each` with every valid entry and with the time since the entry's client was seen.
    pub fn for_each(&self, mut each: impl FnMut(Entry, Duration)) {
        self.for_each_placed(|_, entry, seen| each(entry, seen));
    }

    /// Calls `each` with every valid entry, with the time since the entry's client was seen, and with whether another
    /// program has reported that the client is at the entry's backend.
    pub fn for_each_with_origin(&self, mut each: impl FnMut(Entry, Duration, bool)) {
        self.for_each(|entry, seen| each(entry, seen, self.reported.has(entry)));
    }

    /// Calls `each` with every valid entry, with its bucket, and with the time since the entry's client was seen.
    pub fn for_each_placed(&self, mut each: impl FnMut(u32, Entry, Duration)) {
        for (index, word) in self.buckets.words().iter().enumerate() {
            let entry = Entry(word.load(Ordering::Relaxed));
            if entry.is_empty() {
                continue;
            }
            let clock = self.clocks.get(usize::from(entry.backend())).copied().flatten();
            if let Some((clock, now)) = clock
                && entry.age(now) <= clock.remember
            {
                each((index / BUCKET_ENTRIES) as u32, entry, seen(entry, now, clock));
            }
        }
    }
}

/// The time since a client was seen, to the precision of a tick.
pub(super) fn seen(entry: Entry, now: u16, clock: Clock) -> Duration {
    Duration::from_secs(u64::from(entry.age(now)) * u64::from(clock.tick_seconds))
}

/// Empties an entry if the predicate `wanted` accepts it. The function retries while the program rewrites the entry.
pub(super) fn take(word: &AtomicU64, wanted: impl Fn(Entry) -> bool) -> Option<Entry> {
    let empty = |raw| wanted(Entry(raw)).then_some(0);
    word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, empty).ok().map(Entry)
}

/// Returns the number that this entry adds to the number of forgotten clients. If an entry has expired, its client is
/// not known.
pub(super) fn count(entry: Entry, memory: &Memory) -> Forgotten {
    if !memory.remembers(entry) {
        return Forgotten::default();
    }
    Forgotten { clients: 1, moved: u64::from(goes_elsewhere(entry, memory)) }
}

/// Whether the live table sends the client to another backend after the balancer has forgotten the client.
pub(super) fn goes_elsewhere(entry: Entry, memory: &Memory) -> bool {
    let live = memory.table.get(slot(entry.0, memory.table.len() as u32) as usize).copied();
    live.is_some_and(|live| live != NO_BACKEND && live != ALL_DOWN && live != entry.backend())
}

impl ClientTable {
    /// Makes an empty client table for backends whose ids are below `backends`.
    pub(super) fn new(buckets: MappedArray<Bucket>, backends: usize) -> Self {
        Self { buckets: Arc::new(buckets), services: Arc::new(vec![None; backends]) }
    }

    pub(super) fn belongs(&mut self, backend: BackendId, service: Option<ServiceId>) {
        let place = usize::from(backend.0);
        if self.services.get(place).is_some_and(|of| *of != service)
            && let Some(of) = Arc::make_mut(&mut self.services).get_mut(place)
        {
            *of = service;
        }
    }

    /// The entries, which the kernel program changes, and the current service of each backend by id.
    pub(super) fn shared(&self) -> (Arc<MappedArray<Bucket>>, Arc<Vec<Option<ServiceId>>>) {
        (Arc::clone(&self.buckets), Arc::clone(&self.services))
    }

    /// All entries of the table, which the kernel program changes.
    pub(super) fn words(&self) -> &[AtomicU64] {
        self.buckets.words()
    }

    /// The service of each backend, by the backend's id.
    pub(super) fn services(&self) -> impl ExactSizeIterator<Item = Option<ServiceId>> {
        self.services.iter().copied()
    }

    pub(super) fn service_of(&self, backend: u16) -> Option<ServiceId> {
        self.services.get(usize::from(backend)).copied().flatten()
    }

    pub(super) fn buckets(&self) -> u32 {
        self.buckets.len() as u32
    }

    /// Forgets the clients at backends that belong to no service.
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

    pub(super) fn known(&self, clocks: &HashMap<ServiceId, (Clock, u16)>, reported: Arc<Reported>) -> KnownClients {
        let of = |service: &Option<ServiceId>| clocks.get(&(*service)?).copied();
        KnownClients { buckets: Arc::clone(&self.buckets), clocks: self.services.iter().map(of).collect(), reported }
    }

    /// The entry of a client, with the entry's index.
    pub(super) fn find(&self, hash: u64) -> Option<(usize, Entry)> {
        let bucket = self.bucket(hash);
        let words = self.buckets.words().get(bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES)?;
        find(&Look(words), (hash >> 32) as u32).map(|(place, entry)| (bucket * BUCKET_ENTRIES + place, entry))
    }

    /// The bucket in which a client with this hash has its entry.
    pub(super) fn bucket(&self, hash: u64) -> usize {
        bucket(hash, self.buckets() - 1) as usize
    }

    /// Forgets the client with this hash, and returns its last entry.
    pub(super) fn forget(&self, hash: u64) -> Option<Entry> {
        let bucket = self.bucket(hash);
        let words = self.words().get(bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES)?;
        let tag = (hash >> 32) as u32;
        let is_it = |entry: Entry| !entry.is_empty() && entry.tag() == tag;
        // Two CPUs may have recorded the client in different entries; the kernel program finds the first entry.
        words.iter().filter_map(|word| take(word, is_it)).reduce(|first, _| first)
    }

    /// Forgets the clients at a backend in `words` entries from `from` on, if its service, whose memory is `memory`,
    /// remembers clients. Returns the position at which the next part of the table starts.
    pub(super) fn forget_all(
        &self,
        backend: BackendId,
        from: usize,
        words: usize,
        memory: &Memory,
    ) -> (Forgotten, Option<usize>) {
        let mut sum = Forgotten::default();
        let all = self.words();
        let end = from.saturating_add(words).min(all.len());
        for word in all.get(from..end).unwrap_or_default() {
            if let Some(entry) = take(word, |entry| !entry.is_empty() && entry.backend() == backend.0) {
                let one = count(entry, memory);
                sum.clients += one.clients;
                sum.moved += one.moved;
            }
        }
        (sum, (end < all.len()).then_some(end))
    }
}
