//! A controller, its in-memory data plane, and a clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, UNIX_EPOCH},
};

use balancer_common::map_types::{ALL_DOWN, Forwarding, NO_BACKEND};
use balancer_config::{
    agent::Said,
    bounded::{Bound, BoundedLoad, Load},
    config::{
        AgentConfig, BackendConfig, CheckKind, Config, Failback, FailureAction, ServiceConfig, WhenAllDown, WhenFull,
    },
    discover::{DiscoverConfig, Source, Target},
    dns::{DnsSource, Records},
    fixture::{KEY, backend, check, config, now, service},
    limits::{Enough, Full, Limits},
    listeners::{Family, Listener},
    names::BackendName,
    renames::{Named as _, under_new_names},
    shared::shared,
    states::{Admin, BackendState},
    validate::Valid,
};
use proptest::sample::Index;

use super::{
    disk::Disk,
    inspect::{Drains, inspect},
    plane::DataPlane,
    step::{Edit, Step},
};
use crate::{
    controller::{Controller, Precomputed},
    fixture::next_hop,
    io::{BackendId, Change, CheckNumber, CheckOutcome, CheckSpec, Command, Event, Refused, ServiceId},
    merge::merge,
    next_hops::Hop,
    plan::Plan,
    rules::Action,
    service::{Backend, Service},
    state::Clocks,
};

/// The number of possible known clients of a service, which differ in the high half of their hashes.
const CLIENTS: u32 = 30;

/// Additional addresses for listeners: some addresses are for one service only, and the IPv6 addresses are for services
/// whose backends have IPv6 addresses.
const LISTENERS: [&str; 6] = [
    "198.51.100.10:443/tcp",
    "198.51.100.10:443/udp",
    "198.51.100.12:5000-5010/udp",
    "198.51.100.12:5002/udp",
    "[2001:db8::10]:80/tcp",
    "[2001:db8::10]:443/udp",
];

fn listener(index: Index) -> Listener {
    index.get(&LISTENERS).parse().unwrap()
}

fn tag(number: u32) -> u32 {
    (number + 1).wrapping_mul(0x9e37_79b9)
}

/// The DNS source of SRV records in the test.
fn source() -> Source {
    let name = "_http._tcp.web.internal".to_owned();
    Source::Dns(DnsSource { records: Records::Services, name, family: None, servers: Vec::new() })
}

/// Two services: `web` (with a backup and memory) and `dns` (without memory; drops when all are down), which share
/// addresses.
fn services() -> Vec<ServiceConfig> {
    let backends = ["web1 10.0.0.1:80", "web2 10.0.0.2:80", "web3 10.0.0.3:80", "web4 10.0.0.4:80"];
    let mut web = service("web", "198.51.100.10:80", Forwarding::Nat, &backends);
    web.table_size = 113.into();
    web.remember = Duration::from_secs(60);
    web.drain_timeout = Duration::from_secs(20);
    web.agent = Some(AgentConfig { port: 9777, interval: Duration::from_secs(5) });
    web.bounded_load = Some(BoundedLoad { factor: 1.25, by: Load::Clients });
    web.backends[3].backup = true;
    web.backends[0].limits.clients = Some(8);
    web.discover = vec![DiscoverConfig::new(source())];
    for (backend, host) in web.backends.iter_mut().zip(1..) {
        backend.address6 = Some(format!("[fd00::{host}]:0").parse().unwrap());
    }
    let mut dns = service("dns", "198.51.100.11:53", Forwarding::Dsr, &["dns1 10.0.0.1:53", "dns2 10.0.0.2:53"]);
    dns.table_size = 13.into();
    dns.when_all_down = WhenAllDown::Drop;
    vec![web, dns]
}

/// The configuration, the generation, the live table, and the state of each backend.
type Seen = (ServiceConfig, u64, Vec<u16>, Vec<(BackendState, Admin)>);

/// A move between two backends, with the slots and clients that move.
type Pair = (Option<String>, Option<String>, (u32, u64));

pub(super) struct World {
    controller: Controller,
    plane: DataPlane,
    drains: Drains,
    /// The configuration file.
    file: Valid,
    now: Instant,
    /// The index of the command that will fail.
    failing: Option<Index>,
    disk: Disk,
}

impl World {
    pub(super) fn new() -> Self {
        let mut controller = Controller::new(config(services()), KEY);
        let mut plane = DataPlane { loaded: controller.features(), ..DataPlane::default() };
        let now = now();
        for command in controller.start(now) {
            plane.apply(command);
        }
        let disk = Disk::new(&controller, now);
        let drains = Drains::default();
        let file = Valid::new(shared(services())).unwrap();
        let mut world = Self { controller, plane, drains, file, now, failing: None, disk };
        world.look();
        world
    }

    fn look(&mut self) {
        self.drains.follow(&self.controller, &self.plane, self.now);
        inspect(&self.controller, &self.plane, &self.drains, self.now);
        self.disk.write(&self.controller, self.now);
    }

