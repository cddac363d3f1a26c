//! Tests of ICMP errors. The program sends an error about a backend's packet to the backend, and an error about a
//! client's packet to the client.

use std::net::SocketAddr;

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, Transport, options},
    rig::{IN_MAC, ROUTER_MAC, Rig, Setup},
};

use crate::{
    cases::{Case, Then, services, to_backend_mac},
    rows::{self, Row, rows},
};

struct Family {
    client: &'static str,
    router: &'static str,
    vip: fn(&str, u16) -> String,
    backend: fn(&str, u16) -> String,
    errors: &'static [(&'static str, u8, u8, [u8; 4])],
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "203.0.113.7:40000",
        router: "192.0.2.77:0",
        vip: |host, port| format!("198.51.100.{host}:{port}"),
        backend: |host, port| format!("10.0.0.{host}:{port}"),
        errors: &[
            ("fragmentation needed", 3, 4, [0, 0, 5, 0]),
            ("host unreachable", 3, 1, [0; 4]),
            ("port unreachable", 3, 3, [0; 4]),
            ("time exceeded", 11, 0, [0; 4]),
            ("reassembly time exceeded", 11, 1, [0; 4]),
            ("parameter problem", 12, 0, [1, 0, 0, 0]),
        ],
    },
    Family {
        client: "[2001:db8:c::7]:40000",
        router: "[2001:db8:ff::77]:0",
        vip: |host, port| format!("[2001:db8::{host}]:{port}"),
        backend: |host, port| format!("[fd00::{host}]:{port}"),
        errors: &[
            ("packet too big", 2, 0, [0, 0, 5, 0]),
            ("no route", 1, 0, [0; 4]),
            ("port unreachable", 1, 4, [0; 4]),
            ("hop limit exceeded", 3, 0, [0; 4]),
            ("reassembly time exceeded", 3, 1, [0; 4]),
            ("parameter problem", 4, 1, [0, 0, 0, 40]),
        ],
    },
];

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Returns an ICMP error from `router` that quotes `length` bytes of `quoted`.
pub(crate) fn error(
    router: &str,
    quoted: &Frame,
    length: usize,
    (_, kind, code, rest): (&str, u8, u8, [u8; 4]),
) -> Frame {
    let mut payload = quoted.packet();
    payload.truncate(length);
    Frame {
        source: address(router),
        destination: SocketAddr::new(quoted.source.ip(), 0),
        payload,
        ..Frame::icmp(router, router, kind, code, rest)
    }
}

/// Lengths of quotes that routers use: the minimum of RFC 792, longer quotes, and whole packets.
const LENGTHS: [usize; 5] = [28, 36, 40, 48, 1500];

