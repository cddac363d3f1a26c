//! A controller, its client table, servers, clients and a clock.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Bucket, Entry},
    map_types::{ALL_DOWN, Forwarding, NO_BACKEND},
    memory::{Answer, BackendFacts, consult},
    query::Query,
    share::Side,
    signs::Waiting,
    verdict::Signal,
};
use balancer_config::{
    config::ServiceConfig,
    fixture::{KEY, config, now, service},
    states::Admin,
};
use balancer_control::{
    controller::Controller,
    io::{BackendId, BackendSpec, Change, Command, Event as CoreEvent, NextHop, ServiceSpec},
};
use fastrand::Rng;

use super::{
    clients::{CLIENTS, Client},
    event::{Event, Forgery, SERVERS},
    list::{List, address},
    prober::Prober,
    server::{Fault, Server},
};
use crate::{
    clients::{ClientTable, Look},
    learning::{Seen, Served, ToldClient, Written, learn},
    mapped::MappedArray,
    memory::Memory,
    reported::Reported,
    rows,
};

const STEP: Duration = Duration::from_millis(50);
const BUCKETS: usize = 1 << 9;
/// The ids of all backends are below this number.
const BACKENDS: usize = 256;
const REMEMBER: Duration = Duration::from_secs(3 * 3600);
const SWEEP: Duration = Duration::from_secs(8);
/// The time for which the site is left alone in the end.
const REST: Duration = Duration::from_secs(40);
/// The time that checks may need to find out that a server works again.
const RETURN: Duration = Duration::from_secs(6);
/// The shortest time for which a server may be unreachable without an answer before its clients leave it: the time from
/// the beginning of the first to the beginning of the last of three checks, one in each interval of two seconds.
const SILENT: Duration = Duration::from_secs(4);
/// With `nat` and `snat`, a server's port may be shut for this time.
const SHUT: Duration = Duration::from_millis(1900);

/// A packet of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    Syn,
    Segment,
    /// A datagram of a QUIC connection that a server has opened.
    Named(u16),
}

pub(super) struct World {
    forwarding: Forwarding,
    controller: Controller,
    now: Instant,
    start: Instant,
    rng: Rng,
    rows: BTreeMap<BackendId, Arc<BackendSpec>>,
    /// The live table and the base table.
    tables: (Arc<[u16]>, Option<Arc<[u16]>>),
    service: Option<ServiceSpec>,
    clients: ClientTable,
    memory: Memory,
    reported: Reported,
    probers: BTreeMap<BackendId, Prober>,
    waiting: HashMap<BackendId, Waiting>,
    servers: [Server; SERVERS],
    list: List,
    people: Vec<Client>,
    forged: Vec<(Forgery, Instant)>,
    strangers: u64,
    swept: Instant,
    /// What has happened, for the report of a failure.
    said: Vec<String>,
}

impl World {
    pub(super) fn new(forwarding: Forwarding, seed: u64) -> Self {
        let (mut rng, now, list) = (Rng::with_seed(seed), now(), List::new());
        let web = ServiceConfig {
            table_size: 251.into(),
            remember: REMEMBER,
            discover: vec![list.config.clone()],
            ..service("web", "198.51.100.10:80", forwarding, &[])
        };
        let controller = Controller::new(config(vec![web]), KEY);
        let [buckets, _] = MappedArray::<Bucket>::twice(BUCKETS).unwrap();
        let people = (0..CLIENTS).map(|number| Client::new(number, now, &mut rng)).collect();
        let mut world = Self {
            forwarding,
            controller,
            now,
            start: now,
            rng,
            rows: BTreeMap::new(),
            tables: (Arc::default(), None),
            service: None,
            clients: ClientTable::new(buckets, BACKENDS),
            memory: Memory::new(0),
            reported: Reported::default(),
            probers: BTreeMap::new(),
            waiting: HashMap::new(),
            servers: Default::default(),
            list,
            people,
            forged: Vec::new(),
            strangers: 0,
            swept: now,
            said: Vec::new(),
        };
        let commands = world.controller.start(now);
        world.apply(commands);
        world.settle();
        world
    }

