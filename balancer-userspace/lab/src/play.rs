//! Causes events and observes their effects on the clients of a row.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use balancer_demo::topology::Family;

use crate::{
    cell::{Cell, Inner},
    event::Event,
    front::{Balancers, Front},
    hosts::{Hosts, Octets, Outside},
    load::{Load, Plan},
    part::PATIENCE,
    row::{Front as Kind, Row},
    servers::{PORT, Servers},
    stores::{self, Stores},
    strategy::Home,
    tally::{Unit, tally},
};

/// The number of clients that share one address.
const BEHIND_NAT: u16 = 100;
/// The lowest number that the shared address may have.
const NAT: u16 = 62_000;
/// The difference between the numbers of two client addresses. With this difference, few addresses share a /24, which
/// some rules treat as one client.
const STRIDE: u16 = 200;
/// The time that a client may wait for a processor; if clients waited longer, a slow machine may have caused the
/// failures.
const BUSY: Duration = Duration::from_millis(200);
/// The time for which the lab records requests before an event.
const LEAD: Duration = Duration::from_millis(500);
/// The number of requests that each client sends after an event.
const ROUNDS: u64 = 2;
/// The time limit for the requests that each client sends after an event.
const LIMIT: Duration = Duration::from_secs(12);
/// The maximum time for a proxy to notice a change without a command.
const NOTICE: Duration = Duration::from_secs(3);
/// The numbers of the backends that are drained or that fail.
const DRAINED: u16 = 2;
const VICTIM: u16 = 3;

/// The running programs of a row, and the hosts. Rust drops the fields in the order of their declaration, and dropping
/// a field ends its processes.
pub(crate) struct Scene {
    load: Option<Load>,
    front: Option<Front>,
    servers: Servers,
    stores: Stores,
    hosts: Hosts,
    row: Row,
    clients: u16,
    pause: Duration,
}

impl Scene {
    /// Starts the servers and stores of a row.
    pub(crate) fn start(row: Row, clients: u16, pause: Duration, outside: Outside) -> Result<Self> {
        let strategy = row.strategy;
        let hosts = Hosts::new(
            row.front.forwarding(),
            strategy.servers() + strategy.spares(),
            stores::hosts_of(strategy),
            outside,
        )?;
        let stores = Stores::start(strategy, &hosts)?;
        let servers = Servers::start(strategy, stores.endpoints(&hosts), &hosts)?;
        Ok(Self { load: None, front: None, servers, stores, hosts, row, clients, pause })
    }

    /// Causes an event, and returns the result of the observation.
    pub(crate) fn play(&mut self, event: Event) -> Result<Cell> {
        self.set_up_front(event)?;
        self.prepare(event)?;
        let load = self.load.as_ref().context("no clients")?;
        load.wait_settled(PATIENCE, self.sessions_last())?;
        load.pause();
        let (moves, octets) = (self.moves(), self.hosts.octets()?);
        let before = load.record();
        load.resume();
        let begin = Instant::now();
        thread::sleep(LEAD);
        self.act(event)?;
        let load = self.load.as_ref().context("no clients")?;
        load.wait_rounds(ROUNDS, LIMIT);
        load.pause();
        let seconds = begin.elapsed().as_secs_f64();
        let cell = self.cell(event, &before, moves, octets, seconds)?;
        self.load.as_ref().context("no clients")?.resume();
        self.undo(event)?;
        Ok(cell)
    }

    fn cell(
        &self,
        event: Event,
        before: &BTreeMap<u16, (u16, String)>,
        moves: Option<u64>,
        octets: Octets,
        seconds: f64,
    ) -> Result<Cell> {
        let (seen, failure) = self.load.as_ref().context("no clients")?.recorded();
        let mut notes: Vec<String> =
            failure.map(|failure| format!("the last failure: {failure}")).into_iter().collect();
        let late = self.load.as_ref().context("no clients")?.late();
        if late > BUSY {
            notes.push(format!("the machine was busy: clients waited {} ms for a processor", late.as_millis()));
        }
        let unit = if self.row.front.remembers() { Unit::Address } else { Unit::Client };
        let concerned = concerned(event).map(|number| format!("web{number}"));
        let tally = tally(&seen, before, concerned.as_deref(), unit);
        let now = self.hosts.octets()?;
        // With a `spread` rule, the balancer remembers no clients, so its counter of moves does not apply.
        let counted = match (self.row.front.remembers(), moves, self.moves()) {
            (true, Some(before), Some(after)) => Some(after.saturating_sub(before)),
            _ => None,
        };
        Ok(Cell {
            row: self.row,
            event,
            own: tally.own,
            nat: tally.nat,
            elsewhere: tally.elsewhere,
            requests: tally.requests,
            failed: tally.failed,
            latency_ms: tally.latency,
            moved_seen: tally.moved,
            moved_counted: counted,
            inner: self.inner(Octets { sent: now.sent - octets.sent, received: now.received - octets.received }),
            seconds,
            notes,
        })
    }

