//! Tests that known clients stay with their backends when all backends of a service fail at the same time and return.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

const FAMILY: Family = Family::V4;
const PATIENCE: Duration = Duration::from_secs(60);

fn site(forwarding: Forwarding) -> Site {
    let mut site = Site::start(Shape::OneLegged, forwarding, 4, |settings, _| {
        settings.check = r#"{ type = "tcp" }"#.to_owned();
        settings.remember = "3h";
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    site
}

fn wait_for(site: &Site, line: &str) -> String {
    let since = Instant::now();
    loop {
        let events = site.cli(&["events"]).unwrap();
        if events.contains(line) {
            return events;
        }
        assert!(since.elapsed() < PATIENCE, "no {line:?} in {events}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn moved(before: &BTreeMap<u16, String>, after: &BTreeMap<u16, String>) -> Vec<(u16, String)> {
    let moved = before.iter().filter(|(client, home)| after[client] != **home);
    moved.map(|(client, home)| (*client, home.clone())).collect()
}

/// Kills every server, as a failed deployment would, and starts all servers again.
fn all_crash_and_come_back(forwarding: Forwarding, restart: bool) {
    let mut site = site(forwarding);
    let before = site.homes(FAMILY, 1..=200).unwrap();
    (1..=4).for_each(|number| site.kill_backend(number).unwrap());
    wait_for(&site, "outage of web: 4 of 4 backends fail");
    // Clients that connect during the outage get no answer, but stay assigned to their backends.
    assert!(site.ask(FAMILY, 1..=200, Duration::from_secs(1)).unwrap().iter().all(|reply| reply.is_err()));
    let status = site.cli(&["status"]).unwrap();
    assert!(status.contains("WARNING: outage of web for "), "{status}");
    if restart {
        site.kill_and_restart(|_| {}).unwrap();
        let status = site.cli(&["status"]).unwrap();
        assert!(status.contains("WARNING: outage of web for "), "{status}");
    }
    (1..=4).for_each(|number| site.start_backend(number).unwrap());
    // At first, only some backends are up again for the balancer, and later all backends.
    site.wait_state(1, &["up"]).unwrap();
    let first = site.homes_within(Duration::from_secs(10), FAMILY, 1..=200).unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let after = site.homes(FAMILY, 1..=200).unwrap();
    assert_eq!((moved(&before, &first), moved(&before, &after)), (Vec::new(), Vec::new()));
    wait_for(&site, "outage of web over after ");
}

#[test]
fn when_the_controller_restarts_in_an_outage_then_no_client_is_moved() {
    all_crash_and_come_back(Forwarding::Nat, true);
}

#[test]
fn when_one_of_four_stays_dead_after_an_outage_then_its_clients_alone_are_moved() {
    let mut site = site(Forwarding::Nat);
    let before = site.homes(FAMILY, 1..=200).unwrap();
    (1..=4).for_each(|number| site.kill_backend(number).unwrap());
    wait_for(&site, "outage of web: 4 of 4 backends fail");
    (1..=3).for_each(|number| site.start_backend(number).unwrap());
    let events = wait_for(&site, "outage of web over after ");
    assert!(events.contains("moved from web4, which is still down"), "{events}");
    let after = site.homes(FAMILY, 1..=200).unwrap();
    let moved = moved(&before, &after);
    assert!(!moved.is_empty() && moved.iter().all(|(_, home)| home == "web4"), "{moved:?}");
    assert!(before.iter().filter(|(_, home)| *home == "web4").count() == moved.len(), "{moved:?}");
}

#[test]
fn when_one_of_four_crashes_then_it_is_no_outage() {
    let mut site = site(Forwarding::Nat);
    let before = site.homes(FAMILY, 1..=200).unwrap();
    site.kill_backend(2).unwrap();
    site.wait_state(2, &["down"]).unwrap();
    let after = site.homes(FAMILY, 1..=200).unwrap();
    assert!(moved(&before, &after).iter().all(|(_, home)| home == "web2"));
    let events = site.cli(&["events"]).unwrap();
    assert!(!events.contains("outage") && !events.contains("suspect"), "{events}");
}
