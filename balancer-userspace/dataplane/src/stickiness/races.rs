//! Packets against swaps, sweeps, failures and forgetting, in orders that a scheduler chooses (`shuttle`).
//!
//! The controller's half is the real one. Packets take the steps of `balancer-ebpf/src/steer.rs` with the shared code of
//! `balancer-common`; between any two of their accesses to what is shared, other threads may run. More schedules:
//! `RACES=100000`; those of a certain seed: `SHUTTLE_RANDOM_SEED`.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    mem::offset_of,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry},
    clock::Clock,
    map_types::{LiveTable, NO_BACKEND, SLOT_EXCEPTIONS, SlotLine, SlotPlace, TableSlot},
    memory::{BackendFacts, Recorded, consult},
    query::Query,
    verdict::MoveCause,
};
use balancer_core::{
    controller::Gone,
    io::{BackendId, ServiceId},
};
use shuttle::{
    rand::{Rng as _, thread_rng},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64},
    },
    thread,
};

use super::Stickiness;
use crate::{
    Swept, clients::ClientTable, grace::GracePeriods, mapped::MappedArray, memory::Memory, sweep::Scanner,
    tables::Tables, threads::Shuttled,
};

const SERVICE: ServiceId = ServiceId(1);
const BACKENDS: usize = 16;
const BUCKETS: usize = 2;
/// Ticks for which a client is remembered.
const REMEMBER: u16 = 4096;
/// Entries in one part of a sweep, four of which are a pass.
const PART: usize = 4;
/// Slots of all tables but where their number matters.
const SIZE: usize = 4;

/// A client by its hash, such that it is in this bucket and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client(u64);

impl Client {
    const fn new(bucket: u64, slot: u64, number: u64) -> Self {
        let tag = slot * ((1 << 32) / SIZE as u64) + number + 1;
        Self(tag << 32 | bucket)
    }

    const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn bucket(self) -> usize {
        self.0 as usize & (BUCKETS - 1)
    }

    /// Returns the client's bit among those that have been seen.
    const fn bit(self) -> u64 {
        1 << (self.bucket() * 8 + self.tag() as usize % 8)
    }
}

/// Packets that have begun and not ended.
#[derive(Default)]
struct OnTheirWay {
    begun: u64,
    packets: BTreeSet<u64>,
}

/// The maps that packets see, and the packets that are on their way.
struct Packets {
    slots: MappedArray<SlotLine>,
    buckets: MappedArray<Bucket>,
    table: AtomicU64,
    /// The first slot of the newest table before it is published. No step of its own.
    announced: std::sync::atomic::AtomicU16,
    /// The first slot of the last one that is.
    published: AtomicU16,
    tick: AtomicU16,
    seen: AtomicU64,
    keeps_known: [AtomicBool; BACKENDS],
    /// Known clients moved from each backend, as packets count them.
    moved_from: [AtomicU64; BACKENDS],
    /// The number of steps that a packet leaves to others between a move and counting it.
    counts_after: AtomicU64,
    on_their_way: Mutex<OnTheirWay>,
    left: Condvar,
}

/// The result of steering a packet.
#[derive(Clone, Copy, Debug)]
struct Steered {
    backend: u16,
    /// Whether its client has an entry from now on.
    is_known: bool,
    /// The newest table that was announced when it looked into its own.
    newest: u16,
}

/// A bucket of which each access is an own step.
struct Words<'a>(&'a Packets, usize);

impl Entries for Words<'_> {
    fn load(&self, index: usize) -> Entry {
        self.0.step();
        Entry(self.0.buckets.words()[self.1 * BUCKET_ENTRIES + index].load(SeqCst))
    }

    fn store(&self, index: usize, entry: Entry) {
        self.0.step();
        self.0.buckets.words()[self.1 * BUCKET_ENTRIES + index].store(entry.0, SeqCst);
    }
}

impl Packets {
    /// Lets others run.
    fn step(&self) {
        self.tick.load(SeqCst);
    }