    /// The servers of a strategy communicate either with each other or with a store.
    const fn inner(&self, octets: Octets) -> Inner {
        match self.row.strategy.home() {
            Home::Servers => Inner { servers: octets.sent, store: 0 },
            Home::Store | Home::Stores => Inner { servers: 0, store: octets.sent + octets.received },
            Home::OneServer | Home::Client => Inner { servers: octets.sent, store: 0 },
        }
    }

    fn moves(&self) -> Option<u64> {
        self.front.as_ref()?.moves(&self.hosts)
    }

    /// Prepares new clients and the front that the event needs; the front knows no clients yet.
    fn set_up_front(&mut self, event: Event) -> Result<()> {
        self.load = None;
        match &self.front {
            Some(front) if front.suits(event) => front.forget(self.row.strategy.servers())?,
            _ => {
                if let Some(front) = self.front.take() {
                    front.end(&self.hosts)?;
                }
                self.front = Some(Front::start(&self.hosts, self.row, event)?);
            }
        }
        let plan = self.plan()?;
        self.load = Some(Load::start(self.hosts.topology.client().entrance(), plan));
        Ok(())
    }

    fn plan(&self) -> Result<Plan> {
        let address = |number| SocketAddr::new(self.hosts.topology.client_address(Family::V4, number), 0);
        let own = (1..=self.clients).map(|number| (number, STRIDE * number, address(STRIDE * number)));
        let shared = self.shared_address()?;
        let nat = (1..=BEHIND_NAT).map(|number| (self.clients + number, shared, address(shared)));
        Ok(Plan {
            clients: own.chain(nat).collect(),
            target: SocketAddr::new(self.hosts.topology.vip(Family::V4), PORT),
            refuses_cookies: self.row.strategy.refuses_cookies(),
            pause: self.pause,
        })
    }

    /// The first address that maps to the backend that will fail, so that the event affects all clients of this
    /// address.
    fn shared_address(&self) -> Result<u16> {
        // If the front neither remembers clients nor hashes addresses, there is no such address.
        let (true, Some(Front::Balancers(balancers))) = (self.row.front.remembers(), &self.front) else {
            return Ok(NAT);
        };
        for number in NAT..NAT + 1000 {
            if balancers.home(self.hosts.topology.client_address(Family::V4, number))? == format!("web{VICTIM}") {
                return Ok(number);
            }
        }
        bail!("no client is at web{VICTIM}")
    }

    /// Brings the row into the state before the event.
    fn prepare(&mut self, event: Event) -> Result<()> {
        if event == Event::Return {
            self.load.as_ref().context("no clients")?.wait_settled(PATIENCE, true)?;
            self.servers.kill(VICTIM)?;
            self.notice(VICTIM, "down")?;
            self.load.as_ref().context("no clients")?.wait_rounds(ROUNDS, LIMIT);
        }
        Ok(())
    }

