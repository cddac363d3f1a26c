//! Tests of members that can apply only a part of the fleet's state.

use balancer_config::{
    config::{Failback, ServiceConfig},
    names::BackendName,
    states::{Admin, BackendState},
};
use balancer_control::{
    io::Change,
    room::{Room, lines},
    service::{Backend, Service},
};

use super::world::{World, service};

fn web() -> ServiceConfig {
    service("web", "198.51.100.1:80", Failback::Stay)
}

fn api() -> ServiceConfig {
    service("api", "198.51.100.2:80", Failback::Stay)
}

/// The states of a service's backends at a member; empty if the member does not have the service.
fn states(world: &World, index: usize, name: &str) -> Vec<BackendState> {
    let services = world.nodes[index].as_ref().unwrap().controller.services();
    let service = services.iter().find(|service| service.name() == name);
    service.into_iter().flat_map(Service::backends).map(Backend::state).collect()
}

fn lacks(world: &World, index: usize) -> Option<String> {
    world.nodes[index].as_ref().unwrap().member.lacks()
}

/// Makes the first backend of `web` die and an operator drain the second, and asserts that the member `index` takes
/// part in both.
fn verdicts_and_drains_go_on(world: &mut World, index: usize) {
    world.dead.insert([10, 0, 0, 1].into());
    let name = BackendName { service: "web".to_owned(), backend: "b2".to_owned() };
    world.ask(index, Change::SetAdmin { name, admin: Admin::Drain, timeout: None });
    world.pass(10_000);
    for index in 0..3 {
        assert_eq!(states(world, index, "web")[0], BackendState::Down, "lb{index}");
        assert_ne!(states(world, index, "web")[1], BackendState::Up, "lb{index}");
    }
    world.dead.clear();
    world.pass(10_000);
    assert_eq!(states(world, index, "web")[0], BackendState::Up);
}

#[test]
fn when_the_data_path_of_the_leader_refuses_a_service_then_the_leader_applies_all_others_and_another_member_leads() {
    let mut world = World::of_three(1, web(), None);
    world.settle();
    let index = world.leader();
    world.nodes[index].as_mut().unwrap().refuses = Some("api");
    world.apply(index, vec![web(), api()]);
    world.pass(5000);
    let refused = "service api is missing, because the data path refused: no room for api";
    assert_eq!(lacks(&world, index).as_deref(), Some(refused));
    assert_ne!(world.leader(), index);
    for other in (0..3).filter(|other| *other != index) {
        assert_eq!((lacks(&world, other), states(&world, other, "api").len()), (None, 4));
    }
    verdicts_and_drains_go_on(&mut world, index);
    // After the reason is gone, the member applies the whole state without any further change.
    world.nodes[index].as_mut().unwrap().refuses = None;
    world.settle();
    assert_eq!((lacks(&world, index), states(&world, index, "api").len()), (None, 4));
}

#[test]
fn when_a_restarted_member_has_less_room_than_the_fleet_needs_then_it_applies_what_fits_until_it_has_room() {
    let mut world = World::of_three(2, web(), None);
    world.settle();
    world.apply(0, vec![web(), api()]);
    world.pass(5000);
    let index = world.leader();
    let room = |tables| Room {
        lines: tables * lines(251),
        services: 9,
        listeners: 99,
        returns: 99,
        backends: 16_384,
        flows: false,
        grows: false,
    };
    world.kill(index, true);
    world.start(index);
    world.nodes[index].as_mut().unwrap().member.note_room(room(2));
    world.pass(30_000);
    let lack = lacks(&world, index).unwrap_or_default();
    assert!(lack.starts_with("service api is missing, because the lookup tables, with"), "{lack}");
    assert_ne!(world.leader(), index);
    verdicts_and_drains_go_on(&mut world, index);
    let api_of_others = (index + 1) % 3;
    // The member has no opinion about backends that it does not apply.
    world.dead.insert([10, 0, 1, 3].into());
    world.pass(10_000);
    assert_eq!(states(&world, api_of_others, "api")[2], BackendState::Down);
    world.dead.clear();
    world.kill(index, false);
    world.start(index);
    world.nodes[index].as_mut().unwrap().member.note_room(room(3));
    world.settle();
    assert_eq!((lacks(&world, index), states(&world, index, "api").len()), (None, 4));
}
