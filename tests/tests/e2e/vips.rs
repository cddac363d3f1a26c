//! Tests of `assign_vip`: the balancer adds the VIPs to its interface, announces the VIPs to neighbours, and removes
//! the VIPs at its end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    net::{IpAddr, Ipv6Addr},
    thread,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::Namespace,
    site::Site,
    topology::{Family, Shape},
};

use crate::support::wait;

const ELSEWHERE: &str = "02:00:00:00:66:66";

fn ip(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("ip").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a site whose balancer must assign the VIPs itself, and whose client has outdated neighbour entries for the
/// VIPs.
fn site(on_exit: &'static str) -> Site {
    site_with(on_exit, &[])
}

/// Starts the same site, whose operator has added further addresses to the interface.
fn site_with(on_exit: &'static str, others: &[&str]) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.families = vec![Family::V4, Family::V6];
        settings.on_exit = on_exit;
        settings.service_lines = "assign_vip = true".to_owned();
        for family in Family::BOTH {
            let vip = topology.vip(family).to_string();
            let length = if family == Family::V4 { 32 } else { 128 };
            topology.balancer().ip(&format!("addr del {vip}/{length} dev lo"))?;
        }
        for other in others {
            topology.balancer().ip(&format!("addr add {other}/32 dev eth0"))?;
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
fn when_the_balancer_starts_and_ends_then_vips_come_and_go() {
    let mut site = site("detach");
    for family in Family::BOTH {
        assert!(assigned(&site, family), "{family:?}");
        site.homes(family, 1..=5).unwrap();
    }
    // If an operator removes a VIP from the interface, the balancer adds the VIP again.
    let interface = site.topology().interfaces()[0];
    let vip = site.topology().vip(Family::V4);
    site.topology().balancer().ip(&format!("addr del {vip}/32 dev {interface}")).unwrap();
    wait("the VIP does not come back", || assigned(&site, Family::V4));
    // After a kill, the next balancer recognizes the remaining address as its own.
    site.kill_and_restart(|_| {}).unwrap();
    assert!(assigned(&site, Family::V4));
    site.controller().process().stop().unwrap();
    for family in Family::BOTH {
        assert!(!assigned(&site, family), "{family:?} stays assigned");
    }
}

#[test]
fn when_an_address_exists_already_then_the_balancer_leaves_it_to_its_owner() {
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
fn when_vips_are_assigned_then_neighbours_are_told() {
    let mut site = site("detach");
    site.controller().process().stop().unwrap();
    // The backend is a neighbour on the balancer's link, with an outdated entry for each VIP.
    let backend = &site.topology().backends()[0];
    for family in Family::BOTH {
        let vip = site.topology().vip(family).to_string();
        backend.ip(&format!("neigh replace {vip} lladdr {ELSEWHERE} dev eth0 nud stale")).unwrap();
    }
    site.restart(|_| {}).unwrap();
    thread::sleep(Duration::from_secs(1));
    let backend = &site.topology().backends()[0];
    for family in Family::BOTH {
        let vip = site.topology().vip(family).to_string();
        let entry = ip(backend, &["neigh", "show", &vip, "dev", "eth0"]);
        assert!(!entry.contains(ELSEWHERE) && entry.contains("lladdr"), "{family:?}: {entry}");
    }
}

/// One VIP is in the IPv6 network of the backends, and matches them better than the balancer's own address. The other
/// VIP is on `lo`, which the kernel asks first for an address if an interface has none.
#[test]
fn when_vips_are_assigned_then_the_machines_own_connections_have_another_source() {
    let mut site = site("detach");
    let IpAddr::V6(backend) = site.backend_address(Family::V6, 1).ip() else { panic!("the address is not IPv6") };
    let near = Ipv6Addr::from(u128::from(backend) ^ 0x100);
    let service = |name: &str, vip: &str, place: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}:80\"\nforwarding = \"dsr\"\nassign_vip = {place}\n\
             remember = \"0s\"\ncheck = {{ type = \"none\" }}\n"
        )
    };
    let services = service("near", &format!("[{near}]"), "true") + &service("far", OTHER_VIP, "\"lo\"");
    site.apply(|settings| settings.lines = services).unwrap();
    let balancer = site.topology().balancer();
    let has = |address: &str| ip(balancer, &["addr", "show"]).contains(&format!(" {address}/"));
    wait("the VIPs are not assigned", || has(&near.to_string()) && has(OTHER_VIP));
    balancer.ip("link add uplink type veth peer name peer").unwrap();
    balancer.ip("link set uplink up").unwrap();
    balancer.ip("route add 192.0.2.0/24 dev uplink").unwrap();
    for (to, vip) in [(backend.to_string(), near.to_string()), ("192.0.2.1".to_owned(), OTHER_VIP.to_owned())] {
        let route = ip(balancer, &["route", "get", &to]);
        assert!(route.contains(" src ") && !route.contains(&format!(" src {vip} ")), "{route}");
    }
}

/// Returns the MAC address that a neighbour has for an address.
fn known_mac(neighbour: &Namespace, address: &str) -> String {
    let entry = ip(neighbour, &["neigh", "show", address, "dev", "eth0"]);
    entry.split_whitespace().skip_while(|&word| word != "lladdr").nth(1).unwrap_or_default().to_owned()
}

const NEW_MAC: &str = "02:00:00:00:00:99";
const OTHER_VIP: &str = "203.0.113.9";
/// An address that an operator has added.
const OTHER: &str = "10.0.0.77";

/// Only an announcement after the change can tell the neighbours the new MAC address.
#[test]
fn when_the_mac_address_changes_then_neighbours_are_told_anew() {
    let site = site_with("detach", &[OTHER]);
    let mut addresses = vec![OTHER.to_owned()];
    addresses.extend(Family::BOTH.map(|family| site.topology().vip(family).to_string()));
    let backend = &site.topology().backends()[0];
    for address in &addresses {
        backend.ip(&format!("neigh replace {address} lladdr {ELSEWHERE} dev eth0 nud stale")).unwrap();
    }
    site.topology().balancer().ip(&format!("link set eth0 address {NEW_MAC}")).unwrap();
    for address in &addresses {
        wait(&format!("{address} is not announced"), || known_mac(backend, address) == NEW_MAC);
    }
}

#[test]
fn when_vips_were_kept_then_detach_removes_them() {
    let mut site = site("keep");
    site.controller().process().kill().unwrap();
    assert!(assigned(&site, Family::V4) && assigned(&site, Family::V6));
    let output = site.detach().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!assigned(&site, Family::V4) && !assigned(&site, Family::V6));
}

