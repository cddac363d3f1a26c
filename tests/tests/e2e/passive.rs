//! Tests of a server that dies between two checks, which are an hour apart: the balancer still detects the failure,
//! because it observes clients' packets. If the whole machine dies, so that checks time out, regular checks confirm it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    frame::Frame,
    site::Site,
    topology::{Family, Shape},
};
use socket2::{Domain, Socket, Type};

use crate::support::wait_for;

const CLIENTS: RangeInclusive<u16> = 1..=60;
const VICTIM: u16 = 2;
/// The time limit of a connection whose client sends the SYN three times, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Regular checks are an hour apart.
const HOURLY: &str = r#"interval = "1h", fast_interval = "1h", timeout = "1s""#;
/// Regular checks confirm time-outs within two seconds.
const SOON: &str = r#"interval = "500ms", fast_interval = "500ms", timeout = "500ms""#;

fn site(forwarding: Forwarding, families: &[Family], check: &'static str) -> Site {
    let mut site = Site::start(Shape::OneLegged, forwarding, 4, |settings, _| {
        settings.families = families.to_vec();
        settings.check = format!(r#"{{ type = "tcp", {check} }}"#);
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
        // If the machine of the server itself refuses the connections, the clients get the errors at once.
        let _answers = site.ask(family, clients.iter().copied(), Duration::from_millis(300)).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}

/// Kills a server, in each of the given modes and families; the balancer must learn this from its clients' packets.
fn no_new_connection_fails(cells: &[(Forwarding, Family)]) {
    for &(forwarding, family) in cells {
        let mut site = site(forwarding, &[family], HOURLY);
        let before = site.homes(family, CLIENTS).unwrap();
        assert!(!victims(&before).is_empty());
        site.kill_backend(VICTIM).unwrap();
        let after = site.homes_within(PATIENCE, family, CLIENTS).unwrap();
        assert!(after.values().all(|home| home != "web2"));
        assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home));
        let withheld = site.metrics().unwrap().sum("withheld_total", &[]).unwrap();
        assert!(withheld >= 1.0, "{withheld}");
        assert!(signals(&site, "refused") >= 1.0, "{:?}", site.metrics_text());
        let events = site.cli(&["events"]).unwrap();
        assert!(events.contains("web2 was checked at once, because it refuses connections"), "{events}");
    }
}

#[test]
fn when_a_server_behind_translated_addresses_is_killed_then_no_new_connection_fails() {
    no_new_connection_fails(&[(Forwarding::Nat, Family::V4), (Forwarding::Snat, Family::V6)]);
}

fn signals(site: &Site, kind: &str) -> f64 {
    let labels = [&format!("backend=\"web{VICTIM}\"")[..], &format!("signal=\"{kind}\"")];
    site.metrics().unwrap().sum("signals_total", &labels).unwrap_or_default()
}

/// Returns the number of successful checks of the failing server.
fn passed(site: &Site) -> f64 {
    let labels = [&format!("backend=\"web{VICTIM}\"")[..], "result=\"passed\""];
    site.metrics().unwrap().sum("health_checks_total", &labels).unwrap()
}

fn moves(site: &Site) -> f64 {
    site.metrics().unwrap().sum("moves_total", &[]).unwrap_or_default()
}

/// The servers close the port of the service, while checks use another port, which stays open.
#[test]
fn when_a_port_is_closed_on_purpose_then_clients_learn_so_and_nothing_moves() {
    const CHECKED: u16 = 9999;
    let mut listeners = Vec::new();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, topology| {
        let check = r#"{ type = "tcp", port = 9999, interval = "1h", fast_interval = "100ms", timeout = "1s" }"#;
        settings.check = check.to_owned();
        settings.remember = "1h";
        // The listeners start before the first check, because the balancer would repeat a failed check only an hour
        // later.
        for host in topology.backends() {
            listeners.push(host.run_in_thread(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, CHECKED)))??);
        }
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let before = site.homes(Family::V4, CLIENTS).unwrap();
    let victims = victims(&before);
    site.kill_backend(VICTIM).unwrap();
    let (begun, checks) = (Instant::now(), passed(&site));
    let first = site.ask(Family::V4, victims.iter().copied(), PATIENCE).unwrap();
    let withheld = site.metrics().unwrap().sum("withheld_total", &[]).unwrap();
    for _ in 0..20 {
        let replies = site.ask(Family::V4, victims.iter().copied(), PATIENCE).unwrap();
        assert!(replies.iter().chain(&first).all(|reply| refused(reply.as_ref().err())), "{replies:?}");
    }
    let after = site.metrics().unwrap().sum("withheld_total", &[]).unwrap();
    assert!(withheld >= 1.0 && after <= withheld, "{withheld} {after}: once");
    let checks = passed(&site) - checks;
    assert!(signals(&site, "refused") >= 1.0 && checks >= 1.0);
    assert!(checks <= begun.elapsed().as_secs_f64() + 2.0, "{checks} in {:?}", begun.elapsed());
    assert_eq!(moves(&site), 0.0);
    assert_eq!(state(&site, VICTIM), "up");
}

