//! Tests of the output of `balancer trace`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::{Request, send_all},
    site::Site,
    topology::{Family, Shape},
};
use serde_json::Value;

use super::{
    HARDEST,
    watch::{self, Watch},
};
use crate::support::wait;

fn site(shape: Shape, forwarding: Forwarding, xdp_mode: &'static str, families: &[Family]) -> Site {
    Site::start(shape, forwarding, 2, |settings, _| {
        settings.remember = "10m";
        settings.xdp_mode = xdp_mode;
        settings.families = families.to_vec();
        Ok(())
    })
    .unwrap()
}

/// Returns the first packet in the given direction with the given TCP flags.
fn find<'a>(packets: &'a [Value], direction: &str, flags: &str) -> Option<&'a Value> {
    packets.iter().find(|packet| packet["direction"] == direction && packet["packet"]["flags"] == flags)
}

/// Waits for the first packet of a connection, which the output shows with the reason for the choice of the backend.
fn opening(trace: &Watch) -> Value {
    wait("no connection is seen", || find(&trace.packets(), "to_backend", "SYN").is_some());
    find(&trace.packets(), "to_backend", "SYN").unwrap().clone()
}

#[track_caller]
pub(super) fn check_mode(shape: Shape, forwarding: Forwarding, xdp_mode: &'static str, family: Family) {
    let site = site(shape, forwarding, xdp_mode, &[family]);
    let client = site.topology().client_address(family, 1);
    let mut trace = watch::start(&site, "trace", &["trace", &client.to_string(), "--json"]);
    let home = site.homes(family, [1]).unwrap()[&1].clone();
    // The output does not contain packets of other clients.
    site.homes(family, [2]).unwrap();
    let first = opening(&trace);
    let what = format!("{forwarding:?} {xdp_mode} {family:?}: {first}");
    let name = balancer_testkit::site::service(family);
    assert_eq!(first["service"], name, "{what}");
    assert_eq!(first["backend"], home.as_str(), "{what}");
    assert_eq!((&first["decision"], &first["client"]), (&"new".into(), &client.to_string().into()), "{what}");
    assert_eq!((&first["memory"]["known"], &first["recorded"]), (&false.into(), &true.into()), "{what}");
    let number: u16 = home.strip_prefix("web").unwrap().parse().unwrap();
    let server = site.topology().backend_address(family, number - 1).to_string();
    assert_eq!(first["next_hop"]["address"], server.as_str(), "{what}");
    let vip = site.topology().vip(family).to_string();
    assert_eq!(first["packet"]["destination"], vip.as_str(), "{what}");
    let destination = if forwarding == Forwarding::Dsr { &vip } else { &server };
    assert_eq!(first["left"]["destination"], destination.as_str(), "{what}");
    if matches!(forwarding, Forwarding::Ipip | Forwarding::Gue) {
        assert_eq!(first["left"]["inside"]["destination"], vip.as_str(), "{what}");
    }
    let expected = if shape == Shape::OneLegged { "tx" } else { "redirect" };
    assert!(first["verdict"] == expected || first["verdict"] == "handed", "{what}");

    if matches!(forwarding, Forwarding::Nat | Forwarding::Snat) {
        wait("no reply is seen", || find(&trace.packets(), "to_client", "SYN,ACK").is_some());
        let packets = trace.packets();
        let reply = find(&packets, "to_client", "SYN,ACK").unwrap();
        assert_eq!((&reply["backend"], &reply["service"]), (&home.as_str().into(), &name.into()), "{reply}");
        assert_eq!(reply["left"]["source"], vip.as_str(), "{reply}");
        assert_eq!(reply["client"], client.to_string().as_str(), "{reply}");
    }
    trace.interrupt();
    let others = trace.packets().iter().filter(|packet| packet["client"] != client.to_string().as_str()).count();
    assert_eq!(others, 0, "{}", trace.said());
    assert!(!trace.said().contains("not shown"), "{}", trace.said());
}

#[test]
fn when_a_new_client_comes_on_one_interface_then_it_is_said_where_it_goes_and_why() {
    for forwarding in HARDEST {
        check_mode(Shape::OneLegged, forwarding, "native", Family::V4);
    }
}

#[test]
fn when_there_are_two_interfaces_in_generic_mode_or_ipv6_then_the_same_is_said() {
    check_mode(Shape::TwoLegged, Forwarding::Snat, "native", Family::V6);
    check_mode(Shape::TwoLegged, Forwarding::Nat, "generic", Family::V4);
}