    /// Lets a copy of the controller compute the tables for a change in advance.
    fn propose(&self, change: Change) -> Precomputed {
        let mut copy = self.controller.clone();
        let _ = copy.change(change, self.now);
        copy.precomputed_since(self.controller.services())
    }

    /// Continues in another process with an empty data plane after one minute, or earlier if a deadline comes first.
    fn restart(&mut self) {
        self.event(Event::Tick);
        let clocks = Clocks { now: self.now, wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) };
        let state = self.controller.export(clocks);
        let text = serde_json::to_string(&state).unwrap();
        let deadline = self.controller.next_deadline();
        let minute = Duration::from_secs(60);
        let pause = if deadline.is_some_and(|at| at <= self.now + minute) { Duration::ZERO } else { minute };
        self.now += pause;
        let clocks = Clocks { now: self.now, wall: clocks.wall + pause };
        let restored = serde_json::from_str(&text).unwrap();
        assert_eq!(restored, state);
        let services = self.file.only(|service| service.drop_in.is_none());
        let file = Config { services, ..config(Vec::new()) };
        let controller = Controller::restore(file, KEY, restored, clocks).unwrap();
        let (before, moved) = (self.seen(), self.moved());
        let generation = self.controller.generation();
        self.controller = controller;
        let old = std::mem::take(&mut self.plane);
        self.plane.loaded = self.controller.features();
        self.plane.swaps = old.swaps.iter().map(|(&service, swaps)| (service, swaps - 1)).collect();
        for command in self.controller.start(self.now) {
            self.plane.apply(command);
        }
        assert_eq!(self.seen(), before);
        assert_eq!((self.moved(), self.controller.generation()), (moved, generation));
        assert_eq!(self.plane.rows, old.rows);
        let live = |plane: &DataPlane| plane.tables.values().map(|tables| tables.0.clone()).collect::<Vec<_>>();
        assert_eq!(live(&self.plane), live(&old));
        assert_eq!(self.plane.services, old.services);
        let unnumbered = |plane: &DataPlane| -> Vec<CheckSpec> {
            plane.checked.values().map(|spec| CheckSpec { number: CheckNumber(0), ..spec.clone() }).collect()
        };
        assert_eq!(unnumbered(&self.plane), unnumbered(&old), "what was counted is lost");
        let set = |plane: &DataPlane| plane.rules.clone().into_iter().filter(|(_, rules)| !rules.is_empty()).collect();
        let rules: [BTreeMap<_, _>; 2] = [set(&self.plane), set(&old)];
        assert_eq!(rules[0], rules[1]);
        assert!(self.plane.watched.keys().eq(old.watched.keys()));
        assert_eq!(self.controller.next_deadline(), deadline);
        assert_eq!(self.controller.export(clocks), state);
        (self.plane.watched, self.plane.clients) = (old.watched, old.clients);
        self.drains.restarted(&self.controller);
        self.disk = Disk::new(&self.controller, self.now);
    }

    fn backend(&self, index: Index) -> Option<(BackendName, BackendId, IpAddr)> {
        let all: Vec<_> = self
            .controller
            .services()
            .iter()
            .flat_map(|service| service.backends().iter().map(|backend| (service.name_of(backend), backend)))
            .collect();
        (!all.is_empty())
            .then(|| index.get(&all).clone())
            .map(|(name, backend)| (name, backend.id(), backend.address().ip()))
    }

    fn seen(&self) -> Vec<Seen> {
        let seen = |service: &Service| {
            let states = service.backends().iter().map(|backend| (backend.state(), backend.admin())).collect();
            (service.config(), service.table_generation(), service.live_table().to_vec(), states)
        };
        self.controller.services().iter().map(seen).collect()
    }

    /// The numbers of slots moved by service: the required moves and the needless moves.
    fn moved(&self) -> BTreeMap<String, (u64, u64)> {
        self.controller.services().iter().map(|service| (service.label(), service.slots_moved())).collect()
    }

    fn event(&mut self, event: Event) {
        self.events(vec![event]);
    }

    /// Handles events that arrive at the same time. A single backend that fails or returns while all other backends are
    /// up moves no slot between two other backends, and no service's table changes twice.
    fn events(&mut self, events: Vec<Event>) {
        for event in &events {
            match event {
                Event::NextHop { address, next_hop } => {
                    if let Some(hop) = self.plane.watched.get_mut(address) {
                        *hop = next_hop.clone().map_or_else(Hop::Failed, Hop::Resolved);
                    }
                }
                Event::Swept { known } => self.drains.swept(known),
                Event::Checked { backend, check, outcome, asked, .. } => {
                    if let Some(spec) = self.plane.checked.get_mut(backend).filter(|spec| spec.number == *check) {
                        spec.health.record(outcome, &spec.check);
                        if *asked && matches!(outcome, CheckOutcome::Late(_)) {
                            spec.health.doubt();
                        }
                    }
                }
                Event::Flows { .. } | Event::Tick => {}
            }
        }
        let before_all = self.controller.clone();
        // The shell keeps an event about an address of this machine back until the program has the features for it.
        let local = events.iter().filter_map(Event::local_address);
        self.plane.loaded |= self.controller.features_with(local);
        let commands = self.controller.handle_all(events, self.now);
        if let Some(place) = self.failure(&commands) {
            self.fails(commands, place);
        } else {
            commands.into_iter().for_each(|command| self.plane.apply(command));
        }
        for service in self.controller.services() {
            let before = before_all.leg(service.name(), service.family()).unwrap();
            let same_backends = before.config() == service.config();
            let changes = service.table_generation() - before.table_generation();
            assert!(changes <= 1 || !same_backends, "{changes} tables at once");
            // A backend that waits for its next hop counts as if it were not configured.
            let waits = |controller: &Controller, service: &Service| -> Vec<bool> {
                service.backends().iter().map(|backend| controller.waits(backend)).collect()
            };
            let same_backends = same_backends && waits(&before_all, before) == waits(&self.controller, service);
            if same_backends && (all_there(before) || all_there(service)) {
                let needless = service.slots_moved().1 - before.slots_moved().1;
                // The slots that a bounded backend gives away are divided among the others, and each part is rounded.
                let is_bounded = |of: &Service| of.backends().iter().any(|backend| backend.bound().is_some());
                let rounded = is_bounded(before) || is_bounded(service);
                let most = if rounded { service.backends().len() as u64 } else { 0 };
                assert!(needless <= most, "a failure or a return moved {needless} slots needlessly");
            }
        }
        self.look();
    }

    /// The position of the command that fails, if a command is to fail.
    fn failure(&mut self, commands: &[Command]) -> Option<usize> {
        let can_fail = |command: &Command| match command {
            Command::WriteBackend(_)
            | Command::RetireBackend(_)
            | Command::SwapTable { .. }
            | Command::PublishServices(_)
            | Command::SetRules { .. } => true,
            Command::WatchNextHop(_)
            | Command::UnwatchNextHop(_)
            | Command::StartChecks(_)
            | Command::StopChecks(_)
            | Command::Report(_) => false,
        };
        let places: Vec<usize> = (0..commands.len()).filter(|&place| can_fail(&commands[place])).collect();
        let place = self.failing.take()?;
        (!places.is_empty()).then(|| *place.get(&places))
    }

    /// Makes the command at `place` fail. The controller sends all commands again after the failure, and the result
    /// must be the same as without the failure.
    fn fails(&mut self, mut commands: Vec<Command>, place: usize) {
        let mut expected = self.plane.clone();
        commands.iter().cloned().for_each(|command| expected.apply(command));
        commands.truncate(place);
        commands.into_iter().for_each(|command| self.plane.apply(command));
        self.told_again(&expected);
    }

    fn told_again(&mut self, expected: &DataPlane) {
        self.plane.again = true;
        for command in self.controller.resync(&self.plane.applied) {
            self.plane.apply(command);
        }
        self.plane.again = false;
        let set = |plane: &DataPlane| plane.rules.clone().into_iter().filter(|(_, rules)| !rules.is_empty()).collect();
        let rules: [BTreeMap<_, _>; 2] = [set(&self.plane), set(expected)];
        assert_eq!(rules[0], rules[1]);
        let of = |plane: &DataPlane| (plane.rows.clone(), plane.tables.clone(), plane.checked.clone());
        assert_eq!(of(&self.plane), of(expected));
        assert_eq!((&self.plane.services, &self.plane.applied), (&expected.services, &expected.applied));
        assert!(self.plane.watched.keys().eq(expected.watched.keys()), "watched");
        // Counters may differ, and a new watch reports a next hop immediately.
        (self.plane.watched, self.plane.swaps) = (expected.watched.clone(), expected.swaps.clone());
        self.plane.clients.clone_from(&expected.clients);
    }

    /// Makes a change, and compares its effect with the plan of the change.
    fn change(&mut self, change: Change) -> Result<String, Refused> {
        let before = self.seen();
        if self.failing.is_some() {
            let (controller, old) = (self.controller.clone(), self.plane.clone());
            if let Ok((_, mut commands)) = self.controller.change(change.clone(), self.now)
                && let Some(place) = self.failure(&commands)
            {
                commands.truncate(place);
                self.plane.loaded |= self.controller.features();
                commands.into_iter().for_each(|command| self.plane.apply(command));
                self.controller.undo(controller);
                self.told_again(&old);
                assert_eq!(self.seen(), before, "a change that failed left something behind");
            } else {
                self.controller = controller;
            }
        }
        let plan = self.controller.plan(change.clone(), self.now);
        let old = self.plane.clone();
        self.controller.expect(self.propose(change.clone()));
        match self.controller.change(change, self.now) {
            Ok((message, commands)) => {
                assert!(!message.is_empty() && !message.contains('\n'));
                let watched = |command: &Command| {
                    if let Command::WatchNextHop(address) = command { Some(*address) } else { None }
                };
                let found: Vec<IpAddr> = commands.iter().filter_map(watched).collect();
                // A change brings a program with all features that it needs; an event cannot bring any.
                self.plane.loaded |= self.controller.features();
                commands.into_iter().for_each(|command| self.plane.apply(command));
                self.look();
                for address in found {
                    self.event(Event::NextHop { address, next_hop: Ok(next_hop(1)) });
                }
                self.holds(plan.unwrap(), &old);
                Ok(message)
            }
            Err(refused) => {
                assert_eq!(self.seen(), before, "a refused change left something behind");
                assert_eq!(plan.unwrap_err(), refused);
                Err(refused)
            }
        }
    }

    /// Asserts that the plan of a change had the right slots and, once all clients have returned, the right clients.
    fn holds(&self, plan: Plan, old: &DataPlane) {
        let spec = |plane: &DataPlane, id: ServiceId| plane.services.iter().find(|spec| spec.id == id).cloned();
        let ids: Vec<ServiceId> = plan.services.iter().map(|of| of.id).collect();
        let planned = plan.counted(|count| {
            for (&(service, _), &entry) in &old.clients {
                if old.rows.get(&BackendId(entry.backend())).is_some_and(|row| row.service == service) {
                    count(entry, Duration::ZERO, false);
                }
            }
        });
        for (of, view) in ids.into_iter().zip(planned.services) {
            let (then, now) = (spec(old, of).unwrap(), spec(&self.plane, of));
            let known = old.clients.iter().filter(|((service, _), _)| *service == of);
            let known = known
                .filter(|(_, entry)| old.rows.get(&BackendId(entry.backend())).is_some_and(|row| row.service == of));
            let forgets = then.forgets(now.as_ref());
            let all = if forgets.is_some_and(|forgets| forgets.includes(Duration::ZERO)) { known.count() } else { 0 };
            assert_eq!(view.known_clients_forgotten, all as u64, "forgotten by {}", view.service);
            let stays = self.controller.services().iter().any(|service| service.name() == view.service);
            assert_eq!(view.removed, !stays);
            let Some(now) = now else { continue };
            let name = |id: u16| match id {
                NO_BACKEND | ALL_DOWN => None,
                id => Some(id),
            };
            let (before, after) = (&old.tables[&of].0, &self.plane.tables[&of].0);
            let mut slots: BTreeMap<_, (u32, u64)> = BTreeMap::new();
            for (place, &to) in after.iter().enumerate() {
                let from = before[place * before.len() / after.len()];
                if from != to {
                    slots.entry((name(from), name(to))).or_default().0 += 1;
                }
            }
            for (_, &entry) in old.clients.iter().filter(|((service, _), _)| *service == of) {
                let at = entry.backend();
                let there = old.rows.get(&BackendId(at)).is_some_and(|row| row.service == of);
                let strangers = forgets.is_some_and(|forgets| forgets.includes(Duration::ZERO));
                if !there || strangers || old.steer(&then, entry.tag()).backend != Some(at) {
                    continue;
                }
                let to = self.plane.steer(&now, entry.tag()).backend;
                if to != Some(at) {
                    slots.entry((Some(at), to)).or_default().1 += 1;
                }
            }
            let named = |id: Option<u16>| {
                let of =
                    |controller: &Controller| id.and_then(|id| controller.name_of(BackendId(id)).map(str::to_owned));
                of(&self.controller)
            };
            let mut expected: Vec<Pair> =
                slots.into_iter().map(|((from, to), counts)| (named(from), named(to), counts)).collect();
            let mut planned: Vec<_> =
                view.moves.into_iter().map(|moves| (moves.from, moves.to, (moves.slots, moves.clients))).collect();
            if now.remember.is_zero() {
                planned.iter_mut().for_each(|moves| moves.2.1 = 0);
                planned.retain(|moves| moves.2 != (0, 0));
            }
            // Backends that were removed without a drain have no name any more.
            let gone = |moves: &Pair| moves.0.is_none();
            if expected.iter().any(gone) {
                let sum =
                    |moves: &[Pair]| moves.iter().fold((0, 0), |sum, moves| (sum.0 + moves.2.0, sum.1 + moves.2.1));
                assert_eq!(sum(&planned), sum(&expected));
                continue;
            }
            planned.sort();
            expected.sort();
            assert_eq!(planned, expected, "{}", view.service);
        }
    }

    /// Makes the event of a finished check, even for a backend without checks.
    fn checked(&self, backend: BackendId, outcome: u8) -> Event {
        let asked = outcome == 4;
        let outcome = match outcome {
            0 => CheckOutcome::Passed,
            1 => CheckOutcome::Soft("status 503".to_owned()),
            2 => CheckOutcome::Hard("connect: refused".to_owned()),
            3 | 4 => CheckOutcome::Late("connect: timeout after 1s".to_owned()),
            5 => CheckOutcome::Shut("connect: refused".to_owned()),
            _ => CheckOutcome::Hindered("no sockets".to_owned()),
        };
        let check = self.plane.checked.get(&backend).map(|spec| spec.number).unwrap_or_default();
        Event::Checked { backend, check, outcome, took: Duration::from_millis(3), asked }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.controller.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.event(Event::Tick);
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        self.pass(Duration::from_millis(700));
        match step {
            Step::Check(index, outcome, times) => {
                let Some((_, id, _)) = self.backend(index) else { return };
                for _ in 0..times {
                    self.event(self.checked(id, outcome));
                }
                // The result belongs to an earlier check that was still running when the present check began.
                let before = self.seen();
                if let Event::Checked { backend, check, outcome, took, asked } = self.checked(id, 2) {
                    let check = CheckNumber(check.0.saturating_sub(1));
                    self.event(Event::Checked { backend, check, outcome, took, asked });
                }
                assert_eq!(self.seen(), before);
            }
            Step::Together(all) => {
                let mut events = Vec::new();
                for (index, outcome) in all {
                    let Some((_, backend, _)) = self.backend(index) else { return };
                    events.extend(vec![self.checked(backend, outcome); 3]);
                }
                self.events(events);
            }
            Step::NextHop(index, found) => {
                let Some((_, _, address)) = self.backend(index) else { return };
                let next_hop = if found { Ok(next_hop(1)) } else { Err(format!("no route to {address}")) };
                self.event(Event::NextHop { address, next_hop });
            }
            Step::Add { service, name, host, port, weight, backup } => {
                if self.controller.services().is_empty() {
                    return;
                }
                let service = service.get(&self.controller.services().iter().collect::<Vec<_>>()).name().to_owned();
                let name = BackendName { service, backend: format!("b{name}") };
                let address = IpAddr::from([10, 0, 0, host]);
                let both = name.service == "web" || host % 2 == 0;
                let address6 = both.then(|| format!("fd00::{host}").parse().unwrap());
                let taken = self.controller.backend(&name).is_ok();
                let limits = Default::default();
                let done =
                    self.change(Change::Add { name: name.clone(), address, address6, port, weight, backup, limits });
                assert!(!taken || matches!(done, Err(Refused::Conflict(_))));
                assert!(self.controller.backend(&name).is_ok() == (taken || done.is_ok()));
            }
            Step::Remove(index, force) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let discovered = self.controller.backend(&name).unwrap().config().discovered.clone();
                let has_list = self.controller.service(&name.service).unwrap().discover().iter().next().is_some();
                let done = self.change(Change::Remove { name: name.clone(), force });
                if discovered.is_some_and(|of| of.gone.is_none()) && has_list {
                    assert!(matches!(done, Err(Refused::Conflict(_))), "{done:?}");
                    return;
                }
                done.unwrap();
                let mut there = self.controller.parts(&name);
                assert!(there.all(|backend| !force && backend.is_leaving() && backend.admin() == Admin::Drain));
            }
            Step::Admin(index, admin, timeout) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let before = self.controller.clone();
                if self.controller.backend(&name).unwrap().admin() != admin || timeout.is_some() {
                    self.controller.parts(&name).for_each(|backend| self.drains.ask(backend.id(), admin, timeout));
                }
                self.change(Change::SetAdmin { name: name.clone(), admin, timeout }).unwrap();
                assert!(self.controller.parts(&name).all(|backend| backend.admin() == admin));
                for (before, after) in before.legs(&name.service).zip(self.controller.legs(&name.service)) {
                    let needless = after.slots_moved().1 - before.slots_moved().1;
                    assert!(needless == 0 || !all_there(before) && !all_there(after), "a drain moved slots needlessly");
                }
            }
            Step::Weight(index, weight) => {
                let Some((name, ..)) = self.backend(index) else { return };
                self.change(Change::SetWeight { name: name.clone(), weight }).unwrap();
                assert!(self.controller.parts(&name).all(|backend| backend.weight() == weight));
            }
            Step::Agent(index, percent, down) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let said = Said { percent, admin: Admin::Ready, down: down.then(String::new) };
                let done = self.change(Change::Agent { name: name.clone(), said: said.clone() });
                let asks = self.controller.words_of(&name).is_some();
                assert_eq!(done.is_ok(), asks, "{done:?}");
                let heard = if done.is_ok() { said } else { Said::default() };
                assert!(self.controller.parts(&name).all(|of| of.agent().cloned().unwrap_or_default() == heard));
            }
            Step::Bound(index, tenths) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let bound = tenths.map(|tenths| Bound { keeps: 10 * tenths, load: 150 });
                let bounds = bound.map(|bound| (name.backend.clone(), bound)).into_iter().collect();
                let before = self.controller.clone();
                let done = self.change(Change::Bound { service: name.service.clone(), bounds });
                let rule = self.controller.legs(&name.service).any(|service| service.bounded_load().is_some());
                assert_eq!(done.is_ok(), rule, "{done:?}");
                let bound = bound.filter(|_| rule);
                let is_so = |of: &Backend| of.bound() == bound || of.bound().is_none() && !of.may_keep_known();
                assert!(self.controller.parts(&name).all(is_so));
                for (before, after) in before.legs(&name.service).zip(self.controller.legs(&name.service)) {
                    let needless = after.slots_moved().1 - before.slots_moved().1;
                    assert!(needless == 0 || !all_there(before) && !all_there(after), "a bound moved slots needlessly");
                }
            }
            Step::Full(index, is_full) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let full = Full { of: Enough::Clients, had: 9, most: 8 };
                let names = is_full.then(|| (name.backend.clone(), full)).into_iter().collect();
                let done = self.change(Change::Full { service: name.service.clone(), full: names });
                let limited = self.controller.service(&name.service).unwrap().bounds_clients();
                assert_eq!(done.is_ok(), limited, "{done:?}");
                let is_snat = self.controller.service(&name.service).unwrap().forwarding() == Forwarding::Snat;
                let has_limit = |of: &Backend| is_snat || !of.config().limits.is_none();
                let right = |of: &Backend| match of.full() {
                    Some(_) => is_full && has_limit(of),
                    None => !limited || !is_full || !has_limit(of) || !of.may_keep_known() && !of.may_take_new(),
                };
                assert!(self.controller.parts(&name).all(right));
            }
            Step::Limit(index, clients) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let limits = Limits { clients, connections: None };
                let before = self.controller.backend(&name).unwrap().config().limits;
                let remembers = self.controller.service(&name.service).unwrap().remembers();
                let done = self.change(Change::SetLimits { name: name.clone(), limits });
                assert_eq!(done.is_ok(), remembers || clients.is_none() || before == limits, "{done:?}");
                let all = |of: &Backend| of.config().limits == limits && (before == limits || of.full().is_none());
                assert!(done.is_err() || self.controller.parts(&name).all(all));
            }
            Step::Force(index, forced) => {
                let Some((name, ..)) = self.backend(index) else { return };
                self.change(Change::ForceHealth { name: name.clone(), forced }).unwrap();
                assert!(self.controller.parts(&name).all(|backend| backend.forced() == forced));
            }
            Step::Rule(index, prefix, kind) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let BackendName { service, backend } = name;
                let prefix = format!("10.0.0.0/{}", 8 * (prefix + 1)).parse().unwrap();
                let there = self.controller.service(&service).unwrap().rules().get(prefix).is_some();
                let action = match kind {
                    0 | 1 => Action::Pin { backend },
                    2 => Action::Spread,
                    3 => Action::Deny,
                    _ => {
                        assert_eq!(self.change(Change::RemoveRule { service, prefix }).is_ok(), there);
                        return;
                    }
                };
                let ttl = (kind == 1).then_some(Duration::from_secs(3));
                let leg = self.controller.leg(&service, Family::V4);
                let is_part = leg.is_some_and(|leg| leg.remembers() && prefix.prefix_len() > leg.client_prefix());
                let pins = matches!(action, Action::Pin { .. });
                let added = self.change(Change::AddRule { service, prefix, action, ttl });
                assert_eq!(added.is_err(), pins && is_part, "{added:?}");
            }
            Step::Discover(mask, first, shift, weight) => {
                let address = |number: u8| (number + shift) % 4;
                let target = |number: u8| Target {
                    name: format!("d{number}"),
                    addresses: [format!("10.0.2.{}", address(number)), format!("fd00::2:{}", address(number))]
                        .map(|text| text.parse().unwrap())
                        .into(),
                    why: None,
                    fault: None,
                    port: Some(80),
                    weight,
                    backup: number == 3,
                };
                let targets = (first..first + 4).map(|number| number % 4).filter(|number| mask >> number & 1 == 1);
                let targets = targets.map(target).collect();
                let change =
                    Change::Discover { service: "web".to_owned(), source: source(), targets, waiting: BTreeSet::new() };
                let refused = self.change(change).err().map(|refused| refused.to_string());
                let told = |text: &String| text.contains("could not tell") && text.contains(") and web/");
                assert!(!refused.as_ref().is_some_and(told), "names at an address freeze the list: {refused:?}");
            }
            Step::Listen(index, at, add) => {
                if self.controller.services().is_empty() {
                    return;
                }
                let service = index.get(&self.controller.services().iter().collect::<Vec<_>>()).name().to_owned();
                let listener = listener(at);
                let before = self.moved();
                let change = if add {
                    Change::AddListener { service, listener }
                } else {
                    Change::RemoveListener { service, listener }
                };
                let _ = self.change(change);
                let after = self.moved();
                let stays = |(label, moved): (&String, &(u64, u64))| before.get(label).is_none_or(|old| old == moved);
                assert!(after.iter().all(stays), "a listener moved slots");
            }
            Step::Reload(edits) => self.reload(edits),
            Step::DropIn(service) => self.drop_in(service),
            Step::Connect(every) => self.connect(every),
            Step::Forget(every) => {
                let mut number = 0;
                self.plane.clients.retain(|_, _| {
                    number += 1;
                    number % every != 0
                });
            }
            Step::Sweep => {
                let known = self.plane.sweep();
                self.event(Event::Swept { known: known.clone() });
                let known: HashMap<BackendId, u64> = known.into_iter().collect();
                for backend in self.controller.services().iter().flat_map(Service::backends) {
                    assert_eq!(backend.known_clients(), known.get(&backend.id()).copied().unwrap_or(0));
                }
            }
            Step::Wait(time) => self.pass(time),
            Step::Fail(place) => self.failing = Some(place),
            Step::Restart => self.restart(),
        }
        self.look();
    }

    /// Lets clients open connections. Known clients stay at backends that keep them, and new clients never go to a
    /// backend that takes no new clients.
    fn connect(&mut self, every: u32) {
        for spec in self.plane.services.clone().into_iter().filter(|spec| !spec.remember.is_zero()) {
            let service = self.controller.services().iter().find(|service| service.id() == spec.id).unwrap();
            let taking: BTreeSet<u16> = service
                .backends()
                .iter()
                .filter(|backend| backend.takes_new_clients())
                .map(|backend| backend.id().0)
                .collect();
            let keeping: BTreeSet<u16> = service
                .backends()
                .iter()
                .filter(|backend| backend.keeps_known())
                .map(|backend| backend.id().0)
                .collect();
            for tag in (0..CLIENTS).filter(|number| number % every == 0).map(tag) {
                let at = self.plane.clients.get(&(spec.id, tag)).map(|entry| entry.backend());
                let to = self.plane.connect(&spec, tag);
                match (at, to) {
                    (Some(at), Some(to)) if at == to => assert!(keeping.contains(&to) || taking.contains(&to)),
                    (Some(at), Some(to)) => {
                        assert!(taking.contains(&to), "moved to {to}, which takes nobody");
                        assert!(
                            !keeping.contains(&at) || spec.failback == Failback::Return,
                            "moved, though {at} keeps"
                        );
                    }
                    (_, Some(to)) => assert!(taking.contains(&to), "{to} takes no new clients"),
                    (_, None) => assert!(taking.is_empty(), "turned away by {taking:?}"),
                }
            }
        }
    }

    fn reload(&mut self, edits: Vec<Edit>) {
        let present = self.controller.present();
        let of_file = present.iter().filter(|service| service.drop_in.is_none());
        let mut services: Vec<_> = of_file.map(|service| ServiceConfig::clone(service)).collect();
        for service in &mut services {
            service.backends.retain(|backend| backend.discovered.is_none());
        }
        for edit in edits {
            edit_file(&mut services, edit);
        }
        let Ok(services) = Valid::new(shared(services)) else { return };
        let Ok(all) = services.with(self.file.of_drop_ins().cloned()) else { return };
        let config = Config { services, ..config(Vec::new()) };
        self.apply(Change::Reload(Box::new(config)), all);
    }

    fn drop_in(&mut self, wanted: Option<(u8, u16)>) {
        let dropped = |(bits, weight): (u8, u16)| {
            let numbers = (1..4).filter(|number| bits & (1 << number) != 0);
            let at = |number| backend(&format!("d{number}"), &format!("10.7.0.{number}:80"));
            let backends = numbers.map(|number| BackendConfig { weight, ..at(number) }).collect();
            let dropped = service("dropped", "198.51.100.77:80", Forwarding::Nat, &[]);
            ServiceConfig { drop_in: Some("more".to_owned()), table_size: 53.into(), backends, ..dropped }
        };
        let services: Vec<ServiceConfig> = wanted.map(dropped).into_iter().collect();
        let all = self.file.only(|service| service.drop_in.is_none()).with(shared(services.clone()));
        let Ok(all) = all else { return };
        let text = format!("{wanted:?}");
        self.apply(Change::SetDropIn { name: "more".to_owned(), text, services }, all);
        assert_eq!(self.controller.drop_ins().is_empty(), self.file.of_drop_ins().next().is_none());
    }

    /// Makes a change after which `file` contains the services of the configuration file and of the drop-in.
    fn apply(&mut self, change: Change, file: Valid) {
        let configs = self.controller.present();
        let before = under_new_names(configs.clone(), &file);
        let kept = self.seen_by_name();
        let pairs = configs.iter().zip(&before);
        let leaving: BTreeSet<(String, String)> = pairs
            .flat_map(|(service, named)| {
                let backends = service.backends.iter().zip(&named.backends);
                let leaving = backends.filter(|(backend, _)| {
                    let name = BackendName { service: service.name.clone(), backend: backend.name.clone() };
                    self.controller.parts(&name).any(Backend::is_leaving)
                });
                leaving.map(|(_, backend)| (named.name.clone(), backend.name.clone()))
            })
            .collect();
        let leaves = |service: &str, backend: &str| leaving.contains(&(service.to_owned(), backend.to_owned()));
        if self.change(change).is_ok() {
            let base = under_new_names(self.file.to_vec(), &file);
            assert_eq!(self.controller.present(), merge(&base, &before, leaves, &file).services);
            self.file = file;
            for ((family, name), (id, admin, address)) in self.seen_by_name() {
                let before = kept.get(&(family, name.clone()));
                let Some(before) = before.filter(|before| before.2.ip() == address.ip()) else { continue };
                let called_back = leaves(&name.service, &name.backend) && admin == Admin::Ready;
                assert!(id == before.0 && (admin == before.1 || called_back), "{name} lost what is known of it");
            }
        }
    }

    fn seen_by_name(&self) -> HashMap<(Family, BackendName), (BackendId, Admin, SocketAddr)> {
        let services = self.controller.services().iter();
        services
            .flat_map(|service| {
                let seen = |backend: &Backend| (backend.id(), backend.admin(), backend.address());
                let named = |backend| (service.family(), service.name_of(backend));
                service.backends().iter().map(move |backend| (named(backend), seen(backend)))
            })
            .collect()
    }
}

