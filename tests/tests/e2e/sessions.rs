//! Tests of sessions with client memory, as users see them: which users keep their session, which users lose it for
//! which reason, and which losses the balancer counts.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::AtomicBool,
    thread,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    datagrams,
    site::{PATIENCE, Site, counts},
    stop::StopOnDrop,
    topology::{Family, Shape},
    users::{Users, find_the_way_to_the_clients},
};
use serde_json::Value;

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=300;
const NEWCOMERS: std::ops::RangeInclusive<u16> = 301..=500;
const LATE: std::ops::RangeInclusive<u16> = 501..=600;
const LAST: std::ops::RangeInclusive<u16> = 601..=650;
const FAMILY: Family = Family::V4;

fn known_clients_stay_through_every_change(forwarding: Forwarding) {
    let mut users = Users::new(forwarding, |_| {});
    users.visit(CLIENTS);
    users.add_web5();
    users.nobody_moves("when a backend was added");
    for (backend, weight) in [("web/web1", "10"), ("web/web3", "300"), ("web/web5", "500"), ("web/web4", "0")] {
        users.site.cli(&["backend", "weight", backend, weight]).unwrap();
    }
    users.nobody_moves("when weights were changed");
    println!("{}", users.site.cli(&["backend", "drain", "web/web2"]).unwrap());
    assert_eq!(users.shown(2).0, "draining");
    users.nobody_moves("while web2 drained");
    users.site.cli(&["backend", "ready", "web/web2"]).unwrap();
    assert_eq!(users.shown(2).0, "up");
    users.nobody_moves("when web2 was ready again");

    users.assert_moves(&[]);
    let clients = CLIENTS.count() as u64;
    assert_eq!((users.decided("new"), users.decided("kept")), (clients as f64, (4 * clients) as f64));
    let connections = users.site.metrics().unwrap().sum("connections_total", &["service=\"web\""]).unwrap();
    assert_eq!(connections, (5 * clients) as f64);
    println!("{forwarding:?}: {} clients, 5 connections each, 0 moved: {:?}", clients, users.homes());
}

#[test]
fn when_backends_change_with_nat_then_known_clients_stay() {
    known_clients_stay_through_every_change(Forwarding::Nat);
}

#[test]
fn when_a_backend_drains_then_known_clients_stay_until_the_deadline() {
    let mut users = Users::new(Forwarding::Nat, |_| {});
    users.visit(CLIENTS);
    users.wait_counted();
    users.site.cli(&["backend", "drain", "web/web2", "--timeout", "1h"]).unwrap();
    assert_eq!(users.shown(2).0, "draining");
    users.visit(NEWCOMERS);
    let late = users.clients_of("web2").into_iter().filter(|client| NEWCOMERS.contains(client)).count();
    assert_eq!(late, 0, "new clients of a draining backend");
    users.nobody_moves("while web2 drained");
    users.wait_counted();

    // `cli` fails unless the exit code of the command is 0.
    let said = users.site.cli(&["backend", "drain", "web/web2", "--timeout", "5s", "--wait"]).unwrap();
    assert!(said.contains("backend web/web2 drained"), "{said}");
    assert_eq!(users.shown(2).0, "drained");
    let moved = users.only_its_clients_move("web2");
    users.assert_moves(&[("drain", moved)]);
    println!("{moved} clients of web2 moved at the deadline, once each");

    // The balancer knows no client at web5, so the drain ends without waiting for an hour.
    users.site.cli(&["backend", "weight", "web/web1", "0"]).unwrap();
    users.add_web5();
    let arguments = ["backend", "drain", "web/web5", "--timeout", "1h", "--wait", "--wait-timeout", "20s"];
    let said = users.site.cli(&arguments).unwrap();
    assert!(said.contains("backend web/web5 drained"), "{said}");
    assert_eq!(users.shown(5).0, "drained");
}

#[test]
fn when_a_backend_is_killed_then_its_clients_move_once_and_stay() {
    let mut users = Users::new(Forwarding::Dsr, |_| {});
    users.visit(CLIENTS);
    users.site.kill_backend(3).unwrap();
    users.site.wait_state(3, &["down"]).unwrap();
    let moved = users.only_its_clients_move("web3");
    println!("{moved} clients of web3 moved: {:?}", users.homes());
    users.site.start_backend(3).unwrap();
    users.site.wait_state(3, &["up"]).unwrap();
    users.nobody_moves("when web3 was back");
    users.visit(NEWCOMERS);
    assert!(users.clients_of("web3").len() >= 20, "new clients of web3: {:?}", users.homes());
    users.assert_moves(&[("down", moved)]);
}

