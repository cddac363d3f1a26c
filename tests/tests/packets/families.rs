//! Tests of `snat` between address families: clients of one family, backends of the other.

use std::net::SocketAddr;

use balancer_common::{map_types::Forwarding, verdict::DropReason};
use balancer_config::config::Protocol;
use balancer_control::io::ServiceId;
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, HOP_BY_HOP, SYN, Transport, fragment, options},
    rig::{
        IN_MAC, POOL_PORTS, ROUTER_MAC, Rig, Service, Setup, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6, Target, backend_mac,
    },
};

use crate::rows::{self, Row, rows};

const RST: u8 = 4;
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;

/// A service whose clients and backend have different families.
#[derive(Clone, Copy)]
struct Scene {
    index: usize,
    protocol: Protocol,
    vip: &'static str,
    backend: &'static str,
    client: &'static str,
}

const SIX: Scene = Scene {
    index: 0,
    protocol: Protocol::Tcp,
    vip: "[2001:db8::10]:80",
    backend: "10.0.0.11:8080",
    client: "[2001:db8:c::7]:40000",
};
const FOUR: Scene = Scene {
    index: 1,
    protocol: Protocol::Tcp,
    vip: "198.51.100.10:80",
    backend: "[fd00::11]:8080",
    client: "203.0.113.7:40000",
};
const SIX_UDP: Scene =
    Scene { index: 2, protocol: Protocol::Udp, vip: "[2001:db8::20]:53", backend: "10.0.0.21:5353", ..SIX };
const FOUR_UDP: Scene =
    Scene { index: 3, protocol: Protocol::Udp, vip: "198.51.100.20:53", backend: "[fd00::21]:5353", ..FOUR };
const TCP: [Scene; 2] = [SIX, FOUR];
const UDP: [Scene; 2] = [SIX_UDP, FOUR_UDP];

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Returns the frame as the receiver, perhaps of the other family, must get it; the identification of an IPv4 packet that
/// was an IPv6 packet and may be fragmented is that of `got`.
pub(crate) fn crossed(frame: &Frame, source: SocketAddr, destination: SocketAddr, got: &[u8]) -> Frame {
    if frame.source.is_ipv4() == source.is_ipv4() {
        return Frame { source, destination, ttl: frame.ttl - 1, ..frame.clone() };
    }
    let part = frame.extensions.iter().find(|(kind, _)| *kind == 44).map(|(_, bytes)| bytes.clone());
    let mut out = Frame {
        source,
        destination,
        ttl: frame.ttl - 1,
        options: vec![],
        extensions: vec![],
        flow_label: 0,
        ..frame.clone()
    };
    if source.is_ipv4() {
        out.dont_fragment = false;
        if let Some(part) = part {
            let field = u16::from_be_bytes([part[2], part[3]]);
            (out.fragment_offset, out.more_fragments) = (field >> 3, field & 1 != 0);
            out.id = u16::from_be_bytes([part[6], part[7]]);
        } else {
            out.dont_fragment = out.packet().len() > 1260;
            let at = 14 + 4 * frame.vlans.len() + 4;
            out.id = if out.dont_fragment { 0 } else { u16::from_be_bytes([got[at], got[at + 1]]) };
        }
    } else if frame.more_fragments || frame.fragment_offset != 0 {
        out.extensions = vec![fragment(frame.fragment_offset, frame.more_fragments, frame.id.into())];
        (out.more_fragments, out.fragment_offset) = (false, 0);
    }
    out
}

impl Scene {
    fn service(self) -> Service {
        Service {
            address: self.vip,
            protocol: self.protocol,
            forwarding: Forwarding::Snat,
            target: Target::SameInterface(self.backend),
        }
    }

    fn pool(self, port: u16) -> SocketAddr {
        if self.backend.starts_with('[') { (TUNNEL_SOURCE_V6, port).into() } else { (TUNNEL_SOURCE_V4, port).into() }
    }

