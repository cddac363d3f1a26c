//! Faults that look like others, and healthy sites that look faulty. Each row of the table has what tells them apart.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;
use balancer_testkit::{
    namespace::{Namespace, run},
    site::{QUICK_HTTP_CHECK, Site, backend_port},
    topology::{Family, Shape, Topology},
};
use nix::sys::signal::Signal;

use super::{
    fault::{ALL, DIRECT, Finding, examine, lab},
    found,
};
use crate::support::wait;

/// The machines on which a row adds rules of the firewall.
#[derive(Clone, Copy)]
enum On {
    Balancer,
    First,
    Servers,
}

/// What the doctor says about a fault.
struct Said {
    kind: &'static str,
    backends: &'static [&'static str],
    /// Words of the sentence.
    words: &'static str,
    /// Words of the last command.
    last: &'static str,
    /// Whether the commands mend the fault.
    mends: bool,
}

/// Rules of nftables, in the table `inet seed`, and what the doctor says about them; `None`: the site is healthy.
struct Row {
    name: &'static str,
    modes: &'static [Forwarding],
    on: On,
    rules: &'static [&'static str],
    said: Option<Said>,
}

const BOTH: &[&str] = &["web/web1", "web/web2"];

const ROWS: &[Row] = &[
    Row {
        name: "a chain drops answers before the kernel knows their connections",
        modes: ALL,
        on: On::Balancer,
        rules: &[
            "add chain inet seed early { type filter hook prerouting priority -300; }",
            "add rule inet seed early tcp sport { 80, 8080 } drop",
        ],
        said: Some(Said {
            kind: "firewall",
            backends: BOTH,
            words: "chain inet seed early (prerouting)",
            last: "nft list ruleset",
            mends: true,
        }),
    },
    Row {
        name: "a chain of the balancer refuses connections like a server that does not run",
        modes: ALL,
        on: On::Balancer,
        rules: &[
            "add chain inet seed outgoing { type filter hook output priority 0; }",
            "add rule inet seed outgoing tcp dport { 80, 8080 } reject with tcp reset",
        ],
        said: Some(Said {
            kind: "firewall",
            backends: BOTH,
            words: "chain inet seed outgoing (output)",
            last: "nft list ruleset",
            mends: true,
        }),
    },
    Row {
        name: "a server's firewall rejects connections like a server that does not run",
        modes: ALL,
        on: On::First,
        rules: &[
            "add chain inet seed incoming { type filter hook input priority 0; }",
            "add rule inet seed incoming tcp dport { 80, 8080 } reject",
        ],
        said: Some(Said {
            kind: "rejected",
            backends: &["web/web1"],
            words: "port unreachable",
            last: "# to see the rule of the firewall there",
            mends: false,
        }),
    },
    Row {
        name: "a server's firewall drops packets for the VIP like a server without the VIP",
        modes: DIRECT,
        on: On::First,
        rules: &[
            "add chain inet seed incoming { type filter hook input priority 0; }",
            "add rule inet seed incoming ip daddr 10.2.0.10 drop",
        ],
        said: Some(Said {
            kind: "vip-missing",
            backends: &["web/web1"],
            words: "most likely, the backend does not have the VIP",
            last: "a firewall there drops packets for it",
            mends: false,
        }),
    },
    Row {
        name: "servers drop large pings like a path with a small MTU",
        modes: ALL,
        on: On::Servers,
        rules: &[
            "add chain inet seed incoming { type filter hook input priority 0; }",
            "add rule inet seed incoming icmp type echo-request meta length > 1000 drop",
        ],
        said: None,
    },
    Row {
        name: "servers drop all pings like servers that do not run",
        modes: ALL,
        on: On::Servers,
        rules: &[
            "add chain inet seed incoming { type filter hook input priority 0; }",
            "add rule inet seed incoming icmp type echo-request drop",
        ],
        said: None,
    },
];

fn nft(host: &Namespace, command: &str) {
    run(host.command("nft").arg(command)).unwrap();
}

/// Runs a command of a cure on the balancer.
fn type_in(site: &Site, command: &str) {
    let mut shell: Command = site.topology().balancer().command("sh");
    run(shell.args(["-c", command])).unwrap();
}

/// Waits for the single finding with this kind and for these backends.
fn finding(site: &Site, name: &str, kind: &str, backends: &[&str]) -> Finding {
    let mut last = Vec::new();
    wait(name, || {
        last = examine(site, &["web"]).1.findings;
        matches!(last.as_slice(), [one] if one.kind == kind && one.backends == backends)
    });
    last.remove(0)
}

