//! The rows of `snat` connections: clients, backend and strangers at one bucket and one pool.
//!
//! The packets take the same steps as in `balancer-ebpf/src/flows/` (`find.rs`, `open.rs`, `place.rs`, `again.rs`,
//! `ports.rs`, `there.rs`, `back.rs`, `table.rs`), with the shared code of `balancer-common`.

use std::{cell::RefCell, sync::atomic::Ordering::SeqCst};

use balancer_common::flows::{
    FLOW_RESTS, FLOW_TAKEN, FlowWord, IdleTicks, Life, Numbers, Phase, ReturnWord, Segment, candidate, expendable,
    held::{bit, first_unheld},
    home, is_gone, is_good, of_port, rank,
};

use crate::{
    machine::{self, mapped::AtomicU64, mapped::MappedArray},
    search::{self, World},
};

/// The rows of the bucket that are not taken for good.
const ROWS: usize = 2;
/// The words of the index of replies that may be in use.
const RETURNS: usize = 3;
const PORTS: (u16, u16) = (100, 101);
/// The number of ports that are tried, and the number after which a flow that ends well gives way: as in the program,
/// but fewer.
const TRIES: u32 = 3;
const PATIENT_TRIES: u32 = 2;
const IDLE: IdleTicks = IdleTicks { tcp: 3, udp: 3, udp_once: 1, half_open: 1, closing: 1 };
/// The last tick.
const LAST_TICK: u32 = 3;
/// The number of a client's SYN.
const FIRST: u32 = 100;
/// The number of the backend's SYN.
const SERVED: u32 = 1000;

/// A kind of packet of a client, or with a client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum From {
    /// The SYN; the number selects the first port that the search for a port tries.
    Syn(u32),
    /// An acknowledgement.
    Ack,
    /// The FIN.
    Fin,
    /// A reset with the right number.
    Reset,
    /// A stranger's reset with a wrong number.
    ForgedReset,
    /// A stranger's FIN with a wrong number.
    ForgedFin,
    /// A stranger's SYN.
    ForgedSyn,
}

/// A kind of packet of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Back {
    /// The SYN, which acknowledges the client's.
    Answer,
    /// A byte of data.
    Data,
    /// The FIN.
    Fin,
    /// A reset.
    Reset,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Packet {
    /// From the client with this number.
    There(u32, From),
    /// From the backend to this port of the pool.
    Reply(u16, Back),
}

/// An event of this world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A packet arrives and leaves at once.
    Sends(Packet),
    /// A packet arrives, and makes its first access to shared memory.
    Arrives(Packet),
    /// The packet at this place makes its next access.
    Steps(usize),
    /// The clock advances.
    Tick,
}

/// The steps that a mutant may take otherwise.
pub trait Rule {
    /// How readily a row gives way.
    fn expendable(&self, word: FlowWord, rank: u32, now: u32) -> u32 {
        expendable(word, rank, now, &IDLE)
    }

    /// The flow after a packet.
    fn after(&self, life: Life, segment: Segment) -> Life {
        life.after(segment)
    }

    /// Whether a word is only replaced if nobody has changed it.
    fn compares(&self) -> bool {
        true
    }

    /// Whether a row is published after its port is known.
    fn publishes_last(&self) -> bool {
        true
    }
}

/// The rule as it is.
#[derive(Clone, Copy, Debug)]
pub struct Real;

impl Rule for Real {}

/// The world and its limits.
#[derive(Clone, Copy, Debug)]
pub struct Rows<R> {
    /// The rule.
    pub rule: R,
    /// The number of packets on their way at once; 0: packets follow each other.
    pub packets: usize,
    /// The number of clients.
    pub clients: u32,
    /// The kinds of the clients' packets.
    pub there: &'static [From],
    /// The kinds of the backend's packets.
    pub back: &'static [Back],
    /// The packets that have come and gone at the beginning.
    pub begun: &'static [Packet],
    /// If packets may be on their way at once: how many of them arrive.
    pub arrivals: usize,
}

/// A row as packets may find it: row, client and port.
type Published = (usize, u64, u64);

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Flight {
    packet: Packet,
    now: u32,
    values: Vec<u64>,
    /// The rows that were published at any time since the packet's arrival.
    published: Vec<Published>,
}

