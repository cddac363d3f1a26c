//! Tests of services that share their clients with the host: which packets pass, which packets the program steers, and
//! where connections from before a change of the share go.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use balancer_common::{
    client::{self, HashKey, mask_v6},
    features::Features,
    map_types::ShareStats,
    share::{Share, Side},
    verdict::{Decision, DropReason},
};
use balancer_control::io::{RuleAction, RuleSpec};
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport},
    rig::{Rig, Setup, backend_mac},
};
use socket2::{Domain, Socket, Type};

use crate::{
    cases::{Case, Then, run_with, services},
    icmp_errors::error,
    rows::{self, rows},
};

/// The TCP services of both families, with one service for each mode.
pub(crate) const TCP: [&str; 6] = [
    "198.51.100.10:80",
    "[2001:db8::10]:80",
    "198.51.100.20:80",
    "[2001:db8::20]:80",
    "198.51.100.60:80",
    "[2001:db8::52]:80",
];
const UDP: [&str; 2] = ["198.51.100.70:53", "[2001:db8::71]:53"];
pub(crate) const HALF: Share = Share::always(50);
/// A change after which the program steers half of the clients. Recently, equal numbers of clients have moved to the
/// backends and back to the host.
pub(crate) const CHANGED: Share = Share { now: 50, least: 25, most: 75 };

pub(crate) fn tag(client: IpAddr) -> u32 {
    let key = HashKey { k0: 1, k1: 2 };
    let hash = match client {
        IpAddr::V4(client) => client::hash_v4(key, u32::from_ne_bytes(client.octets())),
        IpAddr::V6(client) => {
            let [high, low]: [u64; 2] = bytemuck::cast(client.octets());
            let [high_mask, low_mask] = mask_v6(64);
            client::hash_v6(key, [high & high_mask, low & low_mask])
        }
    };
    (hash >> 32) as u32
}

/// Returns a client of `vip`'s family on the given side of the share. Each VIP uses different clients, because all
/// services of the rig have the same hash key.
pub(crate) fn on(share: Share, side: Side, vip: &str) -> IpAddr {
    let clients = (1..=250u16).map(|host| -> IpAddr {
        if vip.starts_with('[') {
            format!("2001:db8:c:{host:x}::7").parse().expect("an address")
        } else {
            format!("203.0.113.{host}").parse().expect("an address")
        }
    });
    let place = TCP.iter().chain(&UDP).position(|of| *of == vip).unwrap_or_default();
    let mut clients = clients.filter(|&client| share.side(tag(client)) == side);
    clients.nth(place).expect("a client on that side")
}

fn packet(client: IpAddr, vip: &str, transport: Transport) -> Frame {
    Frame::new(&SocketAddr::new(client, 40_000).to_string(), vip, transport)
}

fn to(rig: &Rig, vip: &str) -> Then {
    Then::To(backend_mac(rig.service(vip).expect("a service")))
}

fn share_all(rig: &mut Rig, share: Share) -> anyhow::Result<()> {
    TCP.iter().chain(&UDP).try_for_each(|vip| rig.share(vip, share))
}

fn when_half_of_the_clients_are_steered_then_all_packets_of_the_others_pass(rig: &mut Rig) -> Vec<Case> {
    share_all(rig, HALF).expect("shares");
    let mut cases = Vec::new();
    for (vip, transports) in TCP
        .map(|vip| (vip, vec![Transport::Tcp(SYN), Transport::Tcp(ACK), Transport::Tcp(SYN | ACK)]))
        .into_iter()
        .chain(UDP.map(|vip| (vip, vec![Transport::Udp])))
    {
        for transport in transports {
            let steered = packet(on(HALF, Side::Steered, vip), vip, transport);
            let other = packet(on(HALF, Side::Host, vip), vip, transport);
            for vlans in [vec![], vec![7], vec![7, 8]] {
                let steered = Frame { vlans: vlans.clone(), ..steered.clone() };
                let other = Frame { vlans, ..other.clone() };
                cases.push(Case::new(format!("{vip} steered, {transport:?}"), &steered, to(rig, vip)));
                cases.push(Case::new(format!("{vip} the host's, {transport:?}"), &other, Then::Pass));
            }
        }
    }
    cases
}

