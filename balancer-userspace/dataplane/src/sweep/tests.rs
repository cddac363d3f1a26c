//! Tests that process the findings of a scan after the state has changed.

use std::{collections::BTreeMap, time::Duration};

use balancer_common::{client_table::Bucket, clock::Clock};
use proptest::prelude::*;

use super::*;
use crate::mapped::MappedArray;

const BUCKETS: usize = 4;
const ENTRIES: usize = BUCKETS * BUCKET_ENTRIES;
const SERVICE: ServiceId = ServiceId(3);
const OTHER: ServiceId = ServiceId(1);
/// The first lookup table: backends 1 to 3 belong to the service, backend 4 to the other service, and backend 5 to no
/// service.
const TABLE: [u16; 4] = [1, 2, 3, 1];
const OTHERS: [u16; 2] = [4, 4];
const NOW: u16 = 9000;
const REMEMBER: u16 = 100;

struct Bench {
    clients: ClientTable,
    memories: HashMap<ServiceId, Memory>,
    sweep: Sweep,
}

/// An entry in a test: its backend, its age in ticks, and its slot in a table of four slots.
type Client = (u16, u16, u32);

fn entry((backend, age, slot): Client, number: u32) -> Entry {
    Entry::new((slot << 30) + number + 1, backend, NOW).aged(age, NOW)
}

fn clock(remember: u16) -> Clock {
    Clock { tick_seconds: 1, remember }
}

impl Bench {
    /// Puts one client into each entry of the table, from the first entry on.
    fn new(clients: &[Client]) -> Self {
        let [buckets, _] = MappedArray::<Bucket>::twice(BUCKETS).unwrap();
        let mut table = ClientTable::new(buckets, 6);
        (1..5).for_each(|id| table.belongs(BackendId(id), Some(if id == 4 { OTHER } else { SERVICE })));
        for ((word, &client), number) in table.words().iter().zip(clients).zip(0..) {
            word.store(entry(client, number).0, Ordering::Relaxed);
        }
        let memory = |table: &[u16]| {
            let mut memory = Memory::new(NOW);
            memory.retime(Some(clock(REMEMBER)), Duration::ZERO);
            memory.settle(Duration::ZERO);
            memory.swapped(table.into());
            memory.tick = NOW;
            memory
        };
        let memories = HashMap::from([(SERVICE, memory(&TABLE)), (OTHER, memory(&OTHERS))]);
        Self { clients: table, memories, sweep: Sweep::new(6) }
    }

    fn memory(&mut self) -> &mut Memory {
        self.memories.get_mut(&SERVICE).unwrap()
    }

    /// Runs one part of the sweep, and calls `between` after the scan and before the processing. Returns the slots that
    /// must be flagged.
    fn part(&mut self, words: usize, at_once: usize, between: impl FnOnce(&mut Self)) -> Vec<(ServiceId, u32)> {
        assert!(self.sweep.rests());
        let scan = self.sweep.part(words, &self.clients, &self.memories);
        assert!(self.sweep.looks());
        let scanned = scan.run();
        between(self);
        self.sweep.found(scanned);
        let mut flagged = Vec::new();
        while !self.sweep.rests() {
            flagged.extend(self.sweep.act(at_once, &self.clients, &self.memories));
        }
        flagged
    }

    /// Runs a pass that consists of one part. Returns the result of the pass and the slots that must be flagged.
    fn pass(&mut self, between: impl FnOnce(&mut Self)) -> (Pass, Vec<(ServiceId, u32)>) {
        let flagged = self.part(usize::MAX, usize::MAX, between);
        (self.end().unwrap(), flagged)
    }

    fn end(&mut self) -> Option<Pass> {
        self.sweep.end(&self.clients, &self.memories, |_| true)
    }

    fn set(&self, index: usize, entry: Entry) {
        self.clients.words()[index].store(entry.0, Ordering::Relaxed);
    }

    fn at(&self, index: usize) -> Entry {
        Entry(self.clients.words()[index].load(Ordering::Relaxed))
    }

    /// Runs a pass over a table with one client, and calls `between` after the scan. Returns whether the client still
    /// has an entry and whether it is counted.
    fn meanwhile(client: Client, between: impl FnOnce(&mut Self)) -> bool {
        let mut bench = Self::new(&[client]);
        let (pass, _) = bench.pass(between);
        let is_there = !bench.at(0).is_empty();
        assert_eq!(pass.known, if is_there { vec![(BackendId(client.0), 1)] } else { Vec::new() });
        assert_eq!(bench.sweep.entries(), u64::from(is_there));
        is_there
    }
}

#[test]
fn when_a_client_was_expired_at_the_scan_then_it_is_forgotten_only_if_it_still_is() {
    let (expired, stranger) = ((1, REMEMBER + 1, 0), (5, 0, 0));
    assert!(Bench::meanwhile((1, REMEMBER, 0), |_| ()));
    assert!(!Bench::meanwhile(expired, |_| ()));
    assert!(!Bench::meanwhile(stranger, |_| ()));
    // A packet from the client arrives.
    assert!(Bench::meanwhile(expired, |bench| bench.set(0, bench.at(0).aged(0, NOW))));
    // The service now remembers the client for a longer time.
    assert!(Bench::meanwhile(expired, |bench| bench.memory().retime(Some(clock(REMEMBER + 1)), Duration::ZERO)));
    // The backend is added to the service.
    assert!(Bench::meanwhile(stranger, |bench| bench.clients.belongs(BackendId(5), Some(SERVICE))));
}

