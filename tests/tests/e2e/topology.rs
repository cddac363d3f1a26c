//! Tests of the hosts that all end-to-end tests use: which hosts reach each other, and that nothing of the hosts
//! remains.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    http_client::{Request, send_all},
    namespace::{Namespace, remove_leftovers, run},
    topology::{Family, Shape, Topology},
};

fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

/// Checks that every client address reaches the own address of every backend, and that the backend sees the client's
/// address.
fn clients_reach_backends(shape: Shape, forwarding: Forwarding) {
    let logs = tempfile::tempdir().unwrap();
    let topology = Topology::new(shape, forwarding, 2).unwrap();
    topology.forward(true).unwrap();
    let listen = ["0.0.0.0:8080".parse().unwrap(), "[::]:8080".parse().unwrap()];
    let _backends: Vec<Backend> = (topology.backends().iter().zip(["web1", "web2"]))
        .map(|(namespace, name)| {
            Backend::start(&binaries::balancer().unwrap(), namespace, name, &listen, logs.path()).unwrap()
        })
        .collect();
    for family in Family::BOTH {
        let clients: Vec<u16> = (1..=100).chain(20_000..20_100).collect();
        for (index, name) in [(0, "web1"), (1, "web2")] {
            let target = SocketAddr::new(topology.backend_address(family, index), 8080);
            let requests: Vec<Request> = (clients.iter())
                .map(|&client| Request::new(any_port(topology.client_address(family, client)), target))
                .collect();
            for (request, reply) in requests.iter().zip(send_all(topology.client(), &requests, 16).unwrap()) {
                let reply = reply.unwrap_or_else(|error| panic!("{shape:?} {forwarding:?} {request:?}: {error}"));
                assert_eq!((reply.status, reply.backend.as_str()), (200, name));
                assert_eq!(reply.answer().unwrap().client, request.source.ip().to_string());
            }
        }
    }
}

#[test]
fn when_the_topology_is_one_legged_with_dsr_then_clients_reach_backends() {
    clients_reach_backends(Shape::OneLegged, Forwarding::Dsr);
}

#[test]
fn when_the_topology_is_one_legged_with_nat_then_clients_reach_backends() {
    clients_reach_backends(Shape::OneLegged, Forwarding::Nat);
}

#[test]
fn when_the_topology_is_two_legged_with_dsr_then_clients_reach_backends() {
    clients_reach_backends(Shape::TwoLegged, Forwarding::Dsr);
}

#[test]
fn when_the_topology_is_two_legged_with_nat_then_clients_reach_backends() {
    clients_reach_backends(Shape::TwoLegged, Forwarding::Nat);
}

/// Clients must reach the balancer even if the backends also have the address of the service.
#[test]
fn when_a_client_uses_the_service_address_then_it_reaches_the_balancer() {
    let logs = tempfile::tempdir().unwrap();
    for shape in [Shape::OneLegged, Shape::TwoLegged] {
        for forwarding in [Forwarding::Dsr, Forwarding::Nat] {
            let topology = Topology::new(shape, forwarding, 2).unwrap();
            let listen = Family::BOTH.map(|family| SocketAddr::new(topology.vip(family), 80));
            let _servers = [topology.balancer(), &topology.backends()[0]].map(|namespace| {
                let listen = if namespace.name() == topology.balancer().name() || forwarding == Forwarding::Dsr {
                    listen.to_vec()
                } else {
                    vec!["0.0.0.0:80".parse().unwrap()]
                };
                Backend::start(&binaries::balancer().unwrap(), namespace, namespace.name(), &listen, logs.path())
                    .unwrap()
            });
            for (family, target) in Family::BOTH.into_iter().zip(listen) {
                let request = Request::new(any_port(topology.client_address(family, 7)), target);
                let reply = topology.client().run_in_thread(|| request.send()).unwrap().unwrap();
                assert_eq!(reply.backend, topology.balancer().name(), "{shape:?} {forwarding:?} {family:?}");
            }
        }
    }
}

#[test]
fn when_a_socket_is_made_in_a_namespace_then_it_belongs_to_it() {
    let (one, other) = (Namespace::new("one").unwrap(), Namespace::new("other").unwrap());
    let listener = one.run_in_thread(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    assert!(one.run_in_thread(|| TcpStream::connect(address)).unwrap().is_ok());
    assert!(other.run_in_thread(|| TcpStream::connect(address)).unwrap().is_err());
}

#[test]
fn when_a_topology_is_dropped_then_nothing_remains() {
    let logs = tempfile::tempdir().unwrap();
    let topology = Topology::new(Shape::TwoLegged, Forwarding::Nat, 1).unwrap();
    let names = [topology.client(), topology.balancer(), topology.switch(), &topology.backends()[0]]
        .map(|namespace| namespace.name().to_owned());
    let listen = ["127.0.0.1:80".parse().unwrap()];
    let mut backend =
        Backend::start(&binaries::balancer().unwrap(), &topology.backends()[0], "web1", &listen, logs.path()).unwrap();
    // The topology did not start the following process, which could belong to a user at another terminal.
    let mut stray = Command::new("ip").args(["netns", "exec", &names[0], "sleep", "1000"]).spawn().unwrap();
    while run(Command::new("ip").args(["netns", "pids", &names[0]])).unwrap().is_empty() {}

    assert!(names.iter().all(|name| exists(name)));
    drop(topology);
    assert!(!names.iter().any(|name| exists(name)), "{names:?}");
    assert!(!backend.process().kill().unwrap().success());
    assert!(!stray.wait().unwrap().success());
}

#[test]
fn when_a_process_has_died_then_only_its_remains_are_removed() {
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let leftover = format!("bal-{}-0-web1", dead.id());
    // The process of another test may remove the namespace during its creation.
    let added = (0..10).any(|_| run(Command::new("ip").args(["netns", "add", &leftover])).is_ok());
    assert!(added, "{leftover} cannot be made");
    let live = Namespace::new("live").unwrap();
    assert!(exists(live.name()));
    remove_leftovers();
    assert!(!exists(&leftover));
    assert!(exists(live.name()));
    live.ip("link show lo").unwrap();
}
