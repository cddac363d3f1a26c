//! Tests of two balancers behind real routing daemons, with the configurations in `contrib/`. Either a router
//! distributes the clients by ECMP (BIRD, FRR), or keepalived runs an active and a standby balancer.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Result;
use balancer_api::model::ClientView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    controller::Controller,
    http_client::Request,
    namespace::Namespace,
    process::Process,
    routing,
    site::{PATIENCE, QUICK_CHECK, Settings, start_backend, write_config},
    topology::{Family, Shape, Topology},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{Load, homes, requests, under_load, wait};

const PORT: u16 = 80;
const BACKENDS: u16 = 3;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=60;

/// A client host behind a router, two balancers, and three `dsr` backends; balancers and backends are on one segment.
struct Pair {
    controllers: [Controller; 2],
    backends: Vec<Option<Backend>>,
    topology: Topology,
    settings: Settings,
    files: TempDir,
}

impl Pair {
    fn new(service_lines: &str) -> Self {
        let mut topology = Topology::new(Shape::Routed, Forwarding::Dsr, BACKENDS.into()).unwrap();
        topology.add_balancer().unwrap();
        let mut settings = Settings::new(&topology, Forwarding::Dsr, BACKENDS);
        settings.xdp_mode = "generic";
        settings.families = Family::BOTH.to_vec();
        settings.remember = "1h";
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = service_lines.to_owned();
        let files = tempfile::tempdir().unwrap();
        let backends = (1..=BACKENDS)
            .map(|number| Some(start_backend(&topology, Forwarding::Dsr, number, files.path()).unwrap()))
            .collect();
        let controllers = [0, 1].map(|number| start_balancer(&topology, &settings, files.path(), number));
        Self { controllers, backends, topology, settings, files }
    }

    fn namespace(&self, number: usize) -> &Namespace {
        host(&self.topology, number)
    }

    fn start_again(&mut self, number: usize) {
        self.controllers[number] = start_balancer(&self.topology, &self.settings, self.files.path(), number);
    }

