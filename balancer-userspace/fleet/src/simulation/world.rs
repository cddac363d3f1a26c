//! The world around the simulated members, and the properties that must hold in it.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use balancer_common::map_types::{Forwarding, NO_BACKEND};
use balancer_config::{
    config::{Config, Failback, ServiceConfig},
    fixture,
    names::BackendName,
    states::Admin,
};
use balancer_control::io::{BackendId, Change, ServiceId};

use super::{
    node::{Happened, Left, Node},
    setup::Setup,
    store::{Store, Time},
};
use crate::{
    engine::{Request, Ticket, Write},
    member::{Input, Member, Mutation},
    store_schema::ChangeRequest,
};

/// The time after which every member has received a record: a member sends a record within a second, and the store then
/// delivers it.
const SPREADS: Time = 1000 + 250 + 500;

/// The last backend that answered a client, and when.
#[derive(Clone, Copy, Debug)]
struct Place {
    backend: u16,
    since: Time,
    by: usize,
    /// Whether members may disagree about the client's backend, because the member that steered the client was at some
    /// time unable to report this.
    unheard: bool,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) rng: fastrand::Rng,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Option<Node>>,
    begin: Instant,
    /// For each node that is not running, the data that its process has left.
    left: Vec<Option<Left>>,
    config: Config,
    places: HashMap<(ServiceId, u32), Place>,
    pub(crate) dead: HashSet<IpAddr>,
    pub(crate) cut: HashSet<(usize, IpAddr)>,
    /// For each member, the last period in which the member could not receive messages.
    deaf: Vec<(Time, Time)>,
    /// Whether the connections of a client reach all members.
    spread: bool,
    change_requests: HashMap<u64, (usize, Time)>,
    last_wish: u64,
    instances: u64,
    /// The members that use the name of another member, each with that member.
    pub(crate) names: HashMap<usize, usize>,
    /// Whether the members run regular checks.
    pub(crate) checks: bool,
    mutation: Option<Mutation>,
    pub(crate) skewed: u64,
    pub(crate) moved: u64,
    /// The number of moves that members have counted.
    pub(crate) counted: u64,
    pub(crate) packets: u64,
    pub(crate) granted: u64,
    pub(crate) history: Vec<String>,
}

pub(crate) fn service(name: &str, at: &str, failback: Failback) -> ServiceConfig {
    let backends: Vec<String> =
        (1..=4).map(|last| format!("b{last} 10.0.{}.{last}:80", u8::from(name == "api"))).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut service = fixture::service(name, at, Forwarding::Dsr, &backends);
    service.table_size = 251.into();
    service.remember = Duration::from_secs(3000);
    service.failback = failback;
    service.drain_timeout = Duration::from_secs(20);
    service.check.fall = 2;
    service.check.rise = 2;
    service
}

impl World {
    pub(crate) fn new(seed: u64, setup: &Setup, mutation: Option<Mutation>) -> Self {
        let failback = if setup.failback { Failback::Return } else { Failback::Stay };
        let mut services = vec![service("web", "198.51.100.1:80", failback)];
        if setup.two_services {
            let mut api = service("api", "198.51.100.2:80", Failback::Stay);
            api.slow_start = Duration::from_secs(10);
            services.push(api);
        }
        // These random numbers must differ from those with which the story was made.
        Self::with(fastrand::Rng::with_seed(!seed), setup.members, services, setup.spread, mutation)
    }

    /// Creates a fleet of three members, one service, and clients whose connections reach all members.
    pub(crate) fn of_three(seed: u64, service: ServiceConfig, mutation: Option<Mutation>) -> Self {
        Self::with(fastrand::Rng::with_seed(seed), 3, vec![service], true, mutation)
    }

