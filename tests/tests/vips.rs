//! `assign_vip`: the balancer gives its interface the VIPs, tells the neighbours, and takes them back.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use balancer_common::map_types::Forwarding;
use balancer_tests::{
    namespace::Namespace,
    site::Site,
    topology::{Family, Shape},
};

const ELSEWHERE: &str = "02:00:00:00:66:66";

fn ip(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("ip").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A site whose balancer has no VIP of its own, and whose client believes that the VIPs are elsewhere.
fn site(on_exit: &'static str) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.families = vec![Family::V4, Family::V6];
        settings.on_exit = on_exit;
        settings.service_lines = "assign_vip = true".to_owned();
        for family in Family::BOTH {
            let vip = topology.vip(family).to_string();
            let length = if family == Family::V4 { 32 } else { 128 };
            topology.balancer().ip(&format!("addr del {vip}/{length} dev lo"))?;
        }
        Ok(())
    })
    .unwrap()
}

fn assigned(site: &Site, family: Family) -> bool {
    let vip = site.topology().vip(family).to_string();
    let interface = site.topology().interfaces()[0];
    ip(site.topology().balancer(), &["addr", "show", "dev", interface]).contains(&format!(" {vip}/"))
}

#[test]
fn vips_come_with_the_balancer_and_go_with_it() {
    let mut site = site("detach");
    for family in Family::BOTH {
        assert!(assigned(&site, family), "{family:?}");
        site.homes(family, 1..=5).unwrap();
    }
    // Somebody removed one: it comes back with the next start, and nothing fails at the end.
    let interface = site.topology().interfaces()[0];
    let vip = site.topology().vip(Family::V4);
    site.topology().balancer().ip(&format!("addr del {vip}/32 dev {interface}")).unwrap();
    site.restart(|_| {}).unwrap();
    assert!(assigned(&site, Family::V4));
    site.controller().process().stop().unwrap();
    for family in Family::BOTH {
        assert!(!assigned(&site, family), "{family:?} stays assigned");
    }
}

#[test]
fn an_address_that_is_there_already_is_somebody_elses() {
    let mut site = site("detach");
    site.controller().process().stop().unwrap();
    let interface = site.topology().interfaces()[0];
    let vip = site.topology().vip(Family::V4);
    site.topology().balancer().ip(&format!("addr add {vip}/32 dev {interface}")).unwrap();
    site.restart(|_| {}).unwrap();
    site.controller().process().stop().unwrap();
    assert!(assigned(&site, Family::V4), "somebody else's address was removed");
    assert!(!assigned(&site, Family::V6));
}

#[test]
fn neighbours_are_told() {
    let mut site = site("detach");
    site.controller().process().stop().unwrap();
    // Each of these is a neighbour of a host on the balancer's link, with an entry that is out of date.
    let backend = &site.topology().backends()[0];
    for family in Family::BOTH {
        let vip = site.topology().vip(family).to_string();
        backend.ip(&format!("neigh replace {vip} lladdr {ELSEWHERE} dev eth0 nud stale")).unwrap();
    }
    site.restart(|_| {}).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let backend = &site.topology().backends()[0];
    for family in Family::BOTH {
        let vip = site.topology().vip(family).to_string();
        let entry = ip(backend, &["neigh", "show", &vip, "dev", "eth0"]);
        assert!(!entry.contains(ELSEWHERE) && entry.contains("lladdr"), "{family:?}: {entry}");
    }
}

#[test]
fn kept_vips_go_with_detach() {
    let mut site = site("keep");
    site.controller().process().kill().unwrap();
    assert!(assigned(&site, Family::V4) && assigned(&site, Family::V6));
    let output = site.detach().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!assigned(&site, Family::V4) && !assigned(&site, Family::V6));
}