    fn there(self, flags: u8) -> Frame {
        let transport = if self.protocol == Protocol::Tcp { Transport::Tcp(flags) } else { Transport::Udp };
        Frame {
            tos: 0x2e,
            flow_label: 0x1_2345 * u32::from(self.client.starts_with('[')),
            ..Frame::new(self.client, self.vip, transport)
        }
    }

    fn back(self, port: u16, flags: u8) -> Frame {
        let transport = if self.protocol == Protocol::Tcp { Transport::Tcp(flags) } else { Transport::Udp };
        Frame { tos: 0x2e, ..Frame::new(self.backend, &self.pool(port).to_string(), transport) }
    }

    /// Asserts that the backend gets `frame`, and returns the port that the backend sees.
    fn sent(self, rig: &Rig, frame: &Frame) -> u16 {
        let ran = rig.run(&frame.bytes()).expect("a run");
        assert_eq!(ran.action, XDP_TX, "{frame:?}");
        let ip = 14 + 4 * frame.vlans.len() + if self.backend.starts_with('[') { 40 } else { 20 };
        let at = ip + if self.backend.starts_with('[') && frame.more_fragments { 8 } else { 0 };
        let port = u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]);
        assert!((POOL_PORTS.0..=POOL_PORTS.1).contains(&port), "{port}");
        self.is_sent(frame, port, &ran.frame);
        port
    }

    fn is_sent(self, frame: &Frame, port: u16, got: &[u8]) {
        let expected = Frame {
            destination_mac: backend_mac(self.index),
            source_mac: IN_MAC,
            ..crossed(frame, self.pool(port), address(self.backend), got)
        };
        assert_eq!(got, expected.bytes(), "{frame:?}");
    }

    fn comes_back(self, rig: &Rig, frame: &Frame) {
        let ran = rig.run(&frame.bytes()).expect("a run");
        let expected = Frame {
            destination_mac: ROUTER_MAC,
            source_mac: IN_MAC,
            ..crossed(frame, address(self.vip), address(self.client), &ran.frame)
        };
        assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()), "{frame:?}");
    }

    fn connect(self, rig: &Rig) -> u16 {
        let seen = self.sent(rig, &self.there(SYN));
        self.comes_back(rig, &self.back(seen, SYN | ACK));
        assert_eq!(self.sent(rig, &self.there(ACK)), seen);
        seen
    }
}

pub(crate) fn services() -> Vec<Service> {
    [SIX, FOUR, SIX_UDP, FOUR_UDP].map(Scene::service).into()
}

fn when_a_client_connects_to_a_backend_of_the_other_family_then_headers_are_replaced_both_ways(rig: &mut Rig) {
    for scene in TCP {
        let seen = scene.connect(rig);
        for length in [0, 1, 15, 1000, 1220, 1221, 1400] {
            let payload = vec![7; length];
            assert_eq!(scene.sent(rig, &Frame { payload: payload.clone(), ..scene.there(ACK) }), seen);
            scene.comes_back(rig, &Frame { payload, ..scene.back(seen, ACK) });
        }
        for vlans in [vec![7], vec![7, 8]] {
            assert_eq!(scene.sent(rig, &Frame { vlans: vlans.clone(), ..scene.there(ACK) }), seen);
            scene.comes_back(rig, &Frame { vlans, ..scene.back(seen, ACK) });
        }
        let (there, back) = (scene.there(ACK), scene.back(seen, ACK));
        for units in [1, 5, 10] {
            let more = |frame: &Frame| match frame.source {
                SocketAddr::V4(_) => Frame { options: vec![1; units * 4], ..frame.clone() },
                SocketAddr::V6(_) => Frame {
                    extensions: vec![options(HOP_BY_HOP, 1), options(DESTINATION_OPTIONS, units)],
                    ..frame.clone()
                },
            };
            assert_eq!(scene.sent(rig, &more(&there)), seen);
            scene.comes_back(rig, &more(&back));
        }
        let flows = rig.flows().list(ServiceId(scene.index as u16), |_| true, 10);
        let [flow] = flows.try_into().expect("one connection");
        let ends = [flow.client, flow.vip, flow.pool, flow.at];
        assert_eq!(ends, [address(scene.client), address(scene.vip), scene.pool(seen), address(scene.backend)]);
    }
}

