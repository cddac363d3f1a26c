//! Tests of replies whose next hops are in the program's cache: the program sends these replies as if it had asked the
//! kernel each time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{process::Command, thread, time::Duration};

use balancer_common::{handover::Handed, map_types::DEVICE_CARRIES_TAGS, verdict::DropReason};
use balancer_testkit::{
    frame::{ACK, Frame},
    rig::{OUT_MAC, OUT_MTU, ROUTER_MAC, Rig, Setup},
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    cases::{Case, Then, handed, services},
    nat_return::restored,
    rows::{self, rows},
    too_big::{segment, told},
};

/// The MAC address of the router behind the second interface.
pub(crate) const OTHER_ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
/// A time that is longer than the program caches the kernel's answer.
pub(crate) const LATER: Duration = Duration::from_millis(60);
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// The backend and the VIP, for each family.
pub(crate) const BACKENDS: [(&str, &str); 2] =
    [("10.0.0.21:8080", "198.51.100.20:80"), ("[fd00::21]:8080", "[2001:db8::20]:80")];

/// Runs `test` in a new namespace, with the thread bound to one CPU.
fn with_rig(test: impl FnOnce(&Rig) + Send + 'static) {
    with_own_rig(|rig| test(&rig));
}

/// Runs `test` as [`with_rig`] does, with a rig that the test can change.
pub(crate) fn with_own_rig(test: impl FnOnce(Rig) + Send + 'static) {
    let work = move || {
        let mut cpus = CpuSet::new();
        cpus.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        test(Rig::new(&services()).unwrap());
    };
    thread::spawn(work).join().unwrap();
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Returns the fate of a reply: the action and the destination MAC address.
pub(crate) fn leaves(rig: &Rig, backend: &str, client: &str) -> (u32, [u8; 6]) {
    let ran = rig.run(&Frame::tcp(backend, client, ACK).bytes()).unwrap();
    (ran.action, ran.frame[..6].try_into().unwrap())
}

/// Returns the form in which a reply leaves by the second interface.
pub(crate) fn redirected(reply: &Frame, vip: &str) -> Frame {
    Frame { destination_mac: OTHER_ROUTER_MAC, source_mac: OUT_MAC, ..restored(reply, vip) }
}

/// More clients send packets than the cache has entries, and the clients are behind two different routers.
#[test]
fn when_there_are_more_clients_than_cached_hops_then_each_has_its_own() {
    with_rig(|rig| {
        let near = (XDP_TX, ROUTER_MAC);
        let far = (XDP_REDIRECT, OTHER_ROUTER_MAC);
        let v4 = (0..3000).map(|number: u32| {
            let [.., high, low] = number.to_be_bytes();
            (BACKENDS[0].0, format!("10.100.{high}.{low}:40000"), near)
        });
        let v4_far = (1..250).map(|number| (BACKENDS[0].0, format!("203.0.114.{number}:40000"), far));
        let v6 = (0..3000).map(|number| {
            let (net, way) = if number % 2 == 0 { ("c", near) } else { ("d", far) };
            (BACKENDS[1].0, format!("[2001:db8:{net}:{number:x}::1]:40000"), way)
        });
        let clients: Vec<_> = v4.chain(v4_far).chain(v6).collect();
        for round in 0..2 {
            for (backend, client, way) in &clients {
                for time in 0..2 {
                    assert_eq!(leaves(rig, backend, client), *way, "{client}, time {time} of round {round}");
                }
            }
        }
    });
}

/// If routes depend on the source address, the same client has different routes from two VIPs.
#[test]
fn when_routes_depend_on_the_source_then_each_vip_has_its_own_hop() {
    with_rig(|rig| {
        ip("rule add from 198.51.100.31 lookup 100");
        ip("route add default via 10.0.1.254 table 100");
        for _ in 0..4 {
            assert_eq!(leaves(rig, "10.0.0.21:8080", "203.0.113.7:40000"), (XDP_TX, ROUTER_MAC));
            assert_eq!(leaves(rig, "10.0.0.32:80", "203.0.113.7:40000"), (XDP_REDIRECT, OTHER_ROUTER_MAC));
        }
    });
}

#[test]
fn when_a_route_changes_then_replies_follow_a_moment_later() {
    with_rig(|rig| {
        let clients = ["203.0.113.7:40000", "[2001:db8:c::7]:40000"];
        let go = |expected: (u32, [u8; 6])| {
            for ((backend, _), client) in BACKENDS.iter().zip(clients) {
                for _ in 0..3 {
                    assert_eq!(leaves(rig, backend, client), expected, "{client}");
                }
            }
        };
        go((XDP_TX, ROUTER_MAC));
        ip("neigh replace 203.0.113.7 lladdr 02:00:00:00:00:77 dev in0 nud permanent");
        ip("neigh replace fd00::fe lladdr 02:00:00:00:00:77 dev in0 nud permanent");
        thread::sleep(LATER);
        go((XDP_TX, [2, 0, 0, 0, 0, 0x77]));
        ip("route add 203.0.113.7/32 via 10.0.1.254");
        ip("-6 route add 2001:db8:c::7/128 via fd01::fe");
        thread::sleep(LATER);
        go((XDP_REDIRECT, OTHER_ROUTER_MAC));
    });
}

fn when_the_hop_is_cached_then_the_packet_is_still_checked(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for ((backend, vip), client) in BACKENDS.into_iter().zip(["203.0.114.9:40000", "[2001:db8:d::9]:40000"]) {
        let reply = segment(backend, client, 100);
        let long = segment(backend, client, OUT_MTU as usize + 1);
        let last_hop = Frame { ttl: 1, ..reply.clone() };
        let goes = |name: &str| {
            Case::new(format!("{client}: {name}"), &reply, Then::Redirect(redirected(&reply, vip).bytes()))
        };
        let is_told = Then::Tx(told(&long, OUT_MTU as usize).bytes());
        cases.extend([
            goes("the first"),
            goes("the second"),
            Case::new(format!("{client}: longer than its way takes"), &long, is_told),
            goes("after one that was too long"),
            Case::new(format!("{client}: TTL used up"), &last_hop, Then::Drop(DropReason::TtlExceeded)),
            goes("after one whose TTL was used up"),
        ]);
    }
    cases
}

/// XDP may send one packet to a next hop, while the kernel must send another packet to the same next hop.
fn when_a_hop_is_shared_then_each_packet_decides_whether_xdp_sends_it(rig: &mut Rig) -> Vec<Case> {
    rig.set_devices([(rig.in_ifindex, DEVICE_CARRIES_TAGS)]).expect("devices");
    let mut cases = Vec::new();
    for ((backend, vip), client) in BACKENDS.into_iter().zip(["203.0.113.7:40000", "[2001:db8:c::7]:40000"]) {
        let reply = Frame::tcp(backend, client, ACK);
        let tagged = Frame { vlans: vec![10], ..reply.clone() };
        let is_handed = Then::Handed(handed(rig, &restored(&tagged, vip), Handed::Client).bytes());
        let goes = |name: &str| Case::new(format!("{client}: {name}"), &reply, Then::Tx(restored(&reply, vip).bytes()));
        cases.extend([
            goes("the first"),
            goes("the second"),
            Case::new(format!("{client}: with a tag"), &tagged, is_handed),
            goes("after one with a tag"),
        ]);
    }
    cases
}

#[test]
fn when_the_next_hop_of_a_reply_is_cached_then_each_packet_still_decides_how_it_leaves() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_the_hop_is_cached_then_the_packet_is_still_checked,
            when_a_hop_is_shared_then_each_packet_decides_whether_xdp_sends_it
        ],
    );
}