fn when_clients_have_changed_sides_then_new_connections_go_to_the_new_side_and_unknown_ones_to_the_host(
    rig: &mut Rig,
) -> Vec<Case> {
    share_all(rig, CHANGED).expect("shares");
    TCP.iter().try_for_each(|vip| rig.remember(vip, Duration::from_secs(3600))).expect("memory");
    let mut cases = Vec::new();
    for vip in TCP {
        let [came, left] = [Side::Came, Side::Left].map(|side| on(CHANGED, side, vip));
        let of = |client, flags| packet(client, vip, Transport::Tcp(flags));
        cases.push(Case::new(format!("{vip} came, not known"), &of(came, ACK), Then::Pass));
        cases.push(Case::new(format!("{vip} came, begins"), &of(came, SYN), to(rig, vip)));
        cases.push(Case::new(format!("{vip} came, is known"), &of(came, ACK), to(rig, vip)));
        cases.push(Case::new(format!("{vip} left, begins"), &of(left, SYN), Then::Pass));
        // The host has no sockets in this test.
        cases.push(Case::new(format!("{vip} left, goes on"), &of(left, ACK), Then::Pass));
    }
    for vip in UDP {
        let [came, left] = [Side::Came, Side::Left].map(|side| on(CHANGED, side, vip));
        let of = |client| packet(client, vip, Transport::Udp);
        cases.push(Case::new(format!("{vip} came"), &of(came), to(rig, vip)));
        cases.push(Case::new(format!("{vip} left"), &of(left), Then::Pass));
    }
    cases
}

