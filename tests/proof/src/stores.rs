//! Packets and the controller at the same memory: every interleaving of their loads and stores.
//!
//! The controller's side is the production code. A packet takes the same steps as in `balancer-ebpf/src/steer.rs` and
//! `quic.rs`, with the shared code of `balancer-common`.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt::{Debug, Write as _},
    mem::offset_of,
    rc::Rc,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry},
    clock::Clock,
    map_types::{LiveTable, NO_BACKEND, SLOT_EXCEPTIONS, SlotLine, SlotPlace},
    memory::{Answer, BackendFacts, Recorded, consult},
    query::Query,
    verdict::MoveCause,
};
use balancer_control::io::{BackendId, ServiceId};

use super::{
    clients::ClientTable,
    grace::{self, GracePeriods},
    mapped::MappedArray,
    memory::Memory,
    scanner::Scanner,
    stickiness::Stickiness,
    tables::Tables,
};
use crate::{
    machine::{self, Mutant},
    search::{self, World},
};

const SERVICE: ServiceId = ServiceId(1);
const SLOTS: usize = 7;
/// The number of backend rows; row 0 belongs to no backend.
const ROWS: usize = 4;
const REMEMBER: u16 = 64;
/// The tables: the backends of the clients' slots differ, and so do the tables in each of these slots.
const TABLES: [[u16; SLOTS]; 3] = [[1, 1, 1, 2, 2, 3, 3], [2, 2, 2, 3, 3, 3, 3], [3, 3, 3, 1, 1, 1, 1]];
/// The slots of the clients.
const PLACES: [u64; 2] = [0, 4];

/// A client, by number.
pub type Client = usize;

/// A kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A SYN.
    Opens,
    /// A datagram.
    Data,
    /// A datagram whose connection ID names this backend.
    Brings(u16),
}

/// What the controller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Makes the table with this number live.
    Swap(usize),
    /// Lets a backend give up its known clients.
    Fail(u16),
    /// Lets a backend keep its known clients again.
    Return(u16),
    /// Begins a period in which no client has been seen.
    Period,
    /// Continues the sweep.
    Sweep,
}

/// An event of this world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A packet arrives and leaves, while no other packet is on its way.
    Sends(Client, Kind),
    /// A packet arrives, and reads where the live table is.
    Arrives(Client, Kind),
    /// The packet at this place takes its next step: one access to shared memory, and what follows from it.
    Steps(usize),
    /// The scan of the client table reads its next entry.
    Scans,
    /// The controller carries out a task while no packet is on its way.
    Does(Task),
    /// The controller begins a task.
    Begins(Task),
    /// The controller's task makes its next access to shared memory.
    GoesOn,
}

/// The steps that a mutant may take otherwise.
pub trait Rule {
    /// Steers a packet by the client table.
    fn consult(&self, bucket: &impl Entries, query: &Query, facts: impl Fn(u16) -> Option<BackendFacts>) -> Answer {
        consult(bucket, query, facts, || true)
    }

    /// Whether a packet reads the client table although its client was seen in this period.
    fn reads_entry(&self, flags: u64) -> bool {
        flags & SLOT_EXCEPTIONS != 0
    }

    /// What the controller does otherwise.
    fn mutant(&self) -> Mutant {
        Mutant::NONE
    }
}

/// The rule as it is.
#[derive(Clone, Copy, Debug)]
pub struct Real;

impl Rule for Real {}

/// The world and its limits.
#[derive(Clone, Copy, Debug)]
pub struct Stores<R> {
    /// The rule.
    pub rule: R,
    /// The number of clients.
    pub clients: usize,
    /// The number of packets on their way at once.
    pub packets: usize,
    /// The kinds of packets.
    pub kinds: &'static [Kind],
    /// The tasks of the controller.
    pub tasks: &'static [Task],
    /// The number of lines of the map of slots; a table fills one line.
    pub lines: u32,
}

