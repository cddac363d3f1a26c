//! Tests that changes which users make at run time stay in effect for each client after restarts with `on_exit =
//! "keep"`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    namespace::join,
    site::{PATIENCE, Settings, Site},
    topology::{Family, Shape},
    users::Users,
};
use serde_json::Value;

use super::{restart::pins, support::never_backwards};

const FAMILY: Family = Family::V4;

fn kill_and_restart(site: &mut Site) {
    let before = site.metrics().unwrap();
    site.kill_and_restart(|_| {}).unwrap();
    never_backwards(&before, &site.metrics().unwrap(), |_| true);
}

#[test]
fn when_the_controller_is_killed_then_run_time_changes_survive() {
    let mut users = Users::new(Forwarding::Nat, |settings| settings.on_exit = "keep");
    users.visit(1..=300);
    users.add_web5();
    users.visit(301..=500);
    users.wait_counted();
    let address = |client| users.site.topology().client_address(FAMILY, client).to_string();
    let (pinned, denied) = (format!("{}/32", address(600)), format!("{}/32", address(601)));
    for arguments in [
        vec!["backend", "weight", "web/web5", "7"],
        vec!["backend", "drain", "web/web1", "--timeout", "1h"],
        vec!["backend", "remove", "web/web2", "--force"],
        vec!["health", "force", "web/web3", "down"],
        vec!["rule", "add", "web", &pinned, "pin", "web5"],
        vec!["rule", "add", "web", &denied, "deny"],
    ] {
        users.site.cli(&arguments).unwrap();
    }
    users.site.fail_backend(4, "reset").unwrap();
    users.site.wait_state(4, &["down"]).unwrap();
    // The controller writes automatic changes to the disk with a delay of half a second.
    thread::sleep(Duration::from_secs(2));

    let deadline = |site: &Site| {
        site.metrics().unwrap().sum("backend_drain_deadline_timestamp_seconds", &["backend=\"web1\""]).unwrap()
    };
    let rules = users.site.cli(&["rule", "list", "--json"]).unwrap();
    let (ends, before) = (deadline(&users.site), users.site.status().unwrap());
    kill_and_restart(&mut users.site);
    let after = users.site.status().unwrap();
    for (before, after) in before.services[0].backends.iter().zip(&after.services[0].backends) {
        let of = |backend: &balancer_api::model::BackendView| {
            (backend.name.clone(), backend.state.clone(), backend.weight, backend.slots)
        };
        assert_eq!(of(after), of(before), "right after the start");
    }
    assert_eq!(after.services[0].table_generation, before.services[0].table_generation);
    assert_eq!(users.site.cli(&["rule", "list", "--json"]).unwrap(), rules);
    assert!((deadline(&users.site) - ends).abs() < 2.0, "the drain ends at another time");
    assert!(users.site.ask(FAMILY, [601], Duration::from_millis(300)).unwrap()[0].is_err(), "it was denied");

    // No client has sent a packet between the changes and the kill, so exactly the clients of the three backends move
    // after the restart.
    let of = ["web2", "web3", "web4"].map(|backend| users.clients_of(backend));
    let expected: BTreeSet<u16> = of.iter().flatten().copied().collect();
    assert!(of.iter().all(|clients| clients.len() >= 20), "{:?}", users.homes());
    let moved = users.visit(1..=500);
    assert_eq!(moved.into_keys().collect::<BTreeSet<_>>(), expected);
    let expected = [("removed", of[0].len() as u64), ("down", (of[1].len() + of[2].len()) as u64)];
    users.assert_moves(&expected);
    users.visit([600]);
    assert_eq!(users.clients_of("web5").last(), Some(&600));

    for _ in 0..2 {
        kill_and_restart(&mut users.site);
        assert_eq!(users.shown(1).0, "draining");
        assert_eq!((users.shown(3).0, users.shown(4).0), ("down".to_owned(), "down".to_owned()));
        users.nobody_moves("when the balancer was killed");
        users.assert_moves(&expected);
    }
    users.site.fail_backend(4, "ok").unwrap();
    users.site.wait_state(4, &["up"]).unwrap();
    users.nobody_moves("when web4 was back");
    users.assert_moves(&expected);
    println!("3 kills: {expected:?}, nobody twice");
}

/// Returns how many seconds ago the balancer last saw a client, or `None` if the client is not known.
fn known(site: &Site, client: u16) -> Option<u64> {
    let address = site.topology().client_address(FAMILY, client).to_string();
    let text = site.cli(&["client", "where", &address, "--service", "web", "--json"]).unwrap();
    let view: Value = serde_json::from_str(&text).unwrap();
    view["last_seen_seconds_ago"].as_u64().filter(|_| view["known"] == true)
}

