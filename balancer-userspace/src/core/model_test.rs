//! Random sequences of events and changes, against a data plane in memory that refuses what the real one could not
//! survive, and a model that says anew after each step what should be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use balancer_common::map_types::{ALL_DOWN, Forwarding, MAX_BACKENDS, NO_BACKEND};
use proptest::{prelude::*, sample::Index};

use crate::{
    config::model::{CheckKind, ServiceConfig, WhenAllDown},
    core::{
        controller::Controller,
        fixture::{KEY, backend, check, config, next_hop, now, service},
        io::{
            Admin, BackendId, BackendName, BackendSpec, Change, CheckOutcome, Command, Event, Refused, RuleAction,
            RuleSpec, ServiceId, ServiceSpec,
        },
        maglev::{self, Member},
        merge::merge,
        rules::Action,
        service::{Backend, Service},
        standing::State,
        state::Clocks,
        table::Footing,
    },
};

/// What the commands made of an empty data plane.
#[derive(Default)]
struct DataPlane {
    rows: BTreeMap<BackendId, BackendSpec>,
    retired: BTreeSet<BackendId>,
    tables: BTreeMap<ServiceId, Arc<[u16]>>,
    services: Vec<ServiceSpec>,
    watched: BTreeSet<IpAddr>,
    checked: BTreeMap<BackendId, (BackendName, std::net::SocketAddr)>,
    swaps: HashMap<ServiceId, u64>,
    rules: HashMap<ServiceId, Arc<[RuleSpec]>>,
}

impl DataPlane {
    fn names(&self, id: BackendId) -> bool {
        self.tables.values().any(|table| table.contains(&id.0))
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::WriteBackend(spec) => {
                assert!((1..MAX_BACKENDS as u16).contains(&spec.id.0));
                self.retired.remove(&spec.id);
                assert_ne!(self.rows.get(&spec.id), Some(&spec), "a row is written for nothing");
                self.rows.insert(spec.id, spec);
            }
            Command::RetireBackend(id) => {
                let pins = |rules: &Arc<[RuleSpec]>| rules.iter().any(|rule| rule.action == RuleAction::Pin(Some(id)));
                assert!(!self.rules.values().any(pins), "a rule pins to {id:?}, which is retired");
                assert!(!self.names(id), "a table names {id:?}, which is retired");
                assert!(!self.services.iter().any(|service| service.backends.iter().any(|backend| backend.0 == id)));
                assert!(!self.checked.contains_key(&id), "{id:?} is checked after its end");
                self.rows.remove(&id).expect("a retired backend had a row");
                self.retired.insert(id);
            }
            Command::SwapTable { service, table, home: _ } => {
                let named: BTreeSet<u16> = table.iter().copied().collect();
                for id in named {
                    let known = self.rows.contains_key(&BackendId(id));
                    assert!(known || id == NO_BACKEND || id == ALL_DOWN, "a table names {id} without a row");
                    let published = self.services.iter().find(|spec| spec.id == service);
                    let way_back = published.is_none_or(|spec| spec.backends.iter().any(|backend| backend.0.0 == id));
                    assert!(way_back || !known, "clients are sent to {id} before their replies find back");
                }
                assert_ne!(self.tables.get(&service), Some(&table), "a table is swapped for nothing");
                *self.swaps.entry(service).or_default() += 1;
                self.tables.insert(service, table);
            }
            Command::PublishServices(services) => {
                for service in &services {
                    assert!(self.tables.contains_key(&service.id), "a service is published without a table");
                    for (id, address) in &service.backends {
                        assert_eq!(self.rows[id].address, *address, "the way back differs from the way to");
                    }
                }
                for service in &services {
                    let ruled = self.rules.get(&service.id).is_some_and(|rules| !rules.is_empty());
                    assert!(service.rules || !ruled, "a service with rules is published as one without");
                }
                let gone = |id: &ServiceId| !services.iter().any(|service| service.id == *id);
                self.tables.retain(|id, _| !gone(id));
                self.swaps.retain(|id, _| !gone(id));
                self.rules.retain(|id, _| !gone(id));
                self.services = services;
            }
            Command::SetRules { service, rules } => {
                let published = self.services.iter().find(|spec| spec.id == service);
                assert!(published.is_some_and(|spec| spec.rules), "rules of a service that is not published with any");
                for rule in &*rules {
                    if let RuleAction::Pin(Some(id)) = rule.action {
                        assert!(self.rows.contains_key(&id), "a rule pins to {id:?}, which has no row");
                    }
                }
                assert_ne!(self.rules.get(&service), Some(&rules), "rules are set for nothing");
                self.rules.insert(service, rules);
            }
            Command::WatchNextHop(address) => assert!(self.watched.insert(address), "{address} is watched twice"),
            Command::UnwatchNextHop(address) => assert!(self.watched.remove(&address), "{address} was not watched"),
            Command::StartChecks { backend, name, target, check } => {
                assert_ne!(check.kind, CheckKind::None);
                assert!(self.rows.contains_key(&backend));
                self.checked.insert(backend, (name, target));
            }
            Command::StopChecks(id) => assert!(self.checked.remove(&id).is_some(), "{id:?} was not checked"),
            Command::Report(report) => assert!(!report.message.is_empty() && !report.message.contains('\n')),
        }
    }
}

