//! Tests of backends and `nat` clients behind interfaces of the balancer's host that do not accept frames from XDP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape, Topology},
    xdp::{Hook, Passer},
};
use nix::sys::signal::Signal;

use crate::{
    cards::{self, Cards},
    support::wait,
};

pub(crate) const CLIENTS: std::ops::RangeInclusive<u16> = 1..=30;
/// The mode with the longest headers, and the mode whose replies pass the balancer.
const HARDEST: [Forwarding; 2] = [Forwarding::Gue, Forwarding::Nat];
const MODES: [Forwarding; 4] = [Forwarding::Dsr, Forwarding::Nat, Forwarding::Ipip, Forwarding::Gue];

/// Returns the name of the balancer's interface on the backends' segment.
pub(crate) const fn port(shape: Shape) -> &'static str {
    if matches!(shape, Shape::OneLegged) { "eth0" } else { "eth1" }
}

/// Moves the balancer's addresses and routes for the backends' segment from `from` to `to`.
fn move_addresses(topology: &Topology, shape: Shape, from: &str, to: &str) -> Result<()> {
    topology.balancer().ip(&format!("addr flush dev {from} scope global"))?;
    give_addresses(topology, shape, to)
}

pub(crate) fn give_addresses(topology: &Topology, shape: Shape, to: &str) -> Result<()> {
    let balancer = topology.balancer();
    balancer.ip(&format!("link set {to} up"))?;
    balancer.ip(&format!("addr add 10.0.0.1/16 dev {to}"))?;
    balancer.ip(&format!("-6 addr add fd00::1/64 dev {to} nodad"))?;
    if shape == Shape::OneLegged {
        balancer.ip("route replace 10.1.0.0/16 via 10.0.0.2")?;
        balancer.ip("-6 route replace fd00:1::/64 via fd00::2")?;
    }
    Ok(())
}

/// Makes the interface on the backends' segment a port of a bridge. The bridge takes over the addresses of the
/// interface.
fn bridge(topology: &Topology, shape: Shape) -> Result<()> {
    let port = port(shape);
    let balancer = topology.balancer();
    balancer.ip("link add br0 type bridge mcast_snooping 0")?;
    balancer.ip(&format!("link set {port} master br0"))?;
    move_addresses(topology, shape, port, "br0")
}

pub(crate) fn wait_up(site: &mut Site) {
    for number in 1..=2 {
        site.wait_state(number, &["up"]).unwrap();
    }
}

pub(crate) fn served(site: &Site) -> BTreeMap<u16, String> {
    site.homes(Family::V6, CLIENTS).unwrap();
    site.homes(Family::V4, CLIENTS).unwrap()
}

fn counted(site: &Site, verdict: &str) -> f64 {
    let verdict = format!("verdict=\"{verdict}\"");
    site.metrics().unwrap().sum("packets_seen_total", &[&verdict]).unwrap()
}

fn start(shape: Shape, forwarding: Forwarding, adapt: impl FnOnce(&Topology) -> Result<()>) -> Site {
    Site::start(shape, forwarding, 2, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        settings.check = r#"{ type = "tcp", interval = "500ms" }"#.to_owned();
        adapt(topology)
    })
    .unwrap()
}

/// Makes the interface on the backends' segment use VLAN 7; the switch removes the tags.
fn vlan(topology: &Topology, shape: Shape) -> Result<()> {
    let port = port(shape);
    let (balancer, switch) = (topology.balancer(), topology.switch());
    balancer.ip(&format!("link add link {port} name {port}.7 type vlan id 7"))?;
    switch.ip("link set balancer nomaster")?;
    switch.ip("link add link balancer name balancer.7 type vlan id 7")?;
    switch.ip("link set balancer.7 master br0 up")?;
    // Without offloading, VLAN tags stay in frames, as with some network cards. With offloading, a veth pair would pass
    // VLAN tags outside of the frame.
    for (host, port) in [(balancer, port), (switch, "balancer")] {
        let off = host.command("ethtool").args(["-K", port, "txvlan", "off", "rxvlan", "off"]).output()?;
        ensure!(off.status.success(), "{off:?}");
    }
    move_addresses(topology, shape, port, &format!("{port}.7"))
}

