//! The faults, which the test creates one at a time. At a landing, each fault occurs in one mode; before a release, in
//! each other mode in which it can occur.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    namespace::run,
    offload::Offload,
    site::{QUICK_HTTP_CHECK, Settings, Site, backend_port},
    stop::StopOnDrop,
    topology::{Family, Shape},
};

use super::fault::{ALL, Beside, DIRECT, Fault, Mend, NAT, TRANSLATED, TUNNELS, lab};
use super::found;
use crate::support::wait;

const VIP: &str = "10.2.0.10/32";
const WRONG_MAC: &str = "02:00:00:00:00:99";

const FAULTS: &[Fault] = &[
    Fault {
        kind: "server",
        backend: Some("web1"),
        modes: ALL,
        seed: |site, _| site.kill_backend(1).unwrap(),
        breaks: true,
        mend: Mend::Person(|site, _| site.start_backend(1).unwrap()),
        after: nothing,
    },
    Fault {
        kind: "unhealthy",
        backend: Some("web1"),
        modes: ALL,
        seed: |site, _| site.fail_backend(1, "503").unwrap(),
        breaks: false,
        mend: Mend::Person(|site, _| site.fail_backend(1, "ok").unwrap()),
        after: nothing,
    },
    Fault {
        kind: "server-bound",
        backend: Some("web1"),
        modes: DIRECT,
        seed: bind_to_own_address,
        breaks: true,
        mend: Mend::Person(|site, beside| {
            beside.backend = None;
            site.start_backend(1).unwrap();
        }),
        after: nothing,
    },
    Fault {
        kind: "vip-missing",
        backend: Some("web1"),
        modes: DIRECT,
        seed: |site, _| drop(site.topology().backends()[0].ip(&format!("addr del {VIP} dev lo")).unwrap()),
        breaks: true,
        mend: Mend::Commands(2, &[]),
        after: nothing,
    },
    Fault {
        kind: "vip-answered",
        backend: Some("web1"),
        modes: DIRECT,
        seed: |site, _| site.topology().backends()[0].sysctl("net/ipv4/conf/all/arp_ignore", "0").unwrap(),
        breaks: false,
        mend: Mend::Commands(1, &[]),
        after: nothing,
    },
    Fault {
        kind: "vip-duplicate",
        backend: None,
        modes: ALL,
        seed: |site, _| drop(site.topology().switch().ip(&format!("addr add {VIP} dev br0")).unwrap()),
        breaks: false,
        mend: Mend::Commands(2, &[("INTERFACE", "br0")]),
        after: nothing,
    },
    Fault {
        kind: "no-decap",
        backend: Some("web1"),
        modes: TUNNELS,
        seed: |site, _| assert!(site.decap(1).unwrap().stop().unwrap().success()),
        breaks: true,
        mend: Mend::Commands(1, &[("INTERFACE", "eth0")]),
        after: nothing,
    },
    Fault {
        kind: "neighbour",
        backend: Some("web1"),
        modes: ALL,
        seed: |site, _| drop(site.topology().switch().ip("link set web1 nomaster").unwrap()),
        breaks: true,
        mend: Mend::Person(|site, _| drop(site.topology().switch().ip("link set web1 master br0").unwrap())),
        after: nothing,
    },
    Fault {
        kind: "neighbour-entry",
        backend: Some("web1"),
        modes: ALL,
        seed: |site, _| {
            let entry = format!("neigh replace 10.0.0.11 lladdr {WRONG_MAC} dev eth0 nud permanent");
            site.topology().balancer().ip(&entry).unwrap();
        },
        breaks: true,
        mend: Mend::Fix,
        after: nothing,
    },
    Fault {
        kind: "route",
        backend: None,
        modes: ALL,
        seed: |site, _| drop(site.topology().balancer().ip("route del 10.0.0.0/16 dev eth0").unwrap()),
        breaks: true,
        mend: Mend::Fix,
        after: nothing,
    },
    Fault {
        kind: "link",
        backend: None,
        modes: ALL,
        seed: |site, _| drop(site.topology().switch().ip("link set balancer down").unwrap()),
        breaks: true,
        mend: Mend::Commands(2, &[("PORT", "balancer")]),
        after: nothing,
    },
    Fault {
        kind: "firewall",
        backend: None,
        modes: ALL,
        seed: drop_answers,
        breaks: true,
        mend: Mend::Commands(1, &[]),
        after: |site| drop(nft(site, "delete table inet filter")),
    },
    Fault {
        kind: "checksum",
        backend: Some("web1"),
        modes: TRANSLATED,
        // The bridge's last port also leaves them unfinished, as if the pair joined the two hosts.
        seed: |site, _| {
            site.topology().backends()[0].offload("eth0", &[(Offload::Transmit, true)]).unwrap();
            site.topology().switch().offload("balancer", &[(Offload::Transmit, true)]).unwrap();
        },
        breaks: true,
        mend: Mend::Commands(1, &[("INTERFACE", "eth0")]),
        after: |site| site.topology().switch().offload("balancer", &[(Offload::Transmit, false)]).unwrap(),
    },
    Fault {
        kind: "mtu",
        backend: Some("web1"),
        modes: ALL,
        seed: |site, _| drop(site.topology().backends()[0].ip("link set eth0 mtu 1400").unwrap()),
        breaks: false,
        mend: Mend::Commands(1, &[("INTERFACE", "eth0")]),
        after: nothing,
    },
    Fault {
        kind: "replies",
        backend: Some("web1"),
        modes: NAT,
        seed: |site, _| {
            site.topology().backends()[0].ip("route replace 10.1.0.0/16 via 10.0.0.2").unwrap();
        },
        breaks: true,
        mend: Mend::Commands(1, &[]),
        after: nothing,
    },
    Fault {
        kind: "route",
        backend: None,
        modes: NAT,
        // The way to the clients is this machine's own fault, of which no server is accused.
        seed: |site, _| drop(site.topology().balancer().ip("route replace blackhole 10.1.0.0/16").unwrap()),
        breaks: true,
        mend: Mend::Person(|site, _| {
            site.topology().balancer().ip("route replace 10.1.0.0/16 via 10.0.0.2").unwrap();
        }),
        after: nothing,
    },
    Fault {
        kind: "denies-all",
        backend: None,
        modes: ALL,
        seed: |site, _| drop(site.cli(&["rule", "add", "web", "0.0.0.0/0", "deny"]).unwrap()),
        breaks: true,
        mend: Mend::Commands(1, &[]),
        after: nothing,
    },
    Fault {
        kind: "none-eligible",
        backend: None,
        modes: ALL,
        seed: |site, _| {
            for backend in ["web/web1", "web/web2"] {
                site.cli(&["backend", "maint", backend]).unwrap();
            }
        },
        breaks: true,
        mend: Mend::Commands(2, &[]),
        after: nothing,
    },
    Fault {
        kind: "withdrawn",
        backend: None,
        modes: ALL,
        seed: |site, _| drop(site.cli(&["withdraw"]).unwrap()),
        breaks: false,
        mend: Mend::Commands(1, &[]),
        after: nothing,
    },
];