/// A state: the events that lead to it, and what may happen next.
#[derive(Clone, Debug)]
pub struct Path {
    events: Vec<Event>,
    next: Vec<Event>,
    key: u128,
}

/// Sets of backends, a bit for each.
type Backends = u8;

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Flight {
    client: Client,
    kind: Kind,
    /// The values that the packet has read.
    values: Vec<u64>,
    /// The backends at which the client may be known; empty: the client may be unknown.
    homes: Backends,
    /// Whether the client may go to any backend: it is unknown, or its backend gave it up.
    is_free: bool,
    /// Whether another packet of the client was on its way at the same time.
    is_joined: bool,
    /// The backends that live tables have named for the client since the packet arrived.
    named: Backends,
    /// The backends that had failed when the packet arrived.
    failed: Backends,
}

/// What a packet tells at its end.
struct Sent {
    backend: u16,
    /// Whether the client is known afterwards.
    is_known: bool,
    /// Whether the client was known before.
    was_known: bool,
}

/// The shared memory, the packets, and what an observer knows about the clients.
struct Site<R> {
    world: Stores<R>,
    slots: MappedArray<SlotLine>,
    buckets: MappedArray<Bucket>,
    /// The words [`LIVE`], [`SEEN`], [`MIGRATED`] and, from [`STANDING`] on, whether each backend keeps its clients.
    words: MappedArray<u64>,
    scanner: Scanner,
    /// The packets on their way, each with its number.
    flights: RefCell<Vec<(u64, Flight)>>,
    arrived: Cell<u64>,
    /// For each packet, by number, when it arrived in relation to the controller's present task, which decides whether
    /// the task waits for the packet.
    since: RefCell<HashMap<u64, usize>>,
    /// The number of accesses of the present task.
    accesses: Cell<usize>,
    homes: RefCell<Vec<Backends>>,
    table: Cell<usize>,
    path: Vec<Event>,
    at: Cell<usize>,
    broken: RefCell<Option<String>>,
}

const LIVE: usize = 0;
const SEEN: usize = 1;
const MIGRATED: usize = 2;
const STANDING: usize = 3;

const fn hash(client: Client) -> u64 {
    let tag = PLACES[client] * ((1 << 32) / SLOTS as u64) + 7 + client as u64;
    tag << 32
}

const fn bit(backend: u16) -> Backends {
    1 << backend
}

/// The words of the only bucket.
struct Words<'a>(&'a MappedArray<Bucket>);

impl Entries for Words<'_> {
    fn load(&self, index: usize) -> Entry {
        Entry(self.0.words()[index].load(SeqCst))
    }

    fn store(&self, index: usize, entry: Entry) {
        self.0.words()[index].store(entry.0, SeqCst);
    }
}

