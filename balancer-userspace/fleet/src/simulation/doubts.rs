//! Tests that all members check a backend if one member suspects the backend.

use std::net::{IpAddr, Ipv4Addr};

use balancer_config::config::Failback;
use balancer_control::{health::Verdict, io::BackendId, service::Service};

use super::world::{World, service};
use crate::member::Mutation;

const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The time from a suspicion to the applied epoch: four trips to or from a store with a delay of up to 40 ms each, and
/// the checks.
const VERDICT: u64 = 600;

/// Makes a fleet whose members agree; the next regular check is an hour later.
fn world(seed: u64, mutation: Option<Mutation>) -> World {
    let mut world = World::of_three(seed, service("web", "198.51.100.1:80", Failback::Stay), mutation);
    world.settle();
    world.checks = false;
    world
}

fn victim(world: &World) -> BackendId {
    let node = world.nodes[0].as_ref().expect("it runs");
    node.plane.rows.values().find(|row| row.address.ip() == VICTIM).expect("a row").id
}

/// Returns the number of members that apply the fleet's decision that the backend is down.
fn hold_down(world: &World, id: BackendId) -> usize {
    let agreed = |node: &&super::node::Node| {
        let mut backends = node.controller.services().iter().flat_map(Service::backends);
        backends.any(|backend| backend.id() == id && matches!(backend.agreed().1, Verdict::Down { .. }))
    };
    world.nodes.iter().flatten().filter(agreed).count()
}

#[test]
fn when_one_member_has_a_signal_of_a_dead_backend_then_the_fleet_has_a_verdict_at_once() {
    for seed in 0..20 {
        for (mutation, down) in [(None, 3), (Some(Mutation::KeepsDoubtsToItself), 0)] {
            let mut world = world(seed, mutation);
            let (id, member) = (victim(&world), seed as usize % 3);
            world.dead.insert(VICTIM);
            world.suspect(member, id);
            world.pass(VERDICT);
            assert_eq!(hold_down(&world, id), down, "seed {seed}, {mutation:?}");
        }
    }
}

#[test]
fn when_one_member_alone_cannot_reach_a_backend_then_a_signal_changes_nothing() {
    let mut world = world(1, None);
    let id = victim(&world);
    world.cut.insert((1, VICTIM));
    for _ in 0..10 {
        world.suspect(1, id);
        world.pass(VERDICT);
        assert_eq!(hold_down(&world, id), 0);
    }
}

#[test]
fn when_signals_are_forged_all_the_time_then_members_write_a_few_times_a_second() {
    const SECONDS: u64 = 20;
    let mut quiet = world(2, None);
    let mut forged = world(2, None);
    let id = victim(&forged);
    let before = (quiet.store.writes, forged.store.writes);
    for _ in 0..SECONDS * 100 {
        forged.suspect(0, id);
        forged.pass(10);
        quiet.pass(10);
    }
    let more = (forged.store.writes - before.1).saturating_sub(quiet.store.writes - before.0);
    assert!((1..=6 * SECONDS).contains(&more), "{more}");
    assert_eq!(hold_down(&forged, id), 0);
}
