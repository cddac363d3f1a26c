//! Three balancers that are one fleet, on a real etcd, behind a router that spreads clients by ECMP.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use balancer_api::{model::FleetSnapshot, statistics::StatsView};
use balancer_common::map_types::Forwarding;
use balancer_tests::{
    backend::Backend,
    binaries,
    controller::Controller,
    etcd::{EtcdCluster, Options},
    http_client::{Request, send_all},
    namespace::{Namespace, join},
    site::{PATIENCE, Settings, WORKERS, write_config},
    topology::{Family, Shape, Topology},
};

const PORT: u16 = 80;
const BACKENDS: u16 = 4;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=90;
const MEMBERS: usize = 3;
const ADDRESSES: [[&str; 2]; MEMBERS] = [["10.0.0.1", "fd00::1"], ["10.0.0.3", "fd00::3"], ["10.0.0.4", "fd00::4"]];
const ENGINES: [&str; 3] = ["10.0.0.61", "10.0.0.62", "10.0.0.63"];

/// A host of clients that is the router as well, three balancers, backends with `dsr`, etcd, all on one segment.
struct Fleet {
    controllers: Vec<Option<Controller>>,
    etcd: EtcdCluster,
    engines: Vec<Namespace>,
    backends: Vec<Option<Backend>>,
    others: Vec<Namespace>,
    topology: Topology,
    settings: Settings,
    lease: &'static str,
    files: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        Self::with_lease("2s")
    }

    fn with_lease(lease: &'static str) -> Self {
        let topology = Topology::new(Shape::OneLegged, Forwarding::Dsr, BACKENDS.into()).unwrap();
        let on_segment = |name: &str, addresses: &[(&str, u8)]| {
            let namespace = Namespace::new(name).unwrap();
            join((&namespace, "eth0"), (topology.switch(), name)).unwrap();
            topology.switch().ip(&format!("link set {name} master br0")).unwrap();
            for (address, length) in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                namespace.ip(&format!("addr add {address}/{length} dev eth0 {nodad}")).unwrap();
            }
            namespace
        };
        let others: Vec<Namespace> = (1..MEMBERS)
            .map(|number| {
                on_segment(&format!("lb{}", number + 1), &[(ADDRESSES[number][0], 16), (ADDRESSES[number][1], 64)])
            })
            .collect();
        let engines: Vec<Namespace> = ENGINES
            .iter()
            .enumerate()
            .map(|(at, address)| on_segment(&format!("etcd{at}"), &[(*address, 16)]))
            .collect();
        for family in Family::BOTH {
            let length = if family == Family::V4 { 32 } else { 128 };
            let vip = topology.vip(family);
            topology.balancer().ip(&format!("addr del {vip}/{length} dev lo")).unwrap();
            let net = if family == Family::V4 { "10.2.0.0/16" } else { "fd00:2::/64" };
            topology.client().ip(&format!("{} route del {net}", if family == Family::V4 { "" } else { "-6" })).unwrap();
        }
        let places: Vec<(&Namespace, IpAddr)> =
            engines.iter().zip(ENGINES).map(|(namespace, address)| (namespace, address.parse().unwrap())).collect();
        let options = Options { tls: true, arguments: vec!["--unsafe-no-fsync".to_owned()] };
        let etcd = EtcdCluster::start(&places, &options).unwrap();
        let mut settings = Settings::new(&topology, Forwarding::Dsr, BACKENDS - 1);
        settings.families = Family::BOTH.to_vec();
        settings.remember = "1h";
        settings.check = r#"{ type = "tcp", interval = "200ms", timeout = "200ms", fall = 2, rise = 1 }"#.to_owned();
        let files = tempfile::tempdir().unwrap();
        let backends = (1..=BACKENDS).map(|number| Some(start_backend(&topology, number, files.path()))).collect();
        let mut this =
            Self { controllers: Vec::new(), etcd, engines, backends, others, topology, settings, lease, files };
        for number in 0..MEMBERS {
            let controller = this.start(number);
            this.controllers.push(Some(controller));
        }
        this.route(&[0, 1, 2]);
        this.wait_in_step();
        this
    }

    fn namespace(&self, number: usize) -> &Namespace {
        number.checked_sub(1).map_or(self.topology.balancer(), |other| &self.others[other])
    }

    fn start(&self, number: usize) -> Controller {
        let files = self.files.path().join(format!("lb{}", number + 1));
        fs::create_dir_all(&files).unwrap();
        let certificates = self.etcd.certificates().unwrap();
        let fleet = format!(
            "[fleet]\nname = \"site1\"\nmember = \"lb{}\"\nendpoints = {:?}\nlease = {:?}\n\
             ca = {:?}\ncert = {:?}\nkey = {:?}\n",
            number + 1,
            self.etcd.endpoints(),
            self.lease,
            certificates.ca,
            certificates.cert,
            certificates.key
        );
        let settings = Settings { lines: fleet, ..self.settings.clone() };
        let config = write_config(&self.topology, &settings, &files).unwrap();
        let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
        let namespace = self.namespace(number);
        Controller::start(namespace, &binaries::balancer().unwrap(), &config, &socket, &log).unwrap()
    }

    /// The router spreads over these members.
    fn route(&self, members: &[usize]) {
        for (index, family) in Family::BOTH.into_iter().enumerate() {
            let hops: Vec<String> =
                members.iter().map(|&number| format!("nexthop via {}", ADDRESSES[number][index])).collect();
            let flag = if family == Family::V4 { "" } else { "-6" };
            self.topology
                .client()
                .ip(&format!("{flag} route replace {} {}", self.topology.vip(family), hops.join(" ")))
                .unwrap();
        }
    }

    fn spread(&self, policy: &str) {
        for family in ["ipv4", "ipv6"] {
            self.topology.client().sysctl(&format!("net/{family}/fib_multipath_hash_policy"), policy).unwrap();
        }
    }

    fn members(&self) -> impl Iterator<Item = usize> {
        (0..MEMBERS).filter(|&number| self.controllers[number].is_some())
    }

    fn try_cli(&self, number: usize, arguments: &[&str]) -> Result<String, String> {
        let output = self.controllers[number].as_ref().unwrap().cli(arguments).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    #[track_caller]
    fn cli(&self, number: usize, arguments: &[&str]) -> String {
        self.try_cli(number, arguments).unwrap_or_else(|error| panic!("{arguments:?} at {number}: {error}"))
    }

    /// All that run are ready, and have the same tables.
    #[track_caller]
    fn wait_in_step(&self) {
        wait("not all are ready", || self.members().all(|number| self.try_cli(number, &["ready"]).is_ok()));
        wait("backends differ", || {
            let states: Vec<Vec<String>> = self.members().map(|number| self.states(number)).collect();
            states.iter().all(|state| *state == states[0] && !state.is_empty())
        });
    }

    /// What `balancer fleet --json` says.
    fn shown(&self, number: usize) -> FleetSnapshot {
        serde_json::from_str(&self.cli(number, &["fleet", "--json"])).unwrap()
    }

    fn metrics(&self, number: usize) -> String {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let request = Request::new(any, SocketAddr::from(([127, 0, 0, 1], 9660))).path("/metrics");
        let request = Request { timeout: PATIENCE, ..request };
        let reply = self.namespace(number).run_in_thread(|| request.send()).unwrap().unwrap();
        String::from_utf8(reply.body).unwrap()
    }

    /// Backends of `web`, with state and slots.
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

    /// Waits until a backend is in this state in both services, at all members.
    #[track_caller]
    fn wait_for(&self, backend: &str, state: &str) {
        let states = ["web", "web6"].map(|service| format!("{service}/{backend} {state} "));
        let is = |lines: &[String]| states.iter().all(|state| lines.iter().any(|line| line.starts_with(state)));
        wait(&format!("{backend} is not {state}"), || self.members().all(|number| is(&self.states(number))));
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

    #[track_caller]
    fn all_homes(&self) -> [Vec<String>; 2] {
        Family::BOTH.map(|family| self.homes(family))
    }

    /// Every client is answered by the same backend whichever member it comes to.
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

    /// Has clients connect all the time while `work` is done: how many requests were made and how many failed.
    fn under_load(&mut self, work: impl FnOnce(&mut Self)) -> (usize, Vec<String>) {
        let stop = AtomicBool::new(false);
        let requests: Vec<Request> = Family::BOTH.iter().flat_map(|&family| self.requests(family)).collect();
        let entrance = self.topology.client().entrance();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..2)
                .map(|part| {
                    let (stop, requests, entrance) = (&stop, &requests, &entrance);
                    scope.spawn(move || {
                        entrance.enter().unwrap();
                        let (mut asked, mut failed) = (0, Vec::new());
                        for request in requests.iter().skip(part).step_by(2).cycle() {
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                            asked += 1;
                            failed.extend(request.send().and_then(|reply| reply.answer()).err().map(|e| e.to_string()));
                        }
                        (asked, failed)
                    })
                })
                .collect();
            work(self);
            stop.store(true, Ordering::Relaxed);
            let ended = clients.into_iter().map(|client| client.join().unwrap());
            ended.fold((0, Vec::new()), |mut sum, (asked, failed)| {
                sum.0 += asked;
                sum.1.extend(failed);
                sum
            })
        })
    }

    fn kill(&mut self, number: usize) {
        self.controllers[number].take().unwrap().process().kill().unwrap();
    }

    fn start_again(&mut self, number: usize) {
        self.controllers[number] = Some(self.start(number));
        self.wait_in_step();
    }
}