    fn with(
        rng: fastrand::Rng,
        members: usize,
        services: Vec<ServiceConfig>,
        spread: bool,
        mutation: Option<Mutation>,
    ) -> Self {
        let config = fixture::config(services);
        let begin = fixture::now() + Duration::from_secs(100_000);
        let mut this = Self {
            now: 1000,
            store: Store::new(members),
            nodes: (0..members).map(|_| None).collect(),
            begin,
            left: (0..members).map(|_| None).collect(),
            config,
            places: HashMap::new(),
            dead: HashSet::new(),
            cut: HashSet::new(),
            deaf: vec![(0, 0); members],
            spread,
            change_requests: HashMap::new(),
            last_wish: 0,
            instances: 0,
            names: HashMap::new(),
            checks: true,
            mutation,
            skewed: 0,
            moved: 0,
            counted: 0,
            packets: 0,
            granted: 0,
            history: Vec::new(),
            rng,
        };
        for index in 0..members {
            this.start(index);
        }
        this
    }

    fn note(&mut self, what: String) {
        self.history.push(format!("{:>7} {what}", self.now));
    }

    pub(crate) fn start(&mut self, index: usize) {
        self.instances += 1;
        let before = self.left[index].take();
        self.note(format!("lb{index} starts, {} what was before", if before.is_some() { "with" } else { "without" }));
        let name = self.names.get(&index).copied().unwrap_or(index);
        let node = Node::start(
            (index, name),
            self.instances,
            self.config.clone(),
            self.begin,
            self.now,
            before,
            self.mutation,
        );
        self.nodes[index] = Some(node);
    }

    /// Kills the process of a member. The data in the kernel stays, unless the machine disappears as well.
    pub(crate) fn kill(&mut self, index: usize, machine: bool) {
        let Some(node) = self.nodes[index].take() else { return };
        self.note(format!("lb{index} is killed{}", if machine { " with its machine" } else { "" }));
        self.store.hang_up(index);
        self.change_requests.retain(|_, (of, _)| *of != index);
        self.cannot_tell(index);
        if !machine {
            let held = node.member.held();
            self.left[index] = Some((node.plane, held));
        }
    }

    /// Replaces the process of a member by a process of a version with other lookup tables.
    pub(crate) fn upgrade(&mut self, index: usize) {
        self.kill(index, false);
        if let Some((plane, _)) = &mut self.left[index] {
            plane.turn();
        }
        self.start(index);
    }

    /// Marks those clients that this member steered recently, because the other members may never learn about these
    /// clients.
    fn cannot_tell(&mut self, index: usize) {
        for place in self.places.values_mut().filter(|place| place.by == index) {
            place.unheard |= place.since + SPREADS > self.now;
        }
    }

