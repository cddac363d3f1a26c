//! The controller's decisions and the packets between any two of its commands.
//!
//! The core is the production code, and so is the rule by which a packet is steered. Each command of the core is a step
//! of its own; a packet is one step. What happens between the stores of a command is the subject of [`crate::stores`].

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::{Duration, Instant, UNIX_EPOCH},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Entries, Entry},
    map_types::{ALL_DOWN, Forwarding, NO_BACKEND},
    memory::{BackendFacts, consult},
    query::Query,
    share::{Share, Side},
};
use balancer_config::{
    config::{Config, Outage, ServiceConfig},
    fixture::{KEY, config, now, service},
    limits::Limits,
    names::BackendName,
    states::Admin,
};
use balancer_control::{
    controller::Controller,
    io::{
        BackendId, BackendSpec, Change, CheckNumber, CheckOutcome, Command, Event as CoreEvent, NextHop, Refused,
        RuleAction, RuleSpec,
    },
    rules::Action,
    state::Clocks,
};

use crate::search::{self, World};

/// The number of clients.
pub const CLIENTS: usize = 2;
const SLOTS: u32 = 7;
/// The length of a period; a drain lasts longer than one period, and ends before the second one does.
const PERIOD: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(45);
const REMEMBER: u16 = 64;

/// A backend, by number: 0 to 2; the last one is missing at first.
pub type Number = usize;

/// An event of this world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client sends the first packet of a connection.
    Packet(usize),
    /// The data path carries out the core's next command.
    Applies,
    /// A check of a backend passes.
    Passes(Number),
    /// A check fails softly: the server is there, but does not want clients.
    FailsSoftly(Number),
    /// A check fails hard: the server is not there.
    FailsHard(Number),
    /// An operator drains a backend.
    Drain(Number),
    /// An operator ends a drain.
    Ready(Number),
    /// An operator sets the weight of a backend.
    Weight(Number, u16),
    /// An operator adds a backend.
    Add(Number),
    /// An operator removes a backend, with or without a drain.
    Remove(Number, bool),
    /// An operator pins a client to a backend.
    Pin(usize, Number),
    /// An operator removes the rule of a client.
    Unpin(usize),
    /// An operator sets the share of clients that are steered.
    Steer(u8),
    /// A sweep of the client table is complete.
    Sweep,
    /// A period passes.
    Wait,
    /// The controller restarts, and the data path keeps its state.
    Restart,
    /// Another program reports that a client is at a backend.
    Import(usize, Number),
}

/// The steps that a mutant may take otherwise.
pub trait Rule {
    /// The order in which the data path carries out the commands of one event.
    fn order(&self, commands: Vec<Command>) -> Vec<Command> {
        commands
    }

    /// The backend row that the data path writes.
    fn row(&self, row: Arc<BackendSpec>) -> Arc<BackendSpec> {
        row
    }

    /// The numbers of known clients that a sweep reports.
    fn sweep(&self, known: Vec<(BackendId, u64)>) -> Vec<(BackendId, u64)> {
        known
    }
}

/// The rule as it is.
#[derive(Clone, Copy, Debug)]
pub struct Real;

impl Rule for Real {}

/// The world and its limits.
#[derive(Clone, Copy, Debug)]
pub struct Decisions<R> {
    /// The rule.
    pub rule: R,
    /// The events that may happen beside packets and commands.
    pub events: &'static [Event],
    /// The number of periods that may pass.
    pub periods: u32,
}

/// The state of the data path.
#[derive(Clone, Debug, Default)]
struct Plane {
    rows: BTreeMap<u16, Arc<BackendSpec>>,
    table: Arc<[u16]>,
    home: Option<Arc<[u16]>>,
    rules: Arc<[RuleSpec]>,
    share: Option<Share>,
    entries: [u64; BUCKET_ENTRIES],
    checks: BTreeMap<u16, CheckNumber>,
}

/// What an observer knows of a backend: whether its known clients must stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Known {
    is_there: bool,
    fails_hard: bool,
    fails_softly: bool,
    drains: bool,
    leaves: bool,
    /// The period in which the present drain began.
    since: u32,
    /// The number of sweeps in this drain that found no client.
    empty_sweeps: u32,
}