fn when_an_error_quotes_a_reply_to_a_client_then_it_goes_to_the_clients_backend(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for Family { client, router, vip, backend, errors } in &FAMILIES {
        let shift = if client.starts_with('[') { 20 } else { 0 };
        for &kind in *errors {
            for (protocol, port, to) in [("tcp", 80, ("21", 8080)), ("udp", 53, ("22", 5353))] {
                let transport = if protocol == "tcp" { Transport::Tcp(ACK) } else { Transport::Udp };
                let (at_dsr, at_nat) = (vip("10", port), vip("20", port));
                let name = format!("{router} {protocol} {}", kind.0);
                let quoted = Frame { ttl: 3, payload: vec![5; 64], ..Frame::new(&at_dsr, client, transport) };
                let frame = error(router, &quoted, 548, kind);
                let out = to_backend_mac(rig, &frame, &at_dsr);
                cases.push(Case::new(format!("dsr {name}"), &frame, Then::Tx(out.bytes())));
                let used_up = Frame { ttl: 1, ..frame.clone() };
                cases.push(Case::new(format!("dsr {name} TTL"), &used_up, Then::Drop(DropReason::TtlExceeded)));
                let quoted = Frame { source: address(&at_nat), ..quoted };
                let sent = Frame { source: address(&backend(to.0, to.1)), ..quoted.clone() };
                for length in LENGTHS {
                    let frame = error(router, &quoted, length + shift, kind);
                    let out = to_backend_mac(rig, &error(router, &sent, length + shift, kind), &at_nat);
                    cases.push(Case::new(format!("nat {name}, {length} bytes quoted"), &frame, Then::Tx(out.bytes())));
                }
            }
        }
        let kind = errors[0];
        let quoted =
            Frame { payload: vec![5; 64], ..Frame::new(&vip("20", 53), client, Transport::UdpWithoutChecksum) };
        let sent = Frame { source: address(&backend("22", 5353)), ..quoted.clone() };
        let (frame, out) = (error(router, &quoted, 60, kind), error(router, &sent, 60, kind));
        let out = to_backend_mac(rig, &out, &vip("20", 53));
        cases.push(Case::new(format!("{router} nat udp without checksum"), &frame, Then::Tx(out.bytes())));
        for vlans in [vec![2], vec![2, 3]] {
            let frame = Frame { vlans: vlans.clone(), ..frame.clone() };
            let out = Frame { vlans, ..out.clone() };
            cases.push(Case::new(format!("{router} nat VLAN {:?}", frame.vlans), &frame, Then::Tx(out.bytes())));
        }
        let used_up = Frame { ttl: 1, ..frame.clone() };
        cases.push(Case::new(format!("{router} nat TTL"), &used_up, Then::Drop(DropReason::TtlExceeded)));
        let mut padded = error(
            router,
            &Frame { source: address(&vip("20", 80)), ..Frame::tcp(&vip("20", 80), client, ACK) },
            28 + shift,
            kind,
        )
        .bytes();
        let sent = Frame::tcp(&backend("21", 8080), client, ACK);
        let mut out = to_backend_mac(rig, &error(router, &sent, 28 + shift, kind), &vip("20", 80)).bytes();
        padded.extend([0xee; 20]);
        out.extend([0xee; 20]);
        cases.push(Case { name: format!("{router} padding is no quote"), frame: padded, then: Then::Tx(out) });
        for (name, host, port) in [("no backend", "40", 80), ("all down", "41", 80), ("unreachable", "42", 80)] {
            let quoted = Frame::tcp(&vip(host, port), client, ACK);
            let reason = match name {
                "no backend" => DropReason::NoBackend,
                "all down" => DropReason::AllDown,
                _ => DropReason::NoNextHop,
            };
            cases.push(Case::new(format!("{router} {name}"), &error(router, &quoted, 60, kind), Then::Drop(reason)));
        }
    }
    let [v4, v6] = &FAMILIES;
    let any = Frame::tcp("198.51.100.31:777", v4.client, ACK);
    let sent = Frame::tcp("10.0.0.32:777", v4.client, ACK);
    let out = to_backend_mac(rig, &error(v4.router, &sent, 60, v4.errors[0]), "198.51.100.31:0");
    cases.push(Case::new("nat, every port", &error(v4.router, &any, 60, v4.errors[0]), Then::Tx(out.bytes())));
    let options4 = vec![1; 8];
    let quoted = Frame { options: options4.clone(), ..Frame::tcp("198.51.100.20:80", v4.client, ACK) };
    let sent = Frame { options: options4, ..Frame::tcp("10.0.0.21:8080", v4.client, ACK) };
    let frame = Frame { options: vec![1; 4], ..error(v4.router, &quoted, 60, v4.errors[0]) };
    let out = Frame { options: vec![1; 4], ..error(v4.router, &sent, 60, v4.errors[0]) };
    let out = to_backend_mac(rig, &out, "198.51.100.20:80");
    cases.push(Case::new("IPv4 options outside and inside", &frame, Then::Tx(out.bytes())));
    let extensions = vec![options(DESTINATION_OPTIONS, 1)];
    let quoted = Frame { extensions: extensions.clone(), ..Frame::tcp("[2001:db8::20]:80", v6.client, ACK) };
    let sent = Frame { extensions: extensions.clone(), ..Frame::tcp("[fd00::21]:8080", v6.client, ACK) };
    let frame = Frame { extensions: extensions.clone(), ..error(v6.router, &quoted, 100, v6.errors[0]) };
    let out = Frame { extensions, ..error(v6.router, &sent, 100, v6.errors[0]) };
    let out = to_backend_mac(rig, &out, "[2001:db8::20]:80");
    cases.push(Case::new("IPv6 extension headers outside and inside", &frame, Then::Tx(out.bytes())));
    cases
}