fn when_a_client_asks_by_datagram_then_the_answer_of_the_other_family_finds_it(rig: &mut Rig) {
    for scene in UDP {
        let seen = scene.sent(rig, &scene.there(0));
        scene.comes_back(rig, &scene.back(seen, 0));
        assert_eq!(scene.sent(rig, &scene.there(0)), seen);
    }
}

fn when_a_datagram_for_ipv6_has_no_checksum_then_it_gets_one(rig: &mut Rig) {
    let mut seen = None;
    for length in [0, 1, 2, 7, 8, 9, 500, 501, 1232] {
        let ask = Frame { payload: (0..length).map(|byte| byte as u8).collect(), ..FOUR_UDP.there(0) };
        let ran = rig.run(&Frame { transport: Transport::UdpWithoutChecksum, ..ask.clone() }.bytes()).expect("a run");
        assert_eq!(ran.action, XDP_TX, "{length}");
        let port = u16::from_be_bytes([ran.frame[54], ran.frame[55]]);
        assert_eq!(*seen.get_or_insert(port), port);
        FOUR_UDP.is_sent(&ask, port, &ran.frame);
    }
    let reply =
        Frame { transport: Transport::UdpWithoutChecksum, ..SIX_UDP.back(SIX_UDP.sent(rig, &SIX_UDP.there(0)), 0) };
    let ran = rig.run(&reply.bytes()).expect("a run");
    let expected = Frame { transport: Transport::Udp, ..reply };
    let expected = Frame {
        destination_mac: ROUTER_MAC,
        source_mac: IN_MAC,
        ..crossed(&expected, address(SIX_UDP.vip), address(SIX_UDP.client), &ran.frame)
    };
    assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()));
    // The program does not add up more.
    let long = Frame { payload: vec![1; 1233], transport: Transport::UdpWithoutChecksum, ..FOUR_UDP.there(0) };
    assert_eq!(rig.run(&long.bytes()).expect("a run").action, XDP_DROP);
    let parts = Frame { payload: vec![1; 200], ..long }.fragments(64, 7);
    assert_eq!(rig.run(&parts[0].bytes()).expect("a run").action, XDP_DROP);
    assert_eq!(rig.drops(DropReason::Malformed).expect("counters"), 2);
}

fn when_a_reply_cannot_get_the_checksum_that_ipv6_needs_then_it_is_dropped_before_it_is_counted(rig: &mut Rig) {
    let seen = SIX_UDP.sent(rig, &SIX_UDP.there(0));
    SIX_UDP.comes_back(rig, &SIX_UDP.back(seen, 0));
    let bytes_back = || {
        let flows = rig.flows().list(ServiceId(SIX_UDP.index as u16), |_| true, 2);
        flows.iter().map(|flow| flow.bytes_to_client).collect::<Vec<_>>()
    };
    let before = bytes_back();
    assert!(before.len() == 1 && before[0] > 0, "{before:?}");
    let long = Frame { payload: vec![1; 1233], transport: Transport::UdpWithoutChecksum, ..SIX_UDP.back(seen, 0) };
    let parts = Frame { payload: vec![1; 200], ..long.clone() }.fragments(64, 7);
    for frame in [&long, &parts[0]] {
        assert_eq!(rig.run(&frame.bytes()).expect("a run").action, XDP_DROP, "{frame:?}");
    }
    assert_eq!(rig.drops(DropReason::Malformed).expect("counters"), 2);
    assert_eq!(bytes_back(), before);
}