impl<R: Rule + Copy + 'static> Site<R> {
    fn load(&self, word: usize) -> u64 {
        self.words.words()[word].load(SeqCst)
    }

    /// The program of a packet.
    fn program(&self, client: Client, kind: Kind) -> Sent {
        let table = LiveTable::from_word(self.load(LIVE));
        let SlotPlace { line, index } = table.place(slot(hash(client), table.size));
        let flags = self.slots.word64(line as usize, offset_of!(SlotLine, flags));
        let seen = flags.load(SeqCst) >> index;
        let four = self.slots.word64(line as usize, index as usize / 4 * 8).load(SeqCst);
        let live = (four >> (index % 4 * 16)) as u16;
        let reads = self.world.rule.reads_entry(seen);
        let brings = if let Kind::Brings(to) = kind { Some(to) } else { None };
        if brings.is_none() && kind != Kind::Opens && !reads && self.load(SEEN) & 1 << client != 0 {
            return Sent { backend: live, is_known: true, was_known: true };
        }
        let query = Query {
            hash: hash(client),
            service: SERVICE.0,
            live: Some(brings.unwrap_or(live)),
            live_is_home: true,
            pinned: brings.is_some(),
            migrates: brings.is_some(),
            opens: kind == Kind::Opens,
            datagram: kind != Kind::Opens,
            failback: false,
            peeks: false,
            marks: brings.is_some() || !reads,
            now: 1,
            remember: REMEMBER,
            idle: 1,
        };
        let facts = |id: u16| {
            let keeps_known = id < ROWS as u16 && self.load(STANDING + usize::from(id)) != 0;
            Some(BackendFacts { service: SERVICE.0, keeps_known, cause: MoveCause::Down.into() })
        };
        let answer = self.world.rule.consult(&Words(&self.buckets), &query, facts);
        let changed = answer.recorded == Recorded::Inserted || answer.moved_from != NO_BACKEND;
        if let Some(to) = brings.filter(|_| changed) {
            self.brought(live != to, flags, index);
        }
        if answer.settled && query.marks {
            self.words.words()[SEEN].fetch_or(1 << client, SeqCst);
        }
        let is_known = matches!(answer.recorded, Recorded::Known | Recorded::Inserted);
        let was_known = answer.recorded == Recorded::Known;
        Sent { backend: answer.backend.unwrap_or(NO_BACKEND), is_known, was_known }
    }

    /// Counts a client that a connection has brought to another backend, and flags its slot.
    fn brought(&self, elsewhere: bool, flags: &super::mapped::AtomicU64, index: u32) {
        self.words.words()[MIGRATED].fetch_or(1, SeqCst);
        if elsewhere {
            flags.fetch_or(SLOT_EXCEPTIONS << index, SeqCst);
        }
    }

    fn keeps(&self) -> Backends {
        (1..ROWS).filter(|id| self.words.words()[STANDING + id].raw() != 0).map(|id| bit(id as u16)).sum()
    }

    fn named(&self, client: Client) -> Backends {
        bit(TABLES[self.table.get()][slot(hash(client), SLOTS as u32) as usize])
    }

    fn arrives(&self, client: Client, kind: Kind) {
        let homes = self.homes.borrow()[client];
        let keeps = self.keeps();
        let live: Backends = TABLES[self.table.get()].iter().map(|&id| bit(id)).fold(0, |all, one| all | one);
        let mut flights = self.flights.borrow_mut();
        let joined = flights.iter_mut().filter(|(_, flight)| flight.client == client);
        let is_joined = joined.map(|(_, flight)| flight.is_joined = true).count() > 0;
        self.arrived.set(self.arrived.get() + 1);
        let flight = Flight {
            client,
            kind,
            values: Vec::new(),
            homes,
            is_free: homes == 0 || homes & !keeps != 0,
            is_joined,
            named: self.named(client),
            failed: !keeps & !live,
        };
        flights.push((self.arrived.get(), flight));
        self.since.borrow_mut().insert(self.arrived.get(), self.accesses.get());
        let last = flights.len() - 1;
        drop(flights);
        self.tell();
        self.steps(last);
    }

    /// Tells the grace periods which packets are on their way, in an order that does not depend on their arrival.
    fn tell(&self) {
        let mut flights = self.flights.borrow_mut();
        flights.sort_by(|(_, one), (_, other)| one.cmp(other));
        grace::tell(flights.iter().map(|&(number, _)| number).collect(), self.arrived.get());
    }

    fn steps(&self, place: usize) {
        let (number, mut flight) = self.flights.borrow_mut().remove(place);
        let sent = machine::step(&mut flight.values, || self.program(flight.client, flight.kind));
        match sent {
            None => self.flights.borrow_mut().push((number, flight)),
            Some(sent) => self.leaves(&flight, &sent),
        }
        self.tell();
    }

    /// Compares the end of a packet with the rule.
    fn leaves(&self, flight: &Flight, sent: &Sent) {
        let Flight { client, homes, .. } = *flight;
        let to = bit(sent.backend);
        if let Kind::Brings(_) = flight.kind {
            let mut all = self.homes.borrow_mut();
            if all[client] == 0 || flight.is_joined || flight.is_free {
                all[client] |= to;
            }
            return self.meet(client, to);
        }
        if !flight.is_free && homes & to == 0 {
            self.breaks(format!("client {client} is known at {homes:#b} and was sent to {}", sent.backend));
        }
        if !sent.was_known && flight.named & to == 0 {
            self.breaks(format!("an unknown client was sent to {}, which no live table names", sent.backend));
        }
        if flight.failed & to != 0 {
            self.breaks(format!("client {client} was sent to {}, which has failed", sent.backend));
        }
        if sent.is_known {
            let mut all = self.homes.borrow_mut();
            all[client] = if flight.is_joined { all[client] | to } else { to };
        }
        self.meet(client, to);
    }

    /// Other packets of the client find it at this backend.
    fn meet(&self, client: Client, to: Backends) {
        let mut flights = self.flights.borrow_mut();
        flights.iter_mut().filter(|(_, flight)| flight.client == client).for_each(|(_, flight)| flight.homes |= to);
    }

    fn breaks(&self, invariant: String) {
        self.broken.borrow_mut().get_or_insert(invariant);
    }

    fn task_begins(&self) {
        const EARLIER: usize = 100;
        self.accesses.set(0);
        let flights = self.flights.borrow();
        *self.since.borrow_mut() = flights.iter().map(|(number, _)| *number).zip(EARLIER..).collect();
    }

    fn happens(&self, event: Event) {
        match event {
            Event::Sends(client, kind) => {
                self.arrives(client, kind);
                while !self.flights.borrow().is_empty() {
                    self.steps(0);
                }
            }
            Event::Arrives(client, kind) => self.arrives(client, kind),
            Event::Steps(place) => self.steps(place),
            Event::Scans => self.scanner.step(),
            Event::Does(_) | Event::Begins(_) | Event::GoesOn => {
                self.breaks("the controller does two things at once".to_owned())
            }
        }
    }

    /// Lets happen what comes before the controller's next access; `false`: nothing says that this access happens.
    fn turn(&self) -> bool {
        self.check_lines();
        while let Some(&event) = self.path.get(self.at.get()) {
            self.at.set(self.at.get() + 1);
            if event == Event::GoesOn {
                self.accesses.set(self.accesses.get() + 1);
                return true;
            }
            self.happens(event);
        }
        false
    }

    /// No packet reads a line of the map of slots that the controller has replaced since the packet's start.
    fn check_lines(&self) {
        for line in machine::take_written() {
            let reads = |flight: &Flight| flight.values.first().is_some_and(|&word| word as u32 as usize == line);
            if line < self.slots.len() && self.flights.borrow().iter().any(|(_, flight)| reads(flight)) {
                self.breaks(format!("line {line} was replaced while a packet read it"));
            }
        }
    }

    fn published(&self, table: usize, live: LiveTable) {
        self.words.words()[LIVE].store(live.to_word(), SeqCst);
        if !machine::is_stopped() {
            self.table.set(table);
            for (_, flight) in &mut *self.flights.borrow_mut() {
                flight.named |= self.named(flight.client);
                flight.failed &= !TABLES[table].iter().map(|&id| bit(id)).fold(0, |all, one| all | one);
            }
        }
    }

    fn stand(&self, backend: u16, keeps: bool) {
        self.words.words()[STANDING + usize::from(backend)].store(keeps.into(), SeqCst);
        if machine::is_stopped() {
            return;
        }
        for (_, flight) in &mut *self.flights.borrow_mut() {
            flight.is_free |= !keeps && flight.homes & bit(backend) != 0;
            if keeps {
                flight.failed &= !bit(backend);
            }
        }
    }
}

