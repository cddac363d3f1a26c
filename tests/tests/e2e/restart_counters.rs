//! Tests that the counters of rules and the statistics of the last hour continue over restarts with `on_exit = "keep"`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs, io,
    net::{SocketAddr, UdpSocket},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use balancer_api::statistics::{PeriodView, StatsView};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, QUICK_CHECK, Site},
    topology::{Family, Shape},
    users::find_the_way_to_the_clients,
};
use serde_json::Value;

use crate::support::wait;

const FAMILY: Family = Family::V4;
const PORT: u16 = 5300;
const VISITORS: RangeInclusive<u16> = 1..=60;

/// Starts a site with two backends. A second service, `bulk`, sends no answers, so each datagram is a single packet.
fn site() -> Site {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.on_exit = "keep";
        settings.remember = "60s";
        let vip = SocketAddr::new(topology.vip(FAMILY), PORT);
        settings.lines = format!(
            "[[service]]\nname = \"bulk\"\naddress = \"{vip}\"\nprotocol = \"udp\"\nforwarding = \"nat\"\n\
             remember = \"60s\"\ncheck = {{ type = \"none\" }}\n"
        );
        for number in 1..=2 {
            let address = SocketAddr::new(topology.backend_address(FAMILY, number - 1), 5301);
            settings.lines += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
        }
        Ok(())
    })
    .unwrap();
    find_the_way_to_the_clients(&site);
    site
}

fn prefix(site: &Site, client: u16) -> String {
    format!("{}/32", site.topology().client_address(FAMILY, client))
}

/// Sends `count` datagrams from each client.
fn send(site: &Site, clients: RangeInclusive<u16>, count: usize) {
    let vip = SocketAddr::new(site.topology().vip(FAMILY), PORT);
    let sources = clients.map(|client| (site.topology().client_address(FAMILY, client), 0)).collect::<Vec<_>>();
    let sending = move || -> io::Result<()> {
        for source in sources {
            let socket = UdpSocket::bind(source)?;
            (0..count).try_for_each(|_| socket.send_to(b"?", vip).map(drop))?;
        }
        Ok(())
    };
    site.topology().client().run_in_thread(sending).unwrap().unwrap();
}

