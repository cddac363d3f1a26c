//! Tests with a store that answers but does not write.

use std::net::{IpAddr, Ipv4Addr};

use balancer_config::config::Failback;
use balancer_control::io::ServiceId;

use super::{
    store::Time,
    world::{World, service},
};
use crate::keys;

const DEAD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENTS: u32 = 300;

fn fleet(seed: u64) -> World {
    let mut world = World::of_three(seed, service("web", "198.51.100.1:80", Failback::Stay), None);
    world.settle();
    world
}

fn answers(world: &World, member: usize) -> Vec<Option<u16>> {
    (0..CLIENTS).map(|client| world.packet_at(member, client)).collect()
}

/// Returns the number of clients that moved, and how many of these were at a dead backend.
fn moved(before: &[Option<u16>], after: &[Option<u16>]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

/// Returns for each member the backends that have slots in the member's lookup table.
fn tables(world: &World) -> Vec<Vec<u16>> {
    let table = |node: &super::node::Node| node.plane.table(ServiceId(0)).map(<[u16]>::to_vec).unwrap_or_default();
    world.nodes.iter().flatten().map(table).collect()
}

fn troubles(world: &World, member: usize) -> String {
    world.nodes[member].as_ref().map(|node| node.log.join("\n")).unwrap_or_default()
}

fn is_alone(world: &World, member: usize) -> bool {
    world.nodes[member].as_ref().is_some_and(|node| node.alone)
}

/// Lets time pass, and returns the maximum number of requests that the store answered within a second.
fn busiest_second(world: &mut World, seconds: Time) -> u64 {
    let second = |world: &mut World| {
        let before = world.store.asked;
        world.pass(1000);
        world.store.asked - before
    };
    (0..seconds).map(|_| second(world)).max().unwrap_or_default()
}

#[test]
fn when_the_store_takes_no_writes_then_members_act_on_what_they_see_and_ask_seldom() {
    for seed in 0..4 {
        let mut world = fleet(seed);
        let before = answers(&world, 0);
        world.pass(3000);
        let calm = busiest_second(&mut world, 5);
        world.store.full = true;
        world.dead.insert(DEAD);
        // The members still send the clients that they knew before. In addition, each member gets 25 new clients per
        // second.
        let busiest = (0..20)
            .map(|second| {
                (0..75).for_each(|client| {
                    let _ = world.packet_at(client as usize % 3, 1000 + second * 75 + client);
                });
                busiest_second(&mut world, 1)
            })
            .max()
            .unwrap_or_default();
        assert!(busiest <= calm.max(10) * 3, "{busiest} requests in a second, {calm} before");
        for member in 0..3 {
            assert!(is_alone(&world, member), "lb{member} is not alone");
            assert!(troubles(&world, member).contains("database space exceeded"), "{}", troubles(&world, member));
            let after = answers(&world, member);
            let leaving = moved(&before, &after);
            assert!((1..CLIENTS as usize / 2).contains(&leaving), "{leaving} clients moved");
            assert_eq!(after, answers(&world, 0), "lb{member}");
        }
        let alone = answers(&world, 0);
        world.settle();
        assert_eq!(answers(&world, 0), alone, "nobody moves when the store takes writes again");
        world.dead.clear();
        world.settle();
        assert_eq!(answers(&world, 0), alone);
    }
}

#[test]
fn when_one_member_may_not_write_then_the_others_go_on_and_it_follows() {
    for seed in 0..4 {
        let mut world = fleet(seed);
        let leader = world.leader();
        for denied in 0..3 {
            let tables_before = tables(&world);
            world.store.lines[denied].may_not_write = true;
            // The time is longer than two leases, and longer than the time until the sweep after which the member
            // writes its card.
            world.pass(22_000);
            assert!(is_alone(&world, denied), "lb{denied}, lb{leader} leads");
            assert!(troubles(&world, denied).contains("permission denied"), "{}", troubles(&world, denied));
            let card = keys::member(&format!("lb{denied}"));
            assert!(!world.store.keys().any(|key| key == card), "the others wait for it");
            let calm = busiest_second(&mut world, 10);
            assert!(calm < 25, "{calm} requests in a second");
            // The backends also fail for the other members, so the fleet decides that these backends are down.
            world.dead.insert(DEAD);
            world.pass(6000);
            let after = tables(&world);
            assert_ne!(after[denied], tables_before[denied]);
            assert!(after.iter().all(|table| *table == after[0]), "lb{denied} steers otherwise");
            world.dead.clear();
            world.pass(6000);
            world.settle();
        }
    }
}
