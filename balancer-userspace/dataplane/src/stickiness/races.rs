//! Tests of races between packets and swaps, sweeps, failures and forgetting, in orders that a scheduler (`shuttle`)
//! chooses.
//!
//! In these tests, the controller's side is the real code. The simulated packets take the same steps as in
//! `balancer-ebpf/src/steer.rs` with the shared code of `balancer-common`; between any two accesses to shared data,
//! other threads may run. With `RACES=100000`, the tests run more schedules, and with `SHUTTLE_RANDOM_SEED`, they run
//! the schedules of one seed.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    mem::offset_of,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry, bucket},
    clock::Clock,
    map_types::{LiveTable, NO_BACKEND, SLOT_EXCEPTIONS, SlotLine, SlotPlace, TableSlot},
    memory::{Answer, BackendFacts, Recorded, consult},
    query::Query,
    verdict::MoveCause,
};
use balancer_control::{
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
    Swept, clients::ClientTable, grace::GracePeriods, mapped::MappedArray, memory::Memory, scanner::Scanner,
    tables::Tables, threads::Shuttled,
};

const SERVICE: ServiceId = ServiceId(1);
const BACKENDS: usize = 16;
const BUCKETS: usize = 2;
/// The number of ticks for which the service remembers a client.
const REMEMBER: u16 = 4096;
/// The number of entries in one part of a sweep; four such parts make a pass.
const PART: usize = 4;
/// The number of slots of all tables, except in tests that need a different number.
const SIZE: usize = 4;

/// A client, given by a hash that was chosen so that the client is in a given bucket and slot.
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
        bucket(self.0, BUCKETS as u32 - 1) as usize
    }

    /// Returns the bit of the client in the filter of recently seen clients.
    const fn bit(self) -> u64 {
        1 << (self.bucket() * 8 + self.tag() as usize % 8)
    }
}

/// The packets that have entered the simulated program and have not left it yet.
#[derive(Default)]
struct OnTheirWay {
    begun: u64,
    packets: BTreeSet<u64>,
}

/// The maps that the simulated program uses, and the packets in progress.
struct Packets {
    slots: MappedArray<SlotLine>,
    buckets: MappedArray<Bucket>,
    table: AtomicU64,
    /// The first slot of the newest table, which is announced before it is published. An access to this value is no
    /// separate step for the scheduler.
    announced: std::sync::atomic::AtomicU16,
    /// The first slot of the table that was published last.
    published: AtomicU16,
    tick: AtomicU16,
    seen: AtomicU64,
    keeps_known: [AtomicBool; BACKENDS],
    /// The numbers of known clients moved from each backend, as the simulated program counts them.
    moved_from: [AtomicU64; BACKENDS],
    /// The number of steps that other threads run between the move of a client by a packet and the counting of this
    /// move.
    counts_after: AtomicU64,
    /// The number of clients that a QUIC connection has brought to another backend, as the simulated program counts
    /// them.
    migrated: AtomicU64,
    on_their_way: Mutex<OnTheirWay>,
    left: Condvar,
}

/// The result of steering one packet.
#[derive(Clone, Copy, Debug)]
struct Steered {
    backend: u16,
    /// Whether the client has an entry in the client table after this packet.
    is_known: bool,
    /// The first slot of the newest table that was announced when the simulated program read the table for this packet.
    newest: u16,
}

