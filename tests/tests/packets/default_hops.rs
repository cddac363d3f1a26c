//! Tests of published default next hops: the program sends replies by a published next hop only if the next hop is valid
//! for this reply, and asks the kernel for all others. The published MAC address differs from the kernel's, so that a
//! test sees which of them the program uses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{thread, time::Duration};

use balancer_common::{
    handover::Handed,
    map_types::{DEVICE_CARRIES_TAGS, ingress_bit},
    verdict::DropReason,
};
use balancer_config::listeners::Family;
use balancer_control::default_hop::{DefaultHop, Egress, Gateway, Route, Rule, TABLE_LOCAL, TABLE_MAIN, default_route};
use balancer_dataplane::coarse_now;
use balancer_testkit::{
    frame::{ACK, Frame},
    rig::{OUT_MAC, OUT_MTU, ROUTER_MAC, Rig},
};

use crate::{
    cases::{Case, Then, handed, run_with},
    nat_return::restored,
    next_hop_cache::{BACKENDS, LATER, OTHER_ROUTER_MAC, XDP_REDIRECT, XDP_TX, ip, leaves, with_own_rig},
    too_big::{segment, told},
};

/// The MAC address of the published next hops.
const PUBLISHED_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x55];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const FOR_EVER: Duration = Duration::from_nanos(u64::MAX);
/// Clients whose replies the kernel would send to the router on the ingress interface.
const CLIENTS: [&str; 2] = ["203.0.113.7:40000", "[2001:db8:c::7]:40000"];

/// A next hop with exclusions for these prefixes, by the interface `ifindex`.
fn hop(family: Family, ifindex: u32, excluded: &[&str]) -> DefaultHop {
    let rules = [(0, TABLE_LOCAL), (1, TABLE_MAIN)].map(|(priority, table)| Rule { priority, table: Some(table) });
    let (default, address) = match family {
        Family::V4 => ("0.0.0.0/0", "10.0.0.254"),
        Family::V6 => ("::/0", "fd00::fe"),
    };
    let gateway = Gateway { ifindex, address: address.parse().unwrap(), lifetime: None };
    let others = excluded.iter().map(|prefix| (*prefix, None));
    let routes: Vec<_> = others
        .chain([(default, Some(gateway))])
        .map(|(prefix, gateway)| Route { table: TABLE_MAIN, destination: prefix.parse().unwrap(), gateway })
        .collect();
    let route = default_route(&rules, &routes).unwrap();
    DefaultHop::new(&route, Egress { mac: OUT_MAC, mtu: OUT_MTU }, PUBLISHED_MAC, !0)
}

fn all_leave(rig: &Rig, expected: (u32, [u8; 6])) {
    for ((backend, _), client) in BACKENDS.iter().zip(CLIENTS) {
        for _ in 0..3 {
            assert_eq!(leaves(rig, backend, client), expected, "{client}");
        }
    }
}

#[test]
fn when_a_next_hop_is_published_then_only_excluded_destinations_ask_the_kernel() {
    with_own_rig(|mut rig| {
        let mut hops = rig.default_hops().unwrap();
        assert!(hops.are_needed());
        let near = rig.in_ifindex;
        all_leave(&rig, (XDP_TX, ROUTER_MAC));
        for (family, excluded) in FAMILIES.into_iter().zip(["203.0.114.0/24", "2001:db8:d::/48"]) {
            hops.publish(family, &hop(family, near, &[excluded]), FOR_EVER);
        }
        all_leave(&rig, (XDP_TX, PUBLISHED_MAC));
        for number in 1..250 {
            let clients = [format!("10.100.7.{number}:40000"), format!("[2001:db8:c:{number:x}::1]:40000")];
            let excluded = [format!("203.0.114.{number}:40000"), format!("[2001:db8:d:{number:x}::1]:40000")];
            for family in 0..2 {
                let (backend, _) = BACKENDS[family];
                assert_eq!(leaves(&rig, backend, &clients[family]), (XDP_TX, PUBLISHED_MAC), "{}", clients[family]);
                let far = (XDP_REDIRECT, OTHER_ROUTER_MAC);
                assert_eq!(leaves(&rig, backend, &excluded[family]), far, "{}", excluded[family]);
            }
        }
    });
}