/// Returns whether a client that a rule denies gets no answer to its first packet.
fn is_refused(site: &Site) -> bool {
    site.ask(Family::V4, [1], Duration::from_millis(300)).unwrap().iter().all(Result::is_err)
}

#[test]
fn when_a_client_is_known_drained_away_and_denied_then_each_packet_says_why() {
    let site = site(Shape::OneLegged, Forwarding::Nat, "native", &[Family::V4]);
    let home = site.homes(Family::V4, [1]).unwrap()[&1].clone();
    let other = if home == "web1" { "web2" } else { "web1" };
    let client = site.topology().client_address(Family::V4, 1).to_string();
    let trace = |name: &str, ask: &dyn Fn()| {
        let mut trace = watch::start(&site, name, &["trace", &client, "--service", "web", "--json"]);
        ask();
        wait("no packet is seen", || trace.packets().iter().any(|packet| packet["packet"]["flags"] == "SYN"));
        trace.interrupt();
        let packets = trace.packets();
        packets.iter().find(|packet| packet["packet"]["flags"] == "SYN").unwrap().clone()
    };
    let ask = || drop(site.homes(Family::V4, [1]).unwrap());

    let kept = trace("kept", &ask);
    assert_eq!((&kept["decision"], &kept["backend"]), (&"kept".into(), &home.as_str().into()), "{kept}");
    assert_eq!(kept["memory"]["backend"], home.as_str(), "{kept}");
    assert!(kept["memory"]["last_seen_seconds_ago"].is_u64() && kept["slot"].is_u64(), "{kept}");

    site.cli(&["backend", "maint", &format!("web/{home}")]).unwrap();
    let moved = trace("moved", &ask);
    assert_eq!((&moved["decision"], &moved["cause"]), (&"moved".into(), &"maint".into()), "{moved}");
    assert_eq!((&moved["moved_from"], &moved["backend"]), (&home.as_str().into(), &other.into()), "{moved}");

    site.cli(&["rule", "add", "web", &client, "deny"]).unwrap();
    let denied = trace("denied", &|| assert!(is_refused(&site)));
    assert_eq!((&denied["verdict"], &denied["reason"]), (&"drop".into(), &"denied".into()), "{denied}");
    assert_eq!((&denied["rule"]["action"], &denied["left"]), (&"deny".into(), &Value::Null), "{denied}");
}

#[test]
fn when_it_is_read_by_people_then_four_lines_tell_a_packet_and_count_ends_it() {
    let site = site(Shape::OneLegged, Forwarding::Dsr, "native", &[Family::V4]);
    let arguments = ["trace", "--service", "web", "--count", "3"];
    let mut trace = watch::start(&site, "trace", &arguments);
    site.homes(Family::V4, 1..=3).unwrap();
    trace.end();
    let said = trace.said();
    let lines: Vec<&str> = said.lines().skip(1).collect();
    assert_eq!(lines.len(), 12, "{said}");
    assert!(lines[0].contains(" eth0 10.1.") && lines[0].contains(" > 10.2.0.10:80 tcp SYN, "), "{said}");
    assert!(
        lines[1].starts_with("  service web at 10.2.0.10:80/tcp, client 10.1.") && lines[1].contains(", slot "),
        "{said}"
    );
    assert!(
        lines[2].starts_with("  backend web") && lines[2].contains(": a new client: the lookup table decides"),
        "{said}"
    );
}

#[test]
fn when_services_share_a_vip_then_a_trace_of_one_shows_no_packet_of_another() {
    let site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, |settings, topology| {
        let (vip, server) = (topology.vip(Family::V4), topology.backend_address(Family::V4, 0));
        settings.lines = format!(
            "[[service]]\nname = \"other\"\naddress = \"{vip}:81\"\nforwarding = \"dsr\"\n\
             check = {{ type = \"none\" }}\n[[service.backend]]\nname = \"web1\"\naddress = \"{server}\"\n"
        );
        Ok(())
    })
    .unwrap();
    let ask = |port: u16| {
        let request = site.request(Family::V4, 1);
        let target = SocketAddr::new(request.target.ip(), port);
        let request = Request { timeout: Duration::from_secs(20), target, ..request };
        send_all(site.topology().client(), &[request], 1).unwrap().remove(0)
    };
    let mut trace = watch::start(&site, "trace", &["trace", "--service", "web", "--json"]);
    // The server refuses the connection.
    assert!(ask(81).is_err());
    // The packets of a client pass one after the other, so that those of the other service would be shown first.
    ask(80).unwrap();
    wait("no packet is seen", || find(&trace.packets(), "to_backend", "SYN").is_some());
    trace.interrupt();
    let packets = trace.packets();
    assert!(packets.iter().all(|packet| packet["service"] == "web"), "{packets:#?}");
}