#[test]
fn when_the_controller_restarts_then_clients_are_remembered_for_the_right_time() {
    const REMEMBER: f64 = 10.0;
    let mut users = Users::new(Forwarding::Dsr, |settings| {
        settings.on_exit = "keep";
        settings.remember = "10s";
    });
    let begun = Instant::now();
    users.visit([1]);
    let seen = Instant::now();
    // The balancer's clock stands still while no controller runs, so the program forgets no client during that time.
    // Each restart loses a fraction of a second of the clients' ages.
    let mut lost = 0.0;
    for _ in 0..2 {
        let killed = Instant::now();
        kill_and_restart(&mut users.site);
        lost += killed.elapsed().as_secs_f64() + 1.0;
        let least = seen.elapsed().as_secs_f64() - lost;
        let Some(ago) = known(&users.site, 1) else {
            assert!(begun.elapsed().as_secs_f64() > REMEMBER - 2.0, "forgotten too early");
            break;
        };
        // The measured age is not exact, because a tick lasts one second and the request takes some time.
        let (ago, most) = (ago as f64, begun.elapsed().as_secs_f64());
        assert!(ago > least - 2.5 && ago < most + 2.5, "seen {ago} s ago, it was {least} to {most}");
    }
    let mut last = seen;
    loop {
        let asked = Instant::now();
        if known(&users.site, 1).is_none() {
            break;
        }
        last = asked;
        assert!((last - begun).as_secs_f64() < REMEMBER + lost + 3.0, "known after {:?}", last - begun);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(begun.elapsed().as_secs_f64() > REMEMBER - 2.0, "forgotten {:?} after it came", begun.elapsed());
    println!(
        "remember = 10s: known until {:?} after its last connection, {lost:.1} s of them in 2 restarts",
        last - seen
    );
}

/// Starts a site with 100 known clients and a client table that has the given capacity and survives restarts. Without
/// the client table, many of the clients would move to the new backend.
fn known_in_a_table_for(capacity: u32) -> Users {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.on_exit = "keep";
        settings.lines = format!("[client_table]\ncapacity = {capacity}");
    });
    users.visit(1..=100);
    users.add_web5();
    users
}

#[test]
fn when_the_capacity_of_a_kept_client_table_changes_then_nobody_moves() {
    let mut users = known_in_a_table_for(4096);
    for (capacity, orderly) in [(100_000, true), (1000, true), (4_000_000, true), (262_144, false)] {
        let change = |settings: &mut Settings| settings.lines = format!("[client_table]\ncapacity = {capacity}");
        if orderly {
            users.site.restart(change).unwrap();
        } else {
            users.site.kill_and_restart(change).unwrap();
        }
        users.nobody_moves(&format!("when the capacity became {capacity}"));
        let metrics = users.site.metrics().unwrap();
        assert_eq!(metrics.sum("client_table_capacity", &[]).unwrap(), f64::from(capacity));
        let log = fs::read_to_string(users.site.files().join("balancer.log")).unwrap();
        assert!(log.contains("clients are carried over") && !log.contains("forgotten"), "{log}");
    }
    users.assert_moves(&[]);
    // The balancer does not keep client tables that it has replaced.
    let tables = fs::read_dir(pins(&users.site)).unwrap().map(|pin| pin.unwrap().file_name().into_string().unwrap());
    assert_eq!(tables.filter(|name| name.contains("CLIENTS")).collect::<Vec<_>>(), ["KNOWN_CLIENTS"]);
}

#[test]
fn when_starts_with_other_capacities_are_killed_at_any_moment_then_nobody_moves() {
    let mut users = known_in_a_table_for(1_000_000);
    users.site.controller().process().stop().unwrap();
    let text = fs::read_to_string(users.site.config()).unwrap();
    let with = |capacity: u32| text.replace("capacity = 1000000", &format!("capacity = {capacity}"));
    for number in (1..=16).step_by(2) {
        fs::write(users.site.config(), with(if number % 4 == 1 { 20_000 } else { 2_000_000 })).unwrap();
        let mut command = users.site.topology().balancer().command(binaries::balancer().unwrap());
        let mut start = command.arg("run").arg("--config").arg(users.site.config()).spawn().unwrap();
        thread::sleep(Duration::from_millis(70) * number);
        start.kill().unwrap();
        start.wait().unwrap();
        // A new client connects through the program that is attached now.
        users.visit([100 + number as u16]);
    }
    fs::write(users.site.config(), with(300_000)).unwrap();
    users.site.restart_with_the_file_as_it_is().unwrap();
    users.nobody_moves("when starts were killed");
    users.assert_moves(&[]);
}