fn refused(error: Option<&io::Error>) -> bool {
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn state(site: &Site, number: u16) -> String {
    site.status().unwrap().services[0].backends[usize::from(number) - 1].state.clone()
}

/// The balancer sees only unanswered handshakes, as in a flood of SYNs from forged addresses, but its checks succeed.
#[test]
fn when_answers_do_not_reach_clients_then_checks_are_few_and_nothing_moves() {
    let site = Site::start(Shape::OneLegged, Forwarding::Dsr, 4, |settings, _| {
        settings.check = CHECK.to_owned();
        settings.remember = "1h";
        Ok(())
    });
    let mut site = site.unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let before = site.homes(Family::V4, CLIENTS).unwrap();
    let host = &site.topology().backends()[usize::from(VICTIM) - 1];
    host.ip("route add blackhole 10.1.0.0/17").unwrap();
    host.ip("route add blackhole 10.1.128.0/17").unwrap();
    let (begun, checks) = (Instant::now(), passed(&site));
    while begun.elapsed() < Duration::from_secs(5) {
        let replies = site.ask(Family::V4, victims(&before), Duration::from_millis(100)).unwrap();
        assert!(replies.iter().all(Result::is_err));
    }
    let (checks, seconds) = (passed(&site) - checks, begun.elapsed().as_secs_f64());
    assert!(signals(&site, "unanswered") >= 1.0);
    assert!((1.0..=seconds + 2.0).contains(&checks), "{checks} in {seconds} s");
    assert_eq!((state(&site, VICTIM).as_str(), moves(&site)), ("up", 0.0));
    let host = &site.topology().backends()[usize::from(VICTIM) - 1];
    host.ip("route del blackhole 10.1.0.0/17").unwrap();
    host.ip("route del blackhole 10.1.128.0/17").unwrap();
    assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), before);
    let events = site.cli(&["events"]).unwrap();
    assert!(!events.contains("was checked at once"), "{events}");
}