impl Row {
    fn play(&self, site: &Site) {
        println!("{}", self.name);
        let topology = site.topology();
        let hosts: Vec<&Namespace> = match self.on {
            On::Balancer => vec![topology.balancer()],
            On::First => topology.backends().iter().take(1).collect(),
            On::Servers => topology.backends().iter().collect(),
        };
        for host in &hosts {
            nft(host, "add table inet seed");
            self.rules.iter().for_each(|rule| nft(host, rule));
        }
        if let Some(Said { kind, backends, words, last, mends }) = &self.said {
            let finding = finding(site, self.name, kind, backends);
            assert!(finding.what.contains(words), "{}: {finding:?}", self.name);
            assert!(finding.cure.commands.last().unwrap().contains(last), "{}: {finding:?}", self.name);
            if *mends {
                finding.cure.commands.iter().for_each(|command| type_in(site, command));
                wait(self.name, || found(site).is_empty());
            }
        } else {
            assert_eq!(examine(site, &["web"]).1.findings, [], "{}", self.name);
        }
        hosts.iter().for_each(|host| nft(host, "delete table inet seed"));
        wait("the site is not healthy again", || found(site).is_empty());
    }
}

/// Plays all rows of a mode that do not occur in the modes `except`.
pub(super) fn all_are_told_apart(forwarding: Forwarding, except: &[Forwarding]) {
    let site = lab(Shape::OneLegged, forwarding, &[Family::V4]);
    let possible = |row: &&Row| row.modes.contains(&forwarding) && !except.iter().any(|of| row.modes.contains(of));
    ROWS.iter().filter(possible).for_each(|row| row.play(&site));
}

#[test]
fn when_faults_look_alike_in_a_dsr_site_then_the_doctor_tells_them_apart() {
    all_are_told_apart(Forwarding::Dsr, &[]);
}

#[test]
fn when_all_servers_have_the_same_fault_then_one_finding_names_them() {
    let mut site = lab(Shape::OneLegged, Forwarding::Nat, &[Family::V4]);
    (1..=2).for_each(|number| site.kill_backend(number).unwrap());
    let found = finding(&site, "the servers do not run", "server", BOTH);
    let port = backend_port(Forwarding::Nat);
    assert_eq!(found.what, format!("web/web1, web/web2: nothing listens on 10.0.0.11:{port}, 10.0.0.12:{port}"));
}

#[test]
fn when_the_controller_hangs_then_the_doctor_says_so_and_its_command_wakes_it() {
    let mut site = lab(Shape::OneLegged, Forwarding::Nat, &[Family::V4]);
    site.controller().process().signal(Signal::SIGSTOP).unwrap();
    let (code, report) = examine(&site, &[]);
    let kinds: Vec<&str> = report.findings.iter().map(|finding| finding.kind.as_str()).collect();
    assert_eq!((code, report.controller, kinds), (1, false, vec!["controller"]));
    type_in(&site, &report.findings[0].cure.commands[0]);
    wait("the controller does not answer again", || found(&site).is_empty());
}

#[test]
fn when_the_address_of_a_pool_is_on_no_interface_then_the_doctor_adds_it() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Snat, 2, |settings, _| {
        settings.check = QUICK_HTTP_CHECK.to_owned();
        settings.service_lines = "snat = { addresses = [\"10.0.0.77\"] }\n".to_owned();
        Ok(())
    })
    .unwrap();
    (1..=2).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    assert!(site.ask(Family::V4, 1..=2, Duration::from_secs(1)).unwrap().iter().all(Result::is_err));
    wait("the pool's address is not missed", || found(&site) == ["pool"]);
    let (code, report) = examine(&site, &["--fix"]);
    assert_eq!(code, 0, "{report:?}");
    assert_eq!(site.homes(Family::V4, 1..=4).unwrap().len(), 4);
}

#[test]
fn when_another_machine_has_an_ipv6_vip_then_the_doctor_says_that_the_kernel_does_not_use_it() {
    let site = lab(Shape::OneLegged, Forwarding::Nat, &[Family::V6]);
    let topology = site.topology();
    let vip = topology.vip(Family::V6);
    // The hosts of tests do not search for other machines with their addresses.
    for scope in ["all", "eth0"] {
        topology.balancer().sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "1").unwrap();
    }
    topology.switch().ip(&format!("addr add {vip}/128 dev br0 nodad")).unwrap();
    topology.balancer().ip(&format!("addr add {vip}/128 dev eth0")).unwrap();
    wait("the kernel does not find the other machine", || {
        topology.balancer().ip("-6 addr show dev eth0").unwrap().contains("dadfailed")
    });
    assert_eq!(found(&site), ["vip-unusable"]);
    topology.switch().ip(&format!("addr del {vip}/128 dev br0")).unwrap();
    let commands = examine(&site, &[]).1.findings.remove(0).cure.commands;
    type_in(&site, &commands[1]);
    wait("the kernel does not use the VIP", || found(&site).is_empty());
}