    /// Records which members can receive messages.
    fn listen(&mut self) {
        for (line, (from, until)) in self.store.lines.iter().zip(&mut self.deaf) {
            let is_deaf = line.cut || self.store.down;
            if is_deaf && *until != Time::MAX {
                (*from, *until) = (self.now, Time::MAX);
            } else if !is_deaf && *until == Time::MAX {
                *until = self.now;
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Time) {
        self.listen();
        let until = self.now + time;
        let has_flows = self.config.services.iter().any(|service| service.forwarding == Forwarding::Snat);
        while self.now < until {
            self.now += 10;
            let running: Vec<bool> = self
                .nodes
                .iter()
                .map(|node| node.as_ref().is_some_and(|node| node.stopped_until <= self.now))
                .collect();
            let news = self.store.run(self.now, &running, &mut self.rng);
            for (index, one) in news {
                self.tell(index, Input::News(one));
            }
            for index in (0..self.nodes.len()).filter(|&index| running[index]) {
                if self.now % 200 == (index as u64) * 20 {
                    self.tell(index, Input::Tick);
                }
                if self.checks && self.now % 500 == (index as u64) * 10 {
                    self.check(index);
                }
                // The first check of a series gets its answer after this time.
                if self.now.is_multiple_of(50) && self.nodes[index].as_ref().is_some_and(|node| !node.asked.is_empty())
                {
                    self.check_asked(index);
                }
                if self.now % 4000 == (index as u64) * 30 {
                    self.sweep(index);
                }
                if has_flows && self.now % 1000 == (index as u64) * 40 {
                    self.count_flows(index);
                }
            }
        }
    }

    fn tell(&mut self, index: usize, input: Input) {
        if let Some(node) = &mut self.nodes[index] {
            let happened = node.handle(input, self.now, &mut self.store, &mut self.rng);
            self.learn(happened);
        }
    }

    fn check(&mut self, index: usize) {
        let Self { nodes, dead, cut, store, rng, now, .. } = self;
        if let Some(node) = &mut nodes[index] {
            let reaches = |address| !dead.contains(&address) && !cut.contains(&(index, address));
            let happened = node.check(*now, reaches, store, rng);
            self.learn(happened);
        }
    }

    fn check_asked(&mut self, index: usize) {
        let Self { nodes, dead, cut, store, rng, now, .. } = self;
        if let Some(node) = &mut nodes[index] {
            let reaches = |address| !dead.contains(&address) && !cut.contains(&(index, address));
            let happened = node.check_asked(*now, reaches, store, rng);
            self.learn(happened);
        }
    }

    /// Simulates packets from which a member suspects that a backend has failed.
    pub(crate) fn suspect(&mut self, index: usize, id: BackendId) {
        if let Some(node) = &mut self.nodes[index] {
            let happened = node.suspect(id, self.now, &mut self.store, &mut self.rng);
            self.learn(happened);
        }
    }

    fn sweep(&mut self, index: usize) {
        if let Some(node) = &mut self.nodes[index] {
            let happened = node.sweep(self.now, &mut self.store, &mut self.rng);
            self.learn(happened);
        }
    }

    fn count_flows(&mut self, index: usize) {
        if let Some(node) = &mut self.nodes[index] {
            let happened = node.count_flows(self.now, &mut self.store, &mut self.rng);
            self.learn(happened);
        }
    }

    fn learn(&mut self, happened: Vec<Happened>) {
        for one in happened {
            match one {
                Happened::Answered(id, result) => {
                    assert!(
                        self.change_requests.remove(&id).is_some(),
                        "change request {id} is answered twice: {result:?}"
                    );
                    self.granted += u64::from(result.is_ok());
                    self.note(format!("change request {id}: {result:?}"));
                }
                Happened::Applied => {}
            }
        }
    }

    pub(crate) fn packet(&mut self, client: u32) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|&index| self.takes_packets(index)).collect();
        if up.is_empty() {
            return;
        }
        let index = if self.spread { up[self.rng.usize(..up.len())] } else { up[client as usize % up.len()] };
        let Some(node) = &self.nodes[index] else { return };
        let services: Vec<ServiceId> = node.plane.services().collect();
        for service in services {
            let Some(answer) =
                self.nodes[index].as_ref().and_then(|node| node.plane.packet(service, client, self.now, false))
            else {
                continue;
            };
            self.packets += 1;
            self.counted += u64::from(answer.moved_from != NO_BACKEND);
            if let Some(backend) = answer.backend {
                self.answered(index, service, client, backend);
            }
        }
    }

    /// Simulates a connection of a client of the first service at this member, and returns the client's backend.
    pub(crate) fn packet_at(&self, index: usize, client: u32) -> Option<u16> {
        self.nodes[index].as_ref()?.plane.packet(ServiceId(0), client, self.now, false)?.backend
    }

    /// Whether routers send packets to a member: to ready members, and to members that have lost the connection to the
    /// engine.
    fn takes_packets(&self, index: usize) -> bool {
        self.nodes[index].as_ref().is_some_and(|node| {
            node.member.epoch().is_some() && (node.member.is_in_step() || !node.member.is_connected())
        })
    }

    /// The last backend that answered a client.
    pub(crate) fn place(&self, service: ServiceId, client: u32) -> Option<u16> {
        self.places.get(&(service, client)).map(|place| place.backend)
    }