/// A bucket in which each access is a separate step for the scheduler.
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
    /// Lets the scheduler run other threads.
    fn step(&self) {
        self.tick.load(SeqCst);
    }

    fn send(&self, client: Client) -> Steered {
        self.on_its_way(|| self.steer(client))
    }

    /// Sends a packet of a QUIC connection; with this packet, the client moves the connection from another address to
    /// `backend`.
    fn migrate(&self, client: Client, backend: u16) {
        self.on_its_way(|| self.follow_connection(client, backend));
    }

    fn on_its_way<Done>(&self, packet: impl FnOnce() -> Done) -> Done {
        let number = {
            let mut way = self.on_their_way.lock().unwrap();
            way.begun += 1;
            let number = way.begun;
            way.packets.insert(number);
            number
        };
        let steered = packet();
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
        let answer = self.ask(client, |query| Query { live: Some(live.backend), marks: !always, ..query });
        if answer.moved_from != NO_BACKEND {
            (0..self.counts_after.load(SeqCst)).for_each(|_| self.step());
            self.moved_from[usize::from(answer.moved_from)].fetch_add(1, SeqCst);
        }
        if answer.settled && !always {
            self.seen.fetch_or(client.bit(), SeqCst);
        }
        let is_known = matches!(answer.recorded, Recorded::Known | Recorded::Inserted);
        Steered { backend: answer.backend.expect("every slot has a backend"), is_known, newest }
    }

    /// Records the client, then counts the client as migrated, and then flags the client's slot.
    fn follow_connection(&self, client: Client, backend: u16) {
        let table = LiveTable::from_word(self.table.load(SeqCst));
        self.step();
        let live = self.slot(table, client.0);
        let answer =
            self.ask(client, |query| Query { live: Some(backend), pinned: true, migrates: true, marks: true, ..query });
        if answer.recorded != Recorded::Inserted && answer.moved_from == NO_BACKEND {
            return;
        }
        self.step();
        self.migrated.fetch_add(1, SeqCst);
        self.step();
        if live.backend != backend {
            let SlotPlace { line, index } = table.place(slot(client.0, table.size));
            let flags = self.slots.word64(line as usize, offset_of!(SlotLine, flags));
            flags.fetch_or(SLOT_EXCEPTIONS << index, SeqCst);
        }
    }

    fn ask(&self, client: Client, change: impl FnOnce(Query) -> Query) -> Answer {
        let query = change(Query {
            hash: client.0,
            service: SERVICE.0,
            live: None,
            live_is_home: true,
            pinned: false,
            migrates: false,
            opens: false,
            datagram: false,
            failback: false,
            peeks: false,
            marks: false,
            now: self.tick.load(SeqCst),
            remember: REMEMBER,
            idle: 1,
        });
        let facts = |id: u16| {
            let keeps_known = self.keeps_known[usize::from(id)].load(SeqCst);
            Some(BackendFacts { service: SERVICE.0, keeps_known, cause: MoveCause::Down.into() })
        };
        consult(&Words(self, client.bucket()), &query, facts, || true)
    }

    /// The slot of a hash in a table, which is read in two steps as in the kernel program.
    fn slot(&self, table: LiveTable, hash: u64) -> TableSlot {
        let SlotPlace { line, index } = table.place(slot(hash, table.size));
        let flags = self.slots.word64(line as usize, offset_of!(SlotLine, flags)).load(SeqCst);
        self.step();
        SlotLine { flags, ..self.slots.load(line as usize) }.slot(index)
    }

    /// Waits until every packet has left that is in progress when the function is called.
    fn wait(&self) {
        let way = self.on_their_way.lock().unwrap();
        let last = way.begun;
        drop(self.left.wait_while(way, |way| way.packets.first().is_some_and(|&first| first <= last)).unwrap());
    }

    /// The entries of all known clients.
    fn known(&self) -> impl Iterator<Item = Entry> {
        self.buckets.words().iter().map(|word| Entry(word.load(SeqCst))).filter(|entry| !entry.is_empty())
    }
}

/// The controller, which runs in one thread as in production.
struct Controller {
    stickiness: Stickiness,
    packets: Arc<Packets>,
}

impl Controller {
    /// A controller that has a live table in a map of this many lines.
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
            migrated: AtomicU64::new(0),
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
        self.stickiness.sweep(PART, |_| false, |_| self.packets.migrated.load(SeqCst))
    }

    /// Completes the current part of the sweep.
    fn sweep_part(&mut self) -> Swept {
        loop {
            match self.sweep() {
                Swept::GoesOn => thread::yield_now(),
                over @ (Swept::Rests | Swept::Ends(_)) => return over,
            }
        }
    }

    /// Finishes the pass in progress, or makes a complete pass if there is none. Returns whether the pass found no
    /// client at any backend.
    fn sweep_finds_nobody_at(&mut self, backend: BackendId) -> bool {
        loop {
            match self.sweep() {
                Swept::Ends(known) => return known.iter().all(|&(id, _)| id != backend),
                Swept::Rests | Swept::GoesOn => thread::yield_now(),
            }
        }
    }

    /// Makes complete passes while nothing else happens.
    fn sweep_passes(&mut self, count: usize) {
        for _ in 0..count {
            self.sweep_finds_nobody_at(BackendId(NO_BACKEND));
        }
    }

    /// Makes up to `most` parts of a sweep, as long as passes may begin and scans are complete. If a scan is in
    /// progress at the end, its findings are processed after the next event.
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

    /// Begins a period in which no client has been seen yet, and advances the clock.
    fn advance(&mut self) {
        self.packets.seen.store(0, SeqCst);
        let memory = self.stickiness.memories.get_mut(&SERVICE).unwrap();
        memory.tick += 1;
        self.packets.tick.store(memory.tick, SeqCst);
    }

    /// Asserts that every client which is not at its table's backend is in a flagged slot; no packet may be in
    /// progress.
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

    /// Calls `disturb`, sweeps for some time, and calls `disturb` again.
    fn disturb(&mut self, mut disturb: impl FnMut(&mut Self)) {
        for _ in 0..thread_rng().gen_range(1..6) {
            disturb(self);
            self.sweep_parts(12);
        }
    }
}