fn when_a_datagram_for_the_other_family_comes_in_fragments_then_all_of_them_are_translated(rig: &mut Rig) {
    for scene in UDP {
        let ask = Frame { payload: (0..200).collect(), ..scene.there(0) };
        let seen = scene.sent(rig, &ask);
        let answer = Frame { payload: (0..200).collect(), ..scene.back(seen, 0) };
        for part in ask.fragments(64, 0x9a77) {
            let ran = rig.run(&part.bytes()).expect("a run");
            assert_eq!(ran.action, XDP_TX, "{part:?}");
            let whole = Frame { source: scene.pool(seen), destination: address(scene.backend), ..ask.clone() };
            same_part(&whole, &part, &ran.frame, backend_mac(scene.index));
        }
        for part in answer.fragments(64, 0x9a78) {
            let ran = rig.run(&part.bytes()).expect("a run");
            assert_eq!(ran.action, XDP_TX, "{part:?}");
            let whole = Frame { source: address(scene.vip), destination: address(scene.client), ..answer.clone() };
            same_part(&whole, &part, &ran.frame, ROUTER_MAC);
        }
    }
}

fn when_an_ipv6_fragment_has_options_behind_its_fragment_header_then_no_part_goes_to_an_ipv4_backend(rig: &mut Rig) {
    let ask = Frame { payload: vec![7; 40], ..SIX_UDP.there(0) };
    let first = Frame { extensions: vec![fragment(0, true, 7), options(DESTINATION_OPTIONS, 1)], ..ask.clone() };
    let later = Frame {
        extensions: vec![fragment(7, false, 7)],
        transport: Transport::Raw(DESTINATION_OPTIONS),
        payload: vec![7; 16],
        ..ask
    };
    for part in [first, later] {
        assert_eq!(rig.run(&part.bytes()).expect("a run").action, XDP_DROP, "{part:?}");
    }
    assert_eq!(rig.drops(DropReason::Malformed).expect("counters"), 2);
}

/// Asserts that `got` is the same fragment of `whole`, a packet of the other family, as `part` is of its own packet.
fn same_part(whole: &Frame, part: &Frame, got: &[u8], mac: [u8; 6]) {
    let (offset, id) = match part.extensions.last() {
        Some((_, bytes)) => (u16::from_be_bytes([bytes[2], bytes[3]]) >> 3, u16::from_be_bytes([bytes[6], bytes[7]])),
        None => (part.fragment_offset, part.id),
    };
    let expected = whole.fragments(64, id.into()).swap_remove(usize::from(offset) * 8 / 64);
    let expected = Frame { destination_mac: mac, source_mac: IN_MAC, ttl: part.ttl - 1, flow_label: 0, ..expected };
    assert_eq!(got, expected.bytes(), "{part:?}");
}

fn when_a_packet_does_not_fit_the_other_family_then_its_sender_learns_the_mtu_of_its_own_family(rig: &mut Rig) {
    let mtu = |frame: &Frame| {
        let ran = rig.run(&frame.bytes()).expect("a run");
        let (protocol, kind, at) = match frame.source {
            SocketAddr::V4(_) => (14 + 9, 14 + 20, 14 + 20 + 6),
            SocketAddr::V6(_) => (14 + 6, 14 + 40, 14 + 40 + 6),
        };
        let is_error = ran.action == XDP_TX && matches!((ran.frame[protocol], ran.frame[kind]), (1, 3) | (58, 2));
        is_error.then(|| u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]))
    };
    let of = |frame: Frame, length: usize| {
        let headers = frame.packet().len() - frame.payload.len();
        Frame { payload: vec![1; length - headers], ..frame }
    };
    // IPv4 packets grow by 20 bytes, IPv6 packets shrink by 20 bytes, and both interfaces have an MTU of 1500.
    let seen = FOUR.connect(rig);
    assert_eq!(mtu(&of(FOUR.there(ACK), 1480)), None);
    assert_eq!(mtu(&of(FOUR.there(ACK), 1481)), Some(1480));
    assert_eq!(mtu(&of(FOUR.back(seen, ACK), 1500)), None);
    let seen = SIX.connect(rig);
    assert_eq!(mtu(&of(SIX.there(ACK), 1500)), None);
    assert_eq!(mtu(&of(SIX.back(seen, ACK), 1480)), None);
    assert_eq!(mtu(&of(SIX.back(seen, ACK), 1481)), Some(1480));
    rig.widen(SIX.vip, SIX.backend, 1400).expect("a backend");
    let mtu = |frame: &Frame| {
        let ran = rig.run(&frame.bytes()).expect("a run");
        (ran.frame[14 + 6] == 58).then(|| u16::from_be_bytes([ran.frame[14 + 46], ran.frame[14 + 47]]))
    };
    assert_eq!(mtu(&of(SIX.there(ACK), 1420)), None);
    assert_eq!(mtu(&of(SIX.there(ACK), 1421)), Some(1420));
}