const fn nothing(_: &mut Site) {}

/// Restarts the server of `web1` so that the server listens only on its host's own address.
fn bind_to_own_address(site: &mut Site, beside: &mut Beside) {
    site.kill_backend(1).unwrap();
    let topology = site.topology();
    let port = backend_port(Forwarding::Dsr);
    let own = SocketAddr::new(topology.backend_address(Family::V4, 0), port);
    let program = binaries::balancer().unwrap();
    let backend = Backend::start(&program, &topology.backends()[0], "web1", &[own], site.files()).unwrap();
    beside.backend = Some(backend);
}

fn nft(site: &Site, command: &str) -> String {
    let mut shell = site.topology().balancer().command("nft");
    run(shell.arg(command)).unwrap()
}

/// Adds a firewall rule that drops all packets from the servers' ports.
fn drop_answers(site: &mut Site, _: &mut Beside) {
    nft(site, "add table inet filter");
    nft(site, "add chain inet filter input { type filter hook input priority 0; }");
    nft(site, "add rule inet filter input tcp sport { 80, 8080 } drop");
}

/// The mode in which most faults can occur, and the most programs take part.
const HARDEST: Forwarding = Forwarding::Gue;

/// Creates each fault that can occur in a mode and that is not among the faults of the modes `except`.
pub(super) fn all_are_found(forwarding: Forwarding, except: &[Forwarding]) {
    let mut site = lab(Shape::OneLegged, forwarding, &[Family::V4]);
    let mut beside = Beside::default();
    let only = std::env::var("DOCTOR_FAULT").ok();
    let possible = FAULTS
        .iter()
        .filter(|fault| fault.modes.contains(&forwarding) && except.iter().all(|mode| !fault.modes.contains(mode)));
    for fault in
        possible.filter(|fault| only.as_deref().is_none_or(|only| only.split(',').any(|only| only == fault.kind)))
    {
        fault.play(&mut site, &mut beside, forwarding);
    }
}

