//! Two balancers behind real routing daemons, with the configurations in `contrib/`: a router that spreads clients by ECMP
//! (BIRD), and a pair of which one stands by (keepalived).
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use balancer_api::model::ClientView;
use balancer_common::map_types::Forwarding;
use balancer_tests::{
    backend::Backend,
    binaries,
    controller::Controller,
    http_client::{Request, send_all},
    namespace::{Namespace, join},
    process::Process,
    site::{PATIENCE, Settings, WORKERS, start_backend, write_config},
    topology::{Family, Shape, Topology},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{Load, under_load, wait};

const PORT: u16 = 80;
const BACKENDS: u16 = 3;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=60;
/// Of the two balancers.
const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.1", "fd00::1"], ["10.0.0.3", "fd00::3"]];

/// A client's host that is the router as well, two balancers, three backends with `dsr`, all on one segment.
struct Pair {
    controllers: [Controller; 2],
    backends: Vec<Option<Backend>>,
    second: Namespace,
    topology: Topology,
    settings: Settings,
    files: TempDir,
}

impl Pair {
    fn new(service_lines: &str) -> Self {
        let topology = Topology::new(Shape::OneLegged, Forwarding::Dsr, BACKENDS.into()).unwrap();
        let second = Namespace::new("second").unwrap();
        join((&second, "eth0"), (topology.switch(), "second")).unwrap();
        topology.switch().ip("link set second master br0").unwrap();
        for (address, length) in ADDRESSES[1].iter().zip([16, 64]) {
            let nodad = if length == 64 { "nodad" } else { "" };
            second.ip(&format!("addr add {address}/{length} dev eth0 {nodad}")).unwrap();
        }
        for family in Family::BOTH {
            let (flag, length, net) =
                if family == Family::V4 { ("", 32, "10.2.0.0/16") } else { ("-6", 128, "fd00:2::/64") };
            topology.balancer().ip(&format!("addr del {}/{length} dev lo", topology.vip(family))).unwrap();
            topology.client().ip(&format!("{flag} route del {net}")).unwrap();
        }
        let mut settings = Settings::new(&topology, Forwarding::Dsr, BACKENDS);
        settings.xdp_mode = "generic";
        settings.families = Family::BOTH.to_vec();
        settings.remember = "1h";
        settings.check = r#"{ type = "tcp", interval = "200ms", timeout = "200ms", fall = 2, rise = 1 }"#.to_owned();
        settings.service_lines = service_lines.to_owned();
        let files = tempfile::tempdir().unwrap();
        let backends = (1..=BACKENDS)
            .map(|number| Some(start_backend(&topology, Forwarding::Dsr, number, files.path()).unwrap()))
            .collect();
        let start = |number, namespace| start_balancer(&topology, &settings, files.path(), number, namespace);
        let controllers = [start(0, topology.balancer()), start(1, &second)];
        Self { controllers, backends, second, topology, settings, files }
    }

    fn namespace(&self, number: usize) -> &Namespace {
        if number == 0 { self.topology.balancer() } else { &self.second }
    }

    fn start_again(&mut self, number: usize) {
        let namespace = self.namespace(number);
        let started = start_balancer(&self.topology, &self.settings, self.files.path(), number, namespace);
        self.controllers[number] = started;
    }

    fn cli(&self, number: usize, arguments: &[&str]) -> String {
        let output = self.controllers[number].cli(arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A configuration of `contrib/` with the addresses of this place.
    fn sample(&self, file: &str, as_number: usize, replaced: &[(&str, &str)]) -> PathBuf {
        let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(file);
        let mut text = fs::read_to_string(&contrib).unwrap();
        for (from, to) in replaced {
            assert!(text.contains(from), "{from} is not in {file}");
            text = text.replace(from, to);
        }
        let path = self.files.path().join(format!("{as_number}-{}", file.replace('/', "-")));
        fs::write(&path, text).unwrap();
        path
    }

    fn requests(&self, family: Family) -> Vec<Request> {
        let target = SocketAddr::new(self.topology.vip(family), PORT);
        let request = |client| Request::new(SocketAddr::new(self.topology.client_address(family, client), 0), target);
        CLIENTS.map(|client| Request { timeout: PATIENCE, ..request(client) }).collect()
    }

    /// The backend that answers each client.
    #[track_caller]
    fn homes(&self, family: Family) -> Vec<String> {
        let replies = send_all(self.topology.client(), &self.requests(family), WORKERS).unwrap();
        replies.into_iter().map(|reply| reply.unwrap().answer().unwrap().backend).collect()
    }

    /// How many balancers have seen each client.
    fn seen(&self) -> BTreeMap<u16, usize> {
        let knows = |number, client| {
            let address = self.topology.client_address(Family::V4, client).to_string();
            let json = self.cli(number, &["client", "where", &address, "--service", "web", "--json"]);
            serde_json::from_str::<ClientView>(&json).unwrap().known
        };
        CLIENTS.map(|client| (client, (0..2).filter(|&number| knows(number, client)).count())).collect()
    }

    /// Has clients connect all the time while `work` is done.
    fn under_load(&mut self, work: impl FnOnce(&mut Self)) -> Load {
        let requests: Vec<Request> = Family::BOTH.iter().flat_map(|&family| self.requests(family)).collect();
        let entrance = self.topology.client().entrance();
        under_load(&entrance, &requests, || work(self))
    }

    /// Gateways of the router's route to the VIP.
    fn next_hops(&self, family: Family) -> Vec<String> {
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        let vip = self.topology.vip(family).to_string();
        let mut command = self.topology.client().command("ip");
        let output = command.args([flag, "route", "show", &vip]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut gateways: Vec<String> =
            words.windows(2).filter(|pair| pair[0] == "via").map(|pair| pair[1].to_owned()).collect();
        gateways.sort();
        gateways
    }

    #[track_caller]
    fn wait_next_hops(&self, balancers: &[usize]) {
        wait(&format!("the router's next hops are not {balancers:?}"), || {
            Family::BOTH.iter().enumerate().all(|(index, &family)| {
                let expected: Vec<&str> = balancers.iter().map(|&number| ADDRESSES[number][index]).collect();
                self.next_hops(family) == expected
            })
        });
    }

    fn has_vips(&self, number: usize) -> bool {
        let output = self.namespace(number).command("ip").args(["addr", "show", "dev", "eth0"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let has = |&family| text.contains(&format!(" {}/", self.topology.vip(family)));
        Family::BOTH.iter().all(has)
    }
}

fn start_balancer(
    topology: &Topology,
    settings: &Settings,
    files: &Path,
    number: usize,
    namespace: &Namespace,
) -> Controller {
    let files = files.join(format!("lb{}", number + 1));
    fs::create_dir_all(&files).unwrap();
    let config = write_config(topology, settings, &files).unwrap();
    let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
    let mut controller = Controller::start(namespace, &binaries::balancer().unwrap(), &config, &socket, &log).unwrap();
    controller.wait_ready(PATIENCE).unwrap();
    controller
}

fn start_bird(pair: &Pair, namespace: &Namespace, config: &Path) -> Process {
    let at = |end: &str| config.with_extension(end);
    let mut command = namespace.command("bird");
    command.arg("-f").arg("-c").arg(config).arg("-s").arg(at("ctl")).arg("-P").arg(at("pid"));
    Process::spawn("bird", &mut command, &pair.files.path().join(at("log")))
        .expect("bird is needed: cargo xtask setup, or apt-get install bird2")
}

/// BIRD on the router and on both balancers.
fn birds(pair: &Pair) -> Vec<Process> {
    let nets = [("198.51.100.0/24", "10.2.0.0/16"), ("2001:db8:100::/64", "fd00:2::/64")];
    let router = [("192.0.2.11", "10.0.0.1"), ("192.0.2.12", "10.0.0.3"), ("192.0.2.1", "10.0.0.2")];
    let router = pair.sample("bird/router.conf", 9, &[&router[..], &nets].concat());
    let mut birds = vec![start_bird(pair, pair.topology.client(), &router)];
    for (number, [v4, v6]) in ADDRESSES.iter().enumerate() {
        let own = [("192.0.2.11", *v4), ("192.0.2.1", "10.0.0.2"), ("2001:db8::11", *v6)];
        let config = pair.sample("bird/balancer.conf", number, &[&own[..], &nets].concat());
        birds.push(start_bird(pair, pair.namespace(number), &config));
    }
    birds
}

#[test]
fn a_router_that_spreads_follows_what_balancers_announce() {
    let mut pair = Pair::new("assign_vip = \"lo\"\nwhen_all_down = \"drop\"");
    let _birds = birds(&pair);
    pair.wait_next_hops(&[0, 1]);

    // By addresses: each client has one balancer. By ports as well: both. One answer in any case.
    let homes = Family::BOTH.map(|family| pair.homes(family));
    for _ in 0..5 {
        assert_eq!(pair.homes(Family::V4), homes[0]);
    }
    let seen = pair.seen();
    assert!(seen.values().all(|&balancers| balancers == 1), "{seen:?}");
    pair.topology.client().sysctl("net/ipv4/fib_multipath_hash_policy", "1").unwrap();
    pair.topology.client().sysctl("net/ipv6/fib_multipath_hash_policy", "1").unwrap();
    for _ in 0..8 {
        assert_eq!(Family::BOTH.map(|family| pair.homes(family)), homes);
    }
    let both = pair.seen().values().filter(|&&balancers| balancers == 2).count();
    assert!(both > CLIENTS.len() / 2, "{both} clients have come to both balancers");

    // One is taken out and comes back, the other one is stopped and started: nobody notices.
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

    // With nobody to steer to there is nothing to announce.
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
    let (own, other) = (ADDRESSES[number][0], ADDRESSES[1 - number][0]);
    let priority = if number == 0 { "priority 150" } else { "priority 100" };
    let replaced = [
        ("router_id lb1", if number == 0 { "router_id lb1" } else { "router_id lb2" }),
        // The program lies below a directory that anybody may write to.
        ("enable_script_security", ""),
        ("/usr/sbin/balancer ready --announced", &script),
        ("priority 150", priority),
        ("192.0.2.11", own),
        ("192.0.2.12", other),
        ("198.51.100.10", &pair.topology.vip(Family::V4).to_string()),
        ("2001:db8:100::10", &pair.topology.vip(Family::V6).to_string()),
    ];
    let config = pair.sample("keepalived/keepalived.conf", number, &replaced);
    let at = |end: &str| config.with_extension(end);
    let mut command = pair.namespace(number).command("keepalived");
    command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp"]);
    command.arg("-f").arg(&config).arg("-p").arg(at("pid")).arg("-r").arg(at("vrrp-pid"));
    Process::spawn("keepalived", &mut command, &at("log"))
        .expect("keepalived is needed: cargo xtask setup, or apt-get install keepalived")
}

#[test]
fn a_pair_hands_its_vips_over() {
    let mut pair = Pair::new("");
    // The VIPs are on the segment, wherever they are.
    for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
        pair.topology.client().ip(&format!("{flag} route add {} dev eth0", pair.topology.vip(family))).unwrap();
    }
    let _first = start_keepalived(&pair, 0);
    wait("the first one has no VIPs", || pair.has_vips(0));
    let mut second = start_keepalived(&pair, 1);
    let homes = Family::BOTH.map(|family| pair.homes(family));
    assert!(!pair.has_vips(1));

    // The first one's balancer dies: it is not ready, and the second one takes over.
    pair.controllers[0].process().kill().unwrap();
    wait("the second one does not take over", || pair.has_vips(1) && !pair.has_vips(0));
    assert_eq!(Family::BOTH.map(|family| pair.homes(family)), homes);
    // It is back, and stands by.
    pair.start_again(0);
    thread::sleep(Duration::from_secs(4));
    assert!(pair.has_vips(1) && !pair.has_vips(0));

    // The active one is withdrawn, comes back, and its keepalived ends: nobody notices.
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
