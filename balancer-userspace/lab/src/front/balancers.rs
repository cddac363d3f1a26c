//! The balancer as the front: a single balancer, a pair of an active and a standby balancer, or a fleet behind a
//! router.

use std::{
    cell::RefCell,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_api::model::StatusView;
use balancer_config::config::forwarding_word;
use balancer_demo::{
    controller::Controller,
    etcd::{Server, servers},
    metrics::Metrics,
    namespace::Namespace,
    process::Process,
    routing,
    topology::{Family, Topology},
};

use crate::{
    event::Event,
    hosts::{BALANCERS, Hosts},
    part::PATIENCE,
    row::Row,
    servers::{HEALTH, PORT},
};

const VIP: Family = Family::V4;
/// The name of the switch port to which the first balancer is connected.
const CABLE: &str = "balancer";
/// The time limit for a scrape of a balancer's metrics.
const SCRAPE: Duration = Duration::from_secs(3);

/// The arrangement of balancers, which determines how clients reach a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrontOf {
    /// A single balancer receives all connections.
    One,
    /// There are two balancers, and keepalived gives one of them the service's address.
    Pair,
    /// There are three balancers, and a router spreads connections over them.
    Fleet,
}

impl FrontOf {
    pub(crate) const fn event(event: Event) -> Self {
        match event {
            Event::Standby => Self::Pair,
            Event::Member => Self::Fleet,
            _ => Self::One,
        }
    }

    const fn balancers(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Pair => 2,
            Self::Fleet => BALANCERS,
        }
    }
}

#[derive(Debug)]
struct Balancer {
    controller: Controller,
    binary: PathBuf,
    files: PathBuf,
}

/// The running balancers of the front. Rust drops the fields in the order of their declaration, and dropping a field
/// ends its processes.
pub(crate) struct Balancers {
    kind: FrontOf,
    routing: Vec<Process>,
    balancers: RefCell<Vec<Balancer>>,
    _engines: Vec<Server>,
}