/// Whether every backend to which clients could be sent takes new clients.
fn all_there(service: &Service) -> bool {
    let primaries = service.backends().iter().filter(|backend| !backend.is_backup() && backend.effective_weight() > 0);
    service.backends().iter().all(|backend| backend.deadline().is_none())
        && primaries.clone().count() > 0
        && primaries.clone().all(Backend::takes_new_clients)
        && primaries
            .clone()
            .all(|backend| backend.state() == BackendState::Up || backend.state() == BackendState::Checking)
}

fn edit_file(services: &mut Vec<ServiceConfig>, edit: Edit) {
    let count = services.len();
    let place = |index: Index| (count > 0).then(|| index.index(count));
    match edit {
        Edit::DropService(index) => drop(place(index).map(|place| services.remove(place))),
        Edit::Resize(index) => {
            if let Some(place) = place(index) {
                services[place].table_size = if services[place].table_size == 113.into() { 251 } else { 113 }.into();
            }
        }
        Edit::Rename(index, to, silent) => {
            let Some(service) = place(index).map(|place| &mut services[place]) else { return };
            let from = (!silent).then(|| service.identity().to_owned());
            service.name = format!("r{to}");
            service.renamed_from = from.filter(|from| *from != service.name);
            if let Some(backend) = service.backends.first_mut() {
                let from = (!silent).then(|| backend.identity().to_owned());
                backend.name = format!("q{to}");
                backend.renamed_from = from.filter(|from| *from != backend.name);
            }
        }
        Edit::Listen(index, at) => {
            let Some(service) = place(index).map(|place| &mut services[place]) else { return };
            let (at, before) = (listener(at), service.listen.len());
            service.listen.retain(|other| *other != at);
            if service.listen.len() == before {
                service.listen.push(at);
            }
        }
        Edit::Prefix(index) => {
            if let Some(place) = place(index) {
                // The service's prefix becomes shorter than the prefixes of some rules, or longer than all of them.
                services[place].client_prefix.v4 ^= 32 ^ 20;
            }
        }
        Edit::Policy(index, bits) => {
            let Some(service) = place(index).map(|place| &mut services[place]) else { return };
            let bit = |number: u16| bits >> number & 1 == 1;
            let word = |number| if bit(number) { FailureAction::Move } else { FailureAction::Drain };
            service.when_all_down = if bit(0) { WhenAllDown::Open } else { WhenAllDown::Drop };
            service.start_down = bit(1);
            service.reject = bit(11);
            service.when_full = [WhenFull::Open, WhenFull::Drop, WhenFull::Reject][usize::from(bits % 3)];
            service.steer = [100, 100, 40, 0][usize::from(bits >> 12 & 3)];
            (service.on_failure.hard, service.on_failure.soft) = (word(2), word(3));
            service.failback = if bit(4) { Failback::Return } else { Failback::Stay };
            service.slow_start = Duration::from_secs(if bit(5) { 30 } else { 0 });
            service.remember = Duration::from_secs(if bit(6) || bit(7) { 60 } else { 0 });
            service.drain_timeout = Duration::from_secs(if bit(8) { 20 } else { 40 });
            service.check.kind = if bit(9) || bit(10) { check().kind } else { CheckKind::None };
        }
        Edit::AddService => {
            let host = 20 + count;
            let at = format!("198.51.100.{host}:80");
            let mut added = service(&format!("s{count}"), &at, Forwarding::Nat, &[&format!("b1 10.0.1.{host}:80")]);
            added.table_size = 61.into();
            services.push(added);
        }
        Edit::Add(index, name, host) => {
            if let Some(place) = place(index) {
                services[place].backends.insert(0, backend(&format!("b{name}"), &format!("10.0.0.{host}:0")));
            }
        }
        Edit::Move(index, host) => {
            if let Some(backend) = place(index).and_then(|place| services[place].backends.first_mut()) {
                backend.address.set_ip([10, 0, 0, host].into());
                backend.check = Some(Box::new(check()));
            }
        }
        Edit::Weight(index, weight) => {
            if let Some(backend) = place(index).and_then(|place| services[place].backends.first_mut()) {
                backend.weight = weight;
            }
        }
        Edit::Remove(index) => {
            if let Some(place) = place(index) {
                services[place].backends.pop();
            }
        }
    }
}