#[test]
fn when_a_fault_is_seeded_in_a_gue_site_then_the_doctor_names_it_and_its_cure_works() {
    all_are_found(HARDEST, &[]);
}

#[test]
fn when_a_fault_of_translation_is_seeded_in_a_nat_site_then_the_doctor_names_it_and_its_cure_works() {
    all_are_found(Forwarding::Nat, &[HARDEST]);
}

#[test]
fn when_the_client_table_is_too_small_then_the_doctor_says_so() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.check = QUICK_HTTP_CHECK.to_owned();
        settings.remember = "10m";
        settings.lines = "[client_table]\ncapacity = 16\n".to_owned();
        Ok(())
    })
    .unwrap();
    for first in [1, 101, 201, 301] {
        site.homes(Family::V4, first..=first + 99).unwrap();
    }
    wait("the table is not found too small", || found(&site) == ["client-table"]);
}

/// Returns the doctor's findings while clients send requests.
fn found_while_clients_try(site: &Site) -> Vec<String> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let limit = Duration::from_millis(400);
                site.ask(Family::V4, 1..=2, limit).unwrap();
            }
        });
        found(site)
    })
}

/// Clients connect through an interface to which the program is not attached.
pub(super) fn the_missing_interface_is_named(modes: &[Forwarding]) {
    for &forwarding in modes {
        let mut site = Site::start(Shape::TwoLegged, forwarding, 2, |settings, _| {
            settings.interfaces = vec!["eth1".to_owned()];
            settings.check = QUICK_HTTP_CHECK.to_owned();
            Ok(())
        })
        .unwrap();
        for number in 1..=2 {
            site.wait_state(number, &["up"]).unwrap();
        }
        wait("the interface is not named", || found_while_clients_try(&site) == ["not-attached"]);
        let both = |settings: &mut Settings| settings.interfaces = ["eth0", "eth1"].map(str::to_owned).to_vec();
        site.apply(both).unwrap();
        assert_eq!(site.homes(Family::V4, 1..=12).unwrap().len(), 12, "{forwarding:?}");
        assert_eq!(found_while_clients_try(&site), Vec::<String>::new(), "{forwarding:?}");
    }
}

#[test]
fn when_clients_come_in_where_the_program_is_not_then_the_doctor_names_the_interface() {
    the_missing_interface_is_named(&[HARDEST, Forwarding::Nat]);
}

#[test]
fn when_clients_send_to_another_hardware_address_then_the_doctor_says_so() {
    let mut site = lab(Shape::TwoLegged, Forwarding::Nat, &[Family::V4]);
    site.homes(Family::V4, 1..=2).unwrap();
    let route = site.topology().client().ip("-4 route show 10.2.0.0/16").unwrap();
    let via = route.split_whitespace().nth(2).unwrap().to_owned();
    let client = site.topology().client();
    client.ip(&format!("neigh replace {via} lladdr {WRONG_MAC} dev eth0 nud permanent")).unwrap();
    wait("the hardware address is not found wrong", || found_while_clients_try(&site) == ["wrong-mac"]);
    client.ip(&format!("neigh del {via} dev eth0")).unwrap();
    assert_eq!(site.homes(Family::V4, 1..=12).unwrap().len(), 12);
    site.wait_state(1, &["up"]).unwrap();
    assert_eq!(found_while_clients_try(&site), Vec::<String>::new());
}

/// The balancer's route has the MTU of a backend's narrow link.
pub(super) fn a_route_with_the_smaller_mtu_is_right(forwarding: Forwarding) {
    let site = lab(Shape::OneLegged, forwarding, &[Family::V4]);
    let link = |mtu: &str| drop(site.topology().backends()[0].ip(&format!("link set eth0 mtu {mtu}")).unwrap());
    link("1400");
    assert_eq!(found(&site), ["mtu"], "{forwarding:?}");
    site.topology().balancer().ip("route replace 10.0.0.11/32 dev eth0 mtu 1400").unwrap();
    assert_eq!(found(&site), Vec::<String>::new(), "{forwarding:?}");
}

#[test]
fn when_the_route_to_a_backend_has_the_smaller_mtu_then_the_doctor_finds_nothing() {
    a_route_with_the_smaller_mtu_is_right(Forwarding::Nat);
}