fn start_backend(topology: &Topology, number: u16, files: &Path) -> Backend {
    let own = Family::BOTH.map(|family| topology.backend_address(family, number - 1));
    let vips = Family::BOTH.map(|family| topology.vip(family));
    let listen: Vec<SocketAddr> = own.into_iter().chain(vips).map(|address| SocketAddr::new(address, PORT)).collect();
    let namespace = &topology.backends()[usize::from(number) - 1];
    Backend::start(&binaries::balancer().unwrap(), namespace, &format!("web{number}"), &listen, files).unwrap()
}

#[track_caller]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Clients of one backend that are at another one afterwards.
fn moved(before: &[Vec<String>; 2], after: &[Vec<String>; 2], except: &str) -> BTreeMap<usize, (String, String)> {
    let pairs = before.iter().flatten().zip(after.iter().flatten()).enumerate();
    pairs
        .filter(|(_, (old, new))| old != new && *old != except)
        .map(|(at, (old, new))| (at, (old.clone(), new.clone())))
        .collect()
}

#[test]
fn members_are_one_balancer_through_changes_made_at_any_of_them() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    assert_eq!(homes[0].iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    let address = |fleet: &Fleet, family| SocketAddr::new(fleet.topology.backend_address(family, 3), PORT).to_string();
    let (asked, failed) = fleet.under_load(|fleet| {
        fleet.spread("1");
        let added = fleet.cli(1, &["backend", "add", "web/web4", &address(fleet, Family::V4)]);
        assert!(added.contains("; applied by 3 of 3 members"), "{added}");
        fleet.cli(2, &["backend", "add", "web6/web4", &address(fleet, Family::V6)]);
        fleet.cli(0, &["backend", "weight", "web/web1", "40"]);
        fleet.cli(1, &["backend", "drain", "web/web2"]);
        fleet.cli(2, &["backend", "ready", "web/web2"]);
        fleet.wait_in_step();
    });
    assert!(failed.is_empty() && asked > 200, "{} of {asked} failed: {:?}", failed.len(), failed.first());
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    // Newcomers come to what was added, wherever it was added.
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/web4 up") && !state.ends_with(" 0")));

    // All see the same fleet, one of them leads.
    wait("members do not agree on what they see", || {
        let shown: Vec<FleetSnapshot> = fleet.members().map(|number| fleet.shown(number)).collect();
        let agree = |of: &FleetSnapshot| {
            let names: Vec<&str> = of.members.iter().map(|member| member.name.as_str()).collect();
            let steady = of
                .members
                .iter()
                .all(|member| member.ready == "ready" && member.epoch == of.epoch && member.lag_seconds == 0.0);
            names == ["lb1", "lb2", "lb3"] && steady && of.epoch == shown[0].epoch && of.leader == shown[0].leader
        };
        shown.iter().all(agree) && shown[0].leader.is_some()
    });
    // Whoever has seen a client itself takes nothing over.
    let told: u64 = fleet.members().map(|number| fleet.shown(number).records.told).sum();
    assert!(told >= 180, "{told}");
    for number in fleet.members() {
        let shown = fleet.shown(number);
        assert_eq!((shown.name.as_str(), shown.member), ("site1", format!("lb{}", number + 1)));
        assert!(shown.epoch.is_some_and(|epoch| epoch > 5) && shown.commit_seconds.is_some(), "{:?}", shown.epoch);
        let engine = &shown.engine;
        assert!(engine.reachable && engine.leader.is_some() && engine.bytes_sent > 0 && engine.bytes_received > 0);
        assert!(engine.database_bytes > 0 && engine.endpoint.as_ref().is_some_and(|place| place.contains(":2379")));
        let metrics = fleet.metrics(number);
        for line in ["balancer_fleet_members{state=\"ready\"} 3", "balancer_fleet_engine_reachable 1"] {
            assert!(metrics.lines().any(|known| known == line), "{line}: {metrics}");
        }
        assert!(fleet.cli(number, &["status"]).contains(&format!("fleet site1: this is lb{}, epoch", number + 1)));
    }

    // What each has counted adds up, at any of them.
    let connections = |number, arguments: &[&str]| -> u64 {
        let stats: Vec<StatsView> = serde_json::from_str(&fleet.cli(number, arguments)).unwrap();
        stats[0].periods.iter().find(|period| period.period == "start").unwrap().connections
    };
    let alone: Vec<u64> = fleet.members().map(|number| connections(number, &["stats", "web", "--json"])).collect();
    assert!(alone.iter().all(|&count| count > 0), "{alone:?}");
    wait("what members count does not add up", || {
        let together = |number| connections(number, &["stats", "web", "--json", "--fleet"]);
        fleet.members().all(|number| together(number) == alone.iter().sum::<u64>())
    });
    let text = fleet.cli(1, &["stats", "web", "--fleet"]);
    assert!(text.contains("of all members together") && !text.contains("WARNING"), "{text}");
    let events = fleet.cli(1, &["events", "--json"]);
    assert!(events.contains("\"member\": \"lb2\""), "{events}");

    // What a file says becomes everybody's by any of them; one whose file says otherwise follows, and says so.
    let file = fleet.files.path().join("lb3/balancer.toml");
    let text = fs::read_to_string(&file).unwrap().replace("name = \"web1\"", "name = \"first\"");
    fs::write(&file, text.replace("name = \"first\"", "renamed_from = \"web1\"\nname = \"first\"")).unwrap();
    let applied = fleet.cli(2, &["apply", file.to_str().unwrap()]);
    assert!(applied.contains("applied by 3 of 3 members"), "{applied}");
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/first up")), "{:?}", fleet.states(0));
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    fleet.kill(0);
    fleet.start_again(0);
    let events = fleet.cli(0, &["events"]);
    assert!(events.contains("says other services than the fleet's last one"), "{events}");
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());

    // What is refused is refused everywhere alike.
    let refused = fleet.try_cli(2, &["backend", "add", "web/web4", &address(&fleet, Family::V4)]).unwrap_err();
    assert!(refused.contains("web/web4 exists already"), "{refused}");
}