fn when_an_error_is_for_a_tunnel_backend_then_it_goes_through_the_tunnel(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, vip, backend) in [
        ("ipip", "198.51.100.50:80", "10.0.0.50"),
        ("ipip", "198.51.100.52:80", "fd00::52"),
        ("gue", "198.51.100.60:80", "10.0.0.60"),
        ("ipip", "[2001:db8::52]:80", "fd00::56"),
        ("gue", "[2001:db8::62]:80", "fd00::66"),
    ] {
        let Family { client, router, errors, .. } = &FAMILIES[usize::from(vip.starts_with('['))];
        for &kind in *errors {
            let frame = error(router, &Frame::tcp(vip, client, ACK), 68, kind);
            let out = crate::tunnel::wrapped(rig, mode, &frame, vip, backend);
            cases.push(Case::new(format!("{mode} {vip} {}", kind.0), &frame, Then::Tx(out.bytes())));
        }
        let huge = Frame { payload: vec![1; 1440], ..Frame::tcp(vip, client, ACK) };
        let frame = error(router, &huge, 1460, errors[0]);
        let frame = if vip.starts_with('[') { error(router, &huge, 1450, errors[0]) } else { frame };
        cases.push(Case::new(format!("{mode} {vip} too big itself"), &frame, Then::Drop(DropReason::TooBig)));
    }
    cases
}

fn when_an_error_quotes_a_fragment_then_it_goes_to_the_backend(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for Family { client, router, vip, backend, errors } in &FAMILIES {
        let kind = errors[0];
        let payload: Vec<u8> = (0..100).collect();
        let whole = Frame { payload: payload.clone(), ..Frame::udp(&vip("71", 53), client) };
        let sent = Frame { payload, ..Frame::udp(&backend("71", 5353), client) };
        for (index, (part, sent)) in whole.fragments(40, 3).iter().zip(sent.fragments(40, 3)).enumerate() {
            let frame = error(router, part, 1000, kind);
            let out = to_backend_mac(rig, &error(router, &sent, 1000, kind), &vip("71", 53));
            cases.push(Case::new(format!("{router} nat, about part {index}"), &frame, Then::Tx(out.bytes())));
        }
        let tcp = Frame { payload: vec![1; 64], ..Frame::tcp(&vip("10", 80), client, ACK) };
        let part = tcp.fragments(40, 4).remove(1);
        let frame = error(router, &part, 1000, kind);
        cases.push(Case::new(
            format!("{router} about a later part, of two services"),
            &frame,
            Then::Drop(DropReason::FragmentUnknown),
        ));
    }
    cases
}

fn when_a_backend_sends_an_error_then_it_goes_to_the_client(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for Family { client, router, vip, backend, errors } in &FAMILIES {
        let shift = if client.starts_with('[') { 20 } else { 0 };
        let inside = if client.starts_with('[') { "[fd00::77]:0" } else { "10.0.0.77:0" };
        for &kind in *errors {
            for (protocol, port, at) in [("tcp", 80, ("21", 8080)), ("udp", 53, ("22", 5353))] {
                let transport = if protocol == "tcp" { Transport::Tcp(ACK) } else { Transport::Udp };
                let (to, of) = (backend(at.0, at.1), vip("20", port));
                let quoted = Frame { ttl: 9, payload: vec![6; 64], ..Frame::new(client, &to, transport) };
                let known = Frame { destination: address(&of), ..quoted.clone() };
                for (who, source) in [("the backend", to.as_str()), ("a router", inside), ("afar", *router)] {
                    for length in LENGTHS {
                        let frame = error(source, &quoted, length + shift, kind);
                        let out = error(&of, &known, length + shift, kind);
                        let out = Frame { destination_mac: ROUTER_MAC, source_mac: IN_MAC, ttl: frame.ttl - 1, ..out };
                        let name = format!("{protocol} {} from {who}, {length} bytes quoted", kind.0);
                        cases.push(Case::new(name, &frame, Then::Tx(out.bytes())));
                    }
                }
            }
        }
        let kind = errors[0];
        let to = backend("21", 8080);
        let quoted = Frame::tcp(client, &to, ACK);
        let pass = |name: &str, frame: &Frame| Case::new(format!("{to} {name}"), frame, Then::Pass);
        cases.push(pass("another port", &error(&to, &Frame::tcp(client, &backend("21", 9), ACK), 60, kind)));
        cases.push(pass("another protocol", &error(&to, &Frame::udp(client, &to), 60, kind)));
        cases.push(pass("too short a quote", &error(&to, &quoted, 20 + shift, kind)));
        let own = if shift == 0 { "10.0.0.1:50000" } else { "[fd00::1]:50000" };
        cases.push(pass("about a health check", &error(&to, &Frame::tcp(own, &to, ACK), 60, kind)));
        let other = Frame {
            destination: address(if shift == 0 { "203.0.113.9:0" } else { "[2001:db8:c::9]:0" }),
            ..error(&to, &quoted, 60, kind)
        };
        cases.push(pass("to another than the quoted sender", &other));
        let used_up = Frame { ttl: 1, ..error(&to, &quoted, 60, kind) };
        cases.push(Case::new(format!("{to} TTL"), &used_up, Then::Drop(DropReason::TtlExceeded)));
        let payload: Vec<u8> = (0..100).collect();
        let whole = Frame { payload: payload.clone(), ..Frame::udp(client, &backend("71", 5353)) };
        let known = Frame { payload, ..Frame::udp(client, &vip("71", 53)) };
        for (index, (part, known)) in whole.fragments(40, 3).iter().zip(known.fragments(40, 3)).enumerate() {
            let frame = error(inside, part, 1000, kind);
            let out = error(&vip("71", 53), &known, 1000, kind);
            let out = Frame { destination_mac: ROUTER_MAC, source_mac: IN_MAC, ttl: frame.ttl - 1, ..out };
            cases.push(Case::new(format!("{inside} about part {index}"), &frame, Then::Tx(out.bytes())));
        }
    }
    cases
}

