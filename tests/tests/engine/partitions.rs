//! Tests of the driver in network partitions. Each etcd server has its own namespace, and so has the driver.

use std::net::{IpAddr, Ipv6Addr};

use balancer_etcd::Settings;
use balancer_fleet::engine::Answer;
use balancer_testkit::{
    etcd::{EtcdCluster, Options},
    namespace::{Namespace, join},
};
use tokio::{runtime::Builder, time::timeout};

use crate::lab::{Driver, PATIENCE, keys, put, put_leased, settings};

/// Three etcd servers and the host of the driver, connected by a switch. The calling thread is on the driver's host.
struct Network {
    switch: Namespace,
    own: Namespace,
    hosts: Vec<Namespace>,
    cluster: EtcdCluster,
}

const MEMBERS: usize = 3;

fn address(index: usize) -> IpAddr {
    let host = u16::try_from(index + 1).unwrap();
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host).into()
}

impl Network {
    fn new() -> Self {
        let switch = Namespace::new("switch").unwrap();
        switch.ip("link add bridge type bridge").unwrap();
        switch.ip("link set bridge up").unwrap();
        let plug = |index: usize| {
            let host = Namespace::new("host").unwrap();
            join((&switch, &port(index)), (&host, "eth0")).unwrap();
            switch.ip(&format!("link set {} master bridge", port(index))).unwrap();
            host.ip(&format!("address add {}/64 dev eth0", address(index))).unwrap();
            host
        };
        let hosts: Vec<Namespace> = (0..MEMBERS).map(plug).collect();
        let own = plug(MEMBERS);
        let places: Vec<_> = hosts.iter().enumerate().map(|(index, host)| (host, address(index))).collect();
        let cluster = EtcdCluster::start(&places, &Options::default()).unwrap();
        own.enter().unwrap();
        Self { switch, own, hosts, cluster }
    }

    fn settings(&self, lease: u64) -> Settings {
        settings(&self.cluster, lease)
    }

    /// Returns the index of the server that a driver uses.
    fn in_use(&self, driver: &Driver) -> usize {
        let endpoint = driver.engine.facts.borrow().endpoint.clone().unwrap();
        self.cluster.endpoints().iter().position(|known| *known == endpoint).unwrap()
    }

    /// Disconnects an etcd server from the other etcd servers, or reconnects the server. Clients can still reach a
    /// server that is disconnected in this way.
    fn isolate(&self, member: usize, change: &str) {
        for other in (0..MEMBERS).filter(|&other| other != member) {
            self.hosts[member].ip(&format!("-6 route {change} blackhole {}/128", address(other))).unwrap();
        }
    }

    fn own_link(&self, state: &str) {
        self.switch.ip(&format!("link set {} {state}", port(MEMBERS))).unwrap();
    }
}

fn port(index: usize) -> String {
    format!("port{index}")
}

fn run(test: impl AsyncFnOnce()) {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test());
}

async fn reachable(driver: &mut Driver, expected: bool) {
    timeout(PATIENCE, driver.engine.facts.wait_for(|facts| facts.reachable == expected)).await.unwrap().unwrap();
}

#[test]
fn when_a_member_is_cut_off_then_the_driver_leaves_it_and_the_session_goes_on() {
    let network = Network::new();
    run(async || {
        let mut watcher = Driver::new(network.settings(30));
        watcher.joined().await;
        watcher.made(vec![put_leased("live/watcher")]).await;
        let cut = network.in_use(&watcher);
        network.isolate(cut, "add");
        let others = Settings {
            endpoints: (0..MEMBERS)
                .filter(|&index| index != cut)
                .map(|index| network.cluster.endpoints()[index].clone())
                .collect(),
            ..network.settings(30)
        };
        let mut writer = Driver::new(others);
        writer.joined().await;
        for number in 0..20 {
            while !matches!(
                writer.transaction(vec![], vec![put("live/counter", number.to_string())]).await,
                Answer::Made(_)
            ) {}
        }
        loop {
            let (_, put, _) = watcher.changed().await;
            if put.iter().any(|entry| entry.value == b"19") {
                break;
            }
        }
        assert_ne!(network.in_use(&watcher), cut);
        assert_eq!(keys(&watcher.read("live/").await), ["live/counter", "live/watcher"]);
        network.isolate(cut, "del");
    });
}

#[test]
fn when_a_link_is_down_then_the_session_survives_for_the_length_of_the_lease() {
    let network = Network::new();
    run(async || {
        let mut driver = Driver::new(network.settings(20));
        driver.joined().await;
        driver.made(vec![put_leased("live/mine")]).await;
        network.own_link("down");
        reachable(&mut driver, false).await;
        network.own_link("up");
        reachable(&mut driver, true).await;
        while !matches!(driver.transaction(vec![], vec![put("live/other", "")]).await, Answer::Made(_)) {}
        assert_eq!(keys(&driver.read("live/").await), ["live/mine", "live/other"]);
        driver.engine.stop().await;

        let mut driver = Driver::new(network.settings(3));
        driver.joined().await;
        driver.made(vec![put_leased("live/mine")]).await;
        network.own_link("down");
        let answer = driver.transaction(vec![], vec![put("live/other", "again")]).await;
        assert!(matches!(answer, Answer::Unknown(_)), "{answer:?}");
        let reason = driver.lost().await;
        assert!(reason.starts_with("the lease is not certain any more"), "{reason}");
        network.own_link("up");
        assert_eq!(keys(&driver.joined().await.1), ["live/other"]);
    });
    drop(network.own);
}