/// Compares everything that can be seen of the controller with the data plane and with what should be.
fn inspect(controller: &Controller, plane: &DataPlane) {
    let ids: Vec<BackendId> =
        controller.services().iter().flat_map(Service::backends).map(|backend| backend.id()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "an id is given out twice");
    assert_eq!(plane.rows.keys().copied().collect::<BTreeSet<_>>(), ids.iter().copied().collect());
    assert_eq!(ids.len() + controller.free_ids(), MAX_BACKENDS as usize - 1, "ids are lost or given back twice");
    assert_eq!(plane.services.len(), controller.services().len());
    let addresses = controller.services().iter().flat_map(Service::backends).map(|backend| backend.address().ip());
    assert_eq!(plane.watched, addresses.collect());

    for (service, spec) in controller.services().iter().zip(&plane.services) {
        let config = service.config();
        assert_eq!((spec.id, spec.address, spec.forwarding), (service.id(), config.address, config.forwarding));
        let rules = plane.rules.get(&service.id()).cloned().unwrap_or_default();
        assert_eq!((rules.len(), spec.rules), (service.rules().len(), !service.rules().is_empty()));
        for (rule, told) in service.rules().iter().zip(&*rules) {
            let Action::Pin { backend: name } = &rule.action else { continue };
            let id = service.backends().iter().find(|backend| backend.name() == name).map(Backend::id);
            assert_eq!(told.action, RuleAction::Pin(id));
            let active = id.is_some_and(|id| plane.rows[&id].takes_pinned);
            assert_eq!(service.inactive(rule).is_none(), active, "what is shown of a pin differs from what it does");
        }
        let table = &plane.tables[&service.id()];
        assert_eq!(&**table, service.live_table());
        assert_eq!(table.len() as u32, config.table_size);
        assert_eq!(service.table_generation(), plane.swaps[&service.id()]);

        let backends = service.backends();
        let mut counts: HashMap<u16, u32> = HashMap::new();
        for entry in &**table {
            *counts.entry(*entry).or_default() += 1;
        }
        for backend in backends {
            assert_eq!(backend.slots(), counts.get(&backend.id().0).copied().unwrap_or(0));
            assert_eq!(plane.checked.contains_key(&backend.id()), backend.admin() != Admin::Maint);
        }
        let without = counts.get(&NO_BACKEND).or(counts.get(&ALL_DOWN)).copied().unwrap_or(0);
        let with: u32 = backends.iter().map(|backend| backend.slots()).sum();
        assert_eq!(with + without, config.table_size, "the slots do not add up");

        // Who should be steered to, from the states that users see.
        let waits = |backend: &Backend| controller.waits_for_next_hop(&service.name_of(backend));
        let all_wait = backends.iter().all(waits);
        let usable = |backup: bool, states: &[State]| -> BTreeSet<u16> {
            let of = backends.iter().filter(|backend| backend.is_backup() == backup && backend.weight() > 0);
            of.filter(|backend| states.contains(&backend.state()))
                .filter(|backend| !waits(backend) || (all_wait && states.len() > 2))
                .map(|backend| backend.id().0)
                .collect()
        };
        let as_if_up = [State::Up, State::Checking, State::Drained, State::Down];
        let taking = if config.start_down { &as_if_up[..1] } else { &as_if_up[..2] };
        let mut grounds = vec![usable(false, taking), usable(true, taking)];
        if config.when_all_down == WhenAllDown::Open {
            grounds.extend([usable(false, &as_if_up), usable(true, &as_if_up)]);
        }
        let expected = grounds
            .into_iter()
            .find(|ground| !ground.is_empty())
            .unwrap_or_else(|| [if backends.is_empty() { NO_BACKEND } else { ALL_DOWN }].into());
        let total: u64 = backends
            .iter()
            .filter(|backend| expected.contains(&backend.id().0))
            .map(|backend| u64::from(backend.weight()))
            .sum();
        for backend in backends {
            assert_eq!(backend.takes_new_clients(), expected.contains(&backend.id().0), "{backend:?}");
            let below_one_slot = u64::from(config.table_size) * u64::from(backend.weight()) < total;
            assert!(!backend.takes_new_clients() || backend.slots() > 0 || below_one_slot, "{backend:?}");
        }
        assert!(counts.keys().all(|entry| expected.contains(entry)), "slots of {counts:?}, not {expected:?}");

        // A backend has at least the slots that it has when all are up.
        let home = service.footing() == Footing::Backups;
        let members: Vec<Member<'_>> = backends
            .iter()
            .filter(|backend| backend.is_backup() == home && (all_wait || !waits(backend)))
            .map(|backend| Member { id: backend.id().0, name: backend.name(), weight: backend.weight() })
            .collect();
        let key = crate::core::keys::table_key(KEY, service.name());
        if let Some(base) = maglev::table(&members, config.table_size, key) {
            for (base, live) in base.iter().zip(&**table).filter(|(base, _)| expected.contains(base)) {
                assert_eq!(base, live, "a slot of a healthy backend is elsewhere");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Check(Index, u8, u8),
    NextHop(Index, bool),
    Add { service: Index, name: u8, host: u8, port: Option<u16>, weight: Option<u16>, backup: bool },
    Remove(Index, bool),
    Admin(Index, Admin),
    Weight(Index, u16),
    Reload(Vec<Step>),
    DropService(Index),
    Rule(Index, u8, u8),
    AddService,
    Resize(Index),
    Policy(Index, bool, bool),
    Move(Index, u8),
    Restart,
}

fn admin() -> impl Strategy<Value = Admin> {
    prop_oneof![Just(Admin::Ready), Just(Admin::Drain), Just(Admin::Maint)]
}

fn step() -> impl Strategy<Value = Step> {
    let any_index = any::<Index>;
    let weight = || prop_oneof![3 => 1u16..300, 1 => Just(0), 1 => Just(u16::MAX)];
    let add = (any_index(), 0..8u8, 0..12u8, prop_oneof![4 => Just(None), 1 => (1u16..3).prop_map(Some)]);
    let add = (add, prop::option::of(weight()), prop::bool::weighted(0.2)).prop_map(
        |((service, name, host, port), weight, backup)| Step::Add { service, name, host, port, weight, backup },
    );
    let edit = prop_oneof![
        (any_index(), 0..12u8).prop_map(|(index, host)| Step::Move(index, host)),
        (any_index(), weight()).prop_map(|(index, weight)| Step::Weight(index, weight)),
        add.clone(),
        any_index().prop_map(|index| Step::Remove(index, true)),
        any_index().prop_map(Step::DropService),
        any_index().prop_map(Step::Resize),
        (any_index(), any::<bool>(), any::<bool>()).prop_map(|(index, open, down)| Step::Policy(index, open, down)),
        Just(Step::AddService),
    ];
    prop_oneof![
        8 => (any_index(), 0..3u8, 1..5u8).prop_map(|(index, outcome, times)| Step::Check(index, outcome, times)),
        4 => (any_index(), prop::bool::weighted(0.7)).prop_map(|(index, found)| Step::NextHop(index, found)),
        3 => add,
        2 => (any_index(), any::<bool>()).prop_map(|(index, force)| Step::Remove(index, force)),
        4 => (any_index(), admin()).prop_map(|(index, admin)| Step::Admin(index, admin)),
        2 => (any_index(), weight()).prop_map(|(index, weight)| Step::Weight(index, weight)),
        2 => (any_index(), 0..3u8, 0..5u8).prop_map(|(index, prefix, kind)| Step::Rule(index, prefix, kind)),
        2 => prop::collection::vec(edit, 0..4).prop_map(Step::Reload),
        1 => Just(Step::Restart),
    ]
}

fn services() -> Vec<ServiceConfig> {
    let mut web = service(
        "web",
        "198.51.100.10:80",
        Forwarding::Nat,
        &["web1 10.0.0.1:80", "web2 10.0.0.2:80", "web3 10.0.0.3:80"],
    );
    web.table_size = 251;
    web.backends[2].backup = true;
    let mut dns = service("dns", "198.51.100.11:53", Forwarding::Dsr, &["dns1 10.0.0.1:53", "dns2 10.0.0.2:53"]);
    dns.table_size = 127;
    dns.when_all_down = WhenAllDown::Drop;
    vec![web, dns]
}

/// Configuration, generation, live table and the backends' states.
type Seen = (ServiceConfig, u64, Vec<u16>, Vec<(State, Admin)>);

struct World {
    controller: Controller,
    plane: DataPlane,
    /// The configuration file.
    file: Vec<ServiceConfig>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let mut controller = Controller::new(config(services()), KEY);
        let mut plane = DataPlane::default();
        let now = now();
        for command in controller.start(now) {
            plane.apply(command);
        }
        inspect(&controller, &plane);
        Self { controller, plane, file: services(), now }
    }

    /// Goes on in another process, after a minute, with an empty data plane.
    fn restart(&mut self) {
        let clocks = Clocks { now: self.now, wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) };
        let state = self.controller.export(clocks);
        let text = serde_json::to_string(&state).unwrap();
        let deadline = self.controller.next_deadline();
        let minute = Duration::from_secs(60);
        self.now += minute;
        let clocks = Clocks { now: self.now, wall: clocks.wall + minute };
        let restored = serde_json::from_str(&text).unwrap();
        assert_eq!(restored, state);
        let controller = Controller::restore(config(self.file.clone()), KEY, restored, clocks).unwrap();
        let (before, needless) = (self.seen(), self.needless());
        let generation = self.controller.generation();
        self.controller = controller;
        let old = std::mem::take(&mut self.plane);
        self.plane.swaps = old.swaps.iter().map(|(&service, swaps)| (service, swaps - 1)).collect();
        for command in self.controller.start(self.now) {
            self.plane.apply(command);
        }
        assert_eq!(self.seen(), before);
        assert_eq!((self.needless(), self.controller.generation()), (needless, generation));
        assert_eq!((&self.plane.tables, &self.plane.rows), (&old.tables, &old.rows));
        assert_eq!((&self.plane.services, &self.plane.watched), (&old.services, &old.watched));
        assert_eq!(self.plane.checked, old.checked);
        assert_eq!(self.controller.next_deadline(), deadline);
        let again = self.controller.export(clocks);
        assert_eq!(again, state);
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

    fn needless(&self) -> u64 {
        self.controller.services().iter().map(|service| service.slots_moved().1).sum()
    }

    /// Slots that another backend has than when all are up.
    fn lent(&self) -> u64 {
        let lent = |service: &Service| {
            let backends = service
                .backends()
                .iter()
                .filter(|backend| backend.is_backup() == (service.footing() == Footing::Backups));
            let total: u64 = backends.clone().map(|backend| u64::from(backend.weight())).sum();
            let at_home: u64 = backends
                .filter(|backend| backend.takes_new_clients())
                .map(|backend| u64::from(service.table_size()) * u64::from(backend.weight()) / total.max(1))
                .sum();
            u64::from(service.table_size()).saturating_sub(at_home)
        };
        self.controller.services().iter().map(lent).sum()
    }

    fn event(&mut self, event: Event) {
        let lent = self.lent();
        let needless = self.needless();
        for command in self.controller.handle(event, self.now) {
            self.plane.apply(command);
        }
        // Only slots that are lent already may move between backends that stay.
        assert!(self.needless() - needless <= lent.max(self.lent()));
        if lent == 0 || self.lent() == 0 {
            assert_eq!(self.needless(), needless, "a failure or a return moved slots needlessly");
        }
    }

    fn change(&mut self, change: Change) -> Result<String, Refused> {
        let before = self.seen();
        match self.controller.change(change, self.now) {
            Ok((message, commands)) => {
                commands.into_iter().for_each(|command| self.plane.apply(command));
                assert!(!message.is_empty() && !message.contains('\n'));
                Ok(message)
            }
            Err(refused) => {
                assert_eq!(self.seen(), before, "a refused change left something behind");
                Err(refused)
            }
        }
    }

    fn step(&mut self, step: Step) {
        self.now += Duration::from_millis(700);
        match step {
            Step::Check(index, outcome, times) => {
                let Some((_, id, _)) = self.backend(index) else { return };
                for _ in 0..times {
                    let outcome = match outcome {
                        0 => CheckOutcome::Passed,
                        1 => CheckOutcome::Soft("status 503".to_owned()),
                        _ => CheckOutcome::Hard("connect: refused".to_owned()),
                    };
                    self.event(Event::Checked { backend: id, outcome, took: Duration::from_millis(3) });
                }
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
                let service = service.get(self.controller.services()).name().to_owned();
                let name = BackendName { service, backend: format!("b{name}") };
                let address = IpAddr::from([10, 0, 0, host]);
                let taken = self.controller.backend(&name).is_ok();
                let done = self.change(Change::Add { name: name.clone(), address, port, weight, backup });
                assert!(!taken || matches!(done, Err(Refused::Conflict(_))));
                assert!(self.controller.backend(&name).is_ok() == (taken || done.is_ok()));
            }
            Step::Remove(index, force) => {
                let Some((name, ..)) = self.backend(index) else { return };
                self.change(Change::Remove { name: name.clone(), force }).unwrap();
                assert!(matches!(self.controller.backend(&name), Err(Refused::NotFound(_))));
            }
            Step::Admin(index, admin) => {
                let Some((name, ..)) = self.backend(index) else { return };
                let needless = self.needless();
                let lent = self.lent();
                self.change(Change::SetAdmin { name: name.clone(), admin, timeout: None }).unwrap();
                assert_eq!(self.controller.backend(&name).unwrap().admin(), admin);
                assert!(lent > 0 || self.needless() == needless, "a drain moved slots needlessly");
            }
            Step::Weight(index, weight) => {
                let Some((name, ..)) = self.backend(index) else { return };
                self.change(Change::SetWeight { name: name.clone(), weight }).unwrap();
                assert_eq!(self.controller.backend(&name).unwrap().weight(), weight);
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
                self.change(Change::AddRule { service, prefix, action, ttl }).unwrap();
            }
            Step::Reload(edits) => self.reload(edits),
            Step::Restart => self.restart(),
            Step::DropService(_) | Step::AddService | Step::Resize(_) | Step::Policy(..) | Step::Move(..) => {}
        }
    }

    fn reload(&mut self, edits: Vec<Step>) {
        let mut services: Vec<ServiceConfig> = self.controller.services().iter().map(Service::config).collect();
        for edit in edits {
            let place = |index: Index| (!services.is_empty()).then(|| index.index(services.len()));
            match edit {
                Step::DropService(index) => drop(place(index).map(|place| services.remove(place))),
                Step::Resize(index) => {
                    if let Some(place) = place(index) {
                        services[place].table_size = if services[place].table_size == 251 { 509 } else { 251 };
                    }
                }
                Step::Policy(index, open, start_down) => {
                    if let Some(place) = place(index) {
                        services[place].when_all_down = if open { WhenAllDown::Open } else { WhenAllDown::Drop };
                        services[place].start_down = start_down;
                    }
                }
                Step::AddService => {
                    let (count, host) = (services.len(), 20 + services.len());
                    let at = format!("198.51.100.{host}:80");
                    let mut added =
                        service(&format!("s{count}"), &at, Forwarding::Nat, &[&format!("b1 10.0.1.{host}:80")]);
                    added.table_size = 127;
                    services.push(added);
                }
                Step::Add { service, name, host, .. } => {
                    if let Some(place) = place(service) {
                        let port = services[place].address.port();
                        services[place]
                            .backends
                            .insert(0, backend(&format!("b{name}"), &format!("10.0.0.{host}:{port}")));
                    }
                }
                Step::Move(index, host) => {
                    if let Some(backend) = place(index).and_then(|place| services[place].backends.first_mut()) {
                        backend.address.set_ip([10, 0, 0, host].into());
                        backend.check = Some(check());
                    }
                }
                Step::Weight(index, weight) => {
                    if let Some(backend) = place(index).and_then(|place| services[place].backends.first_mut()) {
                        backend.weight = weight;
                    }
                }
                Step::Remove(index, _) => {
                    if let Some(place) = place(index) {
                        services[place].backends.pop();
                    }
                }
                Step::Check(..)
                | Step::NextHop(..)
                | Step::Admin(..)
                | Step::Rule(..)
                | Step::Reload(_)
                | Step::Restart => {}
            }
        }
        let before: Vec<ServiceConfig> = self.controller.services().iter().map(Service::config).collect();
        let kept = self.seen_by_name();
        if self.change(Change::Reload(Box::new(config(services.clone())))).is_ok() {
            let now: Vec<ServiceConfig> = self.controller.services().iter().map(Service::config).collect();
            assert_eq!(now, merge(&self.file, &before, |_, _| false, services.clone()).services);
            self.file = services;
            for (name, (id, admin, address, _)) in self.seen_by_name() {
                if let Some(before) = kept.get(&name).filter(|before| before.2 == address) {
                    assert_eq!((id, admin), (before.0, before.1), "{name} lost what is known of it");
                }
            }
        }
    }

    fn seen_by_name(&self) -> HashMap<BackendName, (BackendId, Admin, std::net::SocketAddr, State)> {
        let services = self.controller.services().iter();
        services
            .flat_map(|service| {
                service.backends().iter().map(|backend| {
                    (service.name_of(backend), (backend.id(), backend.admin(), backend.address(), backend.state()))
                })
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_data_plane_survives_everything(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            inspect(&world.controller, &world.plane);
        }
    }
}