    fn send(&self, client: Client) -> Steered {
        let number = {
            let mut way = self.on_their_way.lock().unwrap();
            way.begun += 1;
            let number = way.begun;
            way.packets.insert(number);
            number
        };
        let steered = self.steer(client);
        self.on_their_way.lock().unwrap().packets.remove(&number);
        self.left.notify_all();
        steered
    }

    fn steer(&self, client: Client) -> Steered {
        let table = LiveTable::from_word(self.table.load(SeqCst));
        self.step();
        let live = self.slot(table, client.0);
        let newest = self.announced.load(SeqCst);
        let always = live.flags & SLOT_EXCEPTIONS != 0;
        if !always && self.seen.load(SeqCst) & client.bit() != 0 {
            return Steered { backend: live.backend, is_known: true, newest };
        }
        let query = Query {
            hash: client.0,
            service: SERVICE.0,
            live: Some(live.backend),
            live_is_home: true,
            pinned: false,
            migrates: false,
            opens: false,
            datagram: false,
            failback: false,
            peeks: false,
            marks: !always,
            now: self.tick.load(SeqCst),
            remember: REMEMBER,
            idle: 1,
        };
        let facts = |id: u16| {
            let keeps_known = self.keeps_known[usize::from(id)].load(SeqCst);
            Some(BackendFacts { service: SERVICE.0, keeps_known, cause: MoveCause::Down.into() })
        };
        let answer = consult(&Words(self, client.bucket()), &query, facts, || true);
        if answer.moved_from != NO_BACKEND {
            (0..self.counts_after.load(SeqCst)).for_each(|_| self.step());
            self.moved_from[usize::from(answer.moved_from)].fetch_add(1, SeqCst);
        }
        if answer.known && !always {
            self.seen.fetch_or(client.bit(), SeqCst);
        }
        let is_known = matches!(answer.recorded, Recorded::Known | Recorded::Inserted);
        Steered { backend: answer.backend.expect("every slot has a backend"), is_known, newest }
    }

    /// A hash's slot in a table, read in two steps as the kernel program does.
    fn slot(&self, table: LiveTable, hash: u64) -> TableSlot {
        let SlotPlace { line, index } = table.place(slot(hash, table.size));
        let flags = self.slots.word64(line as usize, offset_of!(SlotLine, flags)).load(SeqCst);
        self.step();
        SlotLine { flags, ..self.slots.load(line as usize) }.slot(index)
    }

    /// Waits until everybody who is on the way now has left.
    fn wait(&self) {
        let way = self.on_their_way.lock().unwrap();
        let last = way.begun;
        drop(self.left.wait_while(way, |way| way.packets.first().is_some_and(|&first| first <= last)).unwrap());
    }

    /// Every client that is known, and where.
    fn known(&self) -> impl Iterator<Item = Entry> {
        self.buckets.words().iter().map(|word| Entry(word.load(SeqCst))).filter(|entry| !entry.is_empty())
    }
}

/// The controller: one thread, as the real one.
struct Controller {
    stickiness: Stickiness,
    packets: Arc<Packets>,
}

impl Controller {
    /// With a live table, in a map of so many lines.
    fn new(lines: u32, table: &[u16]) -> Self {
        let [slots, slots_seen] = MappedArray::twice(lines as usize).unwrap();
        let [buckets, buckets_seen] = MappedArray::twice(BUCKETS).unwrap();
        let packets = Arc::new(Packets {
            slots: slots_seen,
            buckets: buckets_seen,
            table: AtomicU64::new(0),
            announced: table[0].into(),
            published: AtomicU16::new(table[0]),
            tick: AtomicU16::new(1),
            seen: AtomicU64::new(0),
            keeps_known: std::array::from_fn(|_| AtomicBool::new(true)),
            moved_from: std::array::from_fn(|_| AtomicU64::new(0)),
            counts_after: AtomicU64::new(1),
            on_their_way: Mutex::default(),
            left: Condvar::new(),
        });
        let waiting = Arc::clone(&packets);
        let periods = Arc::new(GracePeriods::waiting_by(&Shuttled, Box::new(move || waiting.wait())).unwrap());
        let mut clients = ClientTable::new(buckets, BACKENDS);
        (1..BACKENDS).for_each(|id| clients.belongs(BackendId(id as u16), Some(SERVICE)));
        let tables = Tables::new(slots, lines, Arc::clone(&periods));
        let scanner = Scanner::spawn(&Shuttled).unwrap();
        let mut this = Self { stickiness: Stickiness::new(tables, clients, scanner, periods), packets };
        this.swap(table);
        let first = this.stickiness.tables.location(SERVICE).unwrap();
        this.packets.table.store(first.to_word(), SeqCst);
        this.stickiness.tables.published(&HashMap::from([(SERVICE, 0)]));
        this
    }