/// An operator adds an address to the interface before a service needs the address. The address still belongs to the
/// operator after `apply` has added a service that needs the address and the balancer has restarted.
#[test]
fn when_apply_begins_to_need_an_operators_address_then_it_stays_the_operators() {
    let mut site = site("keep");
    site.apply(|settings| settings.service_lines.clear()).unwrap();
    wait("VIPs stay assigned", || Family::BOTH.iter().all(|&family| !assigned(&site, family)));
    let interface = site.topology().interfaces()[0];
    let vip = site.topology().vip(Family::V4);
    site.topology().balancer().ip(&format!("addr add {vip}/32 dev {interface}")).unwrap();

    site.apply(|settings| settings.service_lines = "assign_vip = true".to_owned()).unwrap();
    assert!(assigned(&site, Family::V6));
    site.kill_and_restart(|_| {}).unwrap();
    site.apply(|settings| settings.service_lines.clear()).unwrap();
    wait("the balancer's own stays assigned", || !assigned(&site, Family::V6));
    assert!(assigned(&site, Family::V4), "apply removed the operator's address");

    site.apply(|settings| settings.service_lines = "assign_vip = true".to_owned()).unwrap();
    site.controller().process().kill().unwrap();
    assert!(site.detach().unwrap().status.success());
    assert!(!assigned(&site, Family::V6));
    assert!(assigned(&site, Family::V4), "detach removed the operator's address");
}

#[test]
fn when_the_first_interface_changes_over_a_restart_then_vips_follow() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.on_exit = "keep";
        settings.service_lines = "assign_vip = true".to_owned();
        topology.balancer().ip(&format!("addr del {}/32 dev lo", topology.vip(Family::V4)))?;
        Ok(())
    })
    .unwrap();
    let on = |site: &Site, interface: &str| {
        let vip = site.topology().vip(Family::V4);
        ip(site.topology().balancer(), &["addr", "show", "dev", interface]).contains(&format!(" {vip}/"))
    };
    assert!(on(&site, "eth0") && !on(&site, "eth1"));
    site.restart(|settings| settings.interfaces.reverse()).unwrap();
    assert!(!on(&site, "eth0"), "the VIP is left on the former first interface");
    assert!(on(&site, "eth1"));
    site.kill_and_restart(|settings| settings.interfaces.reverse()).unwrap();
    assert!(on(&site, "eth0") && !on(&site, "eth1"));
    assert_eq!(site.homes(Family::V4, 1..=5).unwrap().len(), 5);
    site.controller().process().kill().unwrap();
    assert!(site.detach().unwrap().status.success());
    assert!(!on(&site, "eth0") && !on(&site, "eth1"));
}

/// The notes for the next controller have room for every VIP that the balancer has ever assigned.
#[test]
fn when_hundreds_of_vips_come_and_go_then_they_survive_a_restart() {
    const SERVICES: usize = 100;
    let mut site = site("keep");
    let services = |net: u8| -> String {
        let service = |number: usize| {
            let address = format!("203.{net}.{}.{}:80", number / 200, number % 200 + 1);
            format!(
                "[[service]]\nname = \"vip{net}-{number}\"\naddress = \"{address}\"\nforwarding = \"dsr\"\n\
                 table_size = 101\nremember = \"0s\"\nassign_vip = true\ncheck = {{ type = \"none\" }}\n"
            )
        };
        (0..SERVICES).map(service).collect()
    };
    let count = |site: &Site, net: u8| {
        let interface = site.topology().interfaces()[0];
        ip(site.topology().balancer(), &["addr", "show", "dev", interface]).matches(&format!(" 203.{net}.")).count()
    };
    for net in 1..=5 {
        site.apply(|settings| settings.lines = services(net)).unwrap();
        assert_eq!(count(&site, net), SERVICES);
    }
    wait("VIPs stay assigned", || (1..=4).all(|net| count(&site, net) == 0));
    site.kill_and_restart(|_| {}).unwrap();
    assert_eq!(count(&site, 5), SERVICES);
    site.controller().process().kill().unwrap();
    assert!(site.detach().unwrap().status.success());
    assert_eq!(count(&site, 5), 0);
}