    /// Lets the backends come up, and makes all clients known.
    fn settle(&mut self) {
        let calm = |world: &mut Self, time: Duration| {
            let until = world.now + time;
            while world.now < until {
                world.step(false).unwrap();
            }
        };
        calm(self, Duration::from_secs(9));
        for _ in 0..3 {
            for number in 0..CLIENTS {
                let server =
                    self.send(number, Packet::Syn).unwrap_or_else(|| panic!("nobody: {}", self.said.join("\n")));
                self.people[number].seen_at(server);
            }
            calm(self, Duration::from_secs(4));
        }
    }

    /// Plays events; an error says which client moved without a cause.
    pub(super) fn play(mut self, events: &[(Event, Duration)]) -> Result<(), String> {
        let told = |world: &Self, why: String| format!("{why}\n{}", world.said.join("\n"));
        for (event, pause) in events {
            self.say(format!("{event:?}"));
            self.happen(*event).map_err(|why| told(&self, why))?;
            let until = self.now + *pause;
            while self.now < until {
                self.step(true).map_err(|why| told(&self, why))?;
            }
        }
        let until = self.now + REST;
        while self.now < until {
            self.step(false).map_err(|why| told(&self, why))?;
        }
        self.all_stay().map_err(|why| told(&self, why))
    }

    fn say(&mut self, what: String) {
        self.said.push(format!("{:6.2} s: {what}", (self.now - self.start).as_secs_f64()));
    }

    fn step(&mut self, clients_come: bool) -> Result<(), String> {
        self.now += STEP;
        let elapsed = self.now - self.start;
        self.memory.tick = self.memory.tick_at(elapsed);
        self.check();
        if self.controller.next_deadline().is_some_and(|at| at <= self.now) {
            self.handle(vec![CoreEvent::Tick]);
        }
        if let Some(change) = self.list.read(&self.controller, self.now) {
            self.change(change);
        }
        if self.now >= self.swept + SWEEP {
            self.swept = self.now;
            let known = self.rows.keys().map(|&id| (id, self.known_at(id)));
            let known = known.filter(|&(_, count)| count > 0).collect();
            self.handle(vec![CoreEvent::Swept { known }]);
        }
        self.forge()?;
        for number in 0..CLIENTS {
            if clients_come && self.people[number].next.0 <= self.now {
                self.visit(number)?;
            }
        }
        Ok(())
    }

    /// The number of known clients of a backend.
    fn known_at(&self, id: BackendId) -> u64 {
        let entries = self.clients.words().iter().map(|word| Entry(word.load(Relaxed)));
        entries.filter(|entry| !entry.is_empty() && entry.backend() == id.0).count() as u64
    }

    fn check(&mut self) {
        let mut events = Vec::new();
        let mut begins_to_fail = false;
        for prober in self.probers.values_mut() {
            let Some(server) = server_of(prober.spec.target.ip()) else { continue };
            let was_pending = prober.spec.health.is_pending();
            events.extend(prober.advance(&self.servers[server], self.now));
            begins_to_fail |= !was_pending && prober.spec.health.is_pending();
        }
        if begins_to_fail {
            self.probers.values_mut().for_each(|prober| prober.alarm(self.now, &mut self.rng));
        }
        if !events.is_empty() {
            self.handle(events);
        }
    }

    fn handle(&mut self, events: Vec<CoreEvent>) {
        let commands = self.controller.handle_all(events, self.now);
        self.apply(commands);
    }

    fn change(&mut self, change: Change) {
        match self.controller.change(change, self.now) {
            Ok((said, commands)) => {
                self.say(said);
                self.apply(commands);
            }
            Err(refused) => self.say(format!("refused: {refused}")),
        }
    }