/// Assigns an address to the machine of the test, and waits until the kernel has the address's route: the kernel adds
/// the route of an IPv6 address later than the address.
pub(crate) fn assign(address: IpAddr) {
    let ip = |words: &str| {
        let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
        assert!(output.status.success(), "ip {words}: {output:?}");
        output.stdout
    };
    let (family, option) = if address.is_ipv6() { ("-6", " nodad") } else { ("-4", "") };
    ip(&format!("address add {address} dev lo{option}"));
    while ip(&format!("{family} route show table local {address}")).is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Assigns the VIPs to the test's machine, and listens on the VIPs.
pub(crate) fn serve(vips: &[&str]) -> Vec<TcpListener> {
    vips.iter()
        .map(|vip| {
            let address: SocketAddr = vip.parse().expect("an address");
            assign(address.ip());
            TcpListener::bind(address).expect("a listener")
        })
        .collect()
}

/// Connects `client` to a listener on the host. The machine of the test also gets the client's address, so the packets
/// do not leave the machine.
pub(crate) fn connect(client: IpAddr, listener: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
    assign(client);
    let socket = Socket::new(Domain::for_address(SocketAddr::new(client, 0)), Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(client, 0).into()).expect("bound to the client's address");
    socket.connect(&listener.local_addr().expect("an address").into()).expect("connected");
    let (accepted, from) = listener.accept().expect("accepted");
    (socket.into(), accepted, from)
}

/// States of a socket in `/proc/net/tcp`.
const FIN_WAIT_2: &str = "05";
const TIME_WAIT: &str = "06";

/// Waits until the host's socket of a connection has a state.
fn wait_for_state(vip: SocketAddr, client: SocketAddr, state: &str) {
    let file = if vip.is_ipv4() { "/proc/thread-self/net/tcp" } else { "/proc/thread-self/net/tcp6" };
    let [own, other] = [vip, client].map(|end| format!(":{:04X}", end.port()));
    let has_state = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 3 && words[1].ends_with(&own) && words[2].ends_with(&other) && words[3] == state
    };
    while !fs::read_to_string(file).expect("sockets").lines().any(has_state) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn when_the_host_has_a_connection_then_its_packets_pass_whoever_is_steered_by_now() {
    let vips = ["198.51.100.10:80", "[2001:db8::20]:80"];
    run_with(
        move |rig| {
            share_all(rig, CHANGED)?;
            for (vip, listener) in vips.iter().zip(&serve(&vips)) {
                let mut cases = Vec::new();
                for side in [Side::Came, Side::Left] {
                    let client = on(CHANGED, side, vip);
                    let (own, accepted, from) = connect(client, listener);
                    let of = |from: SocketAddr, flags| Frame::new(&from.to_string(), vip, Transport::Tcp(flags));
                    let other = SocketAddr::new(client, from.port().wrapping_add(1));
                    cases.push((format!("{side:?} in the host's connection"), of(from, ACK), true));
                    // The host has a listener, but no socket for this connection of the client, so the connection
                    // belongs to a backend.
                    cases.push((format!("{side:?} in another connection"), of(other, ACK), false));
                    let begins = matches!(side, Side::Left);
                    cases.push((format!("{side:?} begins another one"), of(other, SYN), begins));
                    let vip: SocketAddr = vip.parse()?;
                    let router = if vip.is_ipv4() { "192.0.2.77:0" } else { "[2001:db8:ff::77]:0" };
                    let kind = if vip.is_ipv4() { ("", 3, 4, [0, 0, 5, 0]) } else { ("", 2, 0, [0, 0, 5, 0]) };
                    let quoted = |client: SocketAddr| Frame {
                        payload: vec![5; 64],
                        ..Frame::new(&vip.to_string(), &client.to_string(), Transport::Tcp(ACK))
                    };
                    cases.push((format!("{side:?}, an error about it"), error(router, &quoted(from), 548, kind), true));
                    cases.push((format!("{side:?}, another error"), error(router, &quoted(other), 548, kind), false));
                    for (name, frame, passes) in cases.drain(..) {
                        let ran = rig.run(&frame.bytes())?;
                        let passed = ran.action == 2 && ran.frame == frame.bytes();
                        anyhow::ensure!(passed == passes, "{vip} {name}: action {}", ran.action);
                        let mac = backend_mac(rig.service(&vip.to_string()).expect("a service"));
                        anyhow::ensure!(passes || ran.frame.starts_with(&mac), "{vip} {name}: elsewhere");
                    }
                    // The host closes first. The host's socket has the state TIME-WAIT now, before and after the client
                    // closes its end.
                    let next = Frame::new(&from.to_string(), &vip.to_string(), Transport::Tcp(ACK));
                    // A steered client may use the port for a connection to a backend.
                    let action = if begins { 2 } else { 3 };
                    drop(accepted);
                    wait_for_state(vip, from, FIN_WAIT_2);
                    anyhow::ensure!(rig.run(&next.bytes())?.action == action, "{vip} {side:?}: half closed");
                    drop(own);
                    wait_for_state(vip, from, TIME_WAIT);
                    anyhow::ensure!(rig.run(&next.bytes())?.action == action, "{vip} {side:?}: closed");
                }
                let ShareStats { unsteered, host_connections } = rig.passed(vip)?;
                // The steered client sent two packets in the host's connection; the unsteered client sent four packets
                // and a SYN.
                anyhow::ensure!((unsteered, host_connections) == (5, 2), "{vip}: {unsteered}, {host_connections}");
            }
            Ok(())
        },
        |rig| {
            let vip = TCP[0];
            let steered = packet(on(CHANGED, Side::Steered, vip), vip, Transport::Tcp(ACK));
            vec![Case::new("who was always steered", &steered, to(rig, vip))]
        },
    );
}

fn when_a_service_is_watched_then_every_packet_passes_and_what_would_be_is_counted(rig: &mut Rig) -> Vec<Case> {
    share_all(rig, Share::always(0)).expect("shares");
    for vip in TCP.iter().chain(&UDP) {
        let transport = if UDP.contains(vip) { Transport::Udp } else { Transport::Tcp(SYN) };
        for side in 1..=3 {
            let client = on(HALF, Side::Host, vip);
            let frame = packet(client, vip, transport);
            let ran = rig.run(&frame.bytes()).expect("a run");
            assert!(ran.action == 2 && ran.frame == frame.bytes(), "{vip}: action {}", ran.action);
            let index = rig.service(vip).expect("a service");
            let stats = rig.backend_stats(index).expect("counters");
            let connections = if UDP.contains(vip) { 0 } else { side };
            assert!(
                (stats.packets, stats.connections, stats.decisions[Decision::Stateless.index()])
                    == (side, connections, connections),
                "{vip}: {stats:?}"
            );
            assert!(stats.bytes == side * frame.bytes().len() as u64, "{vip}: {stats:?}");
        }
        assert!(rig.passed(vip).expect("counters") == ShareStats::default(), "{vip}: counted as the host's");
    }
    let mut cases = Vec::new();
    for vip in TCP.iter().chain(&UDP) {
        let client = on(HALF, Side::Host, vip);
        let whole = packet(client, vip, if UDP.contains(vip) { Transport::Udp } else { Transport::Tcp(ACK) });
        let mut broken = whole.bytes();
        broken.truncate(broken.len() - 30);
        cases.push(Case { name: format!("{vip} broken"), frame: broken, then: Then::Pass });
        let vip: SocketAddr = vip.parse().expect("an address");
        let martian = Frame { source: SocketAddr::new(vip.ip(), 1), ..whole.clone() };
        cases.push(Case::new(format!("{vip} from itself"), &martian, Then::Pass));
        let (kind, of) = if vip.is_ipv4() { (8, "203.0.113.7:0") } else { (128, "[2001:db8:c::7]:0") };
        let ping = Frame::icmp(of, &SocketAddr::new(vip.ip(), 0).to_string(), kind, 0, [0, 1, 0, 1]);
        cases.push(Case::new(format!("{vip} ping"), &ping, Then::Pass));
        if vip.is_ipv4() {
            let first = Frame { more_fragments: true, payload: vec![1; 64], ..whole.clone() };
            cases.push(Case::new(format!("{vip} first fragment"), &first, Then::Pass));
            let later = Frame { fragment_offset: 8, more_fragments: false, ..first };
            cases.push(Case::new(format!("{vip} later fragment"), &later, Then::Pass));
        }
    }
    cases
}

fn when_nobody_takes_clients_or_a_rule_denies_them_then_only_those_that_are_steered_are_dropped(
    rig: &mut Rig,
) -> Vec<Case> {
    let empty = ["198.51.100.40:80", "[2001:db8::41]:80"];
    for vip in empty {
        rig.share(vip, HALF).expect("shares");
    }
    for (vip, all) in [("198.51.100.10:80", "203.0.113.0/24"), ("[2001:db8::10]:80", "2001:db8:c::/48")] {
        rig.share(vip, HALF).expect("shares");
        rig.set_rules(vip, &[RuleSpec { prefix: all.parse().expect("a prefix"), action: RuleAction::Deny }])
            .expect("rules");
    }
    let mut cases = Vec::new();
    let reasons = [DropReason::NoBackend, DropReason::AllDown, DropReason::Denied, DropReason::Denied];
    for (vip, reason) in empty.into_iter().chain(["198.51.100.10:80", "[2001:db8::10]:80"]).zip(reasons) {
        for flags in [SYN, ACK] {
            let of = |side| packet(on(HALF, side, vip), vip, Transport::Tcp(flags));
            cases.push(Case::new(format!("{vip} steered"), &of(Side::Steered), Then::Drop(reason)));
            cases.push(Case::new(format!("{vip} the host's"), &of(Side::Host), Then::Pass));
        }
    }
    cases
}

#[test]
fn when_services_share_their_clients_with_the_host_then_each_side_gets_its_own() {
    let features = Features::SHARE | Features::MEMORY | Features::RULES;
    rows::run(
        services(),
        Setup { features, ..Setup::default() },
        rows![
            when_half_of_the_clients_are_steered_then_all_packets_of_the_others_pass,
            when_clients_have_changed_sides_then_new_connections_go_to_the_new_side_and_unknown_ones_to_the_host,
            when_a_service_is_watched_then_every_packet_passes_and_what_would_be_is_counted,
            when_nobody_takes_clients_or_a_rule_denies_them_then_only_those_that_are_steered_are_dropped
        ],
    );
}