fn served_by_the_kernel(shape: Shape, make: fn(&Topology, Shape) -> Result<()>, modes: &[Forwarding]) {
    for &forwarding in modes {
        let mut site = start(shape, forwarding, |topology| make(topology, shape));
        wait_up(&mut site);
        let homes = served(&site);
        assert_eq!(
            site.cli(&["ready"]).unwrap(),
            "ready\n",
            "{forwarding:?}: the program sees replies one device below"
        );
        assert!(counted(&site, "handed") > 0.0, "{forwarding:?}: nothing was handed over");
        assert_eq!(counted(&site, "redirect"), 0.0, "{forwarding:?}");
        assert_eq!(counted(&site, "drop"), 0.0, "{forwarding:?}");
        println!("{shape:?} {forwarding:?}: {homes:?}");
    }
}

#[test]
fn when_the_backends_are_behind_a_bridge_one_legged_then_the_kernel_forwards() {
    served_by_the_kernel(Shape::OneLegged, bridge, &HARDEST);
}

/// With `nat`, the interface on the clients' side accepts frames from XDP, but the interface on the backends' side does
/// not.
fn only_replies_are_redirected(modes: &[Forwarding]) {
    for &forwarding in modes {
        let mut site = start(Shape::TwoLegged, forwarding, |topology| bridge(topology, Shape::TwoLegged));
        wait_up(&mut site);
        served(&site);
        assert!(counted(&site, "handed") > 0.0, "{forwarding:?}: nothing was handed over");
        assert_eq!(counted(&site, "drop"), 0.0, "{forwarding:?}");
        let redirected = counted(&site, "redirect");
        // Replies leave through the clients' interface, which accepts frames from XDP.
        assert_eq!(redirected > 0.0, forwarding == Forwarding::Nat, "{forwarding:?}: {redirected} were redirected");
    }
}

#[test]
fn when_the_backends_are_behind_a_bridge_two_legged_then_the_kernel_forwards() {
    only_replies_are_redirected(&HARDEST);
}

#[test]
#[ignore = "needs the module 8021q, as the kernels of `cargo xtask test --kernels` have it"]
fn when_the_backends_are_behind_a_vlan_one_legged_then_the_kernel_forwards() {
    served_by_the_kernel(Shape::OneLegged, vlan, &MODES);
}

#[test]
#[ignore = "needs the module 8021q, as the kernels of `cargo xtask test --kernels` have it"]
fn when_the_backends_are_behind_a_vlan_two_legged_then_the_kernel_forwards() {
    served_by_the_kernel(Shape::TwoLegged, vlan, &MODES);
}