#[test]
fn when_failback_is_return_then_moved_clients_go_home() {
    let mut users = Users::new(Forwarding::Nat, |settings| settings.service_lines += "failback = \"return\"\n");
    users.visit(CLIENTS);
    let home = users.clients_of("web3");
    users.site.kill_backend(3).unwrap();
    users.site.wait_state(3, &["down"]).unwrap();
    let away = users.only_its_clients_move("web3");
    users.visit(NEWCOMERS);
    users.site.start_backend(3).unwrap();
    users.site.wait_state(3, &["up"]).unwrap();
    let returned = users.visit(CLIENTS.chain(NEWCOMERS));
    assert_eq!(returned.into_keys().collect::<Vec<_>>(), home);
    assert_eq!(users.clients_of("web3"), home);
    users.nobody_moves("at home");
    users.assert_moves(&[("down", away), ("failback", away)]);
}

#[test]
fn when_a_backend_fails_softly_then_it_drains() {
    let mut users = Users::new(Forwarding::Nat, |_| {});
    users.visit(CLIENTS);
    users.site.fail_backend(2, "503").unwrap();
    users.site.wait_state(2, &["draining (health)"]).unwrap();
    assert!(users.shown(2).1.contains("status 503"), "{:?}", users.shown(2));
    users.nobody_moves("when web2 said no");
    users.visit(NEWCOMERS);
    assert!(users.clients_of("web2").iter().all(|client| CLIENTS.contains(client)), "new clients at web2");
    users.site.fail_backend(2, "ok").unwrap();
    users.site.wait_state(2, &["up"]).unwrap();
    users.nobody_moves("when web2 said yes");
    users.visit(501..=700);
    assert!(users.clients_of("web2").iter().any(|&client| client > 500), "no new clients at web2");
    users.assert_moves(&[]);
}

#[test]
fn when_a_backend_is_in_maintenance_or_removed_then_its_clients_move_with_that_reason() {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.service_lines += "drain = { timeout = \"5s\" }\n";
    });
    users.visit(CLIENTS);
    users.site.cli(&["backend", "maint", "web/web1"]).unwrap();
    assert_eq!(users.shown(1).0, "maint");
    let maint = users.only_its_clients_move("web1");
    users.assert_moves(&[("maint", maint)]);
    users.site.cli(&["backend", "ready", "web/web1"]).unwrap();

    users.wait_counted();
    // The sweep has not yet counted the clients that connected last.
    users.visit(LATE);
    let said = users.site.cli(&["backend", "remove", "web/web2"]).unwrap();
    assert!(said.contains("drains before it is removed"), "{said}");
    let known = users.clients_of("web2").len();
    assert!(said.contains(&format!("; {known} known clients")), "{known} are there: {said}");
    assert_eq!(users.shown(2).0, "draining");
    users.nobody_moves("while web2 drained");
    let gone = |status: &balancer_api::model::StatusView| {
        status.services[0].backends.iter().all(|backend| backend.name != "web2")
    };
    users.site.controller().wait_for(PATIENCE, "the removal of web2", gone).unwrap();
    let drain = users.only_its_clients_move("web2");
    users.assert_moves(&[("maint", maint), ("drain", drain)]);

    users.site.cli(&["backend", "remove", "web/web3", "--force"]).unwrap();
    assert_eq!(users.site.status().unwrap().services[0].backends.len(), 2);
    let removed = users.only_its_clients_move("web3");
    users.assert_moves(&[("maint", maint), ("drain", drain), ("removed", removed)]);
    // The balancer keeps the counts of a removed backend when it reuses the backend's row for another backend. The
    // sweep that has counted the last clients has also found that no client is left at the removed backends.
    users.visit(LAST);
    users.wait_counted();
    users.add_web5();
    users.assert_moves(&[("maint", maint), ("drain", drain), ("removed", removed)]);
}