fn when_the_ttl_is_used_up_then_a_packet_between_families_is_dropped(rig: &mut Rig) {
    for scene in TCP {
        let seen = scene.connect(rig);
        for frame in [scene.there(ACK), scene.back(seen, ACK)] {
            assert_eq!(rig.run(&Frame { ttl: 1, ..frame }.bytes()).expect("a run").action, XDP_DROP);
        }
    }
    assert_eq!(rig.drops(DropReason::TtlExceeded).expect("counters"), 4);
}

fn when_the_backend_of_the_other_family_fails_then_its_clients_are_reset_in_their_own_family(rig: &mut Rig) {
    for scene in TCP {
        scene.connect(rig);
        rig.keep_known(scene.vip, scene.backend, false).expect("a backend");
        let ran = rig.run(&scene.there(ACK).bytes()).expect("a run");
        let flags = if scene.client.starts_with('[') { 14 + 40 + 13 } else { 14 + 20 + 13 };
        assert_eq!((ran.action, ran.frame[flags]), (XDP_TX, RST), "{}", scene.vip);
    }
}

/// An ICMP error, and the error of the other family with the same meaning: names, types, codes and second words.
type Pair = ((&'static str, u8, u8, [u8; 4]), (&'static str, u8, u8, [u8; 4]));

const FROM_FOUR: [Pair; 5] = [
    (("fragmentation needed", 3, 4, [0, 0, 5, 0]), ("packet too big", 2, 0, [0, 0, 5, 20])),
    (("fragmentation needed", 3, 4, [0, 0, 2, 0]), ("packet too big", 2, 0, [0, 0, 5, 0])),
    (("port unreachable", 3, 3, [0; 4]), ("port unreachable", 1, 4, [0; 4])),
    (("host unreachable", 3, 1, [0; 4]), ("no route", 1, 0, [0; 4])),
    (("time exceeded", 11, 0, [0; 4]), ("hop limit exceeded", 3, 0, [0; 4])),
];
const FROM_SIX: [Pair; 4] = [
    (("packet too big", 2, 0, [0, 0, 5, 20]), ("fragmentation needed", 3, 4, [0, 0, 5, 0])),
    (("port unreachable", 1, 4, [0; 4]), ("port unreachable", 3, 3, [0; 4])),
    (("prohibited", 1, 1, [0; 4]), ("host prohibited", 3, 10, [0; 4])),
    (("hop limit exceeded", 3, 0, [0; 4]), ("time exceeded", 11, 0, [0; 4])),
];

fn router(four: bool) -> &'static str {
    if four { "192.0.2.77:0" } else { "[2001:db8:ff::77]:0" }
}

/// Sends the program an error that quotes `length` bytes of `told`, and asserts that the sender of `heard`, the same
/// packet in the other family, gets the counterpart of this error.
fn is_heard(rig: &Rig, (error, counterpart): Pair, told: &Frame, heard: &Frame, length: usize, mac: [u8; 6]) {
    let frame = Frame { tos: 0xc0, ..crate::icmp_errors::error(router(told.source.is_ipv4()), told, length, error) };
    let ran = rig.run(&frame.bytes()).expect("a run");
    let to_four = heard.source.is_ipv4();
    let id = |at: usize| u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]);
    let (length, quoted) = if to_four {
        let dont_fragment = heard.packet().len() > 1260;
        let id = if dont_fragment { 0 } else { id(14 + 20 + 8 + 4) };
        (length - 20, Frame { id, dont_fragment, ..heard.clone() })
    } else {
        (length + 20, Frame { flow_label: 0, ..heard.clone() })
    };
    let expected = crate::icmp_errors::error(router(to_four), &quoted, length, counterpart);
    let expected = Frame {
        source: SocketAddr::new(heard.destination.ip(), 0),
        id: if to_four { id(14 + 4) } else { 0 },
        dont_fragment: false,
        tos: 0xc0,
        ttl: frame.ttl - 1,
        destination_mac: mac,
        source_mac: IN_MAC,
        ..expected
    };
    let name = format!("{error:?}, {length}");
    assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()), "{name}");
}