#[test]
fn when_a_remembered_client_changes_after_the_scan_then_the_next_scan_counts_it() {
    let mut bench = Bench::new(&[(1, REMEMBER, 0)]);
    let (pass, _) = bench.pass(|bench| bench.memory().tick += 1);
    assert_eq!(pass.known, [(BackendId(1), 1)]);
    assert_eq!(bench.pass(|_| ()).0.known, []);
    assert!(bench.at(0).is_empty());
}

#[test]
fn when_a_swap_follows_a_scan_then_the_count_of_passes_begins_anew() {
    let mut bench = Bench::new(&[(1, 0, 1), (1, 0, 2)]);
    assert_eq!(bench.pass(|_| ()).1.len(), 2);
    let settled = |pass: Pass| BTreeMap::from_iter(pass.settled).remove(&SERVICE);
    // Neither this pass nor the next pass began after the swap of the table.
    let (pass, _) = bench.pass(|bench| bench.memory().swapped([1, 2, 1, 1].into()));
    assert_eq!(settled(pass), None);
    let (pass, flagged) = bench.pass(|_| ());
    assert_eq!((settled(pass), flagged), (None, vec![(SERVICE, 1)]));
    assert_eq!(settled(bench.pass(|_| ()).0), Some(vec![0, 2, 3]));
}

#[test]
fn when_a_client_moves_elsewhere_after_the_scan_then_its_flag_stays() {
    let mut bench = Bench::new(&[(1, 0, 0)]);
    bench.pass(|_| ());
    let (pass, _) = bench.pass(|bench| {
        bench.set(0, entry((1, 0, 2), 0));
        bench.sweep.found_elsewhere(SERVICE, 2);
    });
    assert_eq!(BTreeMap::from_iter(pass.settled)[&SERVICE], [0, 1, 3]);
}

#[test]
fn when_a_forgotten_client_reappears_then_it_is_forgotten_again_unless_it_is_elsewhere() {
    for (forgotten, now, stays) in [(1, 1, false), (1, 2, true), (2, 1, true)] {
        let mut bench = Bench::new(&[]);
        bench.sweep.forgot(0, entry((forgotten, 0, 2), 0), 1);
        bench.set(0, entry((now, 0, 2), 0));
        bench.pass(|_| ());
        assert_eq!(!bench.at(0).is_empty(), stays, "{forgotten}, then {now}");
    }
    for (swaps, stays) in [(1, false), (2, true)] {
        let mut bench = Bench::new(&[(1, 0, 2)]);
        bench.sweep.forgot_all(BackendId(1), swaps);
        let (pass, flagged) = bench.pass(|_| ());
        assert_eq!((pass.known.len(), flagged.len()), (usize::from(stays), usize::from(stays)));
        assert_eq!(!bench.at(0).is_empty(), stays);
    }
}

fn clients() -> impl Strategy<Value = Vec<Client>> {
    prop::collection::vec((1u16..6, 0..2 * REMEMBER, 0u32..4), 0..=ENTRIES)
}

proptest! {
    #[test]
    fn when_a_pass_has_any_number_of_parts_then_each_entry_is_processed_once(
        clients in clients(), words in 1..=ENTRIES, at_once in 1..=ENTRIES,
    ) {
        let mut bench = Bench::new(&clients);
        let mut flagged = Vec::new();
        let pass = loop {
            flagged.extend(bench.part(words, at_once, |_| ()));
            if let Some(pass) = bench.end() {
                break pass;
            }
        };
        let mut known = BTreeMap::<u16, u64>::new();
        let mut elsewhere = Vec::new();
        for (index, &(backend, age, slot)) in clients.iter().enumerate() {
            let stays = backend < 5 && age <= REMEMBER;
            prop_assert_eq!(!bench.at(index).is_empty(), stays);
            if !stays {
                continue;
            }
            *known.entry(backend).or_default() += 1;
            if backend < 4 && TABLE[slot as usize] != backend {
                elsewhere.push((SERVICE, slot));
            }
        }
        let known: Vec<_> = known.into_iter().map(|(id, count)| (BackendId(id), count)).collect();
        prop_assert_eq!(pass.known, known);
        elsewhere.sort_unstable();
        elsewhere.dedup();
        flagged.sort_unstable();
        prop_assert_eq!(flagged, elsewhere);
    }

    #[test]
    fn when_anything_changes_after_the_scan_then_no_remembered_client_is_forgotten(
        clients in clients(),
        touched in prop::collection::vec(0..ENTRIES, 0..ENTRIES),
        remember in 1..2 * REMEMBER,
        later in 0..REMEMBER,
        fifth in any::<bool>(),
    ) {
        let tick = |backend| if backend < 4 { NOW + later } else { NOW };
        let mut bench = Bench::new(&clients);
        bench.pass(|bench| {
            if fifth {
                bench.clients.belongs(BackendId(5), Some(OTHER));
            }
            let memory = bench.memory();
            memory.retime(Some(clock(remember)), Duration::ZERO);
            memory.tick = NOW + later;
            for &index in &touched {
                let entry = bench.at(index);
                if !entry.is_empty() {
                    bench.set(index, entry.aged(0, tick(entry.backend())));
                }
            }
        });
        for (index, &client) in clients.iter().enumerate() {
            let most = if client.0 < 4 { remember } else { REMEMBER };
            let age = entry(client, index as u32).age(tick(client.0));
            let is_remembered = (client.0 < 5 || fifth) && (age <= most || touched.contains(&index));
            prop_assert!(!is_remembered || !bench.at(index).is_empty(), "{client:?}");
        }
    }
}
