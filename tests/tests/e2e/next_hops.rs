//! Tests that a backend which its forwarding mode cannot reach is down with a reason. The balancer must also resolve
//! gateways before a reply needs them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};

/// Waits until the status shows a backend in the state `state`, with a reason that contains `why`.
fn until(site: &mut Site, name: &str, state: &str, why: &str) {
    within(PATIENCE, site, name, state, why);
}

fn within(patience: Duration, site: &mut Site, name: &str, state: &str, why: &str) {
    let what = format!("{name} to be {state} ({why})");
    site.controller()
        .wait_for(patience, &what, |status| {
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            let backend = backends.find(|backend| backend.name == name);
            backend.is_some_and(|backend| backend.state == state && backend.reason.contains(why))
        })
        .unwrap();
}

#[test]
fn when_a_dsr_backend_is_behind_a_gateway_then_it_is_down() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, |_, _| Ok(())).unwrap();
    let gateway = site.topology().backend_address(Family::V4, 1);
    site.topology().balancer().ip(&format!("route add 10.9.0.0/16 via {gateway}")).unwrap();
    let answer = site.cli(&["backend", "add", "web/far", "10.9.0.1"]).unwrap();
    let why =
        format!("no next hop: dsr needs a backend on the same link; 10.9.0.1 is reached through gateway {gateway}");
    assert!(answer.contains(&why), "{answer}");
    until(&mut site, "far", "down", &why);
    site.homes(Family::V4, 1..=50).unwrap();

    // From this point, the kernel treats the backend as on-link, although no host answers at the backend's address.
    site.topology().balancer().ip("route replace 10.9.0.0/16 dev eth0").unwrap();
    until(&mut site, "far", "down", "no next hop: no neighbour: 10.9.0.1 does not answer on eth0");
}

/// If a route refers to a next hop by ID, replacing the next hop does not change the route.
#[test]
fn when_a_next_hop_object_is_replaced_then_the_balancer_notices() {
    /// A time shorter than the interval at which the balancer reads all routes again, because such a read would also
    /// notice a second change.
    const BEFORE_ALL_IS_READ: Duration = Duration::from_secs(8);
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, |_, _| Ok(())).unwrap();
    let gateway = site.topology().backend_address(Family::V4, 1);
    let balancer = site.topology().balancer();
    balancer.sysctl("net/ipv4/nexthop_compat_mode", "0").unwrap();
    balancer.ip(&format!("nexthop add id 7 via {gateway} dev eth0")).unwrap();
    balancer.ip("route add 10.9.0.0/16 nhid 7").unwrap();
    site.cli(&["backend", "add", "web/far", "10.9.0.1"]).unwrap();
    let through = format!("10.9.0.1 is reached through gateway {gateway}");
    until(&mut site, "far", "down", &through);

    for _ in 0..2 {
        site.topology().balancer().ip("nexthop replace id 7 dev eth0").unwrap();
        let why = "no next hop: no neighbour: 10.9.0.1 does not answer on eth0";
        within(BEFORE_ALL_IS_READ, &mut site, "far", "down", why);
        site.topology().balancer().ip(&format!("nexthop replace id 7 via {gateway} dev eth0")).unwrap();
        within(BEFORE_ALL_IS_READ, &mut site, "far", "down", &through);
    }
}

#[test]
fn when_a_tunnel_has_no_source_address_then_its_backend_is_down() {
    for forwarding in [Forwarding::Ipip, Forwarding::Gue] {
        let mut site = Site::start(Shape::OneLegged, forwarding, 1, |settings, _| {
            settings.crossed = true;
            Ok(())
        })
        .unwrap();
        site.homes(Family::V4, 1..=10).unwrap();
        let backend = site.topology().backend_address(Family::V6, 0);
        let balancer = site.topology().balancer();
        // The balancer's only remaining IPv6 address has link scope, and the route has a gateway.
        for address in ["fd00::1/64 dev eth0", "fd00:2::a/128 dev lo"] {
            balancer.ip(&format!("-6 addr del {address}")).unwrap();
        }
        let local = site.topology().backends()[0].ip("-6 -o addr show dev eth0 scope link").unwrap();
        let gateway = local.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap();
        balancer.ip(&format!("-6 route replace {backend} via {gateway} dev eth0")).unwrap();
        let why = format!("no next hop: a tunnel needs an IPv6 address of this machine on the route to {backend}");
        until(&mut site, "web1", "down", &why);

        site.topology().balancer().ip("-6 addr add fd00::1/64 dev eth0 nodad").unwrap();
        until(&mut site, "web1", "up", "");
        site.homes(Family::V4, 1..=10).unwrap();
    }
}

/// The clients are behind a router, and no client has sent a packet yet.
#[test]
fn when_no_client_has_come_yet_then_gateways_are_already_resolved() {
    let site = Site::start(Shape::TwoLegged, Forwarding::Nat, 1, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    let gateways = ["10.3.0.2", "fd00:3::2"];
    let deadline = Instant::now() + PATIENCE;
    for gateway in gateways {
        loop {
            let shown = site.topology().balancer().ip(&format!("neigh show {gateway} dev eth0")).unwrap();
            if shown.contains("lladdr") {
                break;
            }
            assert!(Instant::now() < deadline, "{gateway} is not resolved: {shown}");
            thread::sleep(Duration::from_millis(50));
        }
    }
    let seen = |site: &Site| site.metrics().unwrap().sum("packets_seen_total", &["verdict=\"tx\""]).unwrap();
    assert_eq!(seen(&site), 0.0, "no client has come");

    // If the kernel loses the gateways' entries, the balancer resolves the gateways again.
    for gateway in gateways {
        site.topology().balancer().ip(&format!("neigh flush {gateway} dev eth0")).unwrap();
    }
    for gateway in gateways {
        while !site.topology().balancer().ip(&format!("neigh show {gateway} dev eth0")).unwrap().contains("lladdr") {
            assert!(Instant::now() < deadline, "{gateway} is not asked for again");
            thread::sleep(Duration::from_millis(50));
        }
    }
    for family in Family::BOTH {
        site.homes(family, 1..=50).unwrap();
    }
    assert_eq!(site.metrics().unwrap().sum("drops_total", &["reason=\"no_neighbour\""]).unwrap(), 0.0);
}
