//! Tests of switching to a service with `snat`: the servers have no route through the balancer's machine, and see its
//! addresses before and after the switch.

use std::{fs, net::SocketAddr};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::Request,
    process::Process,
    site::{PORT, Site},
    topology::Family,
};

use super::{Waiting, elsewhere, import, site_with, start_haproxy, start_with, steer, sticky};
use crate::support::{homes, requests, under_load, wait};

/// The only address of the pool, which tells the balancer's connections from HAProxy's.
const POOL: &str = "10.0.0.200";

/// Starts the balancer with the imported services, which use `snat`, and steers no client.
pub(super) fn watch(site: &mut Site, services: &str) {
    site.topology().balancer().ip(&format!("address add {POOL}/32 dev lo")).unwrap();
    let lines = format!("forwarding = \"snat\"\nsnat = {{ addresses = [\"{POOL}\"] }}\nsteer = 0\n");
    let services = services.replace("forwarding = \"snat\"\n", &lines);
    assert!(services.contains(&lines), "{services}");
    start_with(site, &services);
    wait("a backend is not up", || {
        let status = site.status().unwrap();
        status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
    });
}

/// Starts three servers with IPv4 addresses behind HAProxy, which serves clients of both families, and a balancer that
/// has imported HAProxy's configuration file and steers no client.
fn beside_haproxy() -> (Site, Process) {
    let mut site = site_with(Forwarding::Snat, 3, &Family::BOTH);
    let vip = SocketAddr::new(site.topology().vip(Family::V6), PORT);
    let text = sticky(&site, 3).replacen("    balance", &format!("    bind {vip}\n    balance"), 1);
    let haproxy = start_haproxy(&site, &text);
    let (imported, _) = import(&site, &site.files().join("haproxy.cfg"), &[]);
    let services = fs::read_to_string(imported).unwrap();
    watch(&mut site, &services);
    (site, haproxy)
}

/// Sends a request on each connection: each server sees the same address as before.
fn ask_all(open: &mut [(Waiting, String)], when: &str) {
    for (waiting, seen) in open {
        assert_eq!(waiting.ask().as_ref(), Ok(&*seen), "{when}");
    }
}

#[test]
fn when_the_share_of_a_snat_service_grows_and_shrinks_then_open_connections_of_both_families_stay_on_their_side() {
    const CLIENTS: usize = 30;
    let (site, _haproxy) = beside_haproxy();
    let all: Vec<Request> =
        Family::BOTH.into_iter().flat_map(|family| requests(site.topology(), family, PORT, 1..=100)).collect();
    // HAProxy's table contains only IPv4 addresses.
    let known = &all[..100];
    let before = homes(site.topology(), known);
    let socket = site.files().join("haproxy.sock");
    let entrance = site.topology().client().entrance();
    let mut open: Vec<(Waiting, String)> = Vec::new();
    let mut steered = Vec::new();
    let load = under_load(&entrance, &all, || {
        for percent in [0, 10, 100, 50, 0] {
            if percent > 0 || !open.is_empty() {
                site.cli(&["client", "import", "web", socket.to_str().unwrap(), "--from", "haproxy"]).unwrap();
                println!("{}", steer(&site, "web", percent).trim());
            }
            ask_all(&mut open, &format!("at {percent}%"));
            let mut own = 0;
            for family in Family::BOTH {
                for client in 1..=CLIENTS as u16 {
                    let mut waiting = Waiting::open(&site, family, client);
                    let seen = waiting.ask().unwrap_or_else(|error| panic!("at {percent}%: {error}"));
                    own += usize::from(seen == POOL);
                    open.push((waiting, seen));
                }
            }
            steered.push(own);
            assert_eq!(elsewhere(&before, &homes(site.topology(), known)), 0, "at {percent}%");
        }
        ask_all(&mut open, "in the end");
    });
    load.assert_answered(100);
    println!("of {} clients, steered at each share: {steered:?}; {} connections stay", 2 * CLIENTS, open.len());
    let [none, tenth, every, half, none_again] = steered[..] else { panic!("{steered:?}") };
    assert_eq!((none, every, none_again), (0, 2 * CLIENTS, 0), "{steered:?}");
    assert!(0 < tenth && tenth < half && half < every, "{steered:?}");
    let passed = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        site.metrics().unwrap().sum("unsteered_packets_total", &["service=\"web\"", &reason]).unwrap()
    };
    assert!(passed("unsteered") > 0.0 && passed("host_connection") > 0.0);
}