pub(super) fn the_program_that_tells_goes(on_exit: &'static str) {
    let site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.on_exit = on_exit;
        Ok(())
    })
    .unwrap();
    let of = |name: &str| BTreeSet::from([name.to_owned()]);
    assert_eq!(watch::attached(&site), of("balancer"));
    let mut trace = watch::start(&site, "trace", &["trace", "--service", "web"]);
    assert_eq!(watch::attached(&site), of("tell_and_steer"));
    let homes = site.homes(Family::V4, 1..=3).unwrap();
    let other = site.output(&["trace", "--service", "web"]).unwrap();
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(other.status.code() == Some(1) && said.contains("only one can run at a time"), "{said}");
    trace.kill();
    wait("the program that tells stays", || watch::attached(&site) == of("balancer"));
    assert_eq!(site.homes(Family::V4, 1..=3).unwrap(), homes);
    let trace = watch::start(&site, "again", &["trace", "--service", "web"]);
    assert_eq!(watch::attached(&site), of("tell_and_steer"), "it can be done again");
    drop(trace);
}

#[test]
fn when_it_is_killed_then_the_program_that_tells_goes_and_clients_notice_nothing() {
    the_program_that_tells_goes("keep");
}

#[test]
fn when_the_balancer_is_killed_and_started_while_somebody_traces_then_it_steers_without_telling() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    let homes = site.homes(Family::V4, 1..=20).unwrap();
    let _trace = watch::start(&site, "trace", &["trace", "--service", "web"]);
    site.kill_balancer().unwrap();
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), homes, "nobody is there to be told");
    site.start_again().unwrap();
    assert_eq!(watch::attached(&site), BTreeSet::from(["balancer".to_owned()]));
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), homes);
}

#[test]
fn when_it_is_asked_for_what_is_not_there_then_it_says_so() {
    let site = site(Shape::OneLegged, Forwarding::Dsr, "native", &[Family::V4]);
    for (arguments, code, words) in [
        (&["trace", "--service", "wbe"][..], 1, "did you mean \"web\"?"),
        (&["trace"], 2, "CLIENT"),
        (&["trace", "10.1.0"], 2, "is neither an IP address nor a prefix such as 203.0.113.0/24"),
        (&["trace", "10.1.0.1", "--count", "0"], 2, "0 is not in 1.."),
        (&["--socket", "/nowhere/balancer.sock", "trace", "10.1.0.1"], 3, "no controller reachable"),
    ] {
        let output = site.output(arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn when_the_balancer_has_hundreds_of_backends_then_the_decision_for_the_last_one_is_told() {
    const OTHERS: u16 = 300;
    let site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, |settings, topology| {
        settings.remember = "10m";
        let vip = topology.vip(Family::V4);
        let mut lines =
            format!("[[service]]\nname = \"others\"\nforwarding = \"dsr\"\nlisten = [\"{vip}:81\"]\ncheck = {{ type = \"none\" }}\n");
        for number in 0..OTHERS {
            let address = format!("10.0.{}.{}", 100 + number / 200, 1 + number % 200);
            lines += &format!("[[service.backend]]\nname = \"b{number}\"\naddress = \"{address}\"\n");
        }
        settings.lines = lines;
        Ok(())
    })
    .unwrap();
    let client = site.topology().client_address(Family::V4, 1);
    let mut trace = watch::start(&site, "trace", &["trace", &client.to_string(), "--json"]);
    let home = site.homes(Family::V4, [1]).unwrap()[&1].clone();
    let first = opening(&trace);
    assert_eq!((&first["backend"], &first["decision"]), (&home.as_str().into(), &"new".into()), "{first}");
    trace.interrupt();
    assert!(site.status().unwrap().services.iter().any(|service| service.backends.len() == usize::from(OTHERS)));
}
