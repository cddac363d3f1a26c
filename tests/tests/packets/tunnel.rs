//! Tests of `ipip` and `gue` in all combinations of inner and outer address family.

use std::net::{IpAddr, SocketAddr};

use balancer_common::{client::entropy, verdict::DropReason};
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, options},
    rig::{IN_MAC, OUT_MAC, Rig, Setup, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6, backend_mac},
};

use crate::{
    cases::{Case, Then, services},
    rows::{self, Row, rows},
};

/// The mode, the VIP with its port, and the address of the backend.
const PAIRS: [(&str, &str, &str, &str); 8] = [
    ("ipip 4 in 4", "203.0.113.7:40000", "198.51.100.50:80", "10.0.0.50"),
    ("ipip 4 in 6", "203.0.113.7:40000", "198.51.100.52:80", "fd00::52"),
    ("ipip 6 in 4", "[2001:db8:c::7]:40000", "[2001:db8::50]:80", "10.0.0.54"),
    ("ipip 6 in 6", "[2001:db8:c::7]:40000", "[2001:db8::52]:80", "fd00::56"),
    ("gue 4 in 4", "203.0.113.7:40000", "198.51.100.60:80", "10.0.0.60"),
    ("gue 4 in 6", "203.0.113.7:40000", "198.51.100.62:80", "fd00::62"),
    ("gue 6 in 4", "[2001:db8:c::7]:40000", "[2001:db8::60]:80", "10.0.0.64"),
    ("gue 6 in 6", "[2001:db8:c::7]:40000", "[2001:db8::62]:80", "fd00::66"),
];

fn words(address: SocketAddr) -> [u32; 4] {
    match address.ip() {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => bytemuck::cast(address.octets()),
    }
}

/// Returns `frame` in the form that the backend receives.
pub(crate) fn wrapped(rig: &Rig, mode: &str, frame: &Frame, service: &str, backend: &str) -> Frame {
    let index = rig.service(service).expect("a service of the rig");
    let backend: IpAddr = backend.parse().expect("an address");
    let source = if backend.is_ipv4() { TUNNEL_SOURCE_V4.into() } else { TUNNEL_SOURCE_V6.into() };
    let source_mac = if service.ends_with(":81") { OUT_MAC } else { IN_MAC };
    let inner = Frame { ttl: frame.ttl - 1, destination_mac: backend_mac(index), source_mac, ..frame.clone() };
    let entropy = entropy(&words(frame.source));
    if mode.starts_with("gue") { inner.in_gue(source, backend, entropy) } else { inner.in_ip(source, backend, entropy) }
}

fn when_a_packet_is_tunnelled_then_it_is_wrapped_in_every_family_pair(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, client, vip, backend) in PAIRS {
        let case = |name: &str, frame: &Frame| {
            let out = wrapped(rig, mode, frame, vip, backend);
            Case::new(format!("{mode} {name}"), frame, Then::Tx(out.bytes()))
        };
        for flags in [SYN, ACK, ACK | 1, 4] {
            cases.push(case(&format!("flags {flags}"), &Frame::tcp(client, vip, flags)));
        }
        for vlans in [vec![3], vec![3, 4]] {
            cases.push(case(&format!("VLAN {vlans:?}"), &Frame { vlans, ..Frame::tcp(client, vip, ACK) }));
        }
        for tos in [0x01, 0x02, 0x03, 0xb8, 0xff] {
            cases.push(case(&format!("TOS {tos:#04x}"), &Frame { tos, ..Frame::tcp(client, vip, ACK) }));
        }
        for ttl in [2, 255] {
            cases.push(case(&format!("TTL {ttl}"), &Frame { ttl, ..Frame::tcp(client, vip, ACK) }));
        }
        for ttl in [0, 1] {
            let frame = Frame { ttl, ..Frame::tcp(client, vip, ACK) };
            cases.push(Case::new(format!("{mode} TTL {ttl}"), &frame, Then::Drop(DropReason::TtlExceeded)));
        }
        for client in ["203.0.113.8:1", "10.1.2.3:2", "[2001:db8:c::8]:1", "[2001:db8:c:9::1]:2"] {
            if client.starts_with('[') == vip.starts_with('[') {
                cases.push(case(&format!("another client {client}"), &Frame::tcp(client, vip, ACK)));
            }
        }
        cases.push(case("no payload", &Frame { payload: Vec::new(), ..Frame::tcp(client, vip, ACK) }));
        let mut padded = Frame { payload: Vec::new(), ..Frame::tcp(client, vip, ACK) };
        let mut out = wrapped(rig, mode, &padded, vip, backend).bytes();
        out.extend([0; 6]);
        padded.vlans = Vec::new();
        let mut frame = padded.bytes();
        frame.extend([0; 6]);
        cases.push(Case { name: format!("{mode} Ethernet padding stays"), frame, then: Then::Tx(out) });
        if vip.starts_with('[') {
            let extensions = vec![options(DESTINATION_OPTIONS, 2)];
            cases.push(case("extension headers", &Frame { extensions, ..Frame::tcp(client, vip, ACK) }));
        } else {
            cases.push(case("IPv4 options", &Frame { options: vec![1; 40], ..Frame::tcp(client, vip, ACK) }));
        }
    }
    cases
}