fn when_a_router_sends_an_error_about_a_packet_between_families_then_its_sender_hears_it_in_its_own_family(
    rig: &mut Rig,
) {
    for scene in [SIX, FOUR, SIX_UDP, FOUR_UDP] {
        let seen = scene.sent(rig, &scene.there(SYN));
        if scene.protocol == Protocol::Tcp {
            scene.comes_back(rig, &scene.back(seen, SYN | ACK));
        }
        let payload = || vec![3; 100];
        let there = Frame { payload: payload(), ttl: 50, ..scene.there(ACK) };
        let back = Frame { payload: payload(), ttl: 50, ..scene.back(seen, ACK) };
        let pool = scene.pool(seen);
        let ends = |frame: &Frame, source, destination| Frame { source, destination, ..frame.clone() };
        let at_backend = ends(&there, pool, address(scene.backend));
        let at_client = ends(&back, address(scene.vip), address(scene.client));
        let four = pool.is_ipv4();
        let (to_client, to_backend) =
            if four { (&FROM_FOUR[..], &FROM_SIX[..]) } else { (&FROM_SIX[..], &FROM_FOUR[..]) };
        for length in [28, 36, 48, 120] {
            let shift = |four| if four { 0 } else { 20 };
            for &pair in to_client {
                is_heard(rig, pair, &at_backend, &there, length + shift(four), ROUTER_MAC);
            }
            for &pair in to_backend {
                is_heard(rig, pair, &at_client, &back, length + shift(!four), backend_mac(scene.index));
            }
        }
    }
}

fn when_an_error_has_no_counterpart_in_the_other_family_then_it_is_dropped(rig: &mut Rig) {
    let seen = SIX.connect(rig);
    let told = Frame { source: SIX.pool(seen), destination: address(SIX.backend), ..SIX.there(ACK) };
    for (kind, code) in [(3, 2), (12, 0)] {
        let frame = crate::icmp_errors::error(router(true), &told, 48, ("", kind, code, [0; 4]));
        assert_eq!(rig.run(&frame.bytes()).expect("a run").action, XDP_DROP);
    }
    assert_eq!(rig.drops(DropReason::Malformed).expect("counters"), 2);
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_client_connects_to_a_backend_of_the_other_family_then_headers_are_replaced_both_ways,
    when_a_client_asks_by_datagram_then_the_answer_of_the_other_family_finds_it,
    when_a_datagram_for_ipv6_has_no_checksum_then_it_gets_one,
    when_a_reply_cannot_get_the_checksum_that_ipv6_needs_then_it_is_dropped_before_it_is_counted,
    when_a_datagram_for_the_other_family_comes_in_fragments_then_all_of_them_are_translated,
    when_an_ipv6_fragment_has_options_behind_its_fragment_header_then_no_part_goes_to_an_ipv4_backend,
    when_a_packet_does_not_fit_the_other_family_then_its_sender_learns_the_mtu_of_its_own_family,
    when_the_ttl_is_used_up_then_a_packet_between_families_is_dropped,
    when_the_backend_of_the_other_family_fails_then_its_clients_are_reset_in_their_own_family,
    when_a_router_sends_an_error_about_a_packet_between_families_then_its_sender_hears_it_in_its_own_family,
    when_an_error_has_no_counterpart_in_the_other_family_then_it_is_dropped
];

#[test]
fn when_clients_and_backends_have_different_families_then_packets_are_translated_both_ways() {
    rows::run(services(), Setup::default(), ROWS);
}