    fn act(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Nothing => Ok(()),
            Event::Add => self.add(),
            Event::Weight => self.weigh(true),
            Event::Drain => self.drain(DRAINED, "5m"),
            Event::DrainOver => self.drain(DRAINED, "1s"),
            Event::Deploy => (1..=self.row.strategy.servers()).try_for_each(|number| self.deploy(number)),
            Event::Kill => {
                self.servers.kill(VICTIM)?;
                self.notice(VICTIM, "down")
            }
            Event::Return => self.bring_back(VICTIM),
            Event::Hang => {
                self.servers.freeze(VICTIM, true)?;
                self.notice(VICTIM, "down")
            }
            Event::Flap => (0..2).try_for_each(|_| {
                self.servers.freeze(VICTIM, true)?;
                self.notice(VICTIM, "down")?;
                self.servers.freeze(VICTIM, false)?;
                self.notice(VICTIM, "up")
            }),
            Event::Restart | Event::Upgrade => match self.front.as_mut().context("no front")? {
                Front::Balancers(balancers) => balancers.restart(&self.hosts, event == Event::Upgrade),
                Front::Proxy(proxy) => proxy.restart(&self.hosts),
            },
            Event::Standby | Event::Member => {
                self.balancers()?.lose_first(&self.hosts)?;
                // During this time, keepalived or BGP notices the loss.
                thread::sleep(NOTICE);
                Ok(())
            }
            Event::StoreRestart => self.stores.restart(&self.hosts),
            Event::StorePartition => {
                self.hosts.plug_store(0, false)?;
                thread::sleep(Duration::from_secs(2));
                self.hosts.plug_store(0, true)
            }
            Event::StoreFull => self.stores.fill(&self.hosts, true),
            Event::StoreFailover => {
                self.stores.kill()?;
                // During this time, another store notices the failure and takes over.
                thread::sleep(2 * NOTICE);
                Ok(())
            }
        }
    }

    fn undo(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Add => match &self.front {
                Some(Front::Balancers(balancers)) => {
                    let name = format!("web/web{}", self.row.strategy.servers() + 1);
                    balancers.cli(&["backend", "remove", &name, "--force"]).map(drop)
                }
                // Nothing has to be undone, because the next event gets a new proxy.
                Some(Front::Proxy(_)) | None => Ok(()),
            },
            Event::Weight => self.weigh(false),
            Event::Drain | Event::DrainOver => self.ready(DRAINED),
            Event::Kill => self.bring_back(VICTIM),
            Event::Hang => {
                self.servers.freeze(VICTIM, false)?;
                self.notice(VICTIM, "up")
            }
            Event::StoreFull => self.stores.fill(&self.hosts, false),
            Event::Nothing
            | Event::Deploy
            | Event::Return
            | Event::Flap
            | Event::Restart
            | Event::Upgrade
            | Event::Standby
            | Event::Member
            | Event::StoreRestart
            | Event::StorePartition
            | Event::StoreFailover => Ok(()),
        }
    }

    /// Whether a session survives if no event happens.
    fn sessions_last(&self) -> bool {
        self.row.front != Kind::Spread || matches!(self.row.strategy.home(), Home::Client)
    }

    fn balancers(&self) -> Result<&Balancers> {
        match &self.front {
            Some(Front::Balancers(balancers)) => Ok(balancers),
            Some(Front::Proxy(_)) | None => bail!("there is no balancer in front"),
        }
    }

    /// Waits until the front has noticed the state of a server.
    fn notice(&self, number: u16, state: &str) -> Result<()> {
        match &self.front {
            Some(Front::Balancers(balancers)) => balancers.wait_state(number, state),
            Some(Front::Proxy(_)) | None => {
                thread::sleep(NOTICE);
                Ok(())
            }
        }
    }

    fn bring_back(&mut self, number: u16) -> Result<()> {
        self.servers.start_one(&self.hosts, number)?;
        self.notice(number, "up")
    }

    fn add(&mut self) -> Result<()> {
        let number = self.row.strategy.servers() + 1;
        let address = SocketAddr::new(self.hosts.topology.backend_address(Family::V4, number - 1), PORT).to_string();
        match self.front.as_mut().context("no front")? {
            Front::Balancers(balancers) => {
                balancers.cli(&["backend", "add", &format!("web/web{number}"), &address])?;
                balancers.wait_state(number, "up")
            }
            Front::Proxy(proxy) => proxy.add(&self.hosts, number),
        }
    }

    fn weigh(&mut self, light: bool) -> Result<()> {
        match self.front.as_mut().context("no front")? {
            Front::Balancers(balancers) => {
                balancers.cli(&["backend", "weight", "web/web1", if light { "10" } else { "100" }]).map(drop)
            }
            Front::Proxy(proxy) => proxy.weigh(1, if light { 1 } else { 10 }),
        }
    }

    fn drain(&mut self, number: u16, deadline: &str) -> Result<()> {
        match self.front.as_mut().context("no front")? {
            Front::Balancers(balancers) => {
                let name = format!("web/web{number}");
                let mut arguments = vec!["backend", "drain", &name, "--timeout", deadline];
                if deadline == "1s" {
                    arguments.push("--wait");
                }
                balancers.cli(&arguments).map(drop)
            }
            Front::Proxy(proxy) => proxy.drain(number, true),
        }
    }

    fn ready(&mut self, number: u16) -> Result<()> {
        match self.front.as_mut().context("no front")? {
            Front::Balancers(balancers) => balancers.cli(&["backend", "ready", &format!("web/web{number}")]).map(drop),
            Front::Proxy(proxy) => proxy.drain(number, false),
        }
    }

    /// Drains a server, restarts it, and makes it ready again.
    fn deploy(&mut self, number: u16) -> Result<()> {
        self.drain(number, "1s")?;
        self.servers.stop(number)?;
        self.servers.start_one(&self.hosts, number)?;
        self.ready(number)?;
        self.notice(number, "up")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.load = None;
        if let Some(front) = self.front.take()
            && let Err(error) = front.end(&self.hosts)
        {
            eprintln!("something may be left behind: {error:#}");
        }
    }
}

/// The number of the backend that an event affects.
const fn concerned(event: Event) -> Option<u16> {
    match event {
        Event::DrainOver | Event::Drain => Some(DRAINED),
        Event::Kill | Event::Hang | Event::Flap => Some(VICTIM),
        _ => None,
    }
}