/// A service without backends, one whose list of targets does not exist, and one whose servers speak UDP.
fn more_services(topology: &Topology, forwarding: Forwarding) -> String {
    let vip = topology.vip(Family::V4);
    let service = |name: &str, at: &str| {
        let mode = forwarding_word(forwarding);
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = [\"{vip}:{at}\"]\nforwarding = \"{mode}\"\ncheck = {{ type = \"none\" }}\n"
        )
    };
    let port = if forwarding == Forwarding::Nat { ":5300" } else { "" };
    let backend = |number: u16| {
        let address = topology.backend_address(Family::V4, number);
        format!("[[service.backend]]\nname = \"web{}\"\naddress = \"{address}{port}\"\n", number + 1)
    };
    let later = "[[service.discover]]\nfile = \"/nonexistent/targets.json\"\n".to_owned();
    [service("empty", "81"), service("later", "82"), later, service("names", "53/udp"), backend(0), backend(1)].concat()
}

fn udp_and_services_without_backends(forwarding: Forwarding) {
    let site = Site::start(Shape::OneLegged, forwarding, 2, |settings, topology| {
        settings.families = Vec::new();
        settings.lines = format!("[statistics]\nsample_interval = 1\n{}", more_services(topology, forwarding));
        Ok(())
    })
    .unwrap();
    let later = examine(&site, &["later"]).1.findings;
    assert_eq!(later.len(), 1, "{later:?}");
    // Because of this list, the balancer is degraded, which the other services do not explain.
    let of = |service: &str| {
        let mut findings = examine(&site, &[service]).1.findings;
        findings.retain(|finding| finding.kind != "not-ready");
        findings
    };
    assert_eq!(of("empty"), [], "no client came");
    assert!(later[0].kind == "discover" && later[0].what.contains("/nonexistent/targets.json"), "{later:?}");

    let names = of("names");
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!((names[0].kind.as_str(), names[0].backends.len()), ("server", 2), "{names:?}");
    let topology = site.topology();
    let sockets: Vec<UdpSocket> = (0..2)
        .map(|number| {
            let own = SocketAddr::new(topology.backend_address(Family::V4, number), 5300);
            let at = if forwarding == Forwarding::Nat { own } else { (topology.vip(Family::V4), 53).into() };
            topology.backends()[usize::from(number)].run_in_thread(|| UdpSocket::bind(at).unwrap()).unwrap()
        })
        .collect();
    assert_eq!(of("names"), [], "the servers listen");
    if forwarding == Forwarding::Dsr {
        topology.backends()[0].ip("addr del 10.2.0.10/32 dev lo").unwrap();
        let names = of("names");
        assert_eq!(names.iter().map(|of| of.kind.as_str()).collect::<Vec<_>>(), ["vip-missing"], "{names:?}");
    } else {
        topology.client().run_in_thread(|| send_datagrams(topology)).unwrap();
        topology.balancer().ip("route replace blackhole 10.1.0.0/16").unwrap();
        wait("the missing route to clients is not found", || {
            topology.client().run_in_thread(|| send_datagrams(topology)).unwrap();
            of("names").iter().map(|of| of.kind.as_str()).collect::<Vec<_>>() == ["route"]
        });
    }
    drop(sockets);
}

fn send_datagrams(topology: &Topology) {
    for client in 1..=4 {
        let socket = UdpSocket::bind((topology.client_address(Family::V4, client), 0)).unwrap();
        (0..20).for_each(|_| assert_eq!(socket.send_to(b"who?", (topology.vip(Family::V4), 53)).unwrap(), 4));
    }
}

#[test]
fn when_a_dsr_udp_service_is_not_served_then_the_doctor_says_why() {
    udp_and_services_without_backends(Forwarding::Dsr);
}

#[test]
fn when_a_nat_udp_service_is_not_served_then_the_doctor_says_why() {
    udp_and_services_without_backends(Forwarding::Nat);
}