/// A state of the rows and of the packets on their way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    words: Vec<u64>,
    flights: Vec<Flight>,
    now: u32,
    arrived: usize,
}

/// The fields of a row, each in a word of its own.
#[derive(Clone, Copy)]
enum Field {
    /// The word that [`FlowWord`] describes.
    Life,
    /// The client's number, from 1.
    Client,
    Port,
    /// The place in the index of replies.
    Place,
    Numbers,
}

const FIELDS: usize = 5;

/// How the steps of a packet name a flow: by its row and its tag.
type Name = (usize, u32);

/// Where a packet goes.
struct Sent {
    client: u64,
    port: u64,
    row: usize,
}

/// The memory while one packet takes a step.
struct Site<R> {
    rule: R,
    words: MappedArray<u64>,
    packet: Packet,
    now: u32,
    broken: RefCell<Option<String>>,
}

const fn tag(client: u32) -> u32 {
    0x1000 + client
}

const fn return_tag(port: u16) -> u32 {
    0x2000 + port as u32
}

const fn packed(numbers: Numbers) -> u64 {
    numbers.next as u64 | (numbers.other as u64) << 32
}

const fn unpacked(word: u64) -> Numbers {
    Numbers { next: word as u32, other: (word >> 32) as u32 }
}

impl Packet {
    const fn is_forged(self) -> bool {
        matches!(self, Self::There(_, From::ForgedReset | From::ForgedFin | From::ForgedSyn))
    }

    const fn opens(self) -> bool {
        matches!(self, Self::There(_, From::Syn(_) | From::ForgedSyn))
    }

    fn segment(self) -> Segment {
        let of = Segment { by_client: true, sequence: FIRST + 1, ..Segment::default() };
        let back = Segment { ack: true, sequence: SERVED + 1, acknowledgement: FIRST + 1, ..Segment::default() };
        match self {
            Self::There(_, from) => match from {
                From::Syn(_) => Segment { syn: true, sequence: FIRST, ..of },
                From::Ack => Segment { ack: true, acknowledgement: SERVED + 1, ..of },
                From::Fin => Segment { ack: true, fin: true, acknowledgement: SERVED + 1, ..of },
                From::Reset => Segment { rst: true, ..of },
                From::ForgedReset => Segment { rst: true, sequence: 7, ..of },
                From::ForgedFin => Segment { ack: true, fin: true, sequence: 1 << 31, acknowledgement: 7, ..of },
                From::ForgedSyn => Segment { syn: true, sequence: 7, ..of },
            },
            Self::Reply(_, reply) => match reply {
                Back::Answer => Segment { syn: true, sequence: SERVED, ..back },
                Back::Data => Segment { length: 1, ..back },
                Back::Fin => Segment { fin: true, ..back },
                Back::Reset => Segment { rst: true, ..back },
            },
        }
    }
}

impl<R: Rule> Site<R> {
    fn word(&self, row: usize, field: Field) -> &AtomicU64 {
        &self.words.words()[row * FIELDS + field as usize]
    }

    fn load(&self, row: usize, field: Field) -> u64 {
        self.word(row, field).load(SeqCst)
    }

    fn life(&self, row: usize) -> FlowWord {
        FlowWord(self.load(row, Field::Life))
    }

    fn returns(&self) -> &[AtomicU64] {
        &self.words.words()[ROWS * FIELDS..][..RETURNS]
    }

    /// The port that the last search in turn has found.
    fn last_found(&self) -> &AtomicU64 {
        &self.words.words()[ROWS * FIELDS + RETURNS]
    }

    /// The bits of the ports that open flows hold.
    fn held(&self) -> &AtomicU64 {
        &self.words.words()[ROWS * FIELDS + RETURNS + 1]
    }

    /// Notes whether the flow in a row holds its port.
    fn note_held(&self, row: usize, holds: bool) {
        let mask = bit(0, self.load(row, Field::Port) as u16).mask;
        if holds {
            self.held().fetch_or(mask, SeqCst)
        } else {
            self.held().fetch_and(!mask, SeqCst)
        };
    }