#[test]
fn when_a_next_hop_is_no_longer_valid_then_the_kernel_is_asked() {
    with_own_rig(|mut rig| {
        let mut hops = rig.default_hops().unwrap();
        let [near, far] = [rig.in_ifindex, rig.out_ifindex];
        for family in FAMILIES {
            let past = coarse_now().unwrap() - Duration::from_micros(1);
            hops.publish(family, &hop(family, near, &[]), past);
        }
        all_leave(&rig, (XDP_TX, ROUTER_MAC));
        FAMILIES.into_iter().for_each(|family| hops.renew(family, FOR_EVER));
        all_leave(&rig, (XDP_TX, PUBLISHED_MAC));
        FAMILIES.into_iter().for_each(|family| hops.withdraw(family));
        all_leave(&rig, (XDP_TX, ROUTER_MAC));
        // The next one is written beside the one that was withdrawn, and replaces it at once.
        for ifindex in [far, near, far] {
            FAMILIES.into_iter().for_each(|family| hops.publish(family, &hop(family, ifindex, &[]), FOR_EVER));
            all_leave(&rig, (if ifindex == near { XDP_TX } else { XDP_REDIRECT }, PUBLISHED_MAC));
        }
        let elsewhere = ingress_bit(near) ^ !0;
        for family in FAMILIES {
            hops.publish(family, &DefaultHop { ingresses: elsewhere, ..hop(family, near, &[]) }, FOR_EVER);
        }
        all_leave(&rig, (XDP_TX, ROUTER_MAC));
        FAMILIES.into_iter().for_each(|family| hops.publish(family, &hop(family, near, &[]), FOR_EVER));
        all_leave(&rig, (XDP_TX, PUBLISHED_MAC));
        drop(hops);
        all_leave(&rig, (XDP_TX, ROUTER_MAC));
    });
}

#[test]
fn when_one_family_is_published_then_the_other_asks_the_kernel() {
    with_own_rig(|mut rig| {
        let mut hops = rig.default_hops().unwrap();
        hops.publish(Family::V6, &hop(Family::V6, rig.in_ifindex, &[]), FOR_EVER);
        assert_eq!(leaves(&rig, BACKENDS[0].0, CLIENTS[0]), (XDP_TX, ROUTER_MAC));
        assert_eq!(leaves(&rig, BACKENDS[1].0, CLIENTS[1]), (XDP_TX, PUBLISHED_MAC));
        // The cached next hop of the kernel does not outlast a change.
        ip("neigh replace 203.0.113.7 lladdr 02:00:00:00:00:77 dev in0 nud permanent");
        thread::sleep(LATER);
        assert_eq!(leaves(&rig, BACKENDS[0].0, CLIENTS[0]), (XDP_TX, [2, 0, 0, 0, 0, 0x77]));
    });
}

#[test]
fn when_the_next_hop_is_published_then_the_packet_is_still_checked() {
    run_with(
        |rig| {
            let mut hops = rig.default_hops()?;
            for family in FAMILIES {
                hops.publish(family, &hop(family, rig.out_ifindex, &[]), FOR_EVER);
            }
            std::mem::forget(hops);
            rig.set_devices([(rig.in_ifindex, DEVICE_CARRIES_TAGS)])
        },
        |rig| {
            let mut cases = Vec::new();
            for ((backend, vip), client) in BACKENDS.into_iter().zip(["203.0.114.9:40000", "[2001:db8:d::9]:40000"]) {
                let reply = segment(backend, client, 100);
                let long = segment(backend, client, OUT_MTU as usize + 1);
                let last_hop = Frame { ttl: 1, ..reply.clone() };
                let tagged = Frame { vlans: vec![10], ..Frame::tcp(backend, client, ACK) };
                let sent = Frame { destination_mac: PUBLISHED_MAC, source_mac: OUT_MAC, ..restored(&reply, vip) };
                let is_handed = Then::Handed(handed(rig, &restored(&tagged, vip), Handed::Client).bytes());
                let is_told = Then::Tx(told(&long, OUT_MTU as usize).bytes());
                cases.extend([
                    Case::new(format!("{client}: plain"), &reply, Then::Redirect(sent.bytes())),
                    Case::new(format!("{client}: longer than its way takes"), &long, is_told),
                    Case::new(format!("{client}: TTL used up"), &last_hop, Then::Drop(DropReason::TtlExceeded)),
                    Case::new(format!("{client}: with a tag"), &tagged, is_handed),
                    Case::new(format!("{client}: plain again"), &reply, Then::Redirect(sent.bytes())),
                ]);
            }
            cases
        },
    );
}