/// For some seconds, sends resets from another server's machine, as if `web2` refused the clients' connections.
fn forge_resets(site: &Site, family: Family, time: Duration) {
    const RST_ACK: u8 = 0x14;
    let (server, header) = (site.backend_address(family, VICTIM), if family == Family::V4 { 20 } else { 40 });
    let client = |number| site.topology().client_address(family, number);
    let forged = |number: u16| {
        let to = SocketAddr::new(client(number), 40_000 + number).to_string();
        let mut packet = Frame::tcp(&server.to_string(), &to, RST_ACK).packet();
        packet[header + 4..header + 8].fill(0);
        (packet, SocketAddr::new(client(number), 0))
    };
    let forged: Vec<_> = CLIENTS.map(forged).collect();
    let send = || -> io::Result<()> {
        // With `IPPROTO_RAW`, the sender provides the IP header.
        let raw = Socket::new(Domain::for_address(server), Type::RAW, Some(libc::IPPROTO_RAW.into()))?;
        let begun = Instant::now();
        while begun.elapsed() < time {
            for (packet, to) in &forged {
                raw.send_to(packet, &(*to).into())?;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    site.topology().backends()[2].run_in_thread(send).unwrap().unwrap();
}

fn forged_resets_cause_few_checks(family: Family) {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        settings.families = vec![family];
        (settings.check, settings.remember) = (CHECK.to_owned(), "1h");
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let before = site.homes(family, CLIENTS).unwrap();
    let (begun, checks) = (Instant::now(), passed(&site));
    forge_resets(&site, family, Duration::from_secs(5));
    let (checks, seconds) = (passed(&site) - checks, begun.elapsed().as_secs_f64());
    assert!(signals(&site, "refused") >= 1.0, "{family:?}: {:?}", site.metrics_text());
    assert!((1.0..=seconds + 2.0).contains(&checks), "{family:?}: {checks} in {seconds} s");
    assert_eq!((state(&site, VICTIM).as_str(), moves(&site)), ("up", 0.0));
    assert_eq!(site.homes(family, CLIENTS).unwrap(), before);
    let events = site.cli(&["events"]).unwrap();
    assert!(!events.contains("was checked at once"), "{events}");
}

#[test]
fn when_another_machine_forges_a_servers_resets_then_checks_are_few_and_nothing_moves() {
    forged_resets_cause_few_checks(Family::V4);
}

/// Checks that every client of a killed `nat` server can open a connection to another server, and that no other client
/// moves.
fn nobody_fails(what: &str, lines: &str, prepare: impl FnOnce(&mut Site), dead: &[u16]) {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        settings.check = CHECK.to_owned();
        settings.remember = "1h";
        settings.on_exit = "keep";
        settings.service_lines = lines.to_owned();
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    prepare(&mut site);
    let before = site.homes(Family::V4, CLIENTS).unwrap();
    let names: Vec<String> = dead.iter().map(|number| format!("web{number}")).collect();
    let are_dead = |home: &String| names.contains(home);
    assert!(before.values().any(are_dead), "{what}: {before:?}");
    dead.iter().for_each(|number| site.kill_backend(*number).unwrap());
    let after = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
    assert!(!after.values().any(are_dead), "{what}: {after:?}");
    assert!(before.iter().all(|(client, home)| are_dead(home) || after[client] == *home), "{what}: others move");
    assert!(site.metrics().unwrap().sum("withheld_total", &[]).unwrap() >= 1.0, "{what}");
}

/// Checks are an hour apart, or 100 ms apart while a verdict is pending.
const CHECK: &str = r#"{ type = "tcp", interval = "1h", fast_interval = "100ms", timeout = "1s" }"#;

fn told(site: &Site, arguments: &[&str]) {
    site.cli(arguments).unwrap();
}

#[test]
fn when_a_server_that_rules_pin_clients_to_is_killed_then_none_of_them_fails() {
    let client = |site: &Site, number| site.topology().client_address(Family::V4, number).to_string();
    let pin = move |site: &mut Site| {
        (1..=30).for_each(|number| told(site, &["rule", "add", "web", &client(site, number), "pin", "web2"]));
    };
    nobody_fails("pinned", "", pin, &[VICTIM]);
}

#[test]
fn when_clients_share_a_prefix_and_their_server_is_killed_then_none_of_them_fails() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        (settings.check, settings.remember, settings.prefix_v4) = (CHECK.to_owned(), "1h", 24);
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let home = site.homes(Family::V4, CLIENTS).unwrap()[&1].clone();
    let number: u16 = home.trim_start_matches("web").parse().unwrap();
    site.kill_backend(number).unwrap();
    let after = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
    assert!(after.values().all(|other| *other != home && *other == after[&1]), "{after:?}");
}

#[test]
fn when_a_server_that_is_drained_is_killed_then_none_of_its_clients_fails() {
    let drain = |site: &mut Site| {
        let _ = site.homes(Family::V4, CLIENTS).unwrap();
        told(site, &["backend", "drain", "web/web2", "--timeout", "1h"]);
    };
    nobody_fails("drained", "", drain, &[VICTIM]);
}

#[test]
fn when_a_server_in_maintenance_is_killed_then_nobody_notices_and_there_are_no_signals() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        (settings.check, settings.remember) = (CHECK.to_owned(), "1h");
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let before = site.homes(Family::V4, CLIENTS).unwrap();
    assert!(!victims(&before).is_empty());
    told(&site, &["backend", "maint", "web/web2"]);
    let without = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
    let checks = passed(&site);
    site.kill_backend(VICTIM).unwrap();
    for _ in 0..3 {
        assert_eq!(site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap(), without);
    }
    assert!(before.iter().all(|(client, home)| home == "web2" || without[client] == *home));
    let withheld = site.metrics().unwrap().sum("withheld_total", &[]).unwrap_or_default();
    assert_eq!((signals(&site, "refused"), withheld, passed(&site)), (0.0, 0.0, checks));
    let events = site.cli(&["events"]).unwrap();
    assert!(!events.contains("was checked at once"), "{events}");
}

#[test]
fn when_half_of_the_servers_are_killed_then_no_new_connection_fails() {
    nobody_fails("two of four", "", |_| (), &[VICTIM, 3]);
}

#[test]
fn when_all_primaries_are_killed_then_new_connections_open_at_backups() {
    let back_up = |site: &mut Site| {
        for number in [3, 4] {
            let name = format!("web/web{number}");
            told(site, &["backend", "remove", &name, "--force"]);
            let address = site.backend_address(Family::V4, number).to_string();
            told(site, &["backend", "add", &name, &address, "--backup"]);
            site.wait_state(number, &["up"]).unwrap();
        }
    };
    nobody_fails("backups", "", back_up, &[1, VICTIM]);
}

#[test]
fn when_a_server_is_killed_after_a_restart_that_kept_the_program_then_no_new_connection_fails() {
    nobody_fails("restarted", "", |site| site.restart(|_| ()).unwrap(), &[VICTIM]);
    nobody_fails("killed and restarted", "", |site| site.kill_and_restart(|_| ()).unwrap(), &[VICTIM]);
}

/// Without a controller, no check runs, and the program withholds resets for one second in total.
#[test]
fn when_a_server_is_killed_while_no_controller_runs_then_clients_are_refused_after_a_second() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        (settings.check, settings.remember, settings.on_exit) = (CHECK.to_owned(), "1h", "keep");
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let before = site.homes(Family::V4, CLIENTS).unwrap();
    site.controller().process().kill().unwrap();
    site.kill_backend(VICTIM).unwrap();
    for _ in 0..2 {
        let replies = site.ask(Family::V4, victims(&before), PATIENCE).unwrap();
        assert!(replies.iter().all(|reply| refused(reply.as_ref().err())), "{replies:?}");
    }
    site.start_again().unwrap();
    let after = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
    assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home));
    assert!(after.values().all(|home| home != "web2"));
}