impl<R: Rule + Copy + 'static> Stores<R> {
    fn site(&self, path: Vec<Event>) -> (Rc<Site<R>>, Stickiness) {
        let slots = MappedArray::zeroed(self.lines as usize);
        for line in 0..self.lines as usize {
            (0..offset_of!(SlotLine, flags)).step_by(8).for_each(|offset| slots.word64(line, offset).keep_constant());
        }
        let buckets = MappedArray::zeroed(1);
        // A bucket fills from its end.
        buckets.words()[..BUCKET_ENTRIES - self.clients - 1].iter().for_each(|word| word.keep_constant());
        let words: MappedArray<u64> = MappedArray::zeroed(STANDING + ROWS);
        words.words()[STANDING + 1..].iter().for_each(|word| word.store(1, SeqCst));
        let scanner = Scanner::default();
        grace::tell(Vec::new(), 0);
        machine::mutate(self.rule.mutant());
        let periods = Arc::new(GracePeriods);
        let mut clients = ClientTable::new(buckets.clone(), ROWS);
        (1..ROWS as u16).for_each(|id| clients.belongs(BackendId(id), Some(SERVICE)));
        let tables = Tables::new(slots.clone(), self.lines, Arc::clone(&periods));
        let stickiness = Stickiness::new(tables, clients, scanner.clone(), periods);
        let site = Site {
            world: *self,
            slots,
            buckets,
            words,
            scanner,
            flights: RefCell::default(),
            arrived: Cell::new(0),
            since: RefCell::default(),
            accesses: Cell::new(0),
            homes: RefCell::new(vec![0; self.clients]),
            table: Cell::new(0),
            path,
            at: Cell::new(0),
            broken: RefCell::default(),
        };
        (Rc::new(site), stickiness)
    }

    fn task(&self, site: &Rc<Site<R>>, stickiness: &mut Stickiness, task: Task) {
        match task {
            Task::Swap(number) => self.swap(site, stickiness, number),
            Task::Fail(backend) => site.stand(backend, false),
            Task::Return(backend) => site.stand(backend, true),
            Task::Period => site.words.words()[SEEN].store(0, SeqCst),
            Task::Sweep => {
                let words = site.buckets.words().len();
                stickiness.sweep(words, |_| false, |_| site.load(MIGRATED));
            }
        }
    }

    fn swap(&self, site: &Rc<Site<R>>, stickiness: &mut Stickiness, number: usize) {
        let begin = || {
            let mut memory = Memory::new(1);
            memory.clock = Some(Clock { tick_seconds: 1, remember: REMEMBER });
            memory
        };
        let table: Arc<[u16]> = Arc::from(TABLES[number]);
        let home = TABLES[0];
        let swapped =
            stickiness.swap(SERVICE, (table, Some(&home)), false, begin, |_, live| site.published(number, live));
        if let Err(error) = swapped
            && !machine::is_stopped()
        {
            site.breaks(format!("{error:#}"));
        }
    }

    /// Lets the events of a path happen.
    fn played(&self, path: Vec<Event>) -> Result<Path, String> {
        let last_task = path.iter().rposition(|event| matches!(event, Event::Begins(_)));
        let (site, mut stickiness) = self.site(path);
        self.swap(&site, &mut stickiness, 0);
        let first = stickiness.tables.location(SERVICE).expect("a table");
        site.words.words()[LIVE].store(first.to_word(), SeqCst);
        stickiness.tables.published(&HashMap::from([(SERVICE, 0)]));
        machine::take_written();
        let mut unfinished = None;
        while let Some(&event) = site.path.get(site.at.get()) {
            let place = site.at.get();
            site.at.set(place + 1);
            let (Event::Begins(task) | Event::Does(task)) = event else {
                site.happens(event);
                continue;
            };
            let before = (Some(place) == last_task).then(|| settled(&stickiness));
            site.task_begins();
            let turning = Rc::clone(&site);
            let is_alone = matches!(event, Event::Does(_));
            let turn = move || is_alone || turning.turn();
            let (read, done) = machine::operate(turn, || self.task(&site, &mut stickiness, task));
            site.check_lines();
            if done.is_none() {
                unfinished = Some((before, task, read, machine::waits()));
            }
        }
        match site.broken.take() {
            Some(broken) => Err(broken),
            None => Ok(self.path(&site, &stickiness, unfinished)),
        }
    }

    fn path(&self, site: &Site<R>, stickiness: &Stickiness, unfinished: Option<Unfinished>) -> Path {
        let all = site.flights.borrow();
        let memory = |words: &[super::mapped::AtomicU64]| words.iter().map(|word| word.raw()).collect::<Vec<_>>();
        let flights: Vec<&Flight> = all.iter().map(|(_, flight)| flight).collect();
        let (controller, waits) = match &unfinished {
            Some((before, task, read, waits)) => {
                let since = site.since.borrow();
                let since: Vec<usize> = all.iter().map(|(number, _)| since[number]).collect();
                (search::key(&(before, task, read, since)), *waits)
            }
            None => (search::key(&settled(stickiness)), false),
        };
        let key = search::key(&(
            controller,
            unnumbered(&format!("{:?}", site.scanner), stickiness),
            memory(site.slots.words()),
            memory(site.buckets.words()),
            memory(site.words.words()),
            flights,
            &*site.homes.borrow(),
            site.table.get(),
        ));
        let mut next = Vec::new();
        next.extend((0..all.len()).map(Event::Steps));
        let packets = || (0..self.clients).flat_map(|client| self.kinds.iter().map(move |&kind| (client, kind)));
        if all.is_empty() {
            next.extend(packets().map(|(client, kind)| Event::Sends(client, kind)));
        }
        if all.len() < self.packets {
            next.extend(packets().map(|(client, kind)| Event::Arrives(client, kind)));
        }
        if site.scanner.scans() {
            next.push(Event::Scans);
        }
        if unfinished.is_none() {
            let tasks = || self.tasks.iter().copied().filter(|&task| self.may(site, task));
            if all.is_empty() {
                next.extend(tasks().map(Event::Does));
            }
            next.extend(tasks().map(Event::Begins));
        } else if !waits {
            next.push(Event::GoesOn);
        }
        Path { events: site.path.clone(), next, key }
    }

    fn may(&self, site: &Site<R>, task: Task) -> bool {
        match task {
            Task::Swap(number) => number != site.table.get(),
            Task::Fail(backend) => site.keeps() & bit(backend) != 0,
            Task::Return(backend) => site.keeps() & bit(backend) == 0,
            Task::Period => site.words.words()[SEEN].raw() != 0,
            Task::Sweep => !site.scanner.scans(),
        }
    }
}