    fn apply(&mut self, commands: Vec<Command>) {
        let elapsed = self.now - self.start;
        let mut found = Vec::new();
        for command in commands {
            match command {
                Command::WriteBackend(row) => {
                    self.clients.belongs(row.id, Some(row.service));
                    self.rows.insert(row.id, row);
                }
                Command::RetireBackend(id) => {
                    self.clients.belongs(id, None);
                    self.rows.remove(&id);
                }
                Command::SwapTable { table, home, .. } => {
                    self.memory.swapped(Arc::clone(&table));
                    self.tables = (table, home);
                }
                Command::PublishServices(services) => {
                    self.service = services.into_iter().next();
                    let clock = self.service.as_ref().and_then(ServiceSpec::clock);
                    self.memory.retime(clock, elapsed);
                    self.memory.settle(elapsed);
                }
                Command::WatchNextHop(address) => {
                    found.push(CoreEvent::NextHop { address, next_hop: Ok(next_hop()) });
                }
                Command::StartChecks(spec) => {
                    let prober = Prober::new(*spec, self.now, &mut self.rng);
                    self.probers.insert(prober.spec.backend, prober);
                }
                Command::StopChecks(id) => self.stop_checks(id),
                Command::Report(report) => self.say(report.message),
                Command::UnwatchNextHop(_) | Command::SetRules { .. } => {}
            }
        }
        if !found.is_empty() {
            self.handle(found);
        }
    }