    fn breaks(&self, invariant: String) {
        self.broken.borrow_mut().get_or_insert(invariant);
    }

    /// Stores a row's life, and compares the change with the rule.
    fn put(&self, row: usize, new: FlowWord) {
        self.word(row, Field::Life).store(new.0, SeqCst);
    }

    fn swap(&self, row: usize, old: FlowWord, new: FlowWord) -> bool {
        if self.rule.compares() {
            self.word(row, Field::Life).compare_exchange(old.0, new.0, SeqCst, SeqCst).is_ok()
        } else {
            self.put(row, new);
            true
        }
    }

    /// Compares a change of a row's life with the rule.
    fn check(&self, row: usize, before: u64, after: u64) {
        let (before, after) = (FlowWord(before), FlowWord(after));
        let carries = before.phase() == Phase::Open && before.lives(self.now, &IDLE);
        if carries && after.tag() != before.tag() {
            self.breaks(format!("row {row} carried data and was given away"));
        }
        let ends = after.phase() != Phase::Open;
        if carries && ends && self.packet.is_forged() {
            self.breaks(format!("a stranger's packet has ended the connection in row {row}"));
        }
    }

    fn at(&self, row: usize) -> Option<FlowWord> {
        let was = self.life(row);
        (was.state() & (FLOW_TAKEN | FLOW_RESTS) == FLOW_TAKEN).then_some(was)
    }

    /// The flow with this name: the row and the low bits of the tag, which differ for all flows of this world.
    fn named(&self, (row, tag): Name) -> Option<FlowWord> {
        self.at(row).filter(|was| was.tag() as u8 == tag as u8)
    }

    /// The flow of a client.
    fn find(&self, client: u32) -> Option<(usize, FlowWord)> {
        let row = (0..ROWS).find(|&row| self.life(row).is_found_by(tag(client)))?;
        let was = self.at(row)?;
        (self.load(row, Field::Client) == u64::from(client) + 1).then_some((row, was))
    }

    fn program(&self) -> Option<Sent> {
        match self.packet {
            Packet::There(client, _) => self.there(client),
            Packet::Reply(port, _) => self.reply(port),
        }
    }

    fn there(&self, client: u32) -> Option<Sent> {
        let found = self.find(client).map(|(row, was)| (row, was.tag())).filter(|&name| self.goes_on(name));
        let name = match found {
            Some(name) => name,
            None if self.packet.opens() => self.opens(client)?,
            None => return None,
        };
        self.sends(name)
    }

    /// Whether the flow with this name goes on.
    fn goes_on(&self, name: Name) -> bool {
        let Some(was) = self.named(name) else { return false };
        if was.has_ended(self.now, &IDLE) && self.packet.opens() {
            return false;
        }
        if !was.lives(self.now, &IDLE) {
            self.rest(name.0, was);
            return false;
        }
        self.see(name.0, was);
        true
    }

    fn see(&self, row: usize, was: FlowWord) {
        let seen = was.with(was.state(), self.now);
        if seen != was {
            self.swap(row, was, seen);
        }
    }

    fn rest(&self, row: usize, was: FlowWord) {
        self.change(row, was, was.state() | FLOW_RESTS);
    }

    fn hear(&self, row: usize, was: FlowWord) {
        let before = Life { state: was.state(), numbers: unpacked(self.load(row, Field::Numbers)) };
        let life = self.rule.after(before, self.packet.segment());
        if life.numbers != before.numbers {
            self.word(row, Field::Numbers).store(packed(life.numbers), SeqCst);
        }
        if life.state == was.state() {
            self.see(row, was);
        } else {
            self.change(row, was, life.state);
        }
    }

    /// Gives a flow another state, unless the row belongs to another flow by now.
    fn change(&self, row: usize, was: FlowWord, state: u8) {
        let (set, cleared) = (state & !was.state(), was.state() & !state);
        for _ in 0..3 {
            let there = self.life(row);
            if !there.is_found_by(was.tag()) {
                return;
            }
            let new = there.with((there.state() | set) & !cleared, self.now);
            if self.swap(row, there, new) {
                if there.holds() != new.holds() {
                    self.note_held(row, new.holds());
                }
                return;
            }
        }
    }

