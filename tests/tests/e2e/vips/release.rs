//! Tests of announcements that must first wait until earlier announcements have ended.

use std::{thread, time::Duration};

use balancer_testkit::{site::Site, topology::Family};

use super::{ELSEWHERE, NEW_MAC, OTHER, known_mac, site};
use crate::support::wait;

/// Before each change, the test makes the neighbours' entries outdated, so that only an announcement can renew them.
#[test]
fn when_mac_carrier_mode_or_an_address_changes_then_neighbours_are_told_anew() {
    type Change = fn(&mut Site);
    let mut site = site("detach");
    let vips = Family::BOTH.map(|family| site.topology().vip(family).to_string());
    site.topology().balancer().ip(&format!("addr add {OTHER}/32 dev eth0")).unwrap();
    let changes: [(&str, Change); 4] = [
        ("MAC address", |site| {
            site.topology().balancer().ip(&format!("link set eth0 address {NEW_MAC}")).map(drop).unwrap()
        }),
        ("carrier", |site| {
            site.topology().switch().ip("link set balancer down").unwrap();
            site.topology().switch().ip("link set balancer up").unwrap();
        }),
        ("mode", |site| site.apply(|settings| settings.xdp_mode = "generic").map(drop).unwrap()),
        ("address", |site| {
            let (v4, v6) = (site.topology().vip(Family::V4), site.topology().vip(Family::V6));
            site.topology().balancer().ip(&format!("addr del {v4}/32 dev eth0")).unwrap();
            site.topology().balancer().ip(&format!("addr del {v6}/128 dev eth0")).unwrap();
        }),
    ];
    for (what, change) in changes {
        // After nine seconds, the announcements of the start or of the previous change have ended.
        thread::sleep(Duration::from_secs(9));
        for address in vips.iter().map(String::as_str).chain([OTHER]) {
            let backend = &site.topology().backends()[0];
            backend.ip(&format!("neigh replace {address} lladdr {ELSEWHERE} dev eth0 nud stale")).unwrap();
        }
        change(&mut site);
        let backend = &site.topology().backends()[0];
        for vip in &vips {
            wait(&format!("{what}: {vip} is not announced"), || known_mac(backend, vip) == NEW_MAC);
        }
        if what == "MAC address" {
            wait("the operator's address is not announced", || known_mac(backend, OTHER) == NEW_MAC);
        } else {
            assert_eq!(known_mac(backend, OTHER), ELSEWHERE, "{what}");
        }
    }
}