    /// Stops the checks of a backend that is being removed. A server that the list no longer has, and that the checks find
    /// down, is gone for good.
    fn stop_checks(&mut self, id: BackendId) {
        self.probers.remove(&id);
        let Some(row) = self.rows.get(&id) else { return };
        let down = server_of(row.address.ip()).filter(|&server| self.may_leave(server));
        let left = self.people.iter_mut().filter(|client| Some(client.server) == down);
        left.for_each(|client| client.is_free = true);
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Fault(servers, fault, time) => {
                for (server, of) in self.servers.iter_mut().enumerate() {
                    if servers >> server & 1 != 0 {
                        of.fails(fault, self.now, time);
                    }
                }
            }
            Event::Unlisted(server, time) => self.list.hide(server, self.now, time),
            Event::Renamed(server) => self.list.rename(server),
            Event::Drain(server, drains) => {
                let Some(backend) = self.backend_at(server) else { return Ok(()) };
                let Some(of) = self.controller.full_name_of(backend) else { return Ok(()) };
                let admin = if drains { Admin::Drain } else { Admin::Ready };
                self.change(Change::SetAdmin { name: of, admin, timeout: None });
            }
            Event::Steer(steer) => self.change(Change::SetSteer { service: "web".to_owned(), steer }),
            Event::Import(server) => self.import(server)?,
            Event::Quic(server) => {
                let Some(backend) = self.backend_at(server) else { return Ok(()) };
                for _ in 0..CLIENTS / 4 {
                    let number = self.rng.usize(..CLIENTS);
                    self.packet(number, Packet::Named(backend.0))?;
                }
            }
            Event::Forged(forgery, time) => self.forged.push((forgery, self.now + time)),
        }
        Ok(())
    }

    /// The listed backend at the address of a server.
    fn backend_at(&self, server: usize) -> Option<BackendId> {
        let service = self.controller.services().iter().next()?;
        let mut backends = service.backends().iter().filter(|backend| backend.address().ip() == address(server));
        backends.find(|backend| backend.keeps_known()).map(|backend| backend.id())
    }

    fn import(&mut self, server: usize) -> Result<(), String> {
        let (Some(backend), Some(spec)) = (self.backend_at(server), self.service.clone()) else { return Ok(()) };
        for number in (0..CLIENTS).step_by(3) {
            let client = &mut self.people[number];
            let hash = rows::client_hash(&spec, client.address).unwrap();
            let is_served = is_steered(&spec, hash) && !client.is_reported;
            let told = ToldClient { hash, backend, seen: Seen::Ago(Duration::from_secs(30)) };
            let of = (&self.clients, &self.memory);
            match learn(of, (spec.id, spec.share), told, Served::Stay, &mut self.reported, |_| {}) {
                Ok(Written::Moved | Written::New) if is_served => {
                    return Err(format!("an import moves {} from server {}", client.address, client.server));
                }
                Ok(Written::Moved | Written::New) => client.reported_at(server),
                Ok(Written::Known | Written::Served | Written::Full) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn forge(&mut self) -> Result<(), String> {
        self.forged.retain(|&(_, until)| self.now < until);
        for (forgery, _) in self.forged.clone() {
            match forgery {
                Forgery::Signs(server, signal) => {
                    if let Some(backend) = self.backend_at(server) {
                        self.suspect(backend, signal);
                    }
                }
                Forgery::Segments | Forgery::Syns => {
                    let packet = if matches!(forgery, Forgery::Syns) { Packet::Syn } else { Packet::Segment };
                    for _ in 0..20 {
                        let number = self.rng.usize(..CLIENTS);
                        self.packet(number, packet)?;
                    }
                }
                Forgery::Flood => {
                    for _ in 0..40 {
                        self.strangers += 1;
                        let hash = self.strangers.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        self.steer(hash, Packet::Syn);
                    }
                }
            }
        }
        Ok(())
    }

    fn suspect(&mut self, backend: BackendId, signal: Signal) {
        if let Some(prober) = self.probers.get_mut(&backend) {
            prober.suspect(signal);
        }
    }

    /// A client opens a connection, or tries again to open it.
    fn visit(&mut self, number: usize) -> Result<(), String> {
        let again = self.people[number].next.1 > 0;
        let Some((server, backend)) = self.packet(number, Packet::Syn)? else {
            self.people[number].rest(self.now, &mut self.rng);
            return Ok(());
        };
        let nanoseconds = (self.now - self.start).as_nanos() as u64;
        let waiting = self.waiting.entry(backend).or_default();
        let (begun, is_sign) = waiting.begin(nanoseconds, again);
        *waiting = begun;
        if is_sign {
            self.suspect(backend, Signal::Unanswered);
        }
        if self.servers[server].serves(self.now) {
            if let Some(waiting) = self.waiting.get_mut(&backend) {
                *waiting = waiting.end(0);
            }
            self.packet(number, Packet::Segment)?;
            self.people[number].rest(self.now, &mut self.rng);
            return Ok(());
        }
        let is_shut = self.servers[server].fault(self.now).is_some_and(|(fault, _)| fault == Fault::Restarts);
        let sees_replies = matches!(self.forwarding, Forwarding::Nat | Forwarding::Snat);
        if is_shut && sees_replies {
            self.suspect(backend, Signal::Refused);
        }
        let client = &mut self.people[number];
        if is_shut && !sees_replies {
            client.rest(self.now, &mut self.rng);
        } else {
            client.try_again(self.now, &mut self.rng);
        }
        Ok(())
    }

    /// Sends a packet from a client's address. An error says that the packet moved the client without a cause.
    fn packet(&mut self, number: usize, packet: Packet) -> Result<Option<(usize, BackendId)>, String> {
        let Some(spec) = &self.service else { return Ok(None) };
        let client = &self.people[number];
        let hash = rows::client_hash(spec, client.address).unwrap();
        let (is_steered, is_named) = (is_steered(spec, hash), matches!(packet, Packet::Named(_)));
        if is_named && !is_steered {
            return Ok(None);
        }
        let answer = self.steer(hash, packet);
        let Some(backend) = answer.backend else { return Ok(None) };
        let Some(server) = self.rows.get(&BackendId(backend)).and_then(|row| server_of(row.address.ip())) else {
            return Err(format!("{} goes to {backend}, which has no row", client.address));
        };
        if is_named && client.is_free {
            return Ok(None);
        }
        if is_named && (answer.moved_from != NO_BACKEND || client.moves_to(server)) {
            // The datagram goes to its server, and the client stays where it is.
            return match self.entry(hash).and_then(|entry| self.rows.get(&BackendId(entry.backend()))) {
                Some(row) if server_of(row.address.ip()) != Some(client.server) => {
                    Err(format!("a datagram moves {} from server {}", client.address, client.server))
                }
                _ => Ok(None),
            };
        }
        if client.moves_to(server) && !self.may_leave(client.server) {
            let Client { address, server: from, .. } = client;
            return Err(format!("{address} moves from server {from} to server {server} with a {packet:?}"));
        }
        self.people[number].seen_at(server);
        // The host serves the other clients.
        Ok(is_steered.then_some((server, BackendId(backend))))
    }

    /// Whether a server's clients may leave it, because the server has been unreachable for too long.
    fn may_leave(&self, server: usize) -> bool {
        let grace = match self.forwarding {
            Forwarding::Nat | Forwarding::Snat => SHUT,
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => Duration::ZERO,
        };
        self.servers[server].may_be_down(self.now, RETURN, (SILENT, grace))
    }

    /// Sends a packet during the preparation, and returns the server that gets it.
    fn send(&mut self, number: usize, packet: Packet) -> Option<usize> {
        let hash = rows::client_hash(self.service.as_ref()?, self.people[number].address)?;
        let backend = self.steer(hash, packet).backend?;
        server_of(self.rows.get(&BackendId(backend))?.address.ip())
    }

    /// What the kernel program does with a packet of the client with this hash.
    fn steer(&self, hash: u64, packet: Packet) -> Answer {
        let (table, base) = &self.tables;
        let place = slot(hash, table.len() as u32) as usize;
        let live = table.get(place).copied().filter(|&live| live != NO_BACKEND && live != ALL_DOWN);
        let live_is_home = live.is_some() && base.as_ref().and_then(|base| base.get(place)).copied() == live;
        let remember = self.memory.clock.map_or(0, |clock| clock.remember);
        let query = Query {
            hash,
            service: 0,
            live,
            live_is_home,
            pinned: false,
            migrates: false,
            opens: packet == Packet::Syn,
            datagram: false,
            failback: false,
            peeks: false,
            marks: false,
            now: self.memory.tick,
            remember,
            idle: 10,
        };
        let query = match packet {
            Packet::Named(backend) => Query {
                live: Some(backend),
                live_is_home: false,
                pinned: true,
                migrates: true,
                datagram: true,
                ..query
            },
            Packet::Syn | Packet::Segment => query,
        };
        let facts = |id: u16| {
            let row = self.rows.get(&BackendId(id))?;
            Some(BackendFacts { service: 0, keeps_known: row.keeps_known, cause: row.cause.into() })
        };
        let first = self.clients.bucket(hash) * BUCKET_ENTRIES;
        consult(&Look(&self.clients.words()[first..first + BUCKET_ENTRIES]), &query, facts, || true)
    }

    fn entry(&self, hash: u64) -> Option<Entry> {
        self.clients.find(hash).map(|(_, entry)| entry)
    }

    /// Asserts that each client's next connection goes to the server of the client's last one.
    fn all_stay(&self) -> Result<(), String> {
        let spec = self.service.as_ref().ok_or("the service is gone")?;
        let mut lost = BTreeMap::new();
        for client in &self.people {
            let hash = rows::client_hash(spec, client.address).unwrap();
            let backend = self.steer(hash, Packet::Syn).backend;
            let row = backend.and_then(|backend| self.rows.get(&BackendId(backend)));
            let server = row.and_then(|row| server_of(row.address.ip()));
            if server.is_none_or(|server| client.moves_to(server)) {
                *lost.entry((client.server, server)).or_insert(0) += 1;
            }
        }
        let is_none = lost.is_empty();
        is_none
            .then_some(())
            .ok_or_else(|| format!("clients that leave their server, by server and next server: {lost:?}"))
    }
}

fn is_steered(spec: &ServiceSpec, hash: u64) -> bool {
    matches!(spec.share.side((hash >> 32) as u32), Side::Steered | Side::Came)
}

fn server_of(of: IpAddr) -> Option<usize> {
    (0..SERVERS).find(|&server| of == IpAddr::from(address(server)))
}

fn next_hop() -> NextHop {
    NextHop {
        ifindex: 2,
        source_mac: [2; 6],
        destination_mac: [6; 6],
        mtu: 1500,
        source: Some([10, 0, 0, 1].into()),
        gateway: None,
        local: false,
    }
}
