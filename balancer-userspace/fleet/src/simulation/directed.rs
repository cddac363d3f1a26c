//! What has to happen at one moment for something to go wrong, made to happen then.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use balancer_core::{
    health::Verdict,
    io::{Change, ServiceId},
    service::Service,
};
use balancer_model::{config::Failback, names::BackendName};

use super::{
    story::Setup,
    world::{World, service},
};
use crate::{keys, member::Mutation};

/// A backend of the first service.
const STARTS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// A backend that is added.
const ADDED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

fn add() -> Change {
    let name = BackendName { service: "web".to_owned(), backend: "b5".to_owned() };
    Change::Add { name, address: ADDED.into(), address6: None, port: Some(80), weight: None, backup: false }
}

/// Everybody's table of the first service.
fn tables(world: &World) -> Vec<Vec<u16>> {
    world.nodes.iter().flatten().filter_map(|node| Some(node.plane.table(ServiceId(0))?.to_vec())).collect()
}

/// Three members that agree, and a service whose backends begin slowly.
fn fleet(seed: u64, slow_start: Duration) -> World {
    let mut web = service("web", "198.51.100.1:80", Failback::Stay);
    web.slow_start = slow_start;
    let mut world = World::of_three(seed, web);
    world.settle();
    world
}

/// A backend fails, comes back, and begins slowly.
fn begin_slowly(world: &mut World) {
    let before = tables(world);
    world.dead.insert(STARTS);
    world.pass(3000);
    world.dead.clear();
    world.pass(2000);
    assert!(tables(world).iter().all(|table| *table != before[0]), "it begins slowly");
}

#[test]
fn what_a_leader_has_given_up_is_refused_when_it_comes_late() {
    for key in [keys::NEXT, keys::EPOCH] {
        let mut world = fleet(1, Duration::ZERO);
        let leader = world.leader();
        world.store.delays = Some((key, 1500));
        world.ask(leader, add());
        world.pass(10_000);
        assert_eq!((world.store.delays, world.store.late_made), (None, 0), "{key}");
        world.settle();
    }
}

#[test]
fn what_has_become_due_while_nobody_led_is_written_by_the_next_leader() {
    let mut world = fleet(2, Duration::from_secs(10));
    let before = tables(&world);
    begin_slowly(&mut world);
    // All of its time passes without a leader.
    world.store.down = true;
    world.pass(15_000);
    world.settle();
    assert_eq!(tables(&world), before);
}

#[test]
fn a_member_that_was_alone_forgets_what_it_made_of_a_slow_start() {
    // In ten steps: nothing is written meanwhile.
    let mut world = fleet(3, Duration::from_secs(600));
    let lonely = (world.leader() + 1) % 3;
    begin_slowly(&mut world);
    world.agree();
    let begun = tables(&world);
    world.lose_store(lonely);
    world.pass(8000);
    world.cut.insert((lonely, STARTS));
    world.pass(2000);
    assert_ne!(tables(&world)[lonely], begun[lonely], "it sees a backend down");
    world.cut.clear();
    world.store.lines[lonely].cut = false;
    world.pass(8000);
    world.agree();
    assert_eq!(tables(&world), begun);
}

/// Whether a backend that nobody reaches is held to be up after it was added.
fn holds_up_what_nobody_reaches(mutation: Option<Mutation>) -> bool {
    let setup = Setup { members: 3, failback: false, two_services: false, spread: true };
    let mut world = World::new(4, &setup, mutation);
    world.settle();
    let leader = world.leader();
    world.dead.insert(ADDED.into());
    world.ask(leader, add());
    (0..400).any(|_| {
        world.pass(10);
        let services = world.nodes.iter().flatten().flat_map(|node| node.controller.services());
        let mut added = services.flat_map(Service::backends).filter(|backend| backend.address().ip() == ADDED);
        added.any(|backend| *backend.agreed().1 == Verdict::Up)
    })
}

#[test]
fn a_new_backend_is_not_up_before_somebody_has_seen_it_be() {
    assert!(!holds_up_what_nobody_reaches(None));
    assert!(holds_up_what_nobody_reaches(Some(Mutation::VotesForOtherEpochs)));
}