fn client_where(site: &Site, client: u16) -> Value {
    let address = site.topology().client_address(FAMILY, client).to_string();
    let text = site.cli(&["client", "where", &address, "--service", "web", "--json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn when_a_client_is_looked_up_then_the_answer_is_its_real_backend() {
    let mut users = Users::new(Forwarding::Nat, |_| {});
    let view = client_where(&users.site, 1);
    assert_eq!(
        (&view["known"], &view["why"], &view["last_seen_seconds_ago"]),
        (&false.into(), &"table".into(), &Value::Null)
    );
    users.visit(CLIENTS);
    // For half of the clients, the lookup table now names another backend.
    users.add_web5();
    users.site.cli(&["backend", "weight", "web/web5", "400"]).unwrap();
    users.site.cli(&["backend", "drain", "web/web1"]).unwrap();
    let mut off_the_table = 0;
    for client in CLIENTS.step_by(5) {
        let view = client_where(&users.site, client);
        assert_eq!(view["backend"], users.sessions[&client].backend, "{view}");
        assert_eq!((&view["known"], &view["why"]), (&true.into(), &"known".into()), "{view}");
        assert!(view["last_seen_seconds_ago"].as_u64().is_some_and(|seconds| seconds <= 60), "{view}");
        let newcomer = client_where(&users.site, client + 1000);
        assert_eq!((&newcomer["known"], &newcomer["why"]), (&false.into(), &"table".into()));
        assert_ne!(newcomer["backend"], "web1");
        off_the_table += u32::from(users.sessions[&client].backend == "web1");
    }
    assert!(off_the_table > 0);
    users.wait_counted();
    let known: u64 =
        users.site.status().unwrap().services[0].backends.iter().map(|backend| backend.known_clients).sum();
    assert_eq!(known, CLIENTS.count() as u64);
}

#[test]
fn when_addresses_share_a_client_prefix_then_they_are_one_client() {
    let mut users = Users::new(Forwarding::Nat, |settings| settings.prefix_v4 = 24);
    // In each of forty networks 10.1.N.0/24, two clients connect: 10.1.N.1 and 10.1.N.200.
    let first = (0..40u16).map(|net| net << 8 | 1);
    users.visit(first.clone());
    users.add_web5();
    users.visit(first.clone().map(|client| client + 199));
    for client in first {
        assert_eq!(users.sessions[&client].backend, users.sessions[&(client + 199)].backend, "client {client}");
    }
    assert!(users.homes().len() >= 3, "{:?}", users.homes());
    assert_eq!((users.decided("new"), users.decided("kept")), (40.0, 40.0));
    let view = client_where(&users.site, 1);
    assert_eq!((&view["client"], &view["known"]), (&"10.1.0.0/24".into(), &true.into()));
}

/// Tests a service `echo` that starts with three backends and later gets a fourth backend.
fn datagrams_stick(forwarding: Forwarding) {
    const PORT: u16 = 5300;
    let site = Site::start(Shape::OneLegged, forwarding, 4, |settings, topology| {
        let port = if forwarding == Forwarding::Nat { 5301 } else { PORT };
        let vip = SocketAddr::new(topology.vip(FAMILY), PORT);
        let mode = if forwarding == Forwarding::Nat { "nat" } else { "dsr" };
        settings.lines = format!(
            "[[service]]\nname = \"echo\"\naddress = \"{vip}\"\nprotocol = \"udp\"\nforwarding = \"{mode}\"\n\
             remember = \"60s\"\ncheck = {{ type = \"none\" }}\n"
        );
        for number in 1..=3 {
            let address = SocketAddr::new(topology.backend_address(FAMILY, number - 1), port);
            settings.lines += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
        }
        Ok(())
    })
    .unwrap();
    let vip = SocketAddr::new(site.topology().vip(FAMILY), PORT);
    find_the_way_to_the_clients(&site);
    let stop = AtomicBool::new(false);
    let sum = |name: &str| site.metrics().unwrap().sum(name, &["service=\"echo\""]).unwrap();
    thread::scope(|scope| {
        for number in 1..=4u16 {
            let (site, stop) = (&site, &stop);
            let own = match forwarding {
                Forwarding::Nat | Forwarding::Snat => {
                    SocketAddr::new(site.topology().backend_address(FAMILY, number - 1), 5301)
                }
                Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => vip,
            };
            let host = &site.topology().backends()[usize::from(number) - 1];
            let socket = host.run_in_thread(|| UdpSocket::bind(own)).unwrap().unwrap();
            scope.spawn(move || datagrams::answer_with(&socket, &format!("web{number}"), stop).unwrap());
        }
        let _stop = StopOnDrop(&stop);
        let ask = |clients| datagrams::ask(site.topology(), FAMILY, clients, vip, b"?").unwrap();
        let homes = ask(CLIENTS);
        assert_eq!(counts(homes.values()).len(), 3);
        let address = SocketAddr::new(
            site.topology().backend_address(FAMILY, 3),
            if forwarding == Forwarding::Nat { 5301 } else { PORT },
        );
        site.cli(&["backend", "add", "echo/web4", &address.to_string()]).unwrap();
        site.cli(&["backend", "drain", "echo/web1"]).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(CLIENTS), homes, "{forwarding:?}");
        }
        let clients = CLIENTS.count() as f64;
        assert_eq!(
            (sum("connections_total"), sum("decisions_total")),
            (clients, clients),
            "4 datagrams of each client"
        );
        let newcomers = ask(NEWCOMERS);
        assert!(newcomers.values().all(|home| home != "web1") && newcomers.values().any(|home| home == "web4"));
    });
}

#[test]
fn when_clients_send_datagrams_with_nat_then_they_stay() {
    datagrams_stick(Forwarding::Nat);
}