impl Known {
    /// Whether the backend may keep its clients.
    const fn keeps(self) -> bool {
        self.is_there && !self.fails_hard && !(self.is_drained() && self.empty_sweeps >= 2)
    }

    const fn is_drained(self) -> bool {
        self.drains || self.leaves || self.fails_softly
    }

    /// Begins or ends a drain: a second cause does not prolong it.
    const fn because(mut self, was: bool, period: u32) -> Self {
        if !was && self.is_drained() {
            (self.since, self.empty_sweeps) = (period, 0);
        }
        self
    }
}

/// A state of this world.
#[derive(Clone)]
pub struct State {
    controller: Controller,
    plane: Plane,
    pending: Vec<Command>,
    hops: Vec<IpAddr>,
    known: [Known; 3],
    /// The backends as they were before the pending commands.
    before: [Known; 3],
    /// The backend at which each client is known.
    homes: [Option<Number>; CLIENTS],
    periods: u32,
    /// The number of sweeps, at most two, that a mutant has reported otherwise than they were.
    misreported: u32,
}

static BEGIN: LazyLock<Instant> = LazyLock::new(now);

fn name(of: Number) -> BackendName {
    BackendName { service: "web".to_owned(), backend: format!("web{of}") }
}

fn address(of: Number) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + of as u8])
}

/// The number of the backend with this address.
fn number(of: SocketAddr) -> Number {
    (0..3).find(|&number| address(number) == of.ip()).unwrap_or(3)
}

fn prefix(client: usize) -> ipnet::IpNet {
    IpAddr::from([192, 0, 2, 1 + client as u8]).into()
}

const fn tag(client: usize) -> u32 {
    // The slots and the places in the order of steering differ.
    [0x1000_0000, 0xa000_0000][client]
}

fn site() -> Config {
    let backends = ["web0 10.0.0.1:80", "web1 10.0.0.2:80"];
    let mut web: ServiceConfig = service("web", "198.51.100.10:80", Forwarding::Dsr, &backends);
    web.table_size = SLOTS.into();
    web.remember = Duration::from_secs(3600);
    web.drain_timeout = DRAIN;
    web.outage = Outage { share: 1.0, ..Outage::default() };
    (web.check.fall, web.check.rise) = (1, 1);
    config(vec![web])
}

fn clocks(periods: u32) -> Clocks {
    let passed = PERIOD * periods;
    Clocks { now: *BEGIN + passed, wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) + passed }
}

fn hop() -> NextHop {
    NextHop {
        ifindex: 2,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [6, 0, 0, 0, 0, 1],
        mtu: 1500,
        source: None,
        gateway: None,
        local: false,
    }
}

/// The entries of the only bucket.
struct Words<'a>(&'a RefCell<[u64; BUCKET_ENTRIES]>);

impl Entries for Words<'_> {
    fn load(&self, index: usize) -> Entry {
        Entry(self.0.borrow()[index])
    }

    fn store(&self, index: usize, entry: Entry) {
        self.0.borrow_mut()[index] = entry.0;
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Host,
    Nowhere,
    To { backend: Number, is_pinned: bool, has_path: bool },
}

impl Plane {
    fn apply(&mut self, command: &Command, rule: &impl Rule) {
        match command {
            Command::WriteBackend(row) => {
                self.rows.insert(row.id.0, rule.row(Arc::clone(row)));
            }
            Command::RetireBackend(id) => {
                self.rows.remove(&id.0);
            }
            Command::SwapTable { table, home, .. } => (self.table, self.home) = (Arc::clone(table), home.clone()),
            Command::PublishServices(services) => self.share = services.first().map(|spec| spec.share),
            Command::SetRules { rules, .. } => self.rules = Arc::clone(rules),
            Command::StartChecks(spec) => {
                self.checks.insert(spec.backend.0, spec.number);
            }
            Command::StopChecks(id) => {
                self.checks.remove(&id.0);
            }
            Command::WatchNextHop(_) | Command::UnwatchNextHop(_) | Command::Report(_) => {}
        }
    }

