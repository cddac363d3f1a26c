//! Tests that the balancer accepts frames for the MAC addresses of its interfaces, and of devices on top of these
//! interfaces. The balancer must follow changes of MAC addresses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::Namespace,
    site::Site,
    topology::{Family, Shape},
};

const VRRP: &str = "00:00:5e:00:01:33";
const ANOTHER: &str = "02:00:00:00:00:77";
const STRANGER: &str = "02:00:00:00:00:99";
/// A time limit that is much longer than the balancer needs to notice a change.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the clients' host send packets for the VIP to the MAC address `mac`.
fn send_to(client: &Namespace, mac: &str) {
    let route = client.ip("-4 route show 10.2.0.0/16").unwrap();
    let via = route.split_whitespace().nth(2).unwrap();
    client.ip(&format!("neigh replace {via} lladdr {mac} dev eth0 nud permanent")).unwrap();
}

fn is_served(site: &Site) -> bool {
    site.ask(Family::V4, [1], Duration::from_millis(500)).unwrap().iter().all(Result::is_ok)
}

fn wait_until_served(site: &Site, served: bool, what: &str) {
    let start = Instant::now();
    while is_served(site) != served {
        assert!(start.elapsed() < PATIENCE, "{what}");
    }
}

#[test]
fn when_mac_addresses_change_then_the_balancer_follows() {
    let site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |_, _| Ok(())).unwrap();
    let (client, balancer) = (site.topology().client(), site.topology().balancer());
    wait_until_served(&site, true, "the balancer's own MAC");

    // The frame is addressed to another station, but still arrives, like a frame that a switch floods.
    send_to(client, STRANGER);
    assert!(!is_served(&site), "a stranger's frames are taken");
    send_to(client, VRRP);
    assert!(!is_served(&site), "a virtual MAC that is not there");

    balancer.ip(&format!("link add vrrp0 link eth0 address {VRRP} type macvlan mode private")).unwrap();
    balancer.ip("link set vrrp0 up").unwrap();
    wait_until_served(&site, true, "the virtual MAC of VRRP");
    balancer.ip("link del vrrp0").unwrap();
    wait_until_served(&site, false, "a virtual MAC that has gone");

    balancer.ip(&format!("link set eth0 address {ANOTHER}")).unwrap();
    send_to(client, ANOTHER);
    wait_until_served(&site, true, "a MAC that has changed");
}