impl std::fmt::Debug for Balancers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Balancers").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Balancers {
    /// Starts balancers in front of the servers of a row, and waits until all servers are up.
    pub(crate) fn start(hosts: &Hosts, row: Row, kind: FrontOf) -> Result<Self> {
        let servers = row.strategy.servers();
        let engines = if kind == FrontOf::One { Vec::new() } else { start_engines(hosts)? };
        let endpoints: Vec<String> = engines.iter().map(|engine| engine.endpoint().to_owned()).collect();
        let this = Self { kind, routing: Vec::new(), balancers: RefCell::default(), _engines: engines };
        for index in 0..kind.balancers() {
            let namespace = balancers_host(hosts, index)?;
            let files = hosts.directory(&format!("lb{}", index + 1))?;
            // Without this removal, the balancer would restore the state that an earlier balancer has left in the file.
            drop(fs::remove_file(files.join("state.json")));
            let text = config(&hosts.topology, row, (kind, index), &endpoints, &files);
            fs::write(files.join("balancer.toml"), text)?;
            let binary = hosts.balancer().to_owned();
            let controller = run(namespace, &binary, &files)?;
            this.balancers.borrow_mut().push(Balancer { controller, binary, files });
        }
        this.start_behind_the_router(hosts, servers)
    }

    fn start_behind_the_router(mut self, hosts: &Hosts, servers: u16) -> Result<Self> {
        for number in 1..=servers {
            self.wait_state(number, "up")?;
        }
        let (router, vip) = (hosts.topology.router(), hosts.topology.vip(VIP));
        match self.kind {
            FrontOf::One => {
                let (first, _) = Topology::balancer_address(VIP);
                router.ip(&format!("-4 route replace {vip} via {first}"))?;
            }
            FrontOf::Pair => {
                router.ip(&format!("-4 route replace {vip} dev eth0"))?;
                for index in 0..2 {
                    self.start_keepalived(hosts, index)?;
                }
            }
            FrontOf::Fleet => self.start_birds(hosts)?,
        }
        Ok(self)
    }

    fn start_keepalived(&mut self, hosts: &Hosts, index: u16) -> Result<()> {
        let (files, binary) = {
            let balancers = self.balancers.borrow();
            let balancer = balancers.get(usize::from(index)).context("there is no such balancer")?;
            (balancer.files.clone(), balancer.binary.clone())
        };
        let ready = format!("{} --socket {}/balancer.sock ready --announced", binary.display(), files.display());
        let config = files.join("keepalived.conf");
        fs::write(&config, routing::keepalived(&hosts.topology, index, &ready)?)?;
        let host = balancers_host(hosts, index)?;
        self.routing.push(routing::start_keepalived(host, &config)?);
        if index == 0 {
            let address = format!("{}/32", hosts.topology.vip(VIP));
            wait("keepalived to give the first balancer the address", || {
                host.ip("-4 addr show dev eth0").is_ok_and(|text| text.contains(&address))
            })?;
        }
        Ok(())
    }

    fn start_birds(&mut self, hosts: &Hosts) -> Result<()> {
        let router = hosts.topology.router();
        // The router includes ports in the hash, so that each client reaches all balancers.
        router.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        let config = hosts.files().join("router.conf");
        fs::write(&config, routing::router(BALANCERS)?)?;
        self.routing.push(routing::start_bird(router, &config)?);
        for index in 0..BALANCERS {
            let config = hosts.files().join(format!("lb{}/bird.conf", index + 1));
            fs::write(&config, routing::balancer(index)?)?;
            self.routing.push(routing::start_bird(balancers_host(hosts, index)?, &config)?);
        }
        let vip = hosts.topology.vip(VIP);
        wait("the router to know three balancers", || {
            let routes = router.ip(&format!("-4 route show {vip}")).unwrap_or_default();
            (0..BALANCERS).all(|index| {
                let address = Topology::balancers_address(VIP, index).to_string();
                routes.split_whitespace().any(|word| word == address)
            })
        })
    }

    /// Whether the balancers have this arrangement, and all of them are running.
    pub(crate) fn suits(&self, kind: FrontOf) -> bool {
        self.kind == kind && kind == FrontOf::One
    }

    /// Runs a command such as `["backend", "drain", "web/web2"]` on the last balancer, and returns the output.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Result<String> {
        let balancers = self.balancers.borrow();
        let output = balancers.last().context("no balancer is left")?.controller.cli(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`balancer {}` failed: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the backend that an unknown client with this address would get.
    pub(crate) fn home(&self, client: IpAddr) -> Result<String> {
        let said = self.cli(&["client", "where", &client.to_string(), "--service", "web", "--json"])?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        Ok(said["backend"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until all balancers show the backend `number` in this state.
    pub(crate) fn wait_state(&self, number: u16, state: &str) -> Result<()> {
        let name = format!("web{number}");
        let shown = |status: &StatusView| {
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            backends.any(|backend| backend.name == name && backend.state == state)
        };
        for balancer in self.balancers.borrow_mut().iter_mut() {
            balancer.controller.wait_for(PATIENCE, &format!("{name} to be {state}"), shown)?;
        }
        Ok(())
    }

    /// Restarts the balancer of a front with a single balancer. With `upgrade`, the function starts a copy of the
    /// program file.
    pub(crate) fn restart(&self, hosts: &Hosts, upgrade: bool) -> Result<()> {
        let mut balancers = self.balancers.borrow_mut();
        let balancer = balancers.first_mut().context("there is no balancer")?;
        let status = balancer.controller.process().stop()?;
        ensure!(status.success(), "the balancer ended with {status}: {}", balancer.controller.process().tail(5)?);
        if upgrade {
            let copy = hosts.files().join("balancer-new");
            fs::copy(&balancer.binary, &copy).with_context(|| copy.display().to_string())?;
            balancer.binary = copy;
        }
        balancer.controller = run(balancers_host(hosts, 0)?, &balancer.binary, &balancer.files)?;
        balancer.controller.wait_ready(PATIENCE)?;
        Ok(())
    }

    /// Simulates the loss of the first balancer's machine: kills the balancer's process and disconnects its switch
    /// port.
    pub(crate) fn lose_first(&self, hosts: &Hosts) -> Result<()> {
        hosts.plug(CABLE, false)?;
        self.balancers.borrow_mut().remove(0).controller.process().kill().map(drop)
    }

    /// The number of moves that all balancers together have counted; `None` if a balancer does not answer.
    pub(crate) fn moves(&self, hosts: &Hosts) -> Option<u64> {
        let gone = usize::from(self.kind.balancers()) - self.balancers.borrow().len();
        let of = |host| {
            let metrics = Metrics::scrape(host, SCRAPE).ok()?;
            // The metric has no sample before the first move.
            Some(metrics.sum("moves_total", &["service=\"web\""]).unwrap_or(0.0) as u64)
        };
        hosts.topology.balancers().take(usize::from(self.kind.balancers())).skip(gone).map(of).sum()
    }

    /// Ends all balancers, removes pinned maps, and restores the switch port and the routes.
    pub(crate) fn end(mut self, hosts: &Hosts) -> Result<()> {
        self.routing.clear();
        for balancer in self.balancers.get_mut() {
            // After a second signal, the balancer ends without waiting for routers.
            balancer.controller.process().signal(nix::sys::signal::Signal::SIGTERM)?;
        }
        let balancers = std::mem::take(self.balancers.get_mut());
        let detached = balancers.into_iter().map(|mut balancer| {
            balancer.controller.process().stop()?;
            if self.kind == FrontOf::One {
                let output = balancers_host(hosts, 0)?.command(&balancer.binary).arg("detach").output()?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(())
        });
        let detached: Vec<Result<()>> = detached.collect();
        hosts.plug(CABLE, true)?;
        // Flushing fails if the router learnt the route by BGP, because the route is then already missing.
        drop(hosts.topology.router().ip(&format!("-4 route flush {}", hosts.topology.vip(VIP))));
        detached.into_iter().collect()
    }
}

fn run(namespace: &Namespace, binary: &Path, files: &Path) -> Result<Controller> {
    let at = |name: &str| files.join(name);
    Controller::start(namespace, binary, &at("balancer.toml"), &at("balancer.sock"), &at("balancer.log"))
}

fn balancers_host(hosts: &Hosts, index: u16) -> Result<&Namespace> {
    hosts.topology.balancers().nth(index.into()).context("there is no such balancer")
}

/// Starts three etcd servers, and waits until each server is healthy.
fn start_engines(hosts: &Hosts) -> Result<Vec<Server>> {
    let addresses = Hosts::engine_addresses();
    // The etcd servers of an earlier front may have left data in this directory.
    drop(fs::remove_dir_all(hosts.files().join("etcd")));
    let directory = hosts.directory("etcd")?;
    let mut engines = servers(&addresses, None, &directory, &["--unsafe-no-fsync".to_owned()]);
    for (engine, host) in engines.iter_mut().zip(&hosts.engines) {
        engine.start(host)?;
    }
    for (engine, host) in engines.iter().zip(&hosts.engines) {
        wait("etcd to be well", || engine.is_well(host))?;
    }
    Ok(engines)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !done() {
        ensure!(std::time::Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn config(topology: &Topology, row: Row, (kind, index): (FrontOf, u16), endpoints: &[String], files: &Path) -> String {
    let files = files.display();
    let (on_exit, fleet, lines) = match kind {
        FrontOf::One => ("keep", String::new(), ""),
        FrontOf::Pair | FrontOf::Fleet => {
            let member = format!("lb{}", index + 1);
            let fleet = format!("[fleet]\nname = \"lab\"\nmember = \"{member}\"\nendpoints = {endpoints:?}\n");
            let lines = if kind == FrontOf::Pair {
                "assign_vip = false\n"
            } else {
                "assign_vip = \"lo\"\nwhen_all_down = \"drop\"\n"
            };
            ("detach", fleet, lines)
        }
    };
    let mut text = format!(
        "interfaces = [\"eth0\"]\nxdp_mode = \"native\"\non_exit = \"{on_exit}\"\nstate_file = \"{files}/state.json\"\n\
         [control]\nsocket = \"{files}/balancer.sock\"\n[hash]\nkey = \"hex:000102030405060708090a0b0c0d0e0f\"\n{fleet}\
         [[service]]\nname = \"web\"\naddress = \"{}\"\nforwarding = \"{}\"\nremember = \"3h\"\nfailback = \"stay\"\n\
         check = {{ type = \"http\", path = \"{HEALTH}\", interval = \"1s\", fast_interval = \"200ms\", \
         timeout = \"1s\", fall = 3, rise = 2 }}\n{lines}",
        SocketAddr::new(topology.vip(VIP), PORT),
        forwarding_word(row.front.forwarding())
    );
    for number in 1..=row.strategy.servers() {
        let address = SocketAddr::new(topology.backend_address(VIP, number - 1), PORT);
        // Writing to a string cannot fail.
        let _ = write!(text, "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
    }
    text
}