    /// Sends a packet of a client, as `steer.rs` of the kernel program does in a slot with exceptions.
    fn send(&mut self, client: usize) -> Sent {
        if !self.share.is_some_and(|share| matches!(share.side(tag(client)), Side::Steered | Side::Came)) {
            return Sent::Host;
        }
        let place = slot(u64::from(tag(client)) << 32, SLOTS) as usize;
        let in_table = self.table.get(place).copied().filter(|&id| id != NO_BACKEND && id != ALL_DOWN);
        let pins = |of: &&RuleSpec| of.prefix == prefix(client);
        let pin = self.rules.iter().find(pins).and_then(|of| match of.action {
            RuleAction::Pin(id) => id.filter(|id| self.rows.get(&id.0).is_some_and(|row| row.takes_pinned)),
            RuleAction::Spread | RuleAction::Deny => None,
        });
        let query = Query {
            hash: u64::from(tag(client)) << 32,
            service: 0,
            live: pin.map(|id| id.0).or(in_table),
            live_is_home: self.home.as_ref().and_then(|home| home.get(place).copied()) == in_table,
            pinned: pin.is_some(),
            migrates: false,
            opens: true,
            datagram: false,
            failback: false,
            peeks: false,
            marks: false,
            now: 1,
            remember: REMEMBER,
            idle: 1,
        };
        let facts = |id: u16| {
            let row = self.rows.get(&id)?;
            Some(BackendFacts { service: 0, keeps_known: row.keeps_known, cause: row.cause.into() })
        };
        let entries = RefCell::new(self.entries);
        let answer = consult(&Words(&entries), &query, facts, || true);
        self.entries = entries.into_inner();
        let row = answer.backend.and_then(|id| self.rows.get(&id));
        row.map_or(Sent::Nowhere, |row| Sent::To {
            backend: number(row.address),
            is_pinned: pin.is_some(),
            has_path: row.next_hop.is_some(),
        })
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.entries.iter().map(|&word| Entry(word)).filter(|entry| !entry.is_empty())
    }
}

impl<R: Rule + Copy> Decisions<R> {
    fn commands(&self, state: &mut State, commands: Vec<Command>) {
        let hops = commands.iter().filter_map(|command| match command {
            Command::WatchNextHop(address) => Some(*address),
            _ => None,
        });
        state.hops.extend(hops);
        let is_seen = |command: &Command| {
            !matches!(command, Command::WatchNextHop(_) | Command::UnwatchNextHop(_) | Command::Report(_))
        };
        let seen = self.rule.order(commands).into_iter().filter(is_seen);
        // The checks concern no packet.
        for command in seen {
            if matches!(command, Command::StartChecks(_) | Command::StopChecks(_)) {
                state.plane.apply(&command, &self.rule);
            } else {
                state.pending.push(command);
            }
        }
    }

    fn handle(&self, state: &mut State, event: CoreEvent) {
        let commands = state.controller.handle(event, clocks(state.periods).now);
        self.commands(state, commands);
    }

    fn change(&self, state: &mut State, change: Change) -> Result<bool, String> {
        let now = clocks(state.periods).now;
        let plan = state.controller.plan(change.clone(), now);
        match state.controller.change(change, now) {
            Ok((_, commands)) => {
                let old = state.plane.clone();
                self.commands(state, commands);
                let moved = plan.map_err(|refused| format!("the plan of a change that succeeds fails: {refused}"))?;
                let planned: u64 = moved
                    .counted(|count| old.entries().for_each(|entry| count(entry, Duration::ZERO, false)))
                    .services
                    .iter()
                    .map(|service| service.known_clients_moved)
                    .sum();
                self.as_planned(state, planned)?;
                Ok(true)
            }
            Err(Refused::Conflict(_) | Refused::NotFound(_) | Refused::Invalid(_)) => Ok(false),
            Err(other) => Err(format!("refused: {other}")),
        }
    }

