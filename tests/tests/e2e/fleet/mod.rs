//! Tests of a fleet with a real etcd, behind a router that spreads clients by ECMP.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod changes;
mod discovery;
mod engine;
mod files;
mod growth;
mod members;
mod modes;
mod pair;
mod release;
mod verdicts;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::atomic::AtomicBool,
    thread::Scope,
};

use balancer_api::model::FleetSnapshot;
use balancer_common::map_types::Forwarding;
use balancer_config::config::Protocol;
use balancer_testkit::{
    backend::Backend,
    binaries,
    controller::Controller,
    datagrams,
    etcd::{EtcdCluster, Options},
    http_client::Request,
    namespace::{Namespace, run},
    process::Process,
    site::{PATIENCE, QUICK_CHECK, Settings, start_backend, start_decap, write_config},
    topology::{Family, Shape, Topology},
};

use crate::support::{Load, homes, requests, under_load, wait};

const PORT: u16 = 80;
const BACKENDS: u16 = 4;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=90;
/// The number of hosts that can run balancers.
const HOSTS: u16 = 4;
/// The host numbers of the etcd servers in the segment's addresses.
const ENGINES: [u16; 3] = [61, 62, 63];

/// The configuration line with the key for connection IDs, which follows the listeners.
const QUIC_KEY: &str = "\nquic = { format = \"draft\", key = \"hex:8f95f09245765f80256934e50c66207f\" }";

/// The settings of the fleet in a test.
struct Plan {
    forwarding: Forwarding,
    /// The number of members that start first; the test has four hosts.
    members: usize,
    lease: &'static str,
    /// The health check of the backends.
    check: &'static str,
    /// The protocol of the datagrams that the service `web` also accepts.
    datagrams: Option<Protocol>,
    /// The number of etcd servers that start; the test has three hosts for etcd.
    engines: usize,
    /// Additional arguments of etcd.
    etcd: Vec<String>,
    /// The value of `on_exit`.
    on_exit: &'static str,
    /// Additional keys of the service.
    service_lines: &'static str,
    /// Additional keys of `[control]`, in which `ADDRESS` stands for the member's IPv4 address.
    control: String,
    /// The program of the member `lb3`, if it differs from the others' program.
    third: Option<PathBuf>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            forwarding: Forwarding::Dsr,
            members: 3,
            lease: "2s",
            check: QUICK_CHECK,
            datagrams: None,
            engines: ENGINES.len(),
            etcd: Vec::new(),
            on_exit: "detach",
            service_lines: "",
            control: String::new(),
            third: None,
        }
    }
}