    fn swap(&mut self, table: &[u16]) {
        let packets = Arc::clone(&self.packets);
        let begin = || {
            let mut memory = Memory::new(1);
            memory.clock = Some(Clock { tick_seconds: 1, remember: REMEMBER });
            memory
        };
        let publish = |_, live: LiveTable| {
            packets.step();
            packets.announced.store(table[0], SeqCst);
            packets.table.store(live.to_word(), SeqCst);
            packets.published.store(table[0], SeqCst);
        };
        self.stickiness.swap(SERVICE, (Arc::from(table), Some(table)), false, begin, publish).unwrap();
    }

    fn sweep(&mut self) -> Swept {
        self.stickiness.sweep(PART, |_| false)
    }

    /// A whole part.
    fn sweep_part(&mut self) -> Swept {
        loop {
            match self.sweep() {
                Swept::GoesOn => thread::yield_now(),
                over @ (Swept::Rests | Swept::Ends(_)) => return over,
            }
        }
    }

    /// Ends a pass, or makes one: whether nobody was found at a backend.
    fn sweep_finds_nobody_at(&mut self, backend: BackendId) -> bool {
        loop {
            match self.sweep() {
                Swept::Ends(known) => return known.iter().all(|&(id, _)| id != backend),
                Swept::Rests | Swept::GoesOn => thread::yield_now(),
            }
        }
    }

    /// Complete passes, with nothing else to do.
    fn sweep_passes(&mut self, count: usize) {
        for _ in 0..count {
            self.sweep_finds_nobody_at(BackendId(NO_BACKEND));
        }
    }

    /// Fewer parts than `most`, if passes may begin and looks are taken. One that is being taken when this ends is acted on after
    /// whatever comes next.
    fn sweep_parts(&mut self, most: usize) {
        for _ in 0..thread_rng().gen_range(0..2 * most) {
            if self.sweep() == Swept::GoesOn && thread_rng().gen_bool(0.7) {
                thread::yield_now();
            }
        }
    }

    fn forget(&mut self, client: Client) {
        self.stickiness.forget(SERVICE, client.0);
        self.packets.seen.fetch_and(!client.bit(), SeqCst);
    }

    /// Nobody has been seen in a new period, and the clock goes on.
    fn advance(&mut self) {
        self.packets.seen.store(0, SeqCst);
        let memory = self.stickiness.memories.get_mut(&SERVICE).unwrap();
        memory.tick += 1;
        self.packets.tick.store(memory.tick, SeqCst);
    }

    /// With nobody on the way: who is elsewhere is in a flagged slot.
    fn assert_exceptions_are_flagged(&self) {
        let table = self.stickiness.tables.location(SERVICE).unwrap();
        for entry in self.packets.known() {
            let live = self.packets.slot(table, entry.0);
            assert!(
                live.backend == entry.backend() || live.flags & SLOT_EXCEPTIONS != 0,
                "{entry:x?} is not at {}, and its slot has no exception",
                live.backend
            );
        }
    }

    fn exceptions(&self) -> u64 {
        self.stickiness.tables.exceptions()
    }

    /// Disturbs, sweeps for a while, and disturbs again.
    fn disturb(&mut self, mut disturb: impl FnMut(&mut Self)) {
        for _ in 0..thread_rng().gen_range(1..6) {
            disturb(self);
            self.sweep_parts(12);
        }
    }
}