/// While an interface has VLANs, the network card must leave tags in frames, so that the program sees the tags.
#[test]
#[ignore = "needs the module 8021q, as the kernels of `cargo xtask test --kernels` have it"]
fn when_the_backends_are_behind_a_vlan_then_tags_are_not_stripped() {
    let strips = |topology: &Topology| {
        let output = topology.balancer().command("ethtool").args(["-k", "eth0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("rx-vlan-offload: on")
    };
    for on_exit in ["detach", "keep"] {
        let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, topology| {
            settings.on_exit = on_exit;
            assert!(strips(topology));
            topology.balancer().ip("link add link eth0 name eth0.7 type vlan id 7").map(drop)
        })
        .unwrap();
        assert!(!strips(site.topology()));
        // Another program makes the network card strip tags. A restarted balancer still knows the original setting of
        // the network card.
        let on = site.topology().balancer().command("ethtool").args(["-K", "eth0", "rxvlan", "on"]).status().unwrap();
        assert!(on.success());
        wait("tags are stripped", || !strips(site.topology()));
        if on_exit == "keep" {
            site.kill_and_restart(|_| {}).unwrap();
        }
        // From this point, the interface has no VLAN.
        site.topology().balancer().ip("link del eth0.7").unwrap();
        wait("tags are not stripped any more", || strips(site.topology()));
        site.topology().balancer().ip("link add link eth0 name eth0.7 type vlan id 7").unwrap();
        wait("tags are stripped", || !strips(site.topology()));
        site.controller().process().stop().unwrap();
        if on_exit == "keep" {
            assert!(site.detach().unwrap().status.success());
        }
        assert!(strips(site.topology()));
    }
}

/// Makes a cable between two network cards the connection to the backends' segment.
fn cable(topology: &Topology, shape: Shape) -> Result<()> {
    let (near, far) = (port(shape), "balancer");
    topology.balancer().ip(&format!("link del {near}"))?;
    for (card, (host, name)) in
        cards::CABLES[0].into_iter().zip([(topology.balancer(), near), (topology.switch(), far)])
    {
        cards::give(card, host, name)?;
    }
    topology.switch().ip(&format!("link set {far} master br0 up"))?;
    give_addresses(topology, shape, near)
}

/// The test requires that the driver of the network cards supports native XDP.
#[test]
#[ignore = "needs network cards joined by a cable, as the machines of `cargo xtask test --kernels` have them"]
fn when_the_backends_are_behind_network_cards_then_clients_are_served() {
    for shape in [Shape::OneLegged, Shape::TwoLegged] {
        for forwarding in MODES {
            let _cards = Cards::take().unwrap();
            let mut site = start(shape, forwarding, |topology| cable(topology, shape));
            wait_up(&mut site);
            let homes = served(&site);
            let modes: Vec<_> =
                site.status().unwrap().interfaces.into_iter().map(|each| (each.name, each.xdp_mode)).collect();
            assert!(modes.contains(&(port(shape).to_owned(), "native".to_owned())), "{modes:?}");
            assert_eq!(counted(&site, "handed"), 0.0, "{shape:?} {forwarding:?}");
            assert_eq!(counted(&site, "drop"), 0.0, "{shape:?} {forwarding:?}");
            println!("{shape:?} {forwarding:?}: {homes:?}");
        }
    }
}

/// The interface becomes a port of a bridge while clients use it, and later leaves the bridge.
#[test]
fn when_a_bridge_comes_and_goes_then_clients_are_served() {
    let mut site = start(Shape::OneLegged, Forwarding::Nat, |_| Ok(()));
    wait_up(&mut site);
    let homes = served(&site);
    bridge(site.topology(), Shape::OneLegged).unwrap();
    until_served_as(&site, &homes, |handed| handed > 0.0);

    let balancer = site.topology().balancer();
    balancer.ip("link set eth0 nomaster").unwrap();
    move_addresses(site.topology(), Shape::OneLegged, "br0", "eth0").unwrap();
    balancer.ip("link del br0").unwrap();
    // From this point, XDP sends the frames again.
    until_served_as(&site, &homes, |handed| handed == 0.0);
}

/// Waits until each client gets answers from its previous backend, and `is_wanted` accepts the number of frames passed
/// to the kernel. The balancer follows changes of routes, and a backend that had no route for a moment gets its clients
/// back.
fn until_served_as(site: &Site, homes: &BTreeMap<u16, String>, is_wanted: fn(handed: f64) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let limit = Duration::from_millis(500);
    loop {
        let before = counted(site, "handed");
        let [v4, v6] = Family::BOTH.map(|family| site.homes_within(limit, family, CLIENTS));
        let handed = counted(site, "handed") - before;
        if v4.as_ref().is_ok_and(|now| now == homes) && v6.is_ok() && is_wanted(handed) {
            break;
        }
        assert!(Instant::now() < deadline, "{handed} handed over; {v4:?}, {v6:?}; before: {homes:?}");
    }
}

/// Starts a site whose backends' segment is behind `eth2`, a veth interface. The interface `p2` at the other end of the
/// veth pair does not poll (NAPI).
fn start_behind_a_plain_pair() -> Site {
    start(Shape::TwoLegged, Forwarding::Dsr, |topology| {
        topology.balancer().ip("link add eth2 type veth peer name p2")?;
        topology.balancer().ip(&format!("link set p2 netns {}", topology.switch().name()))?;
        topology.switch().ip("link set p2 master br0 up")?;
        // The kernel still computes all checksums, because offloading is off.
        move_addresses(topology, Shape::TwoLegged, "eth1", "eth2")
    })
}

/// The other end of the veth pair does not poll, so the kernel reports that `eth2` accepts no redirected frames.
#[test]
fn when_the_other_end_of_a_pair_does_not_poll_then_the_kernel_forwards() {
    let mut site = start_behind_a_plain_pair();
    wait_up(&mut site);
    served(&site);
    assert!(counted(&site, "handed") > 0.0);
    assert_eq!(counted(&site, "redirect"), 0.0);
}

/// The other end of the veth pair starts and stops polling, which does not change any link.
#[test]
fn when_an_interface_begins_or_stops_to_take_frames_then_clients_are_served() {
    let mut site = start_behind_a_plain_pair();
    wait_up(&mut site);
    served(&site);
    assert_eq!(counted(&site, "redirect"), 0.0);
    let other_end = Passer::attach(site.topology().switch(), "p2", Hook::Native).unwrap();
    until(&mut site, "redirect");
    drop(other_end);
    until(&mut site, "handed");
    let log = site.controller().process().tail(100).unwrap();
    assert!(log.contains("eth2 (veth) takes frames from XDP now"), "{log}");
}

/// Waits until packets get only the verdict `verdict`; the network may lose a few packets before that.
fn until(site: &mut Site, verdict: &str) {
    let other = if verdict == "handed" { "redirect" } else { "handed" };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = [verdict, other].map(|verdict| counted(site, verdict));
        site.ask(Family::V4, CLIENTS, Duration::from_secs(1)).unwrap();
        let after = [verdict, other].map(|verdict| counted(site, verdict));
        if after[0] > before[0] && after[1] == before[1] {
            break;
        }
        assert!(Instant::now() < deadline, "{verdict} and {other}: {before:?}, then {after:?}");
    }
    served(site);
}