/// A client host behind a router, and balancers, backends and three etcd servers, all on one segment.
struct Fleet {
    /// The field with the controllers comes first, so that Rust ends the balancers before their hosts.
    controllers: Vec<Option<Controller>>,
    etcd: EtcdCluster,
    engines: Vec<Namespace>,
    backends: Vec<Option<Backend>>,
    _decaps: Vec<Process>,
    topology: Topology,
    settings: Settings,
    plan: Plan,
    files: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        Self::planned(Plan::default())
    }

    fn planned(plan: Plan) -> Self {
        let forwarding = plan.forwarding;
        let mut topology = Topology::new(Shape::Routed, forwarding, BACKENDS.into()).unwrap();
        for _ in 1..HOSTS {
            topology.add_balancer().unwrap();
        }
        let engines: Vec<Namespace> =
            ENGINES.map(|host| topology.add_host(&format!("etcd{host}"), host).unwrap()).into();
        let places: Vec<(&Namespace, IpAddr)> = engines
            .iter()
            .zip(ENGINES.map(|host| Topology::host_address(Family::V4, host)))
            .take(plan.engines)
            .collect();
        let mut arguments = plan.etcd.clone();
        arguments.push("--unsafe-no-fsync".to_owned());
        let options = Options { tls: true, arguments };
        let etcd = EtcdCluster::start(&places, &options).unwrap();
        let mut settings = Settings::new(&topology, forwarding, BACKENDS - 1);
        settings.families = Family::BOTH.to_vec();
        settings.remember = "1h";
        settings.check = plan.check.to_owned();
        settings.on_exit = plan.on_exit;
        settings.service_lines = plan.service_lines.to_owned();
        let files = tempfile::tempdir().unwrap();
        let decaps = match forwarding {
            Forwarding::Dsr | Forwarding::Nat | Forwarding::Snat => Vec::new(),
            Forwarding::Ipip | Forwarding::Gue => {
                (1..=BACKENDS).map(|number| start_decap(&topology, number, "native", files.path()).unwrap()).collect()
            }
        };
        let mut this = Self {
            controllers: (0..HOSTS).map(|_| None).collect(),
            etcd,
            engines,
            backends: (0..BACKENDS).map(|_| None).collect(),
            _decaps: decaps,
            topology,
            settings,
            plan,
            files,
        };
        (1..=BACKENDS).for_each(|number| this.start_backend(number));
        this.answer_through(&(0..this.plan.members).collect::<Vec<_>>());
        for number in 0..this.plan.members {
            this.controllers[number] = Some(this.start(number));
        }
        this.route_to_all();
        this.wait_in_step();
        this
    }

    /// Routes the replies of backends through the given members. With `nat`, a reply may pass through a balancer other
    /// than the balancer that received the request.
    fn answer_through(&self, members: &[usize]) {
        if self.plan.forwarding != Forwarding::Nat {
            return;
        }
        for (family, flag, clients) in [(Family::V4, "-4", "10.1.0.0/16"), (Family::V6, "-6", "fd00:1::/64")] {
            let hops = next_hops(family, members);
            for backend in self.topology.backends() {
                backend.ip(&format!("{flag} route replace {clients} {hops}")).unwrap();
            }
        }
    }

    fn start_backend(&mut self, number: u16) {
        let backend = start_backend(&self.topology, self.plan.forwarding, number, self.files.path()).unwrap();
        self.backends[usize::from(number) - 1] = Some(backend);
    }

    /// Makes each backend answer datagrams with its name, until `stop` is true.
    fn answer_datagrams<'a>(&self, scope: &'a Scope<'a, '_>, family: Family, stop: &'a AtomicBool) {
        for (number, host) in (1..).zip(self.topology.backends()) {
            let vip = SocketAddr::new(self.topology.vip(family), PORT);
            let socket = host.run_in_thread(|| UdpSocket::bind(vip)).unwrap().unwrap();
            scope.spawn(move || datagrams::answer_with(&socket, &format!("web{number}"), stop).unwrap());
        }
    }

    /// Returns a backend's address in the form that the command line expects.
    fn backend_address(&self, family: Family, number: u16) -> String {
        let port = if self.plan.forwarding == Forwarding::Nat { 8080 } else { PORT };
        SocketAddr::new(self.topology.backend_address(family, number - 1), port).to_string()
    }

    fn namespace(&self, number: usize) -> &Namespace {
        self.topology.balancers().nth(number).unwrap()
    }

    fn start(&self, number: usize) -> Controller {
        self.start_as(number, number + 1)
    }

    /// Starts the balancer of host `number` as the member `member`.
    fn start_as(&self, number: usize, member: usize) -> Controller {
        let files = self.files.path().join(format!("lb{}", number + 1));
        fs::create_dir_all(&files).unwrap();
        let settings = Settings { lines: self.lines(member), ..self.settings.clone() };
        let config = write_config(&self.topology, &settings, &files).unwrap();
        if !self.plan.control.is_empty() {
            let address = Topology::balancers_address(Family::V4, u16::try_from(number).unwrap()).to_string();
            let lines = format!("[control]\n{}", self.plan.control.replace("ADDRESS", &address));
            let text = fs::read_to_string(&config).unwrap();
            assert!(text.contains("[control]\n"), "{text}");
            fs::write(&config, text.replace("[control]\n", &lines)).unwrap();
        }
        if let Some(protocol) = self.plan.datagrams {
            let vip = SocketAddr::new(self.topology.vip(Family::V4), PORT);
            let quic = if protocol == Protocol::Quic { QUIC_KEY } else { "" };
            let both = format!("listen = [\"{vip}\", \"{vip}/{protocol}\"]{quic}");
            let one = format!("address = \"{vip}\"");
            let text = fs::read_to_string(&config).unwrap();
            assert!(text.contains(&one), "{text}");
            let mut text = text.replace(&one, &both);
            for number in 0..BACKENDS {
                // If its configuration contains no port, a backend uses the port of the listener.
                let own = self.topology.backend_address(Family::V4, number);
                text = text.replace(&format!("\"{own}:{PORT}\""), &format!("\"{own}\""));
            }
            fs::write(&config, text).unwrap();
        }
        let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
        let namespace = self.namespace(number);
        let own = self.plan.third.clone().filter(|_| member == 3);
        let program = own.unwrap_or_else(|| binaries::balancer().unwrap());
        Controller::start(namespace, &program, &config, &socket, &log).unwrap()
    }

    /// Returns the section `[fleet]` of a member's file.
    fn lines(&self, member: usize) -> String {
        let (lease, etcd) = (self.plan.lease, self.etcd_keys().join("\n"));
        format!("[fleet]\nname = \"site1\"\nmember = \"lb{member}\"\nlease = {lease:?}\n{etcd}\n")
    }

    /// Returns the configuration keys that tell a program how to reach etcd.
    fn etcd_keys(&self) -> [String; 4] {
        let of = self.etcd.certificates().unwrap();
        [
            format!("endpoints = {:?}", self.etcd.endpoints()),
            format!("ca = {:?}", of.ca),
            format!("cert = {:?}", of.cert),
            format!("key = {:?}", of.key),
        ]
    }

    /// Runs `etcdctl` at one of the etcd servers.
    fn etcdctl(&self, engine: usize, arguments: &[&str]) -> anyhow::Result<String> {
        let address = Topology::host_address(Family::V4, ENGINES[engine]);
        run(self.etcd.client(&self.engines[engine], address).args(arguments))
    }

    /// Makes the router distribute clients among the given members.
    fn route(&self, members: &[usize]) {
        for family in Family::BOTH {
            let (vip, hops) = (self.topology.vip(family), next_hops(family, members));
            let flag = if family == Family::V4 { "" } else { "-6" };
            self.topology.router().ip(&format!("{flag} route replace {vip} {hops}")).unwrap();
        }
    }

    fn route_to_all(&self) {
        self.route(&self.members().collect::<Vec<_>>());
    }

    fn spread(&self, policy: &str) {
        for family in ["ipv4", "ipv6"] {
            self.topology.router().sysctl(&format!("net/{family}/fib_multipath_hash_policy"), policy).unwrap();
        }
    }

    fn members(&self) -> impl Iterator<Item = usize> {
        (0..self.controllers.len()).filter(|&number| self.controllers[number].is_some())
    }

    fn try_cli(&self, number: usize, arguments: &[&str]) -> Result<String, String> {
        let output = self.controllers[number].as_ref().unwrap().cli(arguments).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        // Exit code 5: some members do not apply the change yet.
        let is_made = matches!(output.status.code(), Some(0 | 5));
        if is_made { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    #[track_caller]
    fn cli(&self, number: usize, arguments: &[&str]) -> String {
        self.try_cli(number, arguments).unwrap_or_else(|error| panic!("{arguments:?} at {number}: {error}"))
    }

    /// Waits until all running members are ready and have the same lookup tables.
    #[track_caller]
    fn wait_in_step(&self) {
        wait("not all are ready", || self.members().all(|number| self.try_cli(number, &["ready"]).is_ok()));
        wait("backends differ", || {
            let states: Vec<Vec<String>> = self.members().map(|number| self.states(number)).collect();
            states.iter().all(|state| *state == states[0] && !state.is_empty())
        });
    }

    /// Checks that `members` members apply a change to which member `asked` has answered. If the answer says that some
    /// members lag by more than 2 s, the function waits for these members.
    #[track_caller]
    fn assert_applied(&self, asked: usize, answer: &str, members: usize) {
        let (whole, lags) =
            (format!("; applied by {members} of {members} members"), format!(" of {members} members; "));
        assert!(answer.contains(&whole) || answer.contains(&lags) && answer.contains("; not yet by "), "{answer}");
        wait(answer, || {
            let epochs: Vec<_> = self.shown(asked).members.iter().map(|member| member.epoch).collect();
            epochs.len() == members && epochs.iter().all(|epoch| *epoch == epochs[0])
        });
    }

    /// Returns the parsed output of `balancer fleet --json` at a member.
    fn shown(&self, number: usize) -> FleetSnapshot {
        serde_json::from_str(&self.cli(number, &["fleet", "--json"])).unwrap()
    }

    fn metrics(&self, number: usize) -> String {
        balancer_testkit::metrics::scrape_text(self.namespace(number), PATIENCE).unwrap()
    }

    /// Returns the backends of all services, each with its state and slots.
    fn states(&self, number: usize) -> Vec<String> {
        let Ok(status) = self.controllers[number].as_ref().unwrap().status() else { return Vec::new() };
        let of = |service: &balancer_api::model::ServiceView| {
            let backend = |backend: &balancer_api::model::BackendView| {
                format!("{}/{} {} {}", service.name, backend.name, backend.state, backend.slots)
            };
            service.backends.iter().map(backend).collect::<Vec<_>>()
        };
        status.services.iter().flat_map(of).collect()
    }

    /// Waits until all members show the backend in the given state, in both services.
    #[track_caller]
    fn wait_for(&self, backend: &str, state: &str) {
        let states = ["web", "web6"].map(|service| format!("{service}/{backend} {state} "));
        let is = |lines: &[String]| states.iter().all(|state| lines.iter().any(|line| line.starts_with(state)));
        wait(&format!("{backend} is not {state}"), || self.members().all(|number| is(&self.states(number))));
    }

    /// Returns the backend that answers each client.
    #[track_caller]
    fn homes(&self, family: Family) -> Vec<String> {
        homes(&self.topology, &requests(&self.topology, family, PORT, CLIENTS))
    }

    #[track_caller]
    fn all_homes(&self) -> [Vec<String>; 2] {
        Family::BOTH.map(|family| self.homes(family))
    }

    /// Checks that every client gets answers from the same backend through each member, and returns the backends of all
    /// clients.
    #[track_caller]
    fn one_answer(&self) -> [Vec<String>; 2] {
        let members: Vec<usize> = self.members().collect();
        let mut answers = Vec::new();
        for &number in &members {
            self.route(&[number]);
            answers.push(self.all_homes());
        }
        self.route(&members);
        for (number, answer) in members.iter().zip(&answers) {
            assert_eq!(answer, &answers[0], "lb{} and lb{} answer differently", members[0] + 1, number + 1);
        }
        answers.remove(0)
    }

    /// Makes clients open connections all the time while `work` runs.
    fn under_load(&mut self, work: impl FnOnce(&mut Self)) -> Load {
        let of = |family| requests(&self.topology, family, PORT, CLIENTS);
        let requests: Vec<Request> = Family::BOTH.into_iter().flat_map(of).collect();
        let entrance = self.topology.client().entrance();
        under_load(&entrance, &requests, || work(self))
    }

    fn kill(&mut self, number: usize) {
        self.controllers[number].take().unwrap().process().kill().unwrap();
    }

    /// Kills the leader, waits for the next leader, and returns the number of the next leader.
    fn replace_leader(&mut self) -> usize {
        let leads = |name: &str| name.trim_start_matches("lb").parse::<usize>().unwrap() - 1;
        let old = self.shown(self.members().next().unwrap()).leader.unwrap();
        self.kill(leads(&old));
        self.route_to_all();
        let next = |fleet: &Self, number| fleet.shown(number).leader.filter(|name| *name != old);
        wait("another leads", || self.members().all(|number| next(self, number).is_some()));
        leads(&next(self, self.members().next().unwrap()).unwrap())
    }

    /// Ends a balancer as a service manager would.
    fn stop(&mut self, number: usize) {
        let status = self.controllers[number].take().unwrap().process().stop().unwrap();
        assert!(status.success(), "lb{}: {status}", number + 1);
    }

    fn start_again(&mut self, number: usize) {
        self.controllers[number] = Some(self.start(number));
        self.wait_in_step();
    }
}

/// Returns the next hops for routes through the given members, in the notation of `ip route`.
fn next_hops(family: Family, members: &[usize]) -> String {
    let address = |&number| Topology::balancers_address(family, u16::try_from(number).unwrap());
    let hops: Vec<String> = members.iter().map(|number| format!("nexthop via {}", address(number))).collect();
    hops.join(" ")
}

/// Returns the clients that have changed their backend, except the clients of the backend `except`.
fn moved(before: &[Vec<String>; 2], after: &[Vec<String>; 2], except: &str) -> BTreeMap<usize, (String, String)> {
    let pairs = before.iter().flatten().zip(after.iter().flatten()).enumerate();
    pairs
        .filter(|(_, (old, new))| old != new && *old != except)
        .map(|(at, (old, new))| (at, (old.clone(), new.clone())))
        .collect()
}