/// Waits until the controller lists exactly the expected rules with their packets and fallbacks, and until the total of
/// fallbacks of the service `bulk` has the given value.
#[track_caller]
fn assert_counted(site: &Site, expected: &[(u16, u64, u64)], fallbacks: f64) {
    let expected: BTreeMap<String, (u64, u64)> =
        expected.iter().map(|&(client, packets, fallbacks)| (prefix(site, client), (packets, fallbacks))).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list: Vec<Value> = serde_json::from_str(&site.cli(&["rule", "list", "--json"]).unwrap()).unwrap();
        let number = |rule: &Value, name: &str| rule[name].as_u64().unwrap();
        let rules: BTreeMap<String, (u64, u64)> = list
            .iter()
            .map(|rule| {
                let prefix = rule["prefix"].as_str().unwrap().to_owned();
                (prefix, (number(rule, "packets"), number(rule, "fallbacks")))
            })
            .collect();
        let all = site.metrics().unwrap().sum("rule_fallbacks_total", &["service=\"bulk\""]).unwrap();
        if (&rules, all) == (&expected, fallbacks) {
            return;
        }
        assert!(Instant::now() < deadline, "{rules:?} with {all} fallbacks, not {expected:?} with {fallbacks}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn when_the_controller_restarts_then_rules_continue_counting() {
    let mut site = site();
    let rule = |site: &Site, client: u16, action: &[&str]| {
        site.cli(&[&["rule", "add", "bulk", &prefix(site, client)], action].concat()).unwrap();
    };
    site.cli(&["backend", "maint", "bulk/web2"]).unwrap();
    rule(&site, 1, &["pin", "web1"]);
    rule(&site, 2, &["spread"]);
    rule(&site, 3, &["pin", "web2"]);
    send(&site, 1..=3, 10);
    assert_counted(&site, &[(1, 10, 0), (2, 10, 0), (3, 0, 10)], 10.0);

    site.controller().process().kill().unwrap();
    send(&site, 1..=3, 5);
    site.start_again().unwrap();
    assert_counted(&site, &[(1, 15, 0), (2, 15, 0), (3, 0, 15)], 15.0);

    // The total of the service still includes a removed rule, and a new rule starts at zero.
    site.cli(&["rule", "remove", "bulk", &prefix(&site, 3)]).unwrap();
    rule(&site, 4, &["deny"]);
    assert_counted(&site, &[(1, 15, 0), (2, 15, 0), (4, 0, 0)], 15.0);
    site.kill_and_restart(|_| {}).unwrap();
    send(&site, 1..=4, 7);
    assert_counted(&site, &[(1, 22, 0), (2, 22, 0), (4, 7, 0)], 15.0);
    rule(&site, 3, &["pin", "web2"]);
    send(&site, 3..=3, 3);
    assert_counted(&site, &[(1, 22, 0), (2, 22, 0), (3, 0, 3), (4, 7, 0)], 18.0);

    // The next rule expires while no controller runs. The sleep lasts as long as the rule.
    rule(&site, 5, &["pin", "web2", "--ttl", "5s"]);
    let added = Instant::now();
    send(&site, 5..=5, 4);
    site.controller().process().kill().unwrap();
    thread::sleep(Duration::from_secs(6).saturating_sub(added.elapsed()));
    site.start_again().unwrap();
    assert_counted(&site, &[(1, 22, 0), (2, 22, 0), (3, 0, 3), (4, 7, 0)], 22.0);
    site.restart(|_| {}).unwrap();
    send(&site, 1..=2, 1);
    assert_counted(&site, &[(1, 23, 0), (2, 23, 0), (3, 0, 3), (4, 7, 0)], 22.0);
}

#[test]
fn when_the_state_does_not_have_a_rule_then_the_rule_is_gone() {
    let mut site = site();
    let (state, before) = (site.files().join("state.json"), site.files().join("before"));
    fs::copy(&state, &before).unwrap();
    site.cli(&["rule", "add", "web", &prefix(&site, 4), "deny"]).unwrap();
    assert!(site.ask(FAMILY, [4], Duration::from_millis(300)).unwrap()[0].is_err());
    site.controller().process().kill().unwrap();
    fs::copy(&before, &state).unwrap();
    site.start_again().unwrap();
    assert_eq!(site.cli(&["rule", "list", "--json"]).unwrap().trim(), "[]");
    // From this point, the program looks up rules for packets of `web`.
    site.cli(&["rule", "add", "web", &prefix(&site, 1), "spread"]).unwrap();
    site.homes(FAMILY, [4]).unwrap();
}

/// Waits until the output of `stats` contains a period of `web`, and returns the period.
#[track_caller]
fn told(site: &Site, period: &str) -> PeriodView {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats: Vec<StatsView> = serde_json::from_str(&site.cli(&["stats", "web", "--json"]).unwrap()).unwrap();
        if let Some(found) = stats[0].periods.iter().find(|other| other.period == period) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "no {period}: {stats:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn when_the_controller_restarts_then_the_last_minute_and_hour_continue() {
    let visitors = VISITORS.count() as u64;
    let mut site = site();
    let begun = Instant::now();
    told(&site, "hour");
    site.homes(FAMILY, VISITORS).unwrap();
    assert_eq!(told(&site, "hour").connections, visitors);
    for visits in 2..=4 {
        let before = told(&site, "hour");
        site.kill_and_restart(|_| {}).unwrap();
        // The test reads the statistics before the new controller takes its first sample.
        let hour = told(&site, "hour");
        assert_eq!((hour.connections, &hour.decisions), (before.connections, &before.decisions));
        assert!(hour.seconds >= before.seconds, "{hour:?} after {before:?}");
        site.homes(FAMILY, VISITORS).unwrap();
        let hour = told(&site, "hour");
        assert_eq!((hour.connections, hour.decisions["kept"]), (visits * visitors, (visits - 1) * visitors));
        let minute = told(&site, "minute");
        let since = if begun.elapsed() < Duration::from_secs(50) { visits } else { 1 };
        assert!((since * visitors..=hour.connections).contains(&minute.connections), "{minute:?} of {hour:?}");
    }
    site.restart(|_| {}).unwrap();
    assert_eq!(told(&site, "hour").connections, 4 * visitors);

    // The next start creates new maps, so all statistics start at zero.
    site.controller().process().stop().unwrap();
    assert!(site.detach().unwrap().status.success());
    let anew = Instant::now();
    site.start_again().unwrap();
    find_the_way_to_the_clients(&site);
    assert_eq!(told(&site, "hour").connections, 0);
    site.homes(FAMILY, VISITORS).unwrap();
    for _ in 0..2 {
        let hour = told(&site, "hour");
        assert_eq!(hour.connections, visitors);
        assert!(hour.seconds.unwrap() <= anew.elapsed().as_secs(), "{hour:?} is of other maps");
        site.kill_and_restart(|_| {}).unwrap();
    }
}

/// Returns the numbers of checks and state changes of all backends, including removed ones, and the numbers of moved
/// slots and of connections.
fn counted(site: &Site) -> [f64; 4] {
    let metrics = site.metrics().unwrap();
    let names = ["health_checks_total", "backend_transitions_total", "table_slots_moved_total", "connections_total"];
    names.map(|name| metrics.sum(name, &[]).unwrap_or_default())
}

#[test]
fn when_the_maps_are_gone_then_all_counters_begin_at_0() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.check = QUICK_CHECK.to_owned();
        Ok(())
    })
    .unwrap();
    (1..=2).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    site.homes(FAMILY, VISITORS).unwrap();
    site.cli(&["backend", "remove", "web/web2", "--force"]).unwrap();
    wait("the checks are not counted", || counted(&site)[0] >= 30.0);
    let before = counted(&site);
    assert!(before.iter().all(|&count| count > 0.0), "{before:?}");
    // From this point, checks are an hour apart, so counters that start at zero stay below the last values, whatever
    // the state file contains.
    site.restart(|settings| settings.check = r#"{ type = "tcp", interval = "1h" }"#.to_owned()).unwrap();
    let after = counted(&site);
    assert!(after[0] <= 4.0 && after[1..].iter().zip(&before[1..]).all(|(after, before)| after < before), "{after:?}");
    assert_eq!(after[3], 0.0, "{after:?}");
}