    /// Tells the flow with this name about the packet, and rewrites the packet with the data of the flow's row.
    fn sends(&self, name: Name) -> Option<Sent> {
        let row = name.0;
        self.hear(row, self.named(name)?);
        let was = self.named(name)?;
        let (client, port) = (self.load(row, Field::Client), self.load(row, Field::Port));
        let now = self.life(row);
        (now.tag() == was.tag() && now.state() & FLOW_TAKEN != 0).then_some(Sent { client, port, row })
    }

    fn opens(&self, client: u32) -> Option<Name> {
        let row = self.take(client)?;
        self.word(row, Field::Client).store(u64::from(client) + 1, SeqCst);
        let opening = self.packet.segment().opening();
        self.word(row, Field::Numbers).store(packed(opening), SeqCst);
        if let Some(again) = self.again(client, opening) {
            self.put(row, FlowWord::EMPTY);
            return Some(again);
        }
        if !self.rule.publishes_last() {
            self.publish(row, client);
        }
        if self.takes_port(row) {
            if self.rule.publishes_last() {
                self.publish(row, client);
            }
            return Some((row, tag(client)));
        }
        self.put(row, FlowWord::EMPTY);
        None
    }

    fn publish(&self, row: usize, client: u32) {
        self.put(row, FlowWord::new(tag(client), Life::opened_by(Segment::default()).state, self.now));
    }

    fn take(&self, client: u32) -> Option<usize> {
        for _ in 0..4 {
            let score = |row: usize| {
                let rank = rank(home(tag(client)), row as u32);
                (self.rule.expendable(self.life(row), rank, self.now), row)
            };
            let (best, row) = (0..ROWS).map(score).max()?;
            if best == 0 {
                return None;
            }
            if self.empty(row) {
                return Some(row);
            }
        }
        None
    }

    fn empty(&self, row: usize) -> bool {
        let was = self.life(row);
        if self.rule.expendable(was, 0, self.now) == 0 {
            return false;
        }
        let taken = FlowWord::new(!was.tag(), FLOW_TAKEN | FLOW_RESTS, self.now);
        if !self.swap(row, was, taken) {
            return false;
        }
        if was.holds() {
            self.note_held(row, false);
        }
        if was != FlowWord::EMPTY {
            let place = self.load(row, Field::Place) as usize;
            let there = self.returns()[place].load(SeqCst);
            if there != 0 && ReturnWord(there).row() as usize == row {
                let _ = self.returns()[place].compare_exchange(there, 0, SeqCst, SeqCst);
            }
        }
        true
    }

    /// The ended connection that goes on as the same client's next one.
    fn again(&self, client: u32, opening: Numbers) -> Option<Name> {
        let (row, was) = self.find(client)?;
        let name = (row, was.tag());
        if !was.has_ended(self.now, &IDLE) {
            return Some(name);
        }
        if was.begins_again(unpacked(self.load(row, Field::Numbers)), opening) {
            let taken = FlowWord::new(!was.tag(), FLOW_TAKEN | FLOW_RESTS, self.now);
            if self.swap(row, was, taken) {
                if was.holds() {
                    self.note_held(row, false);
                }
                self.word(row, Field::Numbers).store(packed(opening), SeqCst);
                self.publish(row, client);
                return Some(name);
            }
        }
        self.rest(row, was);
        None
    }

    fn takes_port(&self, row: usize) -> bool {
        let start = if let Packet::There(_, From::Syn(start)) = self.packet { start << 31 } else { 0 };
        let mut best = (0, 0);
        for attempt in 0..TRIES {
            let port = if attempt == 0 { Some(candidate(start, 1, PORTS.0, PORTS.1).1) } else { self.next_unheld() };
            if let Some(port) = port {
                match self.tries(row, port, false) {
                    Ok(()) => return true,
                    Err(score) => best = best.max((score, port)),
                }
            }
            let is_last = port.is_none() || attempt + 1 == TRIES;
            if best.0 > 0 && (is_last || attempt + 1 >= PATIENT_TRIES && is_good(best.0)) {
                if self.tries(row, best.1, true).is_ok() {
                    return true;
                }
                best = (0, 0);
            }
            if is_last {
                break;
            }
        }
        false
    }