    /// Compares the number of clients that move with the planned number, if a pin does not count as a move.
    fn as_planned(&self, state: &State, planned: u64) -> Result<(), String> {
        let mut plane = state.plane.clone();
        state.pending.iter().for_each(|command| plane.apply(command, &self.rule));
        let moves = |client: &usize| {
            let (mut before, mut after) = (state.plane.clone(), plane.clone());
            let entry = state.plane.entries().find(|entry| entry.tag() == tag(*client));
            let home = entry.and_then(|entry| Some(number(state.plane.rows.get(&entry.backend())?.address)));
            match (before.send(*client), after.send(*client)) {
                (Sent::To { backend, is_pinned: false, .. }, Sent::To { backend: other, is_pinned: false, .. }) => {
                    home == Some(backend) && backend != other
                }
                _ => false,
            }
        };
        let moved = (0..CLIENTS).filter(moves).count() as u64;
        let is_simple = state.plane.rules.is_empty() && plane.rules.is_empty() && state.hops.is_empty();
        if is_simple && moved != planned {
            return Err(format!("the plan says that {planned} known clients move, and {moved} do"));
        }
        Ok(())
    }

    fn apply(&self, state: &mut State) -> Result<(), String> {
        let command = state.pending.remove(0);
        if let Command::RetireBackend(id) = &command
            && let Some(entry) = state.plane.entries().find(|entry| entry.backend() == id.0)
        {
            return Err(format!("backend row {} is retired while {entry:?} names it", id.0));
        }
        state.plane.apply(&command, &self.rule);
        self.rests(state)
    }

    /// What holds when the data path has carried out all commands.
    fn rests(&self, state: &mut State) -> Result<(), String> {
        if state.pending.is_empty() {
            for address in std::mem::take(&mut state.hops) {
                self.handle(state, CoreEvent::NextHop { address, next_hop: Ok(hop()) });
            }
        }
        if !state.pending.is_empty() {
            return Ok(());
        }
        state.before = state.known;
        for row in state.plane.rows.values() {
            let of = number(row.address);
            let is_own = state.controller.backend_with_id(row.id).is_some();
            let known = state.known.get(of).copied().unwrap_or_default();
            if is_own && self.must_keep(state, known) && !row.keeps_known {
                return Err(format!("backend {of} gives up its clients ({}) for no reason", row.cause.label()));
            }
        }
        let named = state
            .plane
            .table
            .iter()
            .find(|&&id| id != NO_BACKEND && id != ALL_DOWN && !state.plane.rows.contains_key(&id));
        named.map_or(Ok(()), |id| Err(format!("the table names backend {id}, which has no row")))
    }

    /// Whether known clients of a backend must stay there.
    fn must_keep(&self, state: &State, known: Known) -> bool {
        let is_over = known.is_drained() && PERIOD * (state.periods - known.since) >= DRAIN;
        known.keeps() && !is_over
    }

    fn packet(&self, state: &mut State, client: usize) -> Result<(), String> {
        let home = state.homes[client];
        let sent = state.plane.send(client);
        let stays = |of: Number| self.must_keep(state, state.known[of]) && self.must_keep(state, state.before[of]);
        match sent {
            Sent::Host => Ok(()),
            Sent::Nowhere if home.is_some_and(stays) => Err(format!("client {client} is known, and has no backend")),
            Sent::Nowhere => Ok(()),
            Sent::To { backend, has_path: false, .. } => {
                Err(format!("client {client} was sent to {backend}, to which no path is known"))
            }
            Sent::To { backend, is_pinned, .. } => {
                if let Some(home) = home
                    && !is_pinned
                    && home != backend
                    && stays(home)
                {
                    return Err(format!("client {client} is known at {home} and was sent to {backend}"));
                }
                state.homes[client] = Some(backend);
                Ok(())
            }
        }
    }

