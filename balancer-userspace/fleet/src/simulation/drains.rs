//! Tests of how drains end in a fleet.

use std::{collections::BTreeMap, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_config::{config::Failback, names::BackendName, snat::DrainUntil, states::Admin};
use balancer_control::{
    io::{BackendId, Change},
    service::{Backend, Service},
};

use super::world::{World, service};

/// A drain timeout that is longer than any test.
const DRAIN: Duration = Duration::from_secs(3600);
const CLIENTS: u32 = 100;

/// Makes a fleet in which drains of `snat` backends wait for connections.
fn fleet(forwarding: Forwarding) -> World {
    let mut world = young_fleet(forwarding);
    world.settle();
    world
}

/// Makes a new fleet in which no event has happened yet.
fn young_fleet(forwarding: Forwarding) -> World {
    let mut web = service("web", "198.51.100.1:80", Failback::Stay);
    (web.forwarding, web.drain_timeout) = (forwarding, DRAIN);
    web.drain_until = (forwarding == Forwarding::Snat).then_some(DrainUntil::Connections);
    web.drain_grace = Some(Duration::from_secs(3));
    World::of_three(1, web, None)
}

fn drain(world: &mut World) {
    let name = BackendName { service: "web".to_owned(), backend: "b1".to_owned() };
    let leader = world.leader();
    world.ask(leader, Change::SetAdmin { name, admin: Admin::Drain, timeout: None });
}

fn drained(world: &World) -> Vec<&Backend> {
    let running = world.nodes.iter().flatten();
    let backends = running.flat_map(|node| node.controller.services().iter().flat_map(Service::backends));
    backends.filter(|backend| backend.name() == "b1" && backend.admin() == Admin::Drain).collect()
}

/// Whether all members still drain the backend.
fn lasts(world: &World) -> bool {
    let backends = drained(world);
    backends.len() == 3 && backends.iter().all(|backend| backend.keeps_known())
}

fn is_over(world: &World) -> bool {
    let backends = drained(world);
    backends.len() == 3 && backends.iter().all(|backend| !backend.keeps_known())
}

fn with_clients(world: &mut World) -> BackendId {
    for member in 0..3 {
        (0..CLIENTS).for_each(|client| {
            let _ = world.packet_at(member, client);
        });
    }
    world.pass(9000);
    let backend = backend(world);
    assert!(backend.known_clients() > 0);
    backend.id()
}

/// Returns the backend in the state that the first member applies.
fn backend(world: &World) -> &Backend {
    let node = world.nodes[0].as_ref().unwrap();
    let mut backends = node.controller.services().iter().flat_map(Service::backends);
    backends.find(|backend| backend.name() == "b1").unwrap()
}

/// Counts of sweeps belong to a process: the sweeps of an ended process say nothing about the process that replaces it.
#[test]
fn when_a_member_restarts_then_a_drain_still_ends_with_its_last_client() {
    let mut world = fleet(Forwarding::Dsr);
    world.pass(120_000);
    let follower = (world.leader() + 1) % 3;
    world.kill(follower, false);
    world.start(follower);
    world.settle();
    drain(&mut world);
    world.pass(2000);
    assert!(lasts(&world));
    world.pass(20_000);
    assert!(is_over(&world), "nobody is known there");
}

#[test]
fn when_the_last_connection_of_a_fleet_ends_then_a_snat_backend_is_drained_whoever_is_known() {
    let mut world = fleet(Forwarding::Snat);
    let id = with_clients(&mut world);
    for (member, count) in [(0, 2), (1, 1)] {
        world.nodes[member].as_mut().unwrap().flows = Some(BTreeMap::from([(id, count)]));
    }
    drain(&mut world);
    for member in [0, 1] {
        world.pass(30_000);
        assert!(lasts(&world), "a connection goes on");
        world.nodes[member].as_mut().unwrap().flows = Some(BTreeMap::new());
    }
    world.pass(10_000);
    assert!(is_over(&world));
}

#[test]
fn when_the_leader_dies_then_the_next_one_waits_for_connections_as_well() {
    let mut world = fleet(Forwarding::Snat);
    let id = with_clients(&mut world);
    let leader = world.leader();
    let other = (leader + 1) % 3;
    world.nodes[other].as_mut().unwrap().flows = Some(BTreeMap::from([(id, 1)]));
    drain(&mut world);
    world.pass(10_000);
    world.kill(leader, true);
    world.pass(30_000);
    world.start(leader);
    world.pass(20_000);
    assert!(lasts(&world));
    world.nodes[other].as_mut().unwrap().flows = Some(BTreeMap::new());
    world.pass(10_000);
    assert!(is_over(&world));
}

#[test]
fn when_a_member_does_not_count_connections_then_the_fleet_waits_for_clients() {
    let mut world = young_fleet(Forwarding::Snat);
    world.nodes[2].as_mut().unwrap().flows = None;
    world.settle();
    world.nodes[0].as_mut().unwrap().flows = Some(BTreeMap::from([(backend(&world).id(), 1)]));
    drain(&mut world);
    world.pass(2000);
    assert!(lasts(&world));
    world.pass(20_000);
    assert!(is_over(&world), "nobody is known there");
}