    fn answered(&mut self, index: usize, service: ServiceId, client: u32, backend: u16) {
        let now = self.now;
        let Some(node) = &self.nodes[index] else { return };
        let unheard = node.alone || self.store.down || self.store.lines[index].cut || node.stopped_until > now;
        let key = (service, client);
        let Some(place) = self.places.get(&key).copied() else {
            self.places.insert(key, Place { backend, since: now, by: index, unheard });
            return;
        };
        if place.backend == backend {
            return;
        }
        self.moved += 1;
        let keeps = node.plane.rows.get(&place.backend).is_some_and(|row| row.keeps_known);
        let failback = node.plane.rows.contains_key(&place.backend)
            && self.config.services[0].failback == Failback::Return
            && service == ServiceId(0);
        let recent = place.since + SPREADS > now && place.by != index;
        let astray = node.astray + SPREADS > now || node.stopped_until + SPREADS > now;
        if keeps && !failback {
            self.skewed += 1;
            let in_step_since = node.astray;
            let knows = |node: &&Node| {
                node.index != index
                    && node.member.is_in_step()
                    && !node.alone
                    && node.astray + SPREADS <= now
                    // A stopped member does not report clients that arrive while it is stopped.
                    && (node.stopped_until + SPREADS <= now || in_step_since < node.stopped_from)
                    && node.backend_of(service, client) == Some(place.backend)
            };
            let somebody = self.nodes.iter().flatten().any(|node| knows(&node))
                || place.by == index && node.born <= place.since && !astray;
            let (from, until) = self.deaf[index];
            let unknown = place.since + SPREADS > from && now < until.saturating_add(SPREADS);
            if !recent && !astray && !unknown && !place.unheard && somebody {
                let last: Vec<&String> = self.history.iter().rev().take(12).collect();
                let Some(node) = &self.nodes[index] else { return };
                let traces: Vec<String> = self.nodes.iter().flatten().map(|node| node.trace(service, client)).collect();
                panic!(
                    "client {client} of {service:?}, at backend {} since {} ({:?}), is answered by lb{index} with {backend} at \
                     {now}, which is at {:?}; {traces:?} {last:#?}",
                    place.backend,
                    place.since,
                    place,
                    node.member.epoch()
                );
            }
        }
        let unheard = unheard || place.unheard || keeps && !failback;
        self.places.insert(key, Place { backend, since: now, by: index, unheard });
    }

    /// Checks for each client that was not reported that, when the members agree, either all members know it or none
    /// does.
    fn all_is_heard(&mut self) {
        let Some(node) = self.nodes.iter().flatten().next() else { return };
        for ((service, client), place) in self.places.iter_mut().filter(|(_, place)| place.unheard) {
            let answer = node.plane.packet(*service, *client, self.now, true).and_then(|answer| answer.backend);
            if let Some(backend) = answer.filter(|_| node.backend_of(*service, *client) == answer) {
                (place.backend, place.since, place.unheard) = (backend, self.now, false);
            }
        }
    }