    fn sweep(&self, state: &mut State) {
        let mut known: BTreeMap<BackendId, u64> = BTreeMap::new();
        for entry in state.plane.entries() {
            *known.entry(BackendId(entry.backend())).or_default() += 1;
        }
        let seen: Vec<_> = known.into_iter().collect();
        let known = self.rule.sweep(seen.clone());
        state.misreported = (state.misreported + u32::from(known != seen)).min(2);
        for of in 0..state.known.len() {
            let id = state.controller.backend(&name(of)).ok().map(|backend| backend.id());
            let has = state.plane.entries().any(|entry| Some(BackendId(entry.backend())) == id);
            let backend = &mut state.known[of];
            // A drain that is over stays over.
            if !backend.is_drained() || has && backend.empty_sweeps < 2 {
                backend.empty_sweeps = 0;
            } else if !has {
                backend.empty_sweeps = (backend.empty_sweeps + 1).min(2);
            }
        }
        self.handle(state, CoreEvent::Swept { known });
    }

    fn checked(&self, state: &mut State, of: Number, outcome: CheckOutcome) {
        let Ok(backend) = state.controller.backend(&name(of)).map(|backend| backend.id()) else { return };
        let Some(&check) = state.plane.checks.get(&backend.0) else { return };
        let known = &mut state.known[of];
        let was = known.is_drained();
        match outcome {
            CheckOutcome::Passed => (known.fails_hard, known.fails_softly) = (false, false),
            CheckOutcome::Soft(_) => (known.fails_hard, known.fails_softly) = (false, true),
            _ => (known.fails_hard, known.fails_softly) = (true, false),
        }
        *known = known.because(was, state.periods);
        let took = Duration::from_millis(3);
        self.handle(state, CoreEvent::Checked { backend, check, outcome, took, asked: false });
    }

    fn operates(&self, state: &mut State, event: Event) -> Result<bool, String> {
        let service = "web".to_owned();
        let (of, change) = match event {
            Event::Drain(of) => (of, Change::SetAdmin { name: name(of), admin: Admin::Drain, timeout: None }),
            Event::Ready(of) => (of, Change::SetAdmin { name: name(of), admin: Admin::Ready, timeout: None }),
            Event::Weight(of, weight) => (of, Change::SetWeight { name: name(of), weight }),
            Event::Remove(of, force) => (of, Change::Remove { name: name(of), force }),
            Event::Add(of) => {
                let (name, address) = (name(of), address(of));
                let limits = Limits::default();
                (of, Change::Add { name, address, address6: None, port: Some(80), weight: None, backup: false, limits })
            }
            Event::Pin(client, of) => {
                let action = Action::Pin { backend: name(of).backend };
                (of, Change::AddRule { service, prefix: prefix(client), action, ttl: None })
            }
            Event::Unpin(client) => (0, Change::RemoveRule { service, prefix: prefix(client) }),
            Event::Steer(steer) => (0, Change::SetSteer { service, steer }),
            _ => return Ok(false),
        };
        if !self.change(state, change)? {
            return Ok(false);
        }
        let known = &mut state.known[of];
        let was = known.is_drained();
        match event {
            // A drain in progress goes on.
            Event::Drain(_) if known.drains => {}
            Event::Drain(_) => {
                known.drains = true;
                (known.since, known.empty_sweeps) = (state.periods, 0);
            }
            Event::Ready(_) => (known.drains, known.leaves) = (false, false),
            Event::Remove(_, true) => *known = Known::default(),
            Event::Remove(_, false) => known.leaves = true,
            Event::Add(_) => *known = Known { is_there: true, ..Known::default() },
            _ => {}
        }
        *known = known.because(was, state.periods);
        Ok(true)
    }

    fn restarts(&self, state: &mut State) -> Result<(), String> {
        let clocks = clocks(state.periods);
        let saved = state.controller.export(clocks);
        state.controller = Controller::restore(site(), KEY, saved, clocks)?;
        let commands = state.controller.start(clocks.now);
        self.commands(state, commands);
        state.hops.clear();
        state.known.iter_mut().for_each(|known| known.empty_sweeps = 0);
        Ok(())
    }