/// Plays a scenario in many orders: half of them random, half with few changes of thread at chosen places (PCT).
fn in_many_orders(scenario: fn()) {
    let schedules = env::var("RACES").map_or(Ok(2000), |number| number.parse()).expect("RACES is a number");
    shuttle::check_random(scenario, schedules / 2);
    shuttle::check_pct(scenario, schedules / 2, 4);
}

/// Two tables that have nothing in common.
const HERE: [u16; SIZE] = [1; SIZE];
const THERE: [u16; SIZE] = [2; SIZE];

#[test]
fn a_known_client_stays_through_swaps_sweeps_and_other_clients_comings_and_goings() {
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        let clients = [Client::new(0, 0, 0), Client::new(1, 3, 0)];
        let comes_and_goes = Client::new(0, 0, 1);
        let homes = clients.map(|client| controller.packets.send(client).backend);
        let others = Arc::clone(&controller.packets);
        let mut threads = vec![thread::spawn(move || {
            for _ in 0..3 {
                others.send(comes_and_goes);
            }
        })];
        for (client, home) in clients.into_iter().zip(homes) {
            let packets = Arc::clone(&controller.packets);
            threads.push(thread::spawn(move || {
                for _ in 0..4 {
                    let steered = packets.send(client);
                    assert_eq!(steered.backend, home, "{client:x?} was moved");
                }
            }));
        }
        controller.disturb(|controller| match thread_rng().gen_range(0..4) {
            0 => controller.swap(&HERE),
            1 => controller.swap(&THERE),
            2 => controller.forget(comes_and_goes),
            _ => controller.advance(),
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        controller.assert_exceptions_are_flagged();
        // Once home, nobody is an exception.
        controller.swap(&HERE);
        controller.forget(comes_and_goes);
        controller.sweep_passes(4);
        assert_eq!(controller.exceptions(), 0);
        controller.assert_exceptions_are_flagged();
    });
}

#[test]
fn whatever_the_race_who_is_elsewhere_is_in_a_flagged_slot() {
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        let clients = [Client::new(0, 0, 0), Client::new(0, 0, 1), Client::new(1, 1, 0)];
        // Each client's packets come in on two processors.
        let threads = [clients, clients].map(|clients| {
            let packets = Arc::clone(&controller.packets);
            thread::spawn(move || {
                for _ in 0..2 {
                    for client in clients {
                        packets.send(client);
                    }
                }
            })
        });
        controller.disturb(|controller| match thread_rng().gen_range(0..6) {
            0 => controller.swap(&HERE),
            1 => controller.swap(&THERE),
            2 => controller.forget(clients[thread_rng().gen_range(0..clients.len())]),
            3 => drop(controller.stickiness.forget_all(BackendId(1), 0, BUCKETS * BUCKET_ENTRIES)),
            _ => controller.advance(),
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        controller.assert_exceptions_are_flagged();
        controller.sweep_passes(3);
        controller.assert_exceptions_are_flagged();
    });
}

#[test]
fn a_packet_on_its_way_makes_nobody_known_where_he_was_before_he_was_forgotten() {
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        // In the bucket that is looked at last.
        let client = Client::new(1, 0, 0);
        controller.packets.send(client);
        controller.swap(&THERE);
        controller.advance();
        controller.sweep_passes(thread_rng().gen_range(0..2));
        controller.sweep_parts(4);
        let packets = Arc::clone(&controller.packets);
        let packet = thread::spawn(move || {
            packets.send(client);
        });
        controller.sweep_parts(4);
        controller.forget(client);
        controller.sweep_parts(8);
        packet.join().unwrap();
        controller.assert_exceptions_are_flagged();
        controller.sweep_passes(2);
        let at: Vec<u16> = controller.packets.known().map(Entry::backend).collect();
        assert!(at.is_empty() || at == [THERE[0]], "{at:?}");
    });
}