/// Runs a scenario in many orders: half of the orders are random, and half have few thread switches at chosen steps
/// (PCT).
fn in_many_orders(scenario: fn()) {
    let schedules = env::var("RACES").map_or(Ok(2000), |number| number.parse()).expect("RACES is a number");
    shuttle::check_random(scenario, schedules / 2);
    shuttle::check_pct(scenario, schedules / 2, 4);
}

/// Two tables that have different backends in every slot.
const HERE: [u16; SIZE] = [1; SIZE];
const THERE: [u16; SIZE] = [2; SIZE];

#[test]
fn when_tables_are_swapped_and_swept_then_a_known_client_stays() {
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
        // After all clients have reached the table's backends, no client is an exception.
        controller.swap(&HERE);
        controller.forget(comes_and_goes);
        controller.sweep_passes(4);
        assert_eq!(controller.exceptions(), 0);
        controller.assert_exceptions_are_flagged();
    });
}

#[test]
fn when_threads_race_then_a_client_elsewhere_is_in_a_flagged_slot() {
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        let clients = [Client::new(0, 0, 0), Client::new(0, 0, 1), Client::new(1, 1, 0)];
        // Two processors receive packets from each client.
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
fn when_connections_bring_clients_elsewhere_during_sweeps_then_their_slots_stay_flagged() {
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        // A sweep clears flags of a service only if the service has flagged slots.
        controller.packets.migrate(Client::new(1, 3, 0), 2);
        controller.sweep_passes(1);
        let threads = [Client::new(0, 0, 0), Client::new(1, 1, 0)].map(|client| {
            let packets = Arc::clone(&controller.packets);
            thread::spawn(move || {
                packets.migrate(client, 2);
                for _ in 0..3 {
                    assert_eq!(packets.send(client).backend, 2, "{client:x?} was moved back");
                }
            })
        });
        controller.disturb(Controller::advance);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        controller.assert_exceptions_are_flagged();
        // After all clients have reached the table's backends, no client is an exception.
        controller.swap(&THERE);
        controller.sweep_passes(4);
        assert_eq!(controller.exceptions(), 0);
    });
}

#[test]
fn when_a_client_is_forgotten_then_a_packet_in_progress_does_not_restore_its_old_backend() {
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        // The sweep reads the bucket of this client last.
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
fn when_a_failure_is_announced_then_no_packet_goes_to_the_failed_backend() {
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
        // The backend may give up its clients before or after the table no longer names the backend.
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
fn when_a_backend_is_removed_then_all_moves_are_counted_before_its_id_is_reused() {
    const REMOVED: BackendId = BackendId(HERE[0]);
    const PASS_AND_MORE: u64 = 100;
    in_many_orders(|| {
        let mut controller = Controller::new(3, &HERE);
        let client = Client::new(0, 0, 0);
        // The current pass has already read the bucket before the client becomes known.
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
        // The program may have moved the client without having counted the move yet.
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
fn when_a_table_was_not_live_during_a_packet_then_the_packet_does_not_read_it() {
    /// The number of slots that fill two lines.
    const LONG: usize = 20;
    const TABLES: u16 = 7;
    in_many_orders(|| {
        // The map has room for the live table and one more table, so the second swap reuses lines.
        let mut controller = Controller::new(4, &[1; LONG]);
        let threads = [Client::new(0, 0, 0), Client::new(1, 3, 0)].map(|client| {
            let packets = Arc::clone(&controller.packets);
            thread::spawn(move || {
                for number in 0..4 {
                    let first = packets.published.load(SeqCst);
                    // Each packet comes from a client that was unknown before.
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