#[test]
fn a_member_dies_and_comes_back_and_clients_that_are_away_stay() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // Away from where the table says: everybody stays where they are when the weights change.
    fleet.cli(0, &["backend", "weight", "web/web1", "10"]);
    fleet.cli(0, &["backend", "weight", "web6/web1", "10"]);
    fleet.wait_in_step();
    for number in [1, 0, 2] {
        let others: Vec<usize> = (0..MEMBERS).filter(|&other| other != number).collect();
        let (asked, failed) = fleet.under_load(|fleet| {
            fleet.route(&others);
            thread::sleep(Duration::from_millis(300));
            fleet.kill(number);
            thread::sleep(Duration::from_millis(1500));
            fleet.start_again(number);
            assert!(fleet.shown(number).records.taken_over > 0, "{:?}", fleet.shown(number).records);
            fleet.route(&[0, 1, 2]);
        });
        assert!(failed.is_empty() && asked > 50, "{} of {asked} failed: {:?}", failed.len(), failed.first());
        assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new(), "after lb{}", number + 1);
    }
}

#[test]
fn a_backend_is_down_when_most_see_it() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // The third member's own way to web2 is cut: nothing moves, and it says so.
    let cut = |fleet: &Fleet, verb: &str| {
        for family in Family::BOTH {
            let address = fleet.topology.backend_address(family, 1);
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let prefix = if family == Family::V4 { "32" } else { "128" };
            fleet.namespace(2).ip(&format!("{flag} route {verb} blackhole {address}/{prefix}")).unwrap();
        }
    };
    cut(&fleet, "add");
    wait("lb3 does not say that it cannot reach web2", || {
        let ready = fleet.cli(2, &["ready", "--json"]);
        ready.contains("degraded") && ready.contains("web/web2")
    });
    wait("lb1 does not show that lb3 sees something else", || {
        let members = fleet.shown(0).members;
        let differs =
            |name: &str| members.iter().any(|of| of.name == name && of.votes_differ == ["web/web2", "web6/web2"]);
        differs("lb3") && !differs("lb1")
    });
    let votes = "balancer_fleet_votes_differ{service=\"web\",backend=\"web2\"} 1";
    assert!(fleet.metrics(1).contains(votes), "{}", fleet.metrics(1));
    assert!(fleet.try_cli(2, &["ready", "--strict"]).is_err() && fleet.try_cli(2, &["ready"]).is_ok());
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/web2 up")), "{:?}", fleet.states(0));
    cut(&fleet, "del");
    wait("lb3 is not ready again", || fleet.try_cli(2, &["ready", "--strict"]).is_ok());
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());

    // It dies: its clients move, once, to the same backends everywhere.
    fleet.backends[1] = None;
    fleet.wait_for("web2", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web2"), BTreeMap::new());
    assert!(after.iter().flatten().all(|home| home != "web2"));
    fleet.backends[1] = Some(start_backend(&fleet.topology, 2, fleet.files.path()));
    fleet.wait_for("web2", "up");
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}

