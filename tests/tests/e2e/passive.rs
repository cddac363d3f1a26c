//! A server dies between two checks, which are an hour apart: what clients' packets say is enough.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

const CLIENTS: RangeInclusive<u16> = 1..=60;
const VICTIM: u16 = 2;
/// A connection whose SYN has to be sent again, and once more, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn site(forwarding: Forwarding, families: &[Family], check: &'static str) -> Site {
    let mut site = Site::start(Shape::OneLegged, forwarding, 4, |settings, _| {
        settings.families = families.to_vec();
        settings.check = format!(r#"{{ type = "tcp", interval = "1h", fast_interval = "1h", timeout = "1s"{check} }}"#);
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    site
}

fn victims(homes: &BTreeMap<u16, String>) -> Vec<u16> {
    homes.iter().filter(|(_, home)| **home == "web2").map(|(client, _)| *client).collect()
}

fn wait_down(site: &mut Site, clients: &[u16], family: Family) {
    let since = Instant::now();
    while site.status().unwrap().services[0].backends[usize::from(VICTIM) - 1].state != "down" {
        assert!(since.elapsed() < PATIENCE, "{:?}", site.cli(&["status"]));
        // Refused at once, if it is the server's own machine that says so.
        let _answers = site.ask(family, clients.iter().copied(), Duration::from_millis(300)).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn when_a_nat_server_is_killed_then_no_new_connection_fails() {
    for family in [Family::V4, Family::V6] {
        let mut site = site(Forwarding::Nat, &[family], "");
        let before = site.homes(family, CLIENTS).unwrap();
        assert!(!victims(&before).is_empty());
        site.kill_backend(VICTIM).unwrap();
        let after = site.homes_within(PATIENCE, family, CLIENTS).unwrap();
        assert!(after.values().all(|home| home != "web2"));
        assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home));
        let withheld = site.metrics().unwrap().sum("withheld_total", &[]).unwrap();
        assert!(withheld >= 1.0, "{withheld}");
    }
}

#[test]
fn when_a_dsr_server_is_killed_then_it_is_down_after_a_few_connections() {
    let mut site = site(Forwarding::Dsr, &[Family::V4], "");
    let before = site.homes(Family::V4, CLIENTS).unwrap();
    site.kill_backend(VICTIM).unwrap();
    wait_down(&mut site, &victims(&before), Family::V4);
    let after = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
    assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home));
}

#[test]
fn when_the_machine_of_a_server_is_gone_then_connections_that_were_begun_succeed() {
    for forwarding in [Forwarding::Nat, Forwarding::Dsr] {
        let site = site(forwarding, &[Family::V4], "");
        let before = site.homes(Family::V4, CLIENTS).unwrap();
        site.topology().switch().ip(&format!("link set web{VICTIM} down")).unwrap();
        let after = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
        assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home));
        assert!(after.values().all(|home| home != "web2"));
    }
}

#[test]
fn when_it_is_switched_off_then_clients_are_refused_as_before() {
    let mut site = site(Forwarding::Nat, &[Family::V4], ", passive = false");
    let victims = victims(&site.homes(Family::V4, CLIENTS).unwrap());
    site.kill_backend(VICTIM).unwrap();
    for _ in 0..3 {
        let replies = site.ask(Family::V4, victims.iter().copied(), PATIENCE).unwrap();
        assert!(replies.iter().all(Result::is_err));
    }
    assert_eq!(site.status().unwrap().services[0].backends[usize::from(VICTIM) - 1].state, "up");
}
