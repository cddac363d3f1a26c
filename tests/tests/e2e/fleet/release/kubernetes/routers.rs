//! Tests of Kubernetes Services in a fleet whose members announce the Services' addresses to a router with BIRD.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    http_client::Request,
    kubernetes::Kubernetes,
    process::Process,
    topology::{Family, Topology},
};
use serde_json::json;

use super::Killed;
use crate::{
    fleet::{Fleet, PORT, Plan, moved},
    release::routers::{start_birds, wait_next_hops},
    support::{homes, requests, under_load, wait},
};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=60;
/// The pods' port, which differs from the port of the fleet's other backends on the same hosts.
const POD_PORT: u16 = 9090;

/// A fleet of two members behind a router, and the Service `shop/web`, whose addresses only BIRD announces.
struct Announced {
    fleet: Fleet,
    cluster: Kubernetes,
    /// The web servers of the pods, on the hosts of the fleet's backends.
    servers: Vec<Option<Backend>>,
    vips: [IpAddr; 2],
    _birds: Vec<Process>,
}

/// Returns an address among the VIPs that no other service uses, in each family.
fn vips() -> [IpAddr; 2] {
    Family::BOTH.map(|family| {
        let prefix = Topology::vips(family);
        let (first, _) = prefix.split_once('/').unwrap();
        match first.parse().unwrap() {
            IpAddr::V4(first) => IpAddr::V4((u32::from(first) + 77).into()),
            IpAddr::V6(first) => IpAddr::V6((u128::from(first) + 77).into()),
        }
    })
}