#[test]
fn without_its_engine_the_fleet_goes_on_and_refuses_changes() {
    // Longer than etcd takes to elect.
    let mut fleet = Fleet::with_lease("5s");
    let homes = fleet.one_answer();
    // One of three etcds, the one that leads: nobody notices.
    let first = fleet.etcd.leader(&fleet.engines[0]).unwrap();
    fleet.etcd.kill(first).unwrap();
    let weight = fleet.cli(1, &["backend", "weight", "web/web1", "90"]);
    assert!(weight.contains("applied by 3 of 3"), "{weight}");
    // All.
    for number in 0..ENGINES.len() {
        fleet.etcd.kill(number).unwrap();
    }
    wait("nobody is degraded", || {
        fleet.members().all(|number| fleet.cli(number, &["ready", "--json"]).contains("degraded"))
    });
    let alone = fleet.shown(1);
    assert!(!alone.engine.reachable && alone.members.iter().all(|member| member.name == "lb2"), "{alone:?}");
    assert!(fleet.metrics(1).contains("balancer_fleet_engine_reachable 0"));
    let refused = fleet.try_cli(1, &["backend", "weight", "web/web1", "80"]).unwrap_err();
    assert!(refused.contains("out of reach"), "{refused}");
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    // A backend dies meanwhile: each member acts on what it sees.
    fleet.backends[2] = None;
    fleet.wait_for("web3", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web3"), BTreeMap::new());
    // Back, with their disks: in step without a move.
    for (number, namespace) in fleet.engines.iter().enumerate() {
        fleet.etcd.start_member(number, namespace).unwrap();
    }
    wait("changes are refused", || fleet.try_cli(0, &["backend", "weight", "web/web1", "70"]).is_ok());
    fleet.wait_in_step();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}