    fn waits(&self, state: &mut State) {
        state.periods += 1;
        let now = clocks(state.periods).now;
        if state.controller.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.handle(state, CoreEvent::Tick);
        }
    }

    fn imports(&self, state: &mut State, client: usize, of: Number) -> Result<bool, String> {
        let id = state.controller.backend(&name(of)).ok().map(|backend| backend.id());
        let is_known = state.plane.entries().any(|entry| entry.tag() == tag(client));
        let (Some(id), false) = (id, is_known) else { return Ok(false) };
        let free = state.plane.entries.iter_mut().rev().find(|word| **word == 0).ok_or("no free entry")?;
        *free = Entry::heard_of(tag(client), id.0, false, 0, 1).0;
        state.homes[client] = Some(of);
        Ok(true)
    }
}

impl<R: Rule + Copy> World for Decisions<R> {
    type State = State;
    type Event = Event;

    fn first(&self) -> State {
        let there = Known { is_there: true, ..Known::default() };
        let known = [there, there, Known::default()];
        let controller = Controller::new(site(), KEY);
        let mut state = State {
            controller,
            plane: Plane::default(),
            pending: Vec::new(),
            hops: Vec::new(),
            known,
            before: known,
            homes: [None; CLIENTS],
            periods: 0,
            misreported: 0,
        };
        let commands = state.controller.start(clocks(0).now);
        self.commands(&mut state, commands);
        while !state.pending.is_empty() {
            self.apply(&mut state).expect("a first state");
        }
        for of in 0..2 {
            self.checked(&mut state, of, CheckOutcome::Passed);
            while !state.pending.is_empty() {
                self.apply(&mut state).expect("a first state");
            }
        }
        state
    }

    fn events(&self, state: &State) -> Vec<Event> {
        let mut events: Vec<Event> = (0..CLIENTS).map(Event::Packet).collect();
        if state.pending.is_empty() {
            let may = |event: &&Event| !matches!(event, Event::Wait) || state.periods < self.periods;
            events.extend(self.events.iter().filter(may));
        } else {
            events.push(Event::Applies);
        }
        events
    }

    fn after(&self, state: &State, event: Event) -> Result<State, String> {
        let mut state = state.clone();
        match event {
            Event::Packet(client) => {
                self.packet(&mut state, client)?;
                return Ok(state);
            }
            Event::Applies => {
                self.apply(&mut state)?;
                return Ok(state);
            }
            Event::Passes(of) => self.checked(&mut state, of, CheckOutcome::Passed),
            Event::FailsSoftly(of) => self.checked(&mut state, of, CheckOutcome::Soft("status 503".to_owned())),
            Event::FailsHard(of) => self.checked(&mut state, of, CheckOutcome::Hard("connect: refused".to_owned())),
            Event::Sweep => self.sweep(&mut state),
            Event::Wait => self.waits(&mut state),
            Event::Restart => self.restarts(&mut state)?,
            Event::Import(client, of) => {
                self.imports(&mut state, client, of)?;
            }
            operated => {
                self.operates(&mut state, operated)?;
            }
        }
        self.rests(&mut state)?;
        Ok(state)
    }

    fn key(&self, state: &State) -> u128 {
        let saved = state.controller.export(clocks(state.periods));
        let backends = saved.services.iter().flat_map(|service| &service.backends).map(|of| {
            let weight = of.config.weight;
            format!("{:?}", (of.id, weight, of.admin, &of.health, of.state, of.drain_until, of.leaving, of.late))
        });
        let services = saved.services.iter().map(|of| format!("{:?}", (&of.rules, of.share, of.settings.steer)));
        let controller: Vec<String> = backends.chain(services).collect();
        let ids = (saved.free_ids.first().copied(), format!("{:?}", state.controller.gone()));
        let Plane { rows, table, home, rules, share, entries, .. } = &state.plane;
        let rows: Vec<_> = rows.values().map(|row| (row.id, row.address, row.keeps_known, row.takes_pinned)).collect();
        let plane = (rows, table, home, format!("{rules:?}{share:?}"), entries);
        search::key(&(
            (controller, ids, plane),
            (format!("{:?}", state.pending), &state.hops),
            (state.known, state.before, state.homes, state.periods, state.misreported),
        ))
    }
}
