//! Tests that the metrics add up, and agree with the counts of the kernel and of the clients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    frame::{ACK, Frame},
    metrics::Metrics,
    site::{PATIENCE, QUICK_HTTP_CHECK, Site},
    topology::{Family, Shape},
};
use socket2::{Domain, Protocol, Socket, Type};

const TABLE_SIZE: f64 = 65_537.0;

/// Returns the number of frames that each interface of the balancer has received, according to the kernel.
fn received(site: &Site) -> Vec<u64> {
    let interfaces = site.topology().interfaces().iter();
    interfaces
        .map(|interface| {
            let shown = site.topology().balancer().ip(&format!("-s -j link show dev {interface}")).unwrap();
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
        })
        .collect()
}

/// Returns the frame counts and the metrics, both read while no frames arrived.
fn at_rest(site: &Site) -> (Vec<u64>, Metrics) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = received(site);
        thread::sleep(Duration::from_millis(100));
        let metrics = site.metrics().unwrap();
        if received(site) == before {
            return (before, metrics);
        }
        assert!(Instant::now() < deadline, "no silence on the balancer's interfaces");
    }
}

fn seen(metrics: &Metrics, interface: &str, verdict: Option<&str>) -> f64 {
    let interface = format!("interface=\"{interface}\"");
    let verdict = verdict.map(|verdict| format!("verdict=\"{verdict}\""));
    let labels: Vec<&str> = [Some(interface.as_str()), verdict.as_deref()].into_iter().flatten().collect();
    metrics.sum("packets_seen_total", &labels).unwrap()
}