    /// The next port that no open flow holds, in turn.
    fn next_unheld(&self) -> Option<u16> {
        const BEGIN: u32 = PORTS.0 as u32 / u64::BITS * u64::BITS;
        let (first, last) = (u32::from(PORTS.0), u32::from(PORTS.1));
        let behind = self.last_found().load(SeqCst) as u32 + 1;
        let from = if behind > first && behind <= last { behind } else { first };
        let unheld = |from, last| first_unheld(self.held().load(SeqCst), BEGIN, from, last);
        let port = unheld(from, last).or_else(|| if from > first { unheld(first, from - 1) } else { None })?;
        self.last_found().store(port.into(), SeqCst);
        Some(port as u16)
    }

    /// Takes a port, or returns the score of the flow that has it.
    fn tries(&self, row: usize, port: u16, replaces: bool) -> Result<(), u32> {
        self.word(row, Field::Port).store(port.into(), SeqCst);
        let (taken, free) = self.scan(port);
        let place = match (taken, free) {
            (Some(taken), _) => {
                self.leaves(taken, row, replaces)?;
                taken
            }
            (None, Some(free)) => free,
            (None, None) => return Err(0),
        };
        let new = ReturnWord::new(return_tag(port), row as u32).0;
        if self.returns()[place].compare_exchange(0, new, SeqCst, SeqCst).is_err() {
            return Err(0);
        }
        if self.scan(port).0 != Some(place) {
            let _ = self.returns()[place].compare_exchange(new, 0, SeqCst, SeqCst);
            return Err(0);
        }
        self.word(row, Field::Place).store(place as u64, SeqCst);
        Ok(())
    }

    fn scan(&self, port: u16) -> (Option<usize>, Option<usize>) {
        let (mut taken, mut free) = (None, None);
        for (place, word) in self.returns().iter().enumerate() {
            let word = ReturnWord(word.load(SeqCst));
            if word.0 == 0 {
                free = Some(place);
            } else if word.tag() == return_tag(port) {
                taken = Some(place);
            }
        }
        (taken, free)
    }

    fn leaves(&self, place: usize, opening: usize, replaces: bool) -> Result<(), u32> {
        let row = ReturnWord(self.returns()[place].load(SeqCst)).row() as usize;
        if row >= ROWS {
            return Err(0);
        }
        let was = self.life(row);
        let numbers = |row| unpacked(self.load(row, Field::Numbers));
        let lets_in = was.is_ended() && was.lets_in(numbers(row), numbers(opening));
        let score = of_port(was, self.rule.expendable(was, 0, self.now), lets_in);
        if score == 0 && was.holds() {
            self.note_held(row, true);
        }
        if !is_gone(score) && !replaces && !was.leaves(self.now, lets_in) {
            return Err(score);
        }
        if !self.empty(row) {
            return Err(0);
        }
        self.put(row, FlowWord::EMPTY);
        Ok(())
    }

    fn reply(&self, port: u16) -> Option<Sent> {
        let row = ReturnWord(self.returns()[self.scan(port).0?].load(SeqCst)).row() as usize;
        if row >= ROWS {
            return None;
        }
        let found = self.at(row)?;
        if self.load(row, Field::Port) != u64::from(port) {
            return None;
        }
        self.sends((row, found.tag()))
    }
}

impl<R: Rule + Copy> Rows<R> {
    /// Takes the next step of the packet at `place`.
    fn step(&self, state: &State, place: usize) -> Result<State, String> {
        let mut state = state.clone();
        let mut flight = state.flights.remove(place);
        let words = MappedArray::zeroed(state.words.len());
        words.words().iter().zip(&state.words).for_each(|(word, &value)| word.store(value, SeqCst));
        let site = Site { rule: self.rule, words, packet: flight.packet, now: flight.now, broken: RefCell::default() };
        let sent = machine::step(&mut flight.values, || site.program());
        let after: Vec<u64> = site.words.words().iter().map(AtomicU64::raw).collect();
        for row in 0..ROWS {
            site.check(row, state.words[row * FIELDS], after[row * FIELDS]);
        }
        state.words = after;
        let published = published(&state.words);
        for flight in state.flights.iter_mut().chain([&mut flight]) {
            flight.published.extend(&published);
            flight.published.sort_unstable();
            flight.published.dedup();
        }
        for (at, &(row, _, port)) in published.iter().enumerate() {
            if published[at + 1..].iter().any(|&(_, _, other)| other == port) {
                site.breaks(format!("row {row} shares port {port} with another row"));
            }
        }
        match sent {
            Some(sent) => sent.iter().for_each(|sent| arrives(&site, &flight, sent)),
            None => state.flights.push(flight),
        }
        state.flights.sort();
        site.broken.take().map_or(Ok(state), Err)
    }
}