/// The controller's state before a task, the task, the values that it has read, and whether it waits for packets.
type Unfinished = (Option<String>, Task, Vec<u64>, bool);

/// The state of the controller between two tasks.
fn settled(of: &Stickiness) -> String {
    let mut text = String::with_capacity(1024);
    let _ = write!(text, "{:?}{:?}{:?}{:?}", of.tables, of.sweep, of.memories, of.next_pass);
    unnumbered(&text, of)
}

/// Replaces the numbers of swaps by whether the present number is meant: the code only compares them.
fn unnumbered(text: &str, of: &Stickiness) -> String {
    let swaps = of.memories.get(&SERVICE).map_or(0, |memory| memory.swaps).to_string();
    let mut parts = text.split("swaps: ");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(part.len());
        all.push(if part[..end] == swaps { '=' } else { '<' });
        all.push_str(&part[end..]);
    }
    all
}

impl<R: Rule + Copy + 'static> World for Stores<R> {
    type State = Path;
    type Event = Event;

    fn first(&self) -> Path {
        self.played(Vec::new()).expect("a first state")
    }

    fn events(&self, state: &Path) -> Vec<Event> {
        state.next.clone()
    }

    fn after(&self, state: &Path, event: Event) -> Result<Path, String> {
        self.played(state.events.iter().copied().chain([event]).collect())
    }

    fn key(&self, state: &Path) -> u128 {
        state.key
    }
}