impl Announced {
    fn start(forwarding: Forwarding) -> Self {
        let name = if forwarding == Forwarding::Snat { "snat" } else { "nat" };
        let fleet = Fleet::planned(Plan { members: 2, forwarding, on_exit: "keep", ..Plan::default() });
        let birds = start_birds(&fleet.topology, fleet.files.path());
        let servers = (0..).zip(fleet.topology.backends()).map(|(index, host)| {
            let listen =
                Family::BOTH.map(|family| SocketAddr::new(fleet.topology.backend_address(family, index), POD_PORT));
            let name = format!("pod{}", index + 1);
            Backend::start(&binaries::balancer().unwrap(), host, &name, &listen, fleet.files.path()).map(Some)
        });
        let servers = servers.collect::<Result<_, _>>().unwrap();
        let cluster = Kubernetes::start().unwrap();
        cluster.put(
            "services",
            json!({"metadata": {"namespace": "shop", "name": "web", "annotations": {
                    "sticky.balancer/drain": "2m", "sticky.balancer/when_all_down": "drop", "sticky.balancer/forwarding": name,
                    "sticky.balancer/check": "{ type = \"tcp\", interval = \"300ms\", fall = 5, rise = 1 }"}},
                "spec": {"type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp",
                    "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                    "ports": [{"port": PORT, "protocol": "TCP"}]}}),
        );
        Self { fleet, cluster, servers, vips: vips(), _birds: birds }
    }

    /// Starts a controller beside a member. The controllers of the members share a Lease.
    fn controller(&self, number: usize) -> Killed {
        let [v4, v6] = self.vips.map(|vip| vip.to_string());
        let options = ["--pool", &format!("{v4}/32"), "--pool", &format!("{v6}/128"), "--assign-vip", "lo"];
        self.fleet.kubernetes(number, &options, &self.cluster)
    }

    fn pods(&self, pods: &[(u16, bool)]) {
        Family::BOTH.into_iter().for_each(|family| self.fleet.pods_of(family, POD_PORT, &self.cluster, pods));
    }

    #[track_caller]
    fn wait_next_hops(&self, members: &[u16]) {
        wait_next_hops(&self.fleet.topology, self.vips, members);
    }

    /// Waits until all members show the given backends in the given states.
    #[track_caller]
    fn wait_states(&self, what: &str, expected: &[&str]) {
        let holds = |states: &[String], one: &&str| states.iter().any(|state| state.starts_with(&format!("{one} ")));
        wait(what, || {
            self.fleet.members().all(|number| {
                let states = self.fleet.states(number);
                expected.iter().all(|one| holds(&states, one))
            })
        });
    }

    /// Returns one request to the Service for each client.
    fn requests(&self, family: Family) -> Vec<Request> {
        let vip = self.vips[usize::from(family == Family::V6)];
        let mut all = requests(&self.fleet.topology, family, PORT, CLIENTS);
        all.iter_mut().for_each(|request| request.target.set_ip(vip));
        all
    }

    /// Returns the pod that answers each client of the Service.
    #[track_caller]
    fn homes(&self) -> [Vec<String>; 2] {
        Family::BOTH.map(|family| homes(&self.fleet.topology, &self.requests(family)))
    }
}

/// Runs a rollout while the members leave and return, and asserts that each client stays with its pod until the pod
/// ends. A client sends its requests one after the other, and `resets` is the number of requests that may fail.
fn rolls_out(forwarding: Forwarding, resets: usize) {
    let mut all = Announced::start(forwarding);
    let first = all.controller(0);
    wait("the first controller has no Lease", || {
        let lease = all.cluster.all("leases").pop();
        lease.is_some_and(|lease| lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| !holder.is_empty()))
    });
    let _second = all.controller(1);
    // A Service without pods has no backend, so the members do not announce the Service's addresses.
    all.wait_next_hops(&[]);
    all.pods(&[(1, true), (2, true)]);
    all.wait_next_hops(&[0, 1]);
    all.wait_states("not all pods are up", &["k8s.shop.web/pod1 up", "k8s.shop.web/pod2 up"]);
    let before = all.homes();

    let asked: Vec<Request> = Family::BOTH.into_iter().flat_map(|family| all.requests(family)).collect();
    let entrance = all.fleet.topology.client().entrance();
    let load = under_load(&entrance, &asked, || {
        all.pods(&[(1, false), (2, true), (3, true), (4, true)]);
        let rolled = [("pod1", "drain"), ("pod2", "ready"), ("pod3", "ready"), ("pod4", "ready")];
        all.fleet.wait_admins("pod1 does not drain in both members", &rolled);
        assert_eq!(all.homes(), before, "clients move before their pod ends");
        all.fleet.cli(0, &["withdraw", "--wait"]);
        all.wait_next_hops(&[1]);
        all.fleet.cli(0, &["announce"]);
        all.wait_next_hops(&[0, 1]);
        all.fleet.stop(1);
        all.wait_next_hops(&[0]);
        all.fleet.start_again(1);
        all.wait_next_hops(&[0, 1]);
        // With `on_exit = "keep"`, the program and the addresses of a killed balancer stay.
        all.fleet.kill(0);
        assert_eq!(all.homes(), before, "clients move when a controller dies");
        all.fleet.start_again(0);
        all.wait_next_hops(&[0, 1]);
    });
    load.assert_answered_but(resets, 100);
    assert_eq!(all.homes(), before);

    // The machine of the first member dies, and with it the controller that holds the Lease.
    drop(first);
    all.fleet.topology.switch().ip("link set balancer nomaster").unwrap();
    all.fleet.answer_through(&[1]);
    all.wait_next_hops(&[1]);
    assert_eq!(all.homes(), before, "clients move with their router's next hop");
    all.servers[0] = None;
    all.pods(&[(2, true), (3, true), (4, true)]);
    wait("the pod that has ended is not removed", || !all.fleet.admins(1).contains_key("pod1"));
    let after = all.homes();
    assert_eq!(moved(&before, &after, "pod1"), BTreeMap::new());
    all.fleet.topology.switch().ip("link set balancer master br0").unwrap();
    all.wait_next_hops(&[0, 1]);
    all.fleet.answer_through(&[0, 1]);
    all.fleet.wait_in_step();
    assert_eq!(all.homes(), after);

    all.cluster.delete("services", "shop", "web");
    wait("the Service is not let go", || all.cluster.get("services", "shop", "web").is_none());
    all.wait_next_hops(&[]);
}

#[test]
fn when_a_service_rolls_out_behind_bird_with_nat_then_clients_stay_and_no_request_fails() {
    rolls_out(Forwarding::Nat, 0);
}

/// When the router chooses another member, the connections of `snat` end. Two clients connect at the same time, and the
/// router's choice changes four times.
#[test]
fn when_a_service_rolls_out_behind_bird_with_snat_then_clients_stay_and_reconnect_at_most_once_for_each_change() {
    rolls_out(Forwarding::Snat, 8);
}
