//! Tests of connection limits, which need the connection counts of `snat`, and of backends whose connections hold the
//! ports of the pool. A full backend keeps its clients and connections. New clients go to the next backend in the order
//! of the lookup table, in both families.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{collections::BTreeMap, net::TcpStream};

use balancer_api::model::BackendView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{QUICK_CHECK, Site, service},
    topology::{Family, Shape},
};

use crate::{
    snat::{ask, connect},
    support::wait,
};

const KNOWN: std::ops::RangeInclusive<u16> = 1..=40;
const NEW: std::ops::RangeInclusive<u16> = 101..=160;
/// The largest number of connections that the test allows for a backend.
const MOST: usize = 6;

fn site(service_lines: &str) -> Site {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Snat, 3, |settings, _| {
        settings.service_lines = service_lines.to_owned();
        settings.families = Family::BOTH.to_vec();
        settings.remember = "10m";
        settings.check = QUICK_CHECK.to_owned();
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    (1..=3).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    site
}

/// Returns the backend `web{number}` in the service of each family.
fn backends(site: &Site, number: usize) -> Vec<BackendView> {
    site.status().unwrap().services.into_iter().map(|mut service| service.backends.remove(number - 1)).collect()
}

/// Returns the backends to which the controller's lookup table sends clients, in both families.
fn places(site: &Site, clients: std::ops::RangeInclusive<u16>) -> BTreeMap<(u16, bool), String> {
    let of = |family| {
        let place = move |client| ((client, family == Family::V6), site.locate(family, client).unwrap().1);
        clients.clone().map(place)
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// Returns the backends that answer clients, in both families.
fn answers(site: &Site, clients: std::ops::RangeInclusive<u16>) -> BTreeMap<(u16, bool), String> {
    let of = |family| {
        let homes = site.homes(family, clients.clone()).unwrap();
        homes.into_iter().map(move |(client, home)| ((client, family == Family::V6), home))
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// Opens `count` connections of one client to a backend in each family.
fn open(site: &Site, home: &str, count: usize) -> Vec<TcpStream> {
    let of = |family| {
        let client = KNOWN.into_iter().find(|client| site.locate(family, *client).unwrap().1 == home).unwrap();
        (0..count).map(move |_| connect(site, family, client))
    };
    let mut open: Vec<_> = Family::BOTH.into_iter().flat_map(of).collect();
    all_work(&mut open);
    open
}

fn all_work(open: &mut [TcpStream]) {
    open.iter_mut().for_each(|stream| assert!(ask(stream).unwrap().starts_with("HTTP/1.1 200")));
}

/// Limits the connections of a backend in both families' services.
fn limit(site: &Site, backend: &str, most: usize) {
    for family in Family::BOTH {
        let name = format!("{}/{backend}", service(family));
        let said = site.cli(&["backend", "limit", &name, "--max-connections", &most.to_string()]).unwrap();
        assert!(said.starts_with(&format!("backend {name} no limit → max_connections {most}: ")), "{said}");
    }
}

#[test]
fn when_a_backend_has_as_many_connections_as_it_may_then_new_clients_go_to_the_next_until_some_have_ended() {
    let mut site = site("");
    let whole = backends(&site, 1)[0].slots;
    let (mut known, before) = (answers(&site, KNOWN), places(&site, NEW));
    // A drain steers new clients to the next backend in the order of the lookup table.
    let drain = |verb: &str| {
        for family in Family::BOTH {
            site.cli(&["backend", verb, &format!("{}/web1", service(family))]).unwrap();
        }
    };
    drain("drain");
    let next = places(&site, NEW);
    drain("ready");
    assert!(next.values().all(|home| home != "web1") && before.values().any(|home| home == "web1"));
    assert!(before.iter().all(|(client, home)| home == "web1" || next[client] == *home));

    limit(&site, "web1", MOST);
    let mut open = open(&site, "web1", MOST);
    wait("web1 is not full", || backends(&site, 1).iter().all(|backend| backend.full));
    for backend in backends(&site, 1) {
        assert_eq!((backend.state.as_str(), backend.slots, backend.max_connections), ("up", 0, Some(6)));
        assert_eq!(backend.reason, "full: had 6 of at most 6 connections");
    }
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("of at most 6 connections and takes no new clients"), "{events}");
    assert_eq!(site.metrics().unwrap().sum("backend_full", &["backend=\"web1\""]).unwrap(), 2.0);
    assert_eq!(answers(&site, KNOWN), known, "a known client moved");
    assert_eq!(answers(&site, NEW), next);
    known.extend(next);
    all_work(&mut open);

    // After a restart and after a kill, the balancer counts the connections in the kernel again, and the backend stays
    // full.
    site.restart(|_| ()).unwrap();
    assert!(backends(&site, 1).iter().all(|backend| backend.full && backend.slots == 0));
    all_work(&mut open);
    site.kill_and_restart(|_| ()).unwrap();
    wait("connections are not counted", || backends(&site, 1).iter().all(|of| of.active == Some(MOST as u64)));
    assert!(backends(&site, 1).iter().all(|backend| backend.full && backend.slots == 0));
    all_work(&mut open);
    let others = 161..=190;
    let later = answers(&site, others.clone());
    assert!(later.values().all(|home| home != "web1"), "{later:?}");
    known.extend(later);

    // Once connections have ended, the backend takes new clients again. No known client has moved.
    drop(open);
    wait("web1 has no room", || backends(&site, 1).iter().all(|backend| !backend.full && backend.slots == whole));
    let newest = answers(&site, 191..=230);
    assert!(newest.values().any(|home| home == "web1"), "{newest:?}");
    known.extend(newest);
    let mut again = answers(&site, KNOWN);
    again.extend(answers(&site, *NEW.start()..=230));
    assert_eq!(again, known);
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}

#[test]
fn when_connections_hold_nearly_all_ports_of_a_backend_then_unknown_clients_go_to_the_next_and_known_ones_stay() {
    const NEARLY_ALL: usize = 48;
    let site = site("snat = { ports = \"40000-40049\" }");
    let (known, before) = (answers(&site, KNOWN), places(&site, NEW));
    let mut open = open(&site, "web1", NEARLY_ALL);
    wait("web1 is not full", || backends(&site, 1).iter().all(|backend| backend.full));
    for backend in backends(&site, 1) {
        assert_eq!((backend.state.as_str(), backend.slots, backend.max_connections), ("up", 0, None));
        // The known clients' earlier connections may still be closing.
        let reason = backend.reason;
        assert!(reason.starts_with("full: had ") && reason.ends_with(" of at most 50 ports"), "{reason}");
    }
    let next = answers(&site, NEW);
    assert!(next.values().all(|home| home != "web1") && before.values().any(|home| home == "web1"));
    assert!(before.iter().all(|(client, home)| home == "web1" || next[client] == *home));
    let sum = |name, labels: &[&str]| site.metrics().unwrap().sum(name, labels).unwrap_or(0.0);
    let filled = ["backend=\"web1\"", "reason=\"ports\""];
    assert_eq!((sum("backend_filled_total", &filled), sum("backend_filled_total", &[])), (2.0, 2.0));
    let refused = || sum("drops_total", &["reason=\"no_port\""]);
    assert_eq!(refused(), 0.0);
    assert_eq!(answers(&site, KNOWN), known);
    all_work(&mut open);

    // Known clients wait for a port of their backend, while unknown clients are served by the others.
    let client = KNOWN.into_iter().find(|client| known[&(*client, false)] == "web1").unwrap();
    open.extend((NEARLY_ALL..50).map(|_| connect(&site, Family::V4, client)));
    all_work(&mut open);
    let refused_before = refused();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| connect(&site, Family::V4, client));
        wait("no port is missing", || refused() > refused_before);
        let later = answers(&site, 161..=190);
        assert!(later.values().all(|home| home != "web1"), "{later:?}");
        drop(open);
        assert!(ask(&mut waits.join().unwrap()).unwrap().starts_with("HTTP/1.1 200"));
    });
    wait("web1 has no room", || backends(&site, 1).iter().all(|backend| !backend.full && backend.slots > 0));
    assert_eq!(answers(&site, KNOWN), known);
    assert_eq!(sum("moves_total", &[]), 0.0);
}