#[test]
fn when_the_program_is_in_generic_mode_then_clients_are_served() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        settings.xdp_mode = "generic";
        settings.check = r#"{ type = "tcp", interval = "500ms" }"#.to_owned();
        bridge(topology, Shape::OneLegged)
    })
    .unwrap();
    wait_up(&mut site);
    served(&site);
}

/// The other end of the veth pair goes down before the balancer can react. Until the balancer reacts, it counts exactly
/// the frames that it redirects.
#[test]
fn when_redirects_fail_then_they_are_counted() {
    let mut site = start(Shape::TwoLegged, Forwarding::Dsr, |_| Ok(()));
    wait_up(&mut site);
    served(&site);
    let failed = |site: &Site| site.metrics().unwrap().sum("redirect_errors_total", &["interface=\"eth1\""]);
    assert_eq!(failed(&site).unwrap_or_default(), 0.0, "none so far");
    let redirected = counted(&site, "redirect");

    site.controller().process().signal(Signal::SIGSTOP).unwrap();
    site.topology().switch().ip("link set balancer down").unwrap();
    let answers = site.ask(Family::V4, CLIENTS, Duration::from_millis(100)).unwrap();
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    site.controller().process().signal(Signal::SIGCONT).unwrap();

    let redirected = counted(&site, "redirect") - redirected;
    let failed = failed(&site).unwrap();
    assert!(failed > 0.0 && failed <= redirected, "{failed} of {redirected}");
    let status = site.cli(&["status"]).unwrap();
    assert!(status.contains(" frames were redirected to eth1, which did not take them\n"), "{status}");
}
