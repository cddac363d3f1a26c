//! Tests of fleets whose members are upgraded one by one to a version with other lookup tables.

use std::net::{IpAddr, Ipv4Addr};

use balancer_config::{config::Failback, names::BackendName, states::Admin};
use balancer_control::io::Change;

use super::world::{World, service};

const CLIENTS: std::ops::Range<u32> = 0..300;
const FAILS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn fleet(seed: u64) -> World {
    let mut world = World::of_three(seed, service("web", "198.51.100.1:80", Failback::Stay), None);
    world.settle();
    world
}

fn name(backend: &str) -> BackendName {
    BackendName { service: "web".to_owned(), backend: backend.to_owned() }
}

/// Returns the backend of each client, if the connections of all clients reach this member.
fn answers(world: &World, member: usize) -> Vec<Option<u16>> {
    CLIENTS.map(|client| world.packet_at(member, client)).collect()
}

/// Returns the members that steer in a different way, according to this member.
fn others(world: &World, member: usize) -> Vec<String> {
    let troubles = world.nodes[member].as_ref().map(|node| node.member.troubles()).unwrap_or_default();
    let names = troubles.iter().filter(|trouble| trouble.contains("computes other lookup tables"));
    names.filter_map(|trouble| trouble.split(' ').next().map(str::to_owned)).collect()
}

/// Makes all clients known to the members of the fleet. The connections of each client reach all members.
fn known(world: &mut World) -> Vec<Option<u16>> {
    let first = answers(world, 0);
    world.pass(3000);
    assert_eq!((answers(world, 1), answers(world, 2)), (first.clone(), first.clone()));
    first
}

#[test]
fn when_members_are_upgraded_and_users_change_the_fleet_then_known_clients_stay() {
    let mut world = fleet(20);
    let before = known(&mut world);
    let changes = [
        Change::Add {
            name: name("b5"),
            address: Ipv4Addr::new(10, 0, 0, 5).into(),
            address6: None,
            port: Some(80),
            weight: None,
            backup: false,
            limits: Default::default(),
        },
        Change::SetWeight { name: name("b2"), weight: 300 },
        Change::SetAdmin { name: name("b3"), admin: Admin::Drain, timeout: Some(std::time::Duration::from_secs(3600)) },
    ];
    for (upgraded, change) in changes.into_iter().enumerate() {
        world.upgrade(upgraded);
        world.pass(15_000);
        world.ask(upgraded, change);
        world.pass(5000);
        for member in 0..3 {
            assert_eq!(answers(&world, member), before, "lb{member} after lb{upgraded} was upgraded");
        }
    }
    world.settle();
    for member in 0..3 {
        assert_eq!(answers(&world, member), before);
    }
}

#[test]
fn when_a_backend_fails_during_an_upgrade_then_the_member_that_moves_clients_tells_of_them() {
    let mut world = fleet(21);
    let before = known(&mut world);
    world.upgrade(0);
    world.pass(15_000);
    world.dead.insert(FAILS);
    world.pass(4000);
    let after = answers(&world, 0);
    let moved = before.iter().zip(&after).filter(|(then, now)| then != now).count();
    assert!(moved > 30 && before.iter().zip(&after).all(|(then, now)| then == now || *then != *now && now.is_some()));
    world.pass(3000);
    for member in 1..3 {
        assert_eq!(answers(&world, member), after, "lb{member}");
    }
}

#[test]
fn when_members_steer_differently_then_each_says_which() {
    let mut world = fleet(22);
    assert_eq!(others(&world, 0), [""; 0]);
    world.upgrade(0);
    world.pass(15_000);
    let newcomers = |member| (5000..5100).filter_map(|client| world.packet_at(member, client)).collect::<Vec<_>>();
    assert_ne!(newcomers(0), newcomers(1));
    assert_eq!(others(&world, 0), ["lb1", "lb2"]);
    assert_eq!((others(&world, 1), others(&world, 2)), (vec!["lb0".to_owned()], vec!["lb0".to_owned()]));
    world.upgrade(1);
    world.upgrade(2);
    world.settle();
    for member in 0..3 {
        assert_eq!(others(&world, member), [""; 0]);
    }
}