fn when_an_error_quotes_a_foreign_packet_then_it_passes(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for Family { client, router, vip, errors, .. } in &FAMILIES {
        let shift = if client.starts_with('[') { 20 } else { 0 };
        let kind = errors[0];
        let quoted = Frame::tcp(&vip("10", 80), client, ACK);
        let pass = |name: &str, frame: &Frame| Case::new(format!("{router} {name}"), frame, Then::Pass);
        let drop =
            |name: &str, frame: &Frame| Case::new(format!("{router} {name}"), frame, Then::Drop(DropReason::Malformed));
        cases.push(pass("another port", &error(router, &Frame::tcp(&vip("10", 9), client, ACK), 60, kind)));
        cases.push(pass("another address", &error(router, &Frame::tcp(&vip("99", 80), client, ACK), 60, kind)));
        let other = Frame { destination: address(&vip("20", 0)), ..error(router, &quoted, 60, kind) };
        cases.push(pass("to a VIP that is not the quoted sender", &other));
        let sctp = Frame { transport: Transport::Raw(132), ..quoted.clone() };
        cases.push(pass("about SCTP", &error(router, &sctp, 60, kind)));
        let echo = Frame { source: address(&vip("10", 0)), ..Frame::icmp(client, client, 0, 0, [0; 4]) };
        cases.push(pass("about an echo reply", &error(router, &echo, 60, kind)));
        for length in [0, 8, 19 + shift, 20 + shift, 23 + shift] {
            cases.push(drop(&format!("{length} bytes quoted"), &error(router, &quoted, length, kind)));
        }
        let mut broken = error(router, &quoted, 60, kind);
        broken.payload[0] = 0x95;
        cases.push(drop("a quote of no version", &broken));
        if shift == 0 {
            let mut broken = error(router, &quoted, 40, kind);
            broken.payload[0] = 0x4f;
            cases.push(drop("a quoted header longer than the quote", &broken));
        }
    }
    cases
}

fn when_an_error_is_forwarded_then_it_is_not_counted_as_a_connection(rig: &mut Rig) {
    let Family { client, router, errors, .. } = &FAMILIES[0];
    let frame = error(router, &Frame::tcp("198.51.100.10:80", client, ACK), 40, errors[0]).bytes();
    rig.run(&frame).expect("a run");
    let stats = rig.backend_stats(0).expect("counters");
    assert_eq!((stats.packets, stats.bytes, stats.connections), (1, frame.len() as u64, 0));
    assert_eq!(stats.decisions.iter().sum::<u64>(), 0);
}

pub(crate) const ROWS: &[Row] = rows![
    when_an_error_quotes_a_reply_to_a_client_then_it_goes_to_the_clients_backend,
    when_an_error_is_for_a_tunnel_backend_then_it_goes_through_the_tunnel,
    when_an_error_quotes_a_fragment_then_it_goes_to_the_backend,
    when_a_backend_sends_an_error_then_it_goes_to_the_client,
    when_an_error_quotes_a_foreign_packet_then_it_passes,
    when_an_error_is_forwarded_then_it_is_not_counted_as_a_connection
];

#[test]
fn when_icmp_errors_arrive_then_they_follow_the_packets_that_they_quote() {
    rows::run(services(), Setup::default(), ROWS);
}