    fn cli(&self, number: usize, arguments: &[&str]) -> String {
        let output = self.controllers[number].cli(arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Writes the configuration of a routing daemon to a file, and returns the file's path.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Returns the backend that answers each client.
    #[track_caller]
    fn homes(&self, family: Family) -> Vec<String> {
        homes(&self.topology, &requests(&self.topology, family, PORT, CLIENTS))
    }

    /// Returns, for each client, the number of balancers that know the client.
    fn seen(&self) -> BTreeMap<u16, usize> {
        let knows = |number, client| {
            let address = self.topology.client_address(Family::V4, client).to_string();
            let json = self.cli(number, &["client", "where", &address, "--service", "web", "--json"]);
            serde_json::from_str::<ClientView>(&json).unwrap().known
        };
        CLIENTS.map(|client| (client, (0..2).filter(|&number| knows(number, client)).count())).collect()
    }

    /// Runs `work` while clients keep connecting.
    fn under_load(&mut self, work: impl FnOnce(&mut Self)) -> Load {
        let of = |family| requests(&self.topology, family, PORT, CLIENTS);
        let requests: Vec<Request> = Family::BOTH.into_iter().flat_map(of).collect();
        let entrance = self.topology.client().entrance();
        under_load(&entrance, &requests, || work(self))
    }

    #[track_caller]
    fn wait_next_hops(&self, balancers: &[u16]) {
        wait_next_hops(&self.topology, Family::BOTH.map(|family| self.topology.vip(family)), balancers);
    }

    fn has_vips(&self, number: usize) -> bool {
        let output = self.namespace(number).command("ip").args(["addr", "show", "dev", "eth0"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let has = |&family| text.contains(&format!(" {}/", self.topology.vip(family)));
        Family::BOTH.iter().all(has)
    }
}

fn host(topology: &Topology, number: usize) -> &Namespace {
    topology.balancers().nth(number).unwrap()
}

fn start_balancer(topology: &Topology, settings: &Settings, files: &Path, number: usize) -> Controller {
    let namespace = host(topology, number);
    let files = files.join(format!("lb{}", number + 1));
    fs::create_dir_all(&files).unwrap();
    let config = write_config(topology, settings, &files).unwrap();
    let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
    let mut controller = Controller::start(namespace, &binaries::balancer().unwrap(), &config, &socket, &log).unwrap();
    controller.wait_ready(PATIENCE).unwrap();
    controller
}

/// Starts BIRD on the router and on the first two balancers. The configurations and logs are in `files`.
pub(crate) fn start_birds(topology: &Topology, files: &Path) -> Vec<Process> {
    let start = |namespace: &Namespace, name: &str, text: Result<String>| {
        let config = files.join(name);
        fs::write(&config, text.unwrap()).unwrap();
        routing::start_bird(namespace, &config).expect("bird is needed: cargo xtask setup, or apt-get install bird2")
    };
    let router = start(topology.router(), "router.conf", routing::router(2));
    let on_balancer =
        |index: u16| start(host(topology, index.into()), &format!("lb{index}.conf"), routing::balancer(index));
    std::iter::once(router).chain([0, 1].map(on_balancer)).collect()
}

/// Waits until the next hops of the router's routes to the VIPs are the given balancers.
#[track_caller]
pub(crate) fn wait_next_hops(topology: &Topology, vips: [IpAddr; 2], balancers: &[u16]) {
    wait(&format!("the router's next hops are not {balancers:?}"), || {
        Family::BOTH.into_iter().zip(vips).all(|(family, vip)| {
            let address = |&index| Topology::balancers_address(family, index).to_string();
            next_hops(topology, family, vip) == balancers.iter().map(address).collect::<Vec<_>>()
        })
    });
}

/// Returns the gateways of the router's route to a VIP.
fn next_hops(topology: &Topology, family: Family, vip: IpAddr) -> Vec<String> {
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let mut command = topology.router().command("ip");
    let output = command.args([flag, "route", "show", &vip.to_string()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut gateways: Vec<String> =
        words.windows(2).filter(|pair| pair[0] == "via").map(|pair| pair[1].to_owned()).collect();
    gateways.sort();
    gateways
}

/// Starts FRR on the router and on both balancers.
fn frrs(pair: &Pair) -> Vec<Process> {
    let start = |namespace: &Namespace, config: &Path| {
        routing::start_frr(namespace, config).expect("FRR is needed: cargo xtask setup, or apt-get install frr")
    };
    let mut all = start(pair.topology.router(), &pair.file("router.conf", &routing::frr_router().unwrap()));
    for index in [0, 1] {
        let config = pair.file(&format!("lb{index}.conf"), &routing::frr_balancer(index).unwrap());
        all.extend(start(pair.namespace(index.into()), &config));
    }
    all
}

fn announcing() -> Pair {
    Pair::new("assign_vip = \"lo\"\nwhen_all_down = \"drop\"")
}

#[test]
fn when_balancers_come_and_go_then_bird_follows_and_no_request_fails() {
    let mut pair = announcing();
    let _birds = start_birds(&pair.topology, pair.files.path());
    follows_what_balancers_announce(&mut pair);
}

#[test]
fn when_balancers_come_and_go_then_frr_follows_and_no_request_fails() {
    let mut pair = announcing();
    let _frrs = frrs(&pair);
    follows_what_balancers_announce(&mut pair);

    // A machine without a connection cannot announce its failure. Without BFD, the router would notice the failure only
    // after a minute.
    pair.topology.switch().ip("link set balancer nomaster").unwrap();
    pair.wait_next_hops(&[1]);
    pair.topology.switch().ip("link set balancer master br0").unwrap();
    pair.wait_next_hops(&[0, 1]);
}

fn follows_what_balancers_announce(pair: &mut Pair) {
    pair.wait_next_hops(&[0, 1]);

    // If the router hashes only addresses, each client reaches one balancer. If the router also hashes ports, each
    // client reaches both balancers. With either hash, clients get answers from the same backends.
    let homes = Family::BOTH.map(|family| pair.homes(family));
    for _ in 0..5 {
        assert_eq!(pair.homes(Family::V4), homes[0]);
    }
    let seen = pair.seen();
    assert!(seen.values().all(|&balancers| balancers == 1), "{seen:?}");
    pair.topology.router().sysctl("net/ipv4/fib_multipath_hash_policy", "1").unwrap();
    pair.topology.router().sysctl("net/ipv6/fib_multipath_hash_policy", "1").unwrap();
    for _ in 0..8 {
        assert_eq!(Family::BOTH.map(|family| pair.homes(family)), homes);
    }
    let both = pair.seen().values().filter(|&&balancers| balancers == 2).count();
    assert!(both > CLIENTS.len() / 2, "{both} clients have come to both balancers");

    // An operator withdraws and announces one balancer, and restarts the second balancer: no client notices.
    let load = pair.under_load(|pair| {
        pair.cli(0, &["withdraw", "--wait"]);
        pair.wait_next_hops(&[1]);
        pair.cli(0, &["announce"]);
        pair.wait_next_hops(&[0, 1]);
        pair.controllers[1].process().signal(Signal::SIGTERM).unwrap();
        pair.wait_next_hops(&[0]);
        wait("it does not end", || pair.controllers[1].process().exited().unwrap().is_some());
        pair.start_again(1);
        pair.wait_next_hops(&[0, 1]);
    });
    load.assert_answered(200);
    assert_eq!(Family::BOTH.map(|family| pair.homes(family)), homes);

    // Without a healthy backend, the balancers announce nothing.
    pair.backends.iter_mut().for_each(|backend| *backend = None);
    pair.wait_next_hops(&[]);
    pair.backends[1] = Some(start_backend(&pair.topology, Forwarding::Dsr, 2, pair.files.path()).unwrap());
    pair.wait_next_hops(&[0, 1]);
}

fn start_keepalived(pair: &Pair, number: usize) -> Process {
    let script = format!(
        "{} --socket {}/lb{}/balancer.sock ready --announced",
        binaries::balancer().unwrap().display(),
        pair.files.path().display(),
        number + 1
    );
    let config = routing::keepalived(&pair.topology, u16::try_from(number).unwrap(), &script).unwrap();
    let config = pair.file(&format!("keepalived{number}.conf"), &config);
    routing::start_keepalived(pair.namespace(number), &config)
        .expect("keepalived is needed: cargo xtask setup, or apt-get install keepalived")
}

#[test]
fn when_the_active_balancer_of_a_pair_fails_or_withdraws_then_its_vips_move() {
    let mut pair = Pair::new("");
    // The router reaches each VIP at the balancer that has the VIP, directly on the segment.
    for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
        pair.topology.router().ip(&format!("{flag} route add {} dev eth0", pair.topology.vip(family))).unwrap();
    }
    let _first = start_keepalived(&pair, 0);
    wait("the first one has no VIPs", || pair.has_vips(0));
    let mut second = start_keepalived(&pair, 1);
    let homes = Family::BOTH.map(|family| pair.homes(family));
    assert!(!pair.has_vips(1));

    // A restart of the first balancer does not move the VIPs.
    pair.controllers[0].process().signal(Signal::SIGTERM).unwrap();
    wait("it does not end", || pair.controllers[0].process().exited().unwrap().is_some());
    pair.start_again(0);
    thread::sleep(Duration::from_secs(4));
    assert!(pair.has_vips(0) && !pair.has_vips(1));

    // The first balancer is killed and therefore not ready, so the second balancer takes over.
    pair.controllers[0].process().kill().unwrap();
    wait("the second one does not take over", || pair.has_vips(1) && !pair.has_vips(0));
    assert_eq!(Family::BOTH.map(|family| pair.homes(family)), homes);
    // The first balancer returns as the standby balancer.
    pair.start_again(0);
    thread::sleep(Duration::from_secs(4));
    assert!(pair.has_vips(1) && !pair.has_vips(0));

    // An operator withdraws and announces the active balancer, and keepalived ends on the active machine: no client
    // notices.
    let load = pair.under_load(|pair| {
        pair.cli(1, &["withdraw"]);
        wait("the first one does not take over", || pair.has_vips(0) && !pair.has_vips(1));
        pair.cli(1, &["announce"]);
        pair.cli(0, &["withdraw"]);
        wait("the second one does not take over again", || pair.has_vips(1) && !pair.has_vips(0));
        pair.cli(0, &["announce"]);
        thread::sleep(Duration::from_secs(3));
        second.signal(Signal::SIGTERM).unwrap();
        wait("the first one does not take over", || pair.has_vips(0));
        thread::sleep(Duration::from_secs(1));
    });
    load.assert_answered(50);
    assert_eq!(Family::BOTH.map(|family| pair.homes(family)), homes);
}