fn the_sums_are_exact(shape: Shape, forwarding: Forwarding) {
    let site = Site::start(shape, forwarding, 3, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    // These requests make the kernel resolve routes and neighbours, so that no later connection needs a second SYN.
    for family in Family::BOTH {
        site.homes(family, 1..=20).unwrap();
    }
    let (frames_before, before) = at_rest(&site);
    let mut answered = BTreeMap::new();
    for family in Family::BOTH {
        for home in site.homes(family, 1..=150).unwrap().into_values() {
            *answered.entry((family == Family::V4, home)).or_insert(0.0) += 1.0;
        }
    }
    // No service uses the port 81, so the program passes the packets.
    let other = SocketAddr::new(site.topology().vip(Family::V4), 81);
    let client = SocketAddr::new(site.topology().client_address(Family::V4, 1), 0);
    let strays = 50;
    let sent = site.topology().client().run_in_thread(|| {
        let socket = UdpSocket::bind(client)?;
        (0..strays).try_for_each(|_| socket.send_to(b"hello", other).map(drop))
    });
    sent.unwrap().unwrap();
    let (frames_after, after) = at_rest(&site);

    for (index, interface) in site.topology().interfaces().iter().enumerate() {
        let counted = seen(&after, interface, None) - seen(&before, interface, None);
        let frames = frames_after[index] - frames_before[index];
        println!("{shape:?} {forwarding:?} {interface}: {frames} frames, {counted} verdicts");
        assert_eq!(counted, frames as f64, "{interface}");
        let verdicts: f64 = ["tx", "redirect", "pass", "drop", "aborted"]
            .iter()
            .map(|verdict| seen(&after, interface, Some(verdict)))
            .sum();
        assert_eq!(verdicts, seen(&after, interface, None));
        assert_eq!(seen(&after, interface, Some("aborted")), 0.0);
    }
    let first = site.topology().interfaces()[0];
    assert!(seen(&after, first, Some("pass")) >= seen(&before, first, Some("pass")) + f64::from(strays));
    let sum = |name: &str, labels: &[&str]| after.sum(name, labels).unwrap() - before.sum(name, labels).unwrap();
    let dropped: f64 = site.topology().interfaces().iter().map(|interface| seen(&after, interface, Some("drop"))).sum();
    assert_eq!(after.sum("drops_total", &[]).unwrap(), dropped);
    for service in ["service=\"web\"", "service=\"web6\""] {
        assert_eq!(after.sum("table_slots", &[service]).unwrap(), TABLE_SIZE);
        assert_eq!(sum("connections_total", &[service]), 150.0, "{service}");
        assert_eq!(sum("decisions_total", &[service, "result=\"stateless\""]), 150.0, "{service}");
        assert_eq!(sum("decisions_total", &[service]), 150.0, "{service}");
        for number in 1..=3 {
            let backend = format!("backend=\"web{number}\"");
            let served = answered[&(service == "service=\"web\"", format!("web{number}"))];
            assert_eq!(sum("connections_total", &[service, &backend]), served, "{service} {backend}");
            assert_eq!(after.sum("backend_state", &[service, &backend]).unwrap(), 1.0);
        }
    }
    let forwarded: f64 =
        ["service=\"web\"", "service=\"web6\""].iter().map(|service| sum("packets_total", &[service])).sum();
    let steered: f64 = (site.topology().interfaces().iter())
        .flat_map(|interface| ["tx", "redirect"].map(|verdict| (interface, verdict)))
        .map(|(interface, verdict)| seen(&after, interface, Some(verdict)) - seen(&before, interface, Some(verdict)))
        .sum();
    println!("{forwarded} packets to backends, {steered} sent");
    match forwarding {
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => assert_eq!(forwarded, steered),
        // The metric of sent packets also counts replies.
        Forwarding::Nat | Forwarding::Snat => assert!(forwarded < steered && forwarded > 0.0),
    }
}

#[test]
fn when_all_is_counted_with_dsr_on_one_leg_then_the_sums_are_exact() {
    the_sums_are_exact(Shape::OneLegged, Forwarding::Dsr);
}

#[test]
fn when_all_is_counted_with_nat_on_two_legs_then_the_sums_are_exact() {
    the_sums_are_exact(Shape::TwoLegged, Forwarding::Nat);
}

/// Tests the metrics of health checks, states and transitions.
#[test]
fn when_states_change_and_checks_run_then_they_are_counted() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.check = QUICK_HTTP_CHECK.to_owned();
        Ok(())
    })
    .unwrap();
    let of = |metrics: &Metrics, name: &str, label: &str| {
        metrics.sum(name, &["service=\"web\"", "backend=\"web1\"", label]).unwrap()
    };
    site.wait_state(1, &["up"]).unwrap();
    site.wait_state(2, &["up"]).unwrap();
    let before = site.metrics().unwrap();
    assert_eq!(of(&before, "backend_state", "state=\"up\""), 1.0);
    assert_eq!(of(&before, "health_checks_total", "result=\"hard\""), 0.0);
    assert!(of(&before, "health_checks_total", "result=\"passed\"") >= 1.0);
    site.kill_backend(1).unwrap();
    site.wait_state(1, &["down"]).unwrap();
    let down = site.metrics().unwrap();
    assert_eq!(of(&down, "backend_state", "state=\"down\""), 1.0);
    assert_eq!(of(&down, "backend_state", "state=\"up\""), 0.0);
    assert_eq!(of(&down, "backend_transitions_total", "to=\"down\""), 1.0);
    assert!(of(&down, "health_checks_total", "result=\"hard\"") >= 2.0);
    let generation = |metrics: &Metrics| metrics.sum("table_generation", &["service=\"web\""]).unwrap();
    assert_eq!(generation(&down), generation(&before) + 1.0);
    assert_eq!(down.sum("table_slots", &["service=\"web\"", "backend=\"web2\""]).unwrap(), TABLE_SIZE);
    let required = |metrics: &Metrics| metrics.sum("table_slots_moved_total", &["kind=\"required\""]).unwrap();
    let slots = before.sum("table_slots", &["backend=\"web1\""]).unwrap();
    assert_eq!(required(&down) - required(&before), slots);
    assert_eq!(down.sum("table_slots_moved_total", &["kind=\"needless\""]).unwrap(), 0.0);
}

/// The program answers pings to a VIP, and packets that are too large for a tunnel.
#[test]
fn when_the_program_answers_packets_then_they_are_counted() {
    let site = Site::start(Shape::OneLegged, Forwarding::Gue, 1, |_, _| Ok(())).unwrap();
    let replies = |kind: &str| site.metrics().unwrap().sum("replies_total", &[&format!("kind=\"{kind}\"")]).unwrap();
    assert_eq!((replies("echo"), replies("too_big")), (0.0, 0.0));
    let vip = site.topology().vip(Family::V4);
    let client = SocketAddr::new(site.topology().client_address(Family::V4, 1), 0);
    let ping = Frame::icmp(&client.to_string(), &format!("{vip}:0"), 8, 0, [0, 1, 0, 1]);
    let wide = Frame { payload: vec![7; 1440], ..Frame::tcp(&client.to_string(), &format!("{vip}:80"), ACK) };
    let sent = site.topology().client().run_in_thread(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        [&ping; 3]
            .into_iter()
            .chain([&wide; 5])
            .try_for_each(|frame| raw.send_to(&frame.packet(), &SocketAddr::new(vip, 0).into()).map(drop))
    });
    sent.unwrap().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while replies("echo") + replies("too_big") < 8.0 {
        assert!(Instant::now() < deadline, "{} and {} answers", replies("echo"), replies("too_big"));
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((replies("echo"), replies("too_big")), (3.0, 5.0));
}