/// Returns the configuration of `count` services in addition to `web`. Each service has `backends` backends, which
/// share an unused address, and a lookup table of `table_size` slots.
fn others(count: u16, table_size: u32, backends: u16, remember: &str) -> String {
    let mut text = String::new();
    for service in 0..count {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"other{service}\"\naddress = \"198.18.0.{}:80\"\nforwarding = \"nat\"\n\
             table_size = {table_size}\nremember = \"{remember}\"\ncheck = {{ type = \"none\" }}\n",
            service + 1
        );
        for backend in 0..backends {
            let port = 1000 + service * backends + backend;
            let _ = write!(text, "[[service.backend]]\nname = \"b{backend}\"\naddress = \"198.18.9.9:{port}\"\n");
        }
    }
    text
}

/// Checks that a start serves the current file regardless of the previous state, and that the client table has the size
/// that the file requires.
fn starts_whatever_was_before(on_exit: &'static str) {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.on_exit = on_exit;
        settings.remember = "0s";
        Ok(())
    })
    .unwrap();
    let capacity = |of: u32| format!("[client_table]\ncapacity = {of}\n");
    // Each step has a title, additional lines of the file, the `remember` of `web`, the number of services, and the
    // resulting size of the client table.
    let steps = [
        ("many services and tables", others(24, 65_537, 60, "60s"), "60s", 25, 262_144),
        ("one service", String::new(), "60s", 1, 262_144),
        ("few, and much larger tables", others(2, 1_000_003, 3, "60s"), "60s", 3, 262_144),
        ("many small ones", others(100, 251, 14, "0s"), "60s", 101, 262_144),
        ("a smaller client table", capacity(4096), "60s", 1, 4096),
        ("nobody remembers", capacity(4096) + &others(3, 65_537, 60, "0s"), "0s", 4, 1),
        ("one again", String::new(), "60s", 1, 262_144),
    ];
    for (what, lines, remember, services, clients) in steps {
        site.restart(|settings| (settings.lines, settings.remember) = (lines, remember)).expect(what);
        assert_eq!(site.status().unwrap().services.len(), services, "{what}");
        let room = site.metrics().unwrap().sum("client_table_capacity", &[]).unwrap();
        assert_eq!(room, f64::from(clients), "{what}");
        assert_eq!(site.homes(FAMILY, 1..=20).expect(what).len(), 20);
        let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
        assert!(!log.contains("cannot replace") && !log.contains("nothing is served"), "{what}: {log}");
    }
}

#[test]
fn when_the_configuration_shrinks_or_grows_with_keep_then_the_balancer_starts() {
    starts_whatever_was_before("keep");
}

#[test]
fn when_a_client_table_was_made_without_memory_then_a_new_one_is_made() {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.on_exit = "keep";
        settings.remember = "0s";
    });
    users.site.restart(|settings| settings.remember = "60s").unwrap();
    assert_eq!(users.site.metrics().unwrap().sum("client_table_capacity", &[]).unwrap(), 262_144.0);
    users.visit(1..=300);
    users.site.kill_and_restart(|_| {}).unwrap();
    users.add_web5();
    users.nobody_moves("when a backend was added");
}

#[test]
fn when_interfaces_change_over_restarts_then_programs_follow() {
    let more = |site: &Site| -> bool {
        let shown = site.topology().balancer().ip("-details link show more0").unwrap();
        shown.contains("xdp")
    };
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        join((topology.balancer(), "more0"), (topology.switch(), "more1"))?;
        settings.on_exit = "keep";
        settings.remember = "60s";
        Ok(())
    })
    .unwrap();
    let homes = site.homes(FAMILY, 1..=60).unwrap();
    for with in [true, false, true] {
        site.restart(|settings| {
            settings.interfaces = vec!["eth0".to_owned()];
            settings.interfaces.extend(with.then(|| "more0".to_owned()));
        })
        .unwrap();
        assert_eq!(site.status().unwrap().interfaces.len(), 1 + usize::from(with));
        assert_eq!(more(&site), with, "a program on the interface");
        assert_eq!(site.ask(FAMILY, [1], PATIENCE).unwrap()[0].as_ref().unwrap().backend, homes[&1]);
        assert_eq!(site.homes(FAMILY, 1..=60).unwrap(), homes);
    }
    let moves = site.metrics().unwrap().sum("moves_total", &["service=\"web\""]).unwrap();
    assert_eq!(moves, 0.0);
}
