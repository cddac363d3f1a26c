//! Tests of bounded load: a backend with too many clients gets fewer new ones, and no known client moves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{io::ErrorKind, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{QUICK_CHECK, Site},
    topology::{Family, Shape},
};

use crate::support::wait;

pub(crate) const BOUNDED: &str = "bounded_load = { factor = 1.25, by = \"clients\" }";
const FIRST: std::ops::RangeInclusive<u16> = 1..=80;
const ALL: std::ops::RangeInclusive<u16> = 1..=200;

fn slots(site: &Site) -> u32 {
    web1(site).slots
}

fn web1(site: &Site) -> balancer_api::model::BackendView {
    let services = site.status().unwrap().services;
    services.into_iter().flat_map(|service| service.backends).find(|backend| backend.name == "web1").unwrap()
}

#[test]
fn when_a_backend_has_too_many_clients_then_it_takes_fewer_new_ones_and_nobody_moves() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = BOUNDED.to_owned();
        Ok(())
    })
    .unwrap();
    let whole = slots(&site);
    site.cli(&["backend", "drain", "web/web2"]).unwrap();
    let homes = site.homes(Family::V4, FIRST).unwrap();
    assert!(homes.values().all(|home| home == "web1"));
    wait("web1 does not know them", || web1(&site).known_clients >= 80);
    site.cli(&["backend", "ready", "web/web2"]).unwrap();
    wait("web1 gives nothing away", || slots(&site) < whole);

    let backend = web1(&site);
    let bound = backend.bound.clone().unwrap();
    assert_eq!((bound.keeps_percent, backend.state.as_str()), (60, "up"));
    assert!(backend.slots.abs_diff(whole * 6 / 10) < whole / 50, "{backend:?} of {whole}");
    assert!((backend.slots + bound.given_slots).abs_diff(whole) < whole / 50, "{bound:?}");
    let status = site.cli(&["status"]).unwrap();
    assert!(status.contains("bounded load: keeps 60% of its slots, had 2.00 times its share"), "{status}");
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("service web, bounded load: web1 keeps 60% of its slots"), "{events}");
    let given = site.metrics().unwrap().sum("bounded_slots", &["backend=\"web1\""]).unwrap();
    assert_eq!(given, f64::from(bound.given_slots));
    assert_eq!(site.homes(Family::V4, FIRST).unwrap(), homes);
    let all = site.homes(Family::V4, ALL).unwrap();
    assert!(all.values().skip(80).filter(|home| *home == "web2").count() > 60, "{all:?}");

    // The reduced share survives a restart, although that forgets the clients. Without the key, the slots return, and
    // still no client moves.
    let table = slots(&site);
    site.restart(|_| {}).unwrap();
    assert_eq!(slots(&site), table);
    let all = site.homes(Family::V4, ALL).unwrap();
    site.apply(|settings| settings.service_lines.clear()).unwrap();
    assert_eq!((slots(&site), web1(&site).bound), (whole, None));
    assert_eq!(site.homes(Family::V4, ALL).unwrap(), all);
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}

#[test]
fn when_backends_are_at_their_limits_then_new_clients_go_to_the_next_and_at_last_to_nobody_and_nobody_moves() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = "when_full = \"reject\"".to_owned();
        Ok(())
    })
    .unwrap();
    let whole = slots(&site);
    let said = site.cli(&["backend", "limit", "web/web1", "--max-clients", "20"]).unwrap();
    assert!(said.starts_with("backend web/web1 no limit → max_clients 20: "), "{said}");
    let homes = site.homes(Family::V4, FIRST).unwrap();
    wait("web1 is full", || slots(&site) == 0);
    let backend = web1(&site);
    assert_eq!((backend.state.as_str(), backend.max_clients, backend.full), ("up", Some(20), true));
    assert!(
        backend.reason.starts_with("full: had ") && backend.reason.ends_with(" of at most 20 clients"),
        "{backend:?}"
    );
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("of at most 20 clients and takes no new ones"), "{events}");
    assert_eq!(site.metrics().unwrap().sum("backend_full", &["backend=\"web1\""]).unwrap(), 1.0);
    assert_eq!(site.homes(Family::V4, FIRST).unwrap(), homes, "somebody moved");
    let all = site.homes(Family::V4, 1..=120).unwrap();
    assert!(all.iter().filter(|(client, _)| **client > 80).all(|(_, home)| home == "web2"), "{all:?}");

    // The limit survives a restart, after which clients are new.
    site.restart(|_| {}).unwrap();
    assert!(web1(&site).full);
    wait("web1 has room", || !web1(&site).full && slots(&site) == whole);

    // Both are full: new clients get a reset, and known ones stay.
    let homes = site.homes(Family::V4, FIRST).unwrap();
    for backend in ["web/web1", "web/web2"] {
        site.cli(&["backend", "limit", backend, "--max-clients", "10"]).unwrap();
    }
    wait("both are full", || site.metrics().unwrap().sum("backend_full", &[]).unwrap() == 2.0);
    assert_eq!(site.homes(Family::V4, FIRST).unwrap(), homes, "somebody moved");
    let refused = site.ask(Family::V4, [150], Duration::from_secs(3)).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused:?}");
    // The file says to serve them nevertheless.
    site.apply(|settings| settings.service_lines = "when_full = \"open\"".to_owned()).unwrap();
    assert!(site.homes(Family::V4, 150..=160).is_ok());
    let config = site.config();
    let said = site.cli(&["apply", "--reset", &config.to_string_lossy()]).unwrap();
    assert!(said.contains("reset: 2 backends"), "{said}");
    wait("nobody is full", || site.status().unwrap().services.iter().flat_map(|of| &of.backends).all(|of| !of.full));
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}
