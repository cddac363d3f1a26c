//! Tests of outages, in which all members, or only one member, see all backends fail at once.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use balancer_config::config::Failback;
use balancer_control::io::ServiceId;

use super::world::{World, service};

const WEB: ServiceId = ServiceId(0);
const CLIENTS: u32 = 120;

fn places(world: &mut World) -> HashMap<u32, u16> {
    (0..CLIENTS).for_each(|client| world.packet(client));
    (0..CLIENTS).map(|client| (client, world.place(WEB, client).expect("nobody answers"))).collect()
}

/// Returns the addresses of all backends of the service.
fn backends(world: &World) -> Vec<IpAddr> {
    let node = world.nodes[0].as_ref().expect("it runs");
    node.plane.rows.values().map(|row| row.address.ip()).collect()
}

fn cut(world: &mut World, members: &[usize], backends: &[IpAddr]) {
    world.cut = members.iter().flat_map(|&member| backends.iter().map(move |&backend| (member, backend))).collect();
}

fn world(seed: u64, failback: Failback) -> World {
    let mut world = World::of_three(seed, service("web", "198.51.100.1:80", failback), None);
    world.settle();
    world
}

#[test]
fn when_all_backends_fail_for_all_members_and_come_back_then_nobody_is_moved() {
    for (seed, failback) in [(1, Failback::Stay), (2, Failback::Return), (3, Failback::Stay)] {
        let mut world = world(seed, failback);
        let before = places(&mut world);
        let all = backends(&world);
        cut(&mut world, &[0, 1, 2], &all);
        world.pass(20_000);
        assert_eq!(places(&mut world), before, "in the outage");
        // The backends recover one after the other.
        for gone in (0..all.len()).rev() {
            cut(&mut world, &[0, 1, 2], &all[..gone]);
            world.pass(300);
            assert_eq!(places(&mut world), before, "{gone} are still gone");
        }
        world.pass(20_000);
        assert_eq!(places(&mut world), before);
        assert_eq!((world.moved, world.counted), (0, 0));
    }
}

#[test]
fn when_one_member_is_cut_off_from_all_backends_then_there_is_no_outage() {
    let mut world = world(4, Failback::Stay);
    let before = places(&mut world);
    let all = backends(&world);
    cut(&mut world, &[1], &all);
    world.pass(20_000);
    assert_eq!(places(&mut world), before);
    let starts = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    // If the other members report a backend as down, it is down at once, whatever this member sees.
    world.cut.extend([(0, starts), (2, starts)]);
    world.pass(4_000);
    let gone =
        world.nodes[0].as_ref().unwrap().plane.rows.values().find(|row| row.address.ip() == starts).unwrap().id.0;
    let after = places(&mut world);
    assert!(after.values().all(|&place| place != gone), "clients of the one that is down move");
    assert!(before.iter().all(|(client, &place)| place == gone || after[client] == place));
}
