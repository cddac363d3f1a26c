//! Tests with a flapping backend, which keeps failing and recovering.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use balancer_config::config::{Failback, ServiceConfig};
use balancer_control::io::ServiceId;

use super::world::{World, service};

const WEB: ServiceId = ServiceId(0);
/// The address of the backend that flaps.
const FLAPPING: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The number of clients that keep opening connections. With every second flap, a new client replaces one of these
/// clients.
const CLIENTS: u32 = 120;

/// The number of flaps in a test. `FLEET_FLAPS=1000` makes the test longer.
fn flaps() -> u32 {
    std::env::var("FLEET_FLAPS").ok().and_then(|flaps| flaps.parse().ok()).unwrap_or(24)
}

/// Lets each client connect once, at a random member, and returns the clients' backends.
fn places(world: &mut World, clients: std::ops::Range<u32>) -> HashMap<u32, u16> {
    clients.clone().for_each(|client| world.packet(client));
    clients.map(|client| (client, world.place(WEB, client).expect("nobody answers"))).collect()
}

/// Returns the id of the flapping backend.
fn id(world: &World) -> u16 {
    let node = world.nodes[0].as_ref().expect("it runs");
    let row = node.plane.rows.values().find(|row| row.address.ip() == FLAPPING);
    row.expect("it is there").id.0
}

fn cut(world: &mut World, members: &[usize]) {
    world.cut = members.iter().map(|&member| (member, FLAPPING)).collect();
}

/// Makes a backend flap; one, two or all three members notice each flap. The function returns the number of times that
/// each client moved.
fn flap(world: &mut World, failback: Failback) -> HashMap<u32, u32> {
    world.settle();
    let flapping = id(world);
    let mut moves: HashMap<u32, u32> = HashMap::new();
    for round in 0..flaps() {
        let clients = round / 2..round / 2 + CLIENTS;
        let before = places(world, clients.clone());
        let seen_by = round as usize % 3 + 1;
        let members: Vec<usize> = (0..seen_by).map(|member| (member + round as usize) % 3).collect();
        cut(world, &members);
        world.pass(2500);
        let during = places(world, clients.clone());
        for client in clients.clone() {
            let leaves = seen_by > 1 && before[&client] == flapping;
            assert_eq!(during[&client] != before[&client], leaves, "client {client} in round {round}");
            *moves.entry(client).or_default() += u32::from(leaves);
        }
        cut(world, &[]);
        // The fleet prepares for a returning backend, so all members know to which backends clients have moved.
        world.pass(4000);
        let after = places(world, clients.clone());
        for client in clients {
            let wanted = if failback == Failback::Return { before[&client] } else { during[&client] };
            assert_eq!(after[&client], wanted, "client {client} after round {round}");
            *moves.entry(client).or_default() += u32::from(after[&client] != during[&client]);
        }
        // If a client reaches another member before that member knows about the move, the other member counts a move as
        // well.
        world.pass(2000);
    }
    let sum: u32 = moves.values().sum();
    assert_eq!((world.moved, world.counted), (sum.into(), sum.into()), "moves that clients saw, and that were counted");
    assert!(sum > 0, "nobody moved");
    moves
}

fn web(failback: Failback) -> ServiceConfig {
    service("web", "198.51.100.1:80", failback)
}

#[test]
fn when_a_backend_flaps_then_no_client_moves_twice() {
    let moves = flap(&mut World::of_three(1, web(Failback::Stay), None), Failback::Stay);
    assert!(moves.values().all(|&count| count <= 1), "{moves:?}");
}

#[test]
fn when_failback_is_on_then_clients_move_with_each_flap_that_most_members_see_and_back() {
    let moves = flap(&mut World::of_three(2, web(Failback::Return), None), Failback::Return);
    assert!(moves.values().all(|count| count % 2 == 0), "{moves:?}");
}