/// The rows that packets find.
fn published(words: &[u64]) -> Vec<Published> {
    let row = |row: usize| {
        let fields = &words[row * FIELDS..][..FIELDS];
        let is_published = FlowWord(fields[0]).state() & (FLOW_TAKEN | FLOW_RESTS) == FLOW_TAKEN;
        is_published.then_some((row, fields[Field::Client as usize], fields[Field::Port as usize]))
    };
    (0..ROWS).filter_map(row).collect()
}

/// Compares the destination of a packet with the rule.
fn arrives<R: Rule>(site: &Site<R>, flight: &Flight, sent: &Sent) {
    let Sent { client, port, row } = *sent;
    if !flight.published.contains(&(row, client, port)) {
        site.breaks(format!("row {row} was half written when a packet read client {client} and port {port}"));
    }
    match flight.packet {
        Packet::There(of, _) if client != u64::from(of) + 1 => {
            site.breaks(format!("a packet of client {of} was sent as one of client {}", client - 1));
        }
        Packet::Reply(to, _) if port != u64::from(to) => {
            site.breaks(format!("a reply to port {to} was sent as one to port {port}"));
        }
        Packet::There(..) | Packet::Reply(..) => {}
    }
}

impl<R: Rule + Copy> World for Rows<R> {
    type State = State;
    type Event = Event;

    fn first(&self) -> State {
        let words = vec![0; ROWS * FIELDS + RETURNS + 2];
        let empty = State { words, flights: Vec::new(), now: 0, arrived: 0 };
        let sent = self.begun.iter().try_fold(empty, |state, &packet| self.after(&state, Event::Sends(packet)));
        State { arrived: 0, ..sent.expect("a first state") }
    }

    fn events(&self, state: &State) -> Vec<Event> {
        let mut events: Vec<Event> = (0..state.flights.len()).map(Event::Steps).collect();
        let there =
            (0..self.clients).flat_map(|client| self.there.iter().map(move |&from| Packet::There(client, from)));
        let ports = published(&state.words).into_iter().map(|(_, _, port)| port as u16);
        let back = ports.flat_map(|port| self.back.iter().map(move |&back| Packet::Reply(port, back)));
        let packets: Vec<Packet> = there.chain(back).collect();
        if self.packets == 0 {
            events.extend(packets.iter().map(|&packet| Event::Sends(packet)));
        }
        if state.flights.len() < self.packets && state.arrived < self.arrivals {
            events.extend(packets.into_iter().map(Event::Arrives));
        }
        events.extend((state.now < LAST_TICK).then_some(Event::Tick));
        events
    }

    fn after(&self, state: &State, event: Event) -> Result<State, String> {
        match event {
            Event::Sends(packet) => {
                let mut state = self.after(state, Event::Arrives(packet))?;
                while !state.flights.is_empty() {
                    state = self.step(&state, 0)?;
                }
                Ok(state)
            }
            Event::Arrives(packet) => {
                let published = published(&state.words);
                let mut state = state.clone();
                state.arrived += usize::from(self.packets > 0);
                state.flights.push(Flight { packet, now: state.now, values: Vec::new(), published });
                self.step(&state, state.flights.len() - 1)
            }
            Event::Steps(place) => self.step(state, place),
            Event::Tick => Ok(State { now: state.now + 1, ..state.clone() }),
        }
    }

    fn key(&self, state: &State) -> u128 {
        search::key(state)
    }
}