    /// Makes a user request a change from a random member.
    pub(crate) fn change_request(&mut self, rng: &mut fastrand::Rng) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|&index| self.nodes[index].is_some()).collect();
        let Some(&index) = up.get(rng.usize(..up.len().max(1))) else { return };
        let service = if self.config.services.len() > 1 && rng.bool() { "api" } else { "web" };
        let number = rng.u8(1..=8);
        let name = BackendName { service: service.to_owned(), backend: format!("b{number}") };
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, u8::from(service == "api"), number));
        let change = match rng.u8(..8) {
            0..=2 => Change::Add {
                name,
                address,
                address6: None,
                port: Some(80),
                weight: None,
                backup: false,
                limits: Default::default(),
            },
            3 => Change::Remove { name, force: rng.bool() },
            4 => Change::SetAdmin { name, admin: Admin::Drain, timeout: None },
            5 => Change::SetAdmin { name, admin: Admin::Maint, timeout: None },
            6 => Change::SetAdmin { name, admin: Admin::Ready, timeout: None },
            _ => Change::SetWeight { name, weight: rng.u16(1..300) },
        };
        self.ask(index, change);
    }

    /// Makes a user request this change from the member `index`.
    pub(crate) fn ask(&mut self, index: usize, change: Change) {
        self.last_wish += 1;
        let id = self.last_wish;
        self.note(format!("change request {id} at lb{index}: {change:?}"));
        self.change_requests.insert(id, (index, self.now));
        self.tell(
            index,
            Input::ChangeRequest { id, change_request: ChangeRequest::Change(change), if_generation: None },
        );
    }

    /// Makes a user apply these services at the member `index`.
    pub(crate) fn apply(&mut self, index: usize, services: Vec<ServiceConfig>) {
        self.last_wish += 1;
        let id = self.last_wish;
        self.note(format!("change request {id} at lb{index}: {} services", services.len()));
        self.change_requests.insert(id, (index, self.now));
        self.tell(
            index,
            Input::ChangeRequest { id, change_request: ChangeRequest::Services(services), if_generation: None },
        );
    }

    /// Makes a component fail, or repairs it.
    pub(crate) fn disturb(&mut self, rng: &mut fastrand::Rng) {
        let members = self.nodes.len();
        let index = rng.usize(..members);
        let number = rng.u8(1..=6);
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, rng.u8(..2), number));
        match rng.u8(..14) {
            0 | 1 => {
                self.note(format!("{address} dies"));
                self.dead.insert(address);
            }
            2..=4 => {
                self.note(format!("{address} is back"));
                self.dead.remove(&address);
            }
            5 => {
                self.note(format!("lb{index} cannot reach {address}"));
                self.cut.insert((index, address));
            }
            6 => self.cut.retain(|(of, _)| *of != index),
            7 => {
                let running = self.nodes.iter().flatten().count();
                if running > 1 {
                    let machine = rng.bool();
                    self.kill(index, machine);
                }
            }
            8 | 9 => {
                if let Some(index) = (0..members).find(|&index| self.nodes[index].is_none()) {
                    self.start(index);
                }
            }
            10 => {
                if self.store.lines[index].cut {
                    self.note(format!("lb{index} reaches the store"));
                    self.cannot_tell(index);
                    self.store.lines[index].cut = false;
                } else {
                    self.lose_store(index);
                }
            }
            11 => {
                let time = rng.u64(..9000);
                self.stop(index, time);
            }
            12 => {
                self.store.loses_answers = if self.store.loses_answers > 0 { 0 } else { 12 };
            }
            _ => {
                self.store.down ^= true;
                (0..members).for_each(|index| self.cannot_tell(index));
                self.note(format!("the store is {}", if self.store.down { "down" } else { "up" }));
                if self.store.down && rng.u8(..4) == 0 {
                    self.forget_everything();
                }
            }
        }
    }

    /// Disconnects the member `index` from the store.
    pub(crate) fn lose_store(&mut self, index: usize) {
        self.note(format!("lb{index} loses the store"));
        self.cannot_tell(index);
        self.store.lines[index].cut = true;
    }

    /// Stops the process of a member for a while.
    pub(crate) fn stop(&mut self, index: usize, time: Time) {
        self.note(format!("lb{index} stops for {time}"));
        self.cannot_tell(index);
        let until = self.now + time;
        if let Some(node) = &mut self.nodes[index] {
            if node.stopped_until <= self.now {
                node.stopped_from = self.now;
            }
            node.stopped_until = until;
        }
    }

    /// Makes the store lose all data, as if its disks had failed.
    pub(crate) fn forget_everything(&mut self) {
        self.note("the store loses everything".to_owned());
        self.store.lose_everything();
    }

    /// Writes a value to the store, as a foreign program would.
    pub(crate) fn vandalize(&mut self, key: String, value: Vec<u8>) {
        self.note(format!("{key} is vandalized: {}", String::from_utf8_lossy(&value)));
        let write = Write::Put { key, value, leased: false };
        let request = Request::Transaction { ticket: Ticket(0), conditions: Vec::new(), writes: vec![write] };
        self.store.make(request, 0, self.now, &mut self.rng);
    }

    /// Returns the index of the leader.
    pub(crate) fn leader(&self) -> usize {
        let leads = |node: &Option<Node>| node.as_ref().is_some_and(|node| node.member.leads());
        self.nodes.iter().position(leads).expect("somebody leads after a calm")
    }

    /// Lets time pass without failures; after that, all members must agree, and no work may remain.
    pub(crate) fn settle(&mut self) {
        self.note("calm".to_owned());
        self.store.down = false;
        self.store.loses_answers = 0;
        self.store.full = false;
        self.cut.clear();
        for line in &mut self.store.lines {
            line.cut = false;
            line.may_not_write = false;
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_none() {
                self.start(index);
            }
        }
        let stopped = self.nodes.iter().flatten().map(|node| node.stopped_until).max().unwrap_or(0);
        self.pass(stopped.saturating_sub(self.now) + 45_000);
        self.agree();
        self.all_is_heard();
    }

    /// Property F1: all members that are in step steer clients in the same way.
    pub(crate) fn agree(&self) {
        let nodes: Vec<&Node> = self.nodes.iter().flatten().collect();
        let fail = |what: String| {
            let last: Vec<&String> = self.history.iter().rev().take(40).collect();
            let state: Vec<_> = nodes
                .iter()
                .map(|node| {
                    let card: Vec<_> = node.log.iter().rev().take(4).collect();
                    (node.member.epoch(), node.member.is_in_step(), node.member.leading(), node.member.troubles(), card)
                })
                .collect();
            let cards = nodes[0].member.cards();
            let cards: Vec<_> =
                cards.iter().map(|(name, card)| (name, card.epoch, card.prepared, card.in_step)).collect();
            let next = self.store.get("live/next").map(|next| String::from_utf8_lossy(next).into_owned());
            let leader = self.store.get("live/leader").map(|card| String::from_utf8_lossy(card).into_owned());
            panic!("{what}: {state:#?} {cards:?} leader {leader:?} next {next:?} {last:#?}");
        };
        for node in &nodes {
            if !node.member.is_in_step() || node.alone {
                fail(format!("lb{} is not in step", node.index));
            }
            if node.member.epoch() != nodes[0].member.epoch() {
                fail("members apply different epochs".to_owned());
            }
        }
        if !self.change_requests.is_empty() {
            fail(format!("change requests are not answered: {:?}", self.change_requests));
        }
        if nodes.iter().filter(|node| node.member.leads()).count() != 1 {
            fail("not one leads".to_owned());
        }
        if self.store.get("live/next").is_some() {
            fail("something is prepared and never committed".to_owned());
        }
        let stale = self.store.keys().filter(|key| {
            key.starts_with("live/requests") || key.starts_with("live/answers") || key.starts_with("live/dumps")
        });
        let stale: Vec<&str> = stale.collect();
        if !stale.is_empty() {
            fail(format!("left in the store: {stale:?}"));
        }
        for service in nodes[0].plane.services() {
            for node in &nodes {
                if node.plane.table(service) != nodes[0].plane.table(service) {
                    let states: Vec<String> = nodes
                        .iter()
                        .map(|node| {
                            let service =
                                node.controller.services().iter().find(|of| of.id() == service).expect("a service");
                            let of = |backend: &balancer_control::service::Backend| {
                                format!(
                                    "{} {:?} {} {} {:?}",
                                    backend.name(),
                                    backend.state(),
                                    backend.slots(),
                                    backend.reason(),
                                    backend.agreed()
                                )
                            };
                            format!("lb{} {:?}", node.index, service.backends().iter().map(of).collect::<Vec<_>>())
                        })
                        .collect();
                    fail(format!("tables of {service:?} differ: {states:#?}"));
                }
            }
            let known = self.places.keys().filter(|(of, _)| *of == service).map(|(_, client)| *client);
            for client in known.chain(900_000..900_040) {
                let answers: Vec<Option<u16>> = nodes
                    .iter()
                    .map(|node| node.plane.packet(service, client, self.now, true).and_then(|answer| answer.backend))
                    .collect();
                if answers.iter().any(|answer| *answer != answers[0]) {
                    let place = self.places.get(&(service, client));
                    let entries: Vec<String> = nodes.iter().map(|node| node.trace(service, client)).collect();
                    fail(format!(
                        "client {client} of {service:?} is answered {answers:?}, and was at {place:?}; {entries:?}"
                    ));
                }
            }
        }
    }
}

const _: () = assert!(Member::TELLS_EVERY.as_millis() == 1000);
