//! Tests of fleets whose members' clocks differ.

use std::{net::Ipv4Addr, time::Duration};

use balancer_config::{config::Failback, names::BackendName, states::Admin};
use balancer_control::{
    io::Change,
    service::{Backend, Service},
};

use super::{
    store::Time,
    world::{World, service},
};

const CLIENTS: u32 = 200;

/// Makes a fleet of three members: the leader's clock is `leader` seconds ahead, and the clocks of the other two are
/// `others` seconds ahead.
fn fleet(leader: u64, others: u64, slow_start: Duration) -> (World, usize) {
    let mut web = service("web", "198.51.100.1:80", Failback::Stay);
    web.slow_start = slow_start;
    let mut world = World::of_three(1, web, None);
    world.settle();
    let first = world.leader();
    for (index, node) in world.nodes.iter_mut().enumerate() {
        let ahead = if index == first { leader } else { others };
        node.iter_mut().for_each(|node| node.skew = Duration::from_secs(ahead));
    }
    world.pass(20_000);
    assert_eq!(world.leader(), first);
    (world, first)
}

fn has(world: &World, member: usize, is: impl Fn(&Backend) -> bool) -> bool {
    let node = world.nodes[member].as_ref();
    node.is_some_and(|node| node.controller.services().iter().flat_map(Service::backends).any(is))
}

/// Returns the time until no running member has a backend for which `is` is true.
fn lasts(world: &mut World, is: impl Fn(&Backend) -> bool) -> Time {
    let begin = world.now;
    while (0..3).any(|member| has(world, member, &is)) {
        world.pass(100);
        assert!(world.now < begin + 200_000, "it does not end");
    }
    world.now - begin
}

#[test]
fn when_the_leader_dies_then_a_drain_ends_when_it_was_to_whatever_the_clocks_say() {
    for (leader, others) in [(0, 0), (60, 0), (0, 60)] {
        let (mut world, first) = fleet(leader, others, Duration::ZERO);
        (0..CLIENTS).for_each(|client| {
            let _ = world.packet_at((first + 1) % 3, client);
        });
        world.pass(9000);
        let name = BackendName { service: "web".to_owned(), backend: "b1".to_owned() };
        world.ask(first, Change::SetAdmin { name, admin: Admin::Drain, timeout: None });
        world.pass(4000);
        let drains = |backend: &Backend| backend.keeps_known() && backend.admin() == Admin::Drain;
        assert!(has(&world, (first + 1) % 3, drains));
        world.kill(first, true);
        // The drain should take 20 s; delays on the path to the members may postpone its end.
        let rest = lasts(&mut world, drains);
        assert!((14_000..19_000).contains(&rest), "{rest} ms after 4 s, clocks {leader} and {others} s ahead");
    }
}

#[test]
fn when_the_leader_dies_then_a_slow_start_goes_on_whatever_the_clocks_say() {
    for (leader, others) in [(0, 0), (300, 0), (0, 300)] {
        let (mut world, first) = fleet(leader, others, Duration::from_secs(60));
        let name = BackendName { service: "web".to_owned(), backend: "b5".to_owned() };
        let address = Ipv4Addr::new(10, 0, 0, 5).into();
        let add = Change::Add {
            name,
            address,
            address6: None,
            port: Some(80),
            weight: None,
            backup: false,
            limits: Default::default(),
        };
        world.ask(first, add);
        world.pass(10_000);
        let starts = |backend: &Backend| backend.name() == "b5" && backend.slots() < 40;
        assert!(has(&world, (first + 1) % 3, starts));
        world.kill(first, true);
        let rest = lasts(&mut world, starts);
        assert!((25_000..60_000).contains(&rest), "{rest} ms, clocks {leader} and {others} s ahead");
    }
}

#[test]
fn when_a_clock_differs_then_members_say_whose() {
    let (world, first) = fleet(60, 0, Duration::ZERO);
    let of =
        |member: usize| world.nodes[member].as_ref().map(|node| node.member.troubles().join("\n")).unwrap_or_default();
    let other = (first + 1) % 3;
    assert!(of(other).contains(&format!("the clock of lb{first} is 60 s ahead of this balancer's")), "{}", of(other));
    assert!(of(first).contains(&format!("the clock of lb{other} is 60 s behind this balancer's")), "{}", of(first));
    assert!(!of(other).contains(&format!("lb{}", (first + 2) % 3)), "{}", of(other));
}
