//! Tests of changes that exceed the engine's limits.

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::{Failback, ServiceConfig},
    fixture,
};
use balancer_control::{
    room::{Room, lines},
    service::Service,
};

use super::world::{World, service};

/// Makes a service with `backends` backends, each of which has a name with `letters` additional letters.
fn large(backends: u16, letters: usize) -> ServiceConfig {
    let mut random = fastrand::Rng::with_seed(1);
    let mut name = || (0..letters).map(|_| random.alphanumeric()).collect::<String>();
    let backends: Vec<String> =
        (1..=backends).map(|number| format!("b{number}{} 10.{}.{}.9:80", name(), number >> 8, number & 255)).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut service = fixture::service("large", "198.51.100.9:80", Forwarding::Dsr, &backends);
    service.table_size = 65_537.into();
    service
}

fn backends(world: &World, index: usize) -> usize {
    let node = world.nodes[index].as_ref();
    node.map_or(0, |node| node.controller.services().iter().map(|of: &Service| of.backends().len()).sum())
}

#[test]
fn when_thousands_of_backends_are_applied_then_all_members_have_them() {
    let web = service("web", "198.51.100.1:80", Failback::Stay);
    let mut world = World::of_three(1, web.clone(), None);
    world.settle();
    let asked = (world.leader() + 1) % 3;
    let granted = world.granted;
    world.apply(asked, vec![web, large(5000, 8)]);
    world.pass(5000);
    assert_eq!(world.granted, granted + 1, "{:?}", world.history.last());
    assert_eq!((0..3).map(|index| backends(&world, index)).collect::<Vec<_>>(), [5004; 3]);
    assert!(!world.store.keys().any(|key| key.starts_with(crate::keys::PARTS)), "the request is left in the store");
}

#[test]
fn when_one_member_has_no_room_for_a_change_then_the_fleet_refuses_the_change_and_names_the_member() {
    let web = service("web", "198.51.100.1:80", Failback::Stay);
    let mut world = World::of_three(1, web.clone(), None);
    for (index, tables) in [(0, 9), (1, 3), (2, 9)] {
        let lines = tables * lines(65_537);
        let room = Room { lines, services: 9, listeners: 9, returns: 9, backends: 16_384, flows: false, grows: false };
        world.nodes[index].as_mut().unwrap().member.note_room(room);
    }
    world.settle();
    let granted = world.granted;
    let first = ServiceConfig { name: "first".to_owned(), ..large(3, 0) };
    world.apply(0, vec![web.clone(), first.clone()]);
    world.pass(5000);
    assert_eq!(world.granted, granted + 1, "{:?}", world.history.last());
    let second = ServiceConfig { listen: service("", "198.51.100.8:80", Failback::Stay).listen, ..large(3, 0) };
    world.apply(0, vec![web, first, second]);
    world.pass(5000);
    let said = |line: &String| line.contains("and the data path of lb1 has 196,644 slots; a restart makes room");
    assert!(world.history.iter().any(said), "{:?}", world.history);
    assert_eq!(world.granted, granted + 1);
    world.settle();
}

#[test]
fn when_a_change_is_larger_than_the_engine_takes_then_the_refusal_says_how_large() {
    let web = service("web", "198.51.100.1:80", Failback::Stay);
    let mut world = World::of_three(1, web.clone(), None);
    world.settle();
    let leader = world.leader();
    world.apply(leader, vec![web, large(5000, 400)]);
    let said = world.history.last().cloned().unwrap_or_default();
    assert!(said.contains("bytes when compressed, and etcd takes at most 1,048,576"), "{said}");
    world.settle();
}