fn when_a_tunnel_uses_another_interface_or_fragments_then_packets_are_wrapped(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, client, vip, backend) in [
        ("ipip", "203.0.113.7:40000", "198.51.100.50:81", "10.0.1.50"),
        ("ipip", "[2001:db8:c::7]:40000", "[2001:db8::52]:81", "fd01::56"),
        ("gue", "203.0.113.7:40000", "198.51.100.60:81", "10.0.1.60"),
        ("gue", "[2001:db8:c::7]:40000", "[2001:db8::62]:81", "fd01::66"),
    ] {
        let frame = Frame::tcp(client, vip, ACK);
        let out = wrapped(rig, mode, &frame, vip, backend);
        cases.push(Case::new(format!("{mode} {vip}"), &frame, Then::Redirect(out.bytes())));
    }
    for (mode, client, vip, backend) in [
        ("ipip", "[2001:db8:c::7]:40000", "[2001:db8::52]:53", "fd00::57"),
        ("gue", "[2001:db8:c::7]:40000", "[2001:db8::62]:53", "fd00::67"),
    ] {
        let whole = Frame { payload: (0..100).collect(), ..Frame::udp(client, vip) };
        for (index, part) in whole.fragments(40, 5).iter().enumerate() {
            let out = wrapped(rig, mode, part, vip, backend);
            cases.push(Case::new(format!("{mode} {vip} part {index}"), part, Then::Tx(out.bytes())));
        }
    }
    cases
}

/// If routers may fragment a packet, they may also fragment the outer packet, so the outer packet needs a separate
/// identification.
fn when_outer_packets_may_be_fragmented_then_their_identifications_differ(rig: &mut Rig) {
    let mut ids = std::collections::HashSet::new();
    for (mode, vip, backend) in [("ipip", "198.51.100.50:53", "10.0.0.51"), ("gue", "198.51.100.60:53", "10.0.0.61")] {
        for _ in 0..50 {
            let frame = Frame { dont_fragment: false, ..Frame::udp("203.0.113.7:40000", vip) };
            let ran = rig.run(&frame.bytes()).expect("a run");
            let id = u16::from_be_bytes([ran.frame[18], ran.frame[19]]);
            let mut out = wrapped(rig, mode, &frame, vip, backend);
            assert!(!out.dont_fragment);
            out.id = id;
            assert_eq!(ran.frame, out.bytes());
            ids.insert(id);
        }
    }
    // All identifications differ, unless the scheduler moved the test to a CPU whose counter had already used the
    // same values.
    assert!(ids.len() >= 50, "{ids:?}");
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_packet_is_tunnelled_then_it_is_wrapped_in_every_family_pair,
    when_a_tunnel_uses_another_interface_or_fragments_then_packets_are_wrapped,
    when_outer_packets_may_be_fragmented_then_their_identifications_differ
];

#[test]
fn when_packets_are_for_tunnel_backends_then_they_are_wrapped() {
    rows::run(services(), Setup::default(), ROWS);
}
