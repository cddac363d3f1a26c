//! Runs the commands of `docs/src/two-machines.md` on two hosts with keepalived.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf};

use balancer_api::model::HealthView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    controller::Controller,
    namespace::Namespace,
    process::Process,
    routing,
    site::PATIENCE,
    topology::{Family, Shape, Topology},
};
use tempfile::TempDir;

use crate::support::{homes, requests, under_load, wait};

const PORT: u16 = 80;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=60;
const FAMILY: Family = Family::V4;
/// What stands in place of the chapter's comment about the key.
const KEY: &str = "key = \"hex:8d3a52f3c1f04c5cb0d3a1c4e5f60718\"";

/// Returns the chapter's code blocks in a language, with the addresses of the topology.
fn blocks(topology: &Topology, language: &str) -> Vec<String> {
    let chapter = include_str!("../../../../docs/src/two-machines.md");
    let fence = format!("```{language}\n");
    let adapt = |block: &str| {
        block
            .split("```")
            .next()
            .unwrap()
            .replace("198.51.100.10", &topology.vip(FAMILY).to_string())
            .replace("192.0.2.11", &machine(0).to_string())
            .replace("192.0.2.12", &machine(1).to_string())
    };
    chapter.split(&fence).skip(1).map(adapt).collect()
}

fn machine(index: u16) -> std::net::IpAddr {
    Topology::balancers_address(FAMILY, index)
}

struct Machine {
    controller: Controller,
    server: Option<Backend>,
    keepalived: Process,
}

struct Site {
    machines: Vec<Machine>,
    topology: Topology,
    files: TempDir,
}

impl Site {
    fn new() -> Self {
        let mut topology = Topology::new(Shape::Routed, Forwarding::Dsr, 1).unwrap();
        topology.add_balancer().unwrap();
        topology.router().ip(&format!("route add {} dev eth0", topology.vip(FAMILY))).unwrap();
        let files = tempfile::tempdir().unwrap();
        let mut site = Self { machines: Vec::new(), topology, files };
        for index in 0..2 {
            let machine = site.set_up(index);
            site.machines.push(machine);
            if index == 0 {
                wait("the first one has no VIP", || site.has_vip(0));
            }
        }
        site
    }

    fn host(&self, index: u16) -> &Namespace {
        self.topology.balancers().nth(index.into()).unwrap()
    }

    fn path(&self, index: u16, name: &str) -> PathBuf {
        self.files.path().join(format!("{index}-{name}"))
    }

    /// Sets up a machine with the commands and files of the chapter.
    fn set_up(&self, index: u16) -> Machine {
        for script in blocks(&self.topology, "sh") {
            let output = self.host(index).command("sh").args(["-ec", &script]).output().unwrap();
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let [file] = <[String; 1]>::try_from(blocks(&self.topology, "toml")).unwrap();
        let places = format!(
            "state_file = {:?}\n[control]\nsocket = {:?}\n[hash]",
            self.path(index, "state.json"),
            self.path(index, "sock")
        );
        let file = file.replace("[hash]", &places).replace("# key = \"hex:…\"", KEY);
        fs::write(self.path(index, "balancer.toml"), file).unwrap();
        let server = Some(self.serve(index));
        let controller = self.balance(index);
        let ready = format!(
            "{} --socket {} ready --announced",
            binaries::balancer().unwrap().display(),
            self.path(index, "sock").display()
        );
        let config = self.path(index, "keepalived.conf");
        fs::write(&config, routing::keepalived(&self.topology, index, &ready).unwrap()).unwrap();
        let keepalived = routing::start_keepalived(self.host(index), &config)
            .expect("keepalived is needed: cargo xtask setup, or apt-get install keepalived");
        Machine { controller, server, keepalived }
    }

    fn balance(&self, index: u16) -> Controller {
        let (config, socket) = (self.path(index, "balancer.toml"), self.path(index, "sock"));
        let binary = binaries::balancer().unwrap();
        let log = self.path(index, "log");
        let mut controller = Controller::start(self.host(index), &binary, &config, &socket, &log).unwrap();
        controller.wait_ready(PATIENCE).unwrap();
        controller
    }

    fn serve(&self, index: u16) -> Backend {
        let listen = [machine(index), self.topology.vip(FAMILY)].map(|address| SocketAddr::new(address, PORT));
        let name = ["one", "two"][usize::from(index)];
        Backend::start(&binaries::balancer().unwrap(), self.host(index), name, &listen, self.files.path()).unwrap()
    }

    fn has_vip(&self, index: u16) -> bool {
        let output = self.host(index).command("ip").args(["addr", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains(&format!(" {}/", self.topology.vip(FAMILY)))
    }

    #[track_caller]
    fn homes(&self) -> BTreeMap<u16, String> {
        CLIENTS.zip(homes(&self.topology, &requests(&self.topology, FAMILY, PORT, CLIENTS))).collect()
    }
}

#[test]
fn when_two_machines_are_set_up_as_the_chapter_says_then_clients_keep_their_server_as_the_vip_moves() {
    let mut site = Site::new();
    // The first balancer has started before the second server, so the test waits until the first balancer finds both
    // servers.
    wait("the first one's balancer does not find both servers", || {
        let health = site.machines[0].controller.cli(&["health", "show", "web", "--json"]).unwrap();
        let health: Vec<HealthView> = serde_json::from_slice(&health.stdout).unwrap();
        health.iter().filter(|backend| backend.verdict == "up").count() == 2
    });
    let before = site.homes();
    assert!(["one", "two"].iter().all(|name| before.values().any(|home| home == name)), "{before:?}");

    // keepalived ends on the first machine, and the second machine takes over: no client notices.
    let entrance = site.topology.client().entrance();
    let requests = requests(&site.topology, FAMILY, PORT, CLIENTS);
    let load = under_load(&entrance, &requests, || {
        site.machines[0].keepalived.stop().unwrap();
        wait("the second one does not take over", || site.has_vip(1) && !site.has_vip(0));
    });
    load.assert_answered(20);
    assert_eq!(site.homes(), before);

    // The balancer on the second machine dies. keepalived does not run on the first machine, so the second machine
    // continues because of `on_exit = "keep"`.
    site.machines[1].controller.process().kill().unwrap();
    assert_eq!(site.homes(), before);
    let balancer = site.balance(1);
    site.machines[1].controller = balancer;
    assert_eq!(site.homes(), before);

    // A server dies: the server's clients move, and all other clients stay.
    site.machines[0].server = None;
    wait("the clients of the first one's server do not move", || {
        let status = site.machines[1].controller.cli(&["health", "show", "web", "--json"]).unwrap();
        String::from_utf8(status.stdout).unwrap().contains("\"down\"")
    });
    assert!(site.homes().values().all(|home| home == "two"));
}