#[test]
fn once_a_failure_is_told_no_packet_goes_to_the_failed_backend() {
    const FAILED: u16 = 2;
    in_many_orders(|| {
        let mut controller = Controller::new(3, &[1, FAILED, 1, FAILED]);
        let told = Arc::new(AtomicBool::new(false));
        let clients = [Client::new(0, 1, 0), Client::new(1, 0, 0), Client::new(1, 3, 1)];
        let threads = clients.map(|client| {
            let (packets, told) = (Arc::clone(&controller.packets), Arc::clone(&told));
            thread::spawn(move || {
                let mut at = None;
                for _ in 0..4 {
                    let told = told.load(SeqCst);
                    let Steered { backend, is_known, .. } = packets.send(client);
                    assert!(!told || backend != FAILED, "{client:x?} went to the failed backend");
                    assert!(at.is_none_or(|at| at == backend || at == FAILED), "{client:x?} was moved for no reason");
                    at = is_known.then_some(backend);
                }
            })
        });
        controller.sweep_part();
        // Those who hold it must be let go before the table that they then follow can name it no more, or after.
        if thread_rng().gen_bool(0.5) {
            controller.swap(&[1, 3, 1, 3]);
            controller.packets.keeps_known[usize::from(FAILED)].store(false, SeqCst);
        } else {
            controller.packets.keeps_known[usize::from(FAILED)].store(false, SeqCst);
            controller.swap(&[1, 3, 1, 3]);
        }
        told.store(true, SeqCst);
        controller.sweep_parts(12);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        controller.assert_exceptions_are_flagged();
    });
}

#[test]
fn all_moves_from_a_removed_backend_are_counted_before_its_id_is_free() {
    const REMOVED: BackendId = BackendId(HERE[0]);
    const PASS_AND_MORE: u64 = 100;
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        let client = Client::new(0, 0, 0);
        // The pass under way has left the bucket before the client is known.
        assert_eq!([controller.sweep_part(), controller.sweep_part()], [Swept::Rests, Swept::Rests]);
        controller.packets.send(client);
        controller.swap(&THERE);
        controller.packets.keeps_known[usize::from(REMOVED.0)].store(false, SeqCst);
        controller.packets.counts_after.store(PASS_AND_MORE, SeqCst);
        let mut in_a_row = u32::from(controller.sweep_finds_nobody_at(REMOVED));
        let packets = Arc::clone(&controller.packets);
        let packet = thread::spawn(move || {
            packets.send(client);
        });
        // The packet has moved the client, and need not have counted it.
        while controller.packets.known().any(|entry| entry.backend() == REMOVED.0) {
            thread::yield_now();
        }
        while in_a_row < Gone::ENOUGH_SWEEPS {
            in_a_row = if controller.sweep_finds_nobody_at(REMOVED) { in_a_row + 1 } else { 0 };
        }
        let moves = || controller.packets.moved_from[usize::from(REMOVED.0)].load(SeqCst);
        let counted = moves();
        packet.join().unwrap();
        assert_eq!(moves(), counted, "a packet counted for whoever has the id now");
    });
}

#[test]
fn no_packet_reads_a_table_that_was_not_live_while_it_was_on_its_way() {
    /// Slots that fill two lines.
    const LONG: usize = 20;
    const TABLES: u16 = 7;
    in_many_orders(|| {
        // Room for the live table and one more, so that lines are written again at the next swap but one.
        let mut controller = Controller::new(4, &[1; LONG]);
        let threads = [Client::new(0, 0, 0), Client::new(1, 3, 0)].map(|client| {
            let packets = Arc::clone(&controller.packets);
            thread::spawn(move || {
                for number in 0..4 {
                    let first = packets.published.load(SeqCst);
                    // Another client each time, whom nobody knows.
                    let Steered { backend, newest, .. } = packets.send(Client(client.0 + (number << 32)));
                    assert!((first..=newest).contains(&backend), "table {backend} while {first} to {newest} were live");
                }
            })
        });
        for table in 2..=TABLES {
            controller.swap(&[table; LONG]);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