fn reason(site: &Site) -> String {
    site.status().unwrap().services[0].backends[usize::from(VICTIM) - 1].reason.clone()
}

/// The checks that signals ask for time out, and all their time-outs are within one interval.
#[test]
fn when_a_server_does_not_answer_for_a_while_then_its_known_clients_stay_and_unknown_ones_go_to_others() {
    for forwarding in [Forwarding::Nat, Forwarding::Snat, Forwarding::Dsr] {
        let mut site = Site::start(Shape::OneLegged, forwarding, 4, |settings, _| {
            (settings.check, settings.remember) = (CHECK.to_owned(), "1h");
            Ok(())
        })
        .unwrap();
        (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
        let before = site.homes(Family::V4, CLIENTS).unwrap();
        let link = |site: &Site, state: &str| {
            site.topology().switch().ip(&format!("link set web{VICTIM} {state}")).unwrap();
        };
        link(&site, "down");
        let since = Instant::now();
        while !reason(&site).starts_with("doubted: connect: timeout after 1s, 1 of 3 failures") {
            assert!(since.elapsed() < PATIENCE, "{:?}", site.cli(&["status"]));
            let _silence = site.ask(Family::V4, victims(&before), Duration::from_millis(300)).unwrap();
        }
        let newcomers = site.homes(Family::V4, 100..=160).unwrap();
        assert!(newcomers.values().all(|home| home != "web2"), "{forwarding:?}: {newcomers:?}");
        link(&site, "up");
        assert_eq!(site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap(), before, "{forwarding:?}");
        wait_for(PATIENCE, "it stays doubted", || reason(&site).is_empty());
        assert_eq!((state(&site, VICTIM).as_str(), moves(&site)), ("up", 0.0), "{forwarding:?}");
        let later = site.homes(Family::V4, 200..=260).unwrap();
        assert!(later.values().any(|home| home == "web2"), "{forwarding:?}: {later:?}");
    }
}

/// Every known client opens a connection while its server is away, and no regular check is due.
#[test]
fn when_a_server_restarts_then_nobody_is_refused_and_nobody_moves() {
    const KNOWN: RangeInclusive<u16> = 1..=400;
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        (settings.check, settings.remember) = (CHECK.to_owned(), "1h");
        // On a slow machine, the start of a server takes long.
        settings.service_lines = "restart_grace = \"10s\"\n".to_owned();
        Ok(())
    })
    .unwrap();
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let before = site.homes(Family::V4, KNOWN).unwrap();
    assert!(!victims(&before).is_empty());
    // The second restart follows the first one within seconds.
    for round in 1..=2 {
        site.kill_backend(VICTIM).unwrap();
        let since = Instant::now();
        while !reason(&site).starts_with("doubted: connect: refused") {
            assert!(since.elapsed() < PATIENCE, "{:?}", site.cli(&["status"]));
            let replies = site.ask(Family::V4, victims(&before), Duration::from_millis(100)).unwrap();
            assert!(replies.iter().all(|reply| !refused(reply.as_ref().err())), "{round}: {replies:?}");
        }
        let newcomers = site.homes(Family::V4, round * 100 + 400..=round * 100 + 460).unwrap();
        assert!(newcomers.values().all(|home| home != "web2"), "{newcomers:?}");
        site.start_backend(VICTIM).unwrap();
        let replies = site.ask(Family::V4, KNOWN, PATIENCE).unwrap();
        assert!(replies.iter().all(Result::is_ok), "{round}: {replies:?}");
        assert_eq!(site.homes(Family::V4, KNOWN).unwrap(), before);
        wait_for(PATIENCE, "it stays doubted", || reason(&site).is_empty());
        assert_eq!((state(&site, VICTIM).as_str(), moves(&site)), ("up", 0.0));
    }
}

/// A client has an open connection when the server's machine fails. Once the balancer has marked the server as down,
/// the first packet of the connection goes to another server, which resets the connection.
#[test]
fn when_the_machine_of_a_server_is_gone_then_its_open_connections_are_reset_once_it_is_down() {
    for forwarding in [Forwarding::Nat, Forwarding::Dsr] {
        let mut site = site(forwarding, &[Family::V4], SOON);
        let before = site.homes(Family::V4, CLIENTS).unwrap();
        let victims = victims(&before);
        let target = SocketAddr::new(site.topology().vip(Family::V4), 80);
        let open = || -> io::Result<Vec<TcpStream>> {
            let connect = |client: &u16| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind(&SocketAddr::new(site.topology().client_address(Family::V4, *client), 0).into())?;
                socket.connect(&target.into())?;
                Ok(TcpStream::from(socket))
            };
            victims.iter().map(connect).collect()
        };
        let mut streams = site.topology().client().run_in_thread(open).unwrap().unwrap();
        site.topology().switch().ip(&format!("link set web{VICTIM} down")).unwrap();
        let cut = Instant::now();
        wait_down(&mut site, &victims, Family::V4);
        let down = cut.elapsed();
        for stream in &mut streams {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
            let error = stream.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{forwarding:?}");
        }
        println!("{forwarding:?}: down {down:?} after the cut, all {} reset after {:?}", streams.len(), cut.elapsed());
    }
}

/// The machine of the dead server sends its answers past the balancer, so the balancer sees only handshakes that do not
/// continue.
#[test]
fn when_a_server_whose_answers_pass_by_is_killed_then_it_is_down_after_a_few_connections() {
    for forwarding in [Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue] {
        let mut site = site(forwarding, &[Family::V4], HOURLY);
        let before = site.homes(Family::V4, CLIENTS).unwrap();
        site.kill_backend(VICTIM).unwrap();
        wait_down(&mut site, &victims(&before), Family::V4);
        let after = site.homes_within(PATIENCE, Family::V4, CLIENTS).unwrap();
        assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home), "{forwarding:?}");
    }
}

/// Begins connections to a server whose machine is gone, in each of the given modes and families.
fn begun_connections_succeed(cells: &[(Forwarding, Family)]) {
    for &(forwarding, family) in cells {
        let site = site(forwarding, &[family], SOON);
        let before = site.homes(family, CLIENTS).unwrap();
        assert!(!victims(&before).is_empty(), "{forwarding:?}");
        site.topology().switch().ip(&format!("link set web{VICTIM} down")).unwrap();
        let after = site.homes_within(PATIENCE, family, CLIENTS).unwrap();
        assert!(before.iter().all(|(client, home)| home == "web2" || after[client] == *home), "{forwarding:?}");
        assert!(after.values().all(|home| home != "web2"), "{forwarding:?}");
    }
}

#[test]
fn when_the_machine_of_a_server_is_gone_then_connections_that_were_begun_succeed() {
    begun_connections_succeed(&[(Forwarding::Nat, Family::V4), (Forwarding::Gue, Family::V6)]);
}

#[test]
fn when_it_is_switched_off_then_clients_are_refused_as_before() {
    const PASSIVE: &str = r#"interval = "1h", fast_interval = "1h", timeout = "1s", passive = false"#;
    let mut site = site(Forwarding::Nat, &[Family::V4], PASSIVE);
    let victims = victims(&site.homes(Family::V4, CLIENTS).unwrap());
    site.kill_backend(VICTIM).unwrap();
    for _ in 0..3 {
        let replies = site.ask(Family::V4, victims.iter().copied(), PATIENCE).unwrap();
        assert!(replies.iter().all(Result::is_err));
    }
    assert_eq!(site.status().unwrap().services[0].backends[usize::from(VICTIM) - 1].state, "up");
}
