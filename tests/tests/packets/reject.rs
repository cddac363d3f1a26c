//! Tests that services with `reject` answer packets that no backend takes with a reset or an ICMP error.

use std::net::SocketAddr;

use balancer_common::{features::Features, map_types::Forwarding, verdict::DropReason};
use balancer_config::config::Protocol;
use balancer_control::io::{RuleAction, RuleSpec};
use balancer_dataplane::Budgets;
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, Transport, options, transport_checksum},
    prog_run::Ran,
    rig::{Rig, Service, Setup, Target},
};

use crate::rows::{self, rows};

const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;

const FIN: u8 = 1;
const RST: u8 = 4;
const ANSWERED: u32 = 0x0a0b_0c0d;

const CLIENTS: [&str; 2] = ["203.0.113.7:40000", "[2001:db8:c::7]:40000"];
/// TCP and UDP services with `reject`, of both families. Some services have no backends, some have only backends that
/// are down, and some have a backend that takes clients.
const EMPTY: [[&str; 2]; 2] = [["198.51.100.10:80", "198.51.100.10:53"], ["[2001:db8::10]:80", "[2001:db8::10]:53"]];
const DOWN: [[&str; 2]; 2] = [["198.51.100.11:80", "198.51.100.11:53"], ["[2001:db8::11]:80", "[2001:db8::11]:53"]];
const TAKES: [[&str; 2]; 2] = [["198.51.100.12:80", "198.51.100.12:53"], ["[2001:db8::12]:80", "[2001:db8::12]:53"]];

fn services() -> Vec<Service> {
    let mut services = Vec::new();
    for (addresses, target) in [(EMPTY, None), (DOWN, Some(Target::AllDown)), (TAKES, Some(Target::NoBackend))] {
        for (family, pair) in addresses.into_iter().enumerate() {
            for (address, protocol) in pair.into_iter().zip([Protocol::Tcp, Protocol::Udp]) {
                let target = match target {
                    None => Target::NoBackend,
                    Some(Target::AllDown) => Target::AllDown,
                    Some(_) if family == 0 => Target::SameInterface("10.0.0.12:80"),
                    Some(_) => Target::SameInterface("[fd00::12]:80"),
                };
                services.push(Service { address, protocol, forwarding: Forwarding::Ipip, target });
            }
        }
    }
    services
}

fn rejecting(budgets: Budgets, test: impl FnOnce(Rig) + Send + 'static) {
    let setup = Setup { features: Features::REJECT, budgets, ..Setup::default() };
    let thread = std::thread::spawn(move || {
        let mut rig = Rig::with(&services(), &setup).expect("a rig");
        rig.reject(true).expect("services that reject");
        test(rig);
    });
    thread.join().expect("the thread panicked");
}

const PLENTY: Budgets = Budgets { errors: 1_000_000, rejections: 1_000_000, echo: 0, fragments: 1_000_000, waiting: 0 };

fn run(rig: &Rig, frame: &[u8]) -> Ran {
    rig.run(frame).expect("a run")
}

/// Returns `frame` with an acknowledgement number and a new checksum.
fn acknowledging(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let l4 = bytes.len() - frame.payload.len() - 20;
    bytes[l4 + 8..l4 + 12].copy_from_slice(&ANSWERED.to_be_bytes());
    bytes[l4 + 16..l4 + 18].fill(0);
    let check = transport_checksum(frame.source.ip(), frame.destination.ip(), 6, &bytes[l4..]);
    bytes[l4 + 16..l4 + 18].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// Returns the reset that answers `frame`, with the given numbers and flags.
fn reset(frame: &Frame, sequence: u32, acknowledgement: u32, flags: u8) -> Vec<u8> {
    let answer = Frame {
        destination_mac: frame.source_mac,
        source_mac: frame.destination_mac,
        source: frame.destination,
        destination: frame.source,
        id: 0,
        ttl: 64,
        tos: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        flow_label: 0,
        dont_fragment: true,
        more_fragments: false,
        transport: Transport::Tcp(flags),
        payload: Vec::new(),
        ..frame.clone()
    };
    let mut bytes = answer.bytes();
    let l4 = bytes.len() - 20;
    bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
    bytes[l4 + 8..l4 + 12].copy_from_slice(&acknowledgement.to_be_bytes());
    // The window field of the reset is 0.
    bytes[l4 + 14..l4 + 18].fill(0);
    let check = transport_checksum(answer.source.ip(), answer.destination.ip(), 6, &bytes[l4..]);
    bytes[l4 + 16..l4 + 18].copy_from_slice(&check.to_be_bytes());
    if frame.bytes().len() >= 60 {
        bytes.resize(bytes.len().max(60), 0);
    }
    bytes
}

/// Returns segments for a TCP service: plain segments, segments with options, and segments in VLANs, with and without
/// data.
fn dressed(client: &str, vip: &str, flags: u8) -> Vec<(&'static str, Frame)> {
    let plain = Frame::tcp(client, vip, flags);
    let mut frames = vec![
        ("plain", plain.clone()),
        ("no data", Frame { payload: Vec::new(), ..plain.clone() }),
        ("1000 bytes", Frame { payload: vec![9; 1000], ..plain.clone() }),
        ("VLAN", Frame { vlans: vec![7], ..plain.clone() }),
        ("two VLANs", Frame { vlans: vec![7, 8], ..plain.clone() }),
        ("TTL 1", Frame { ttl: 1, tos: 0xb8, ..plain.clone() }),
    ];
    if plain.source.is_ipv4() {
        frames.push(("IPv4 options", Frame { options: vec![1; 12], ..plain }));
    } else {
        let extensions = vec![options(DESTINATION_OPTIONS, 2)];
        frames.push(("extension headers", Frame { extensions, flow_label: 77, ..plain }));
    }
    frames
}

fn when_no_backend_takes_a_segment_then_it_is_reset(rig: &mut Rig) {
    rig.reject(true).expect("services that reject");
    let mut sent = 0;
    for (family, client) in CLIENTS.into_iter().enumerate() {
        for vip in [EMPTY[family][0], DOWN[family][0]] {
            for flags in [SYN, SYN | ACK, ACK, ACK | FIN, ACK | 8, FIN, 0] {
                for (name, frame) in dressed(client, vip, flags) {
                    let bytes = acknowledging(&frame);
                    let expected = if flags & ACK != 0 {
                        reset(&frame, ANSWERED, 0, RST)
                    } else {
                        let taken =
                            frame.payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
                        reset(&frame, 0, frame.sequence + taken, RST | ACK)
                    };
                    let ran = run(rig, &bytes);
                    assert_eq!(ran.action, XDP_TX, "{client} to {vip}, flags {flags}, {name}");
                    assert_eq!(ran.frame, expected, "{client} to {vip}, flags {flags}, {name}");
                    sent += 1;
                }
            }
        }
    }
    let replies = rig.replies().expect("counters");
    assert_eq!((replies.rejected, replies.too_big), (sent, 0));
    for &reason in DropReason::ALL {
        assert_eq!(rig.drops(reason).expect("counters"), 0, "{}", reason.label());
    }
}

/// Returns the ICMP error about `frame`, with the given type and code.
fn error(frame: &Frame, [kind, code]: [u8; 2]) -> Vec<u8> {
    let portless = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
    let v4 = frame.source.is_ipv4();
    let mut quote = frame.packet();
    quote.truncate(if v4 { 544 } else { 1232 });
    Frame {
        destination_mac: frame.source_mac,
        source_mac: frame.destination_mac,
        source: portless(frame.destination),
        destination: portless(frame.source),
        tos: if v4 { 0xc0 } else { 0 },
        ttl: 64,
        id: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        dont_fragment: true,
        more_fragments: false,
        transport: Transport::Icmp(kind, code, [0; 4]),
        payload: quote,
        ..frame.clone()
    }
    .bytes()
}

const UNREACHABLE: [[u8; 2]; 2] = [[3, 3], [1, 4]];
const PROHIBITED: [[u8; 2]; 2] = [[3, 13], [1, 1]];

fn when_no_backend_takes_a_datagram_then_its_sender_is_told(rig: &mut Rig) {
    rig.reject(true).expect("services that reject");
    for (family, client) in CLIENTS.into_iter().enumerate() {
        for vip in [EMPTY[family][1], DOWN[family][1]] {
            let plain = Frame::udp(client, vip);
            let mut frames = vec![
                plain.clone(),
                Frame { payload: vec![1; 1400], ..plain.clone() },
                Frame { vlans: vec![3, 4], ..plain.clone() },
            ];
            // The program quotes short packets completely, because Linux ignores errors with truncated quotes of
            // short packets.
            frames.extend((0..20).map(|length| Frame { payload: vec![7; length], ..plain.clone() }));
            if family == 0 {
                frames.push(Frame { options: vec![1; 8], ..plain.clone() });
            }
            for frame in frames {
                let ran = run(rig, &frame.bytes());
                assert_eq!((ran.action, ran.frame), (XDP_TX, error(&frame, UNREACHABLE[family])), "{vip}");
            }
            // The program answers only the first fragment of a datagram.
            let parts = Frame { payload: vec![1; 100], ..plain }.fragments(48, 9);
            assert_eq!(run(rig, &parts[0].bytes()).action, XDP_TX, "{vip}");
            assert_eq!(run(rig, &parts[1].bytes()).action, XDP_DROP, "{vip}");
        }
    }
}

fn when_a_rule_denies_a_client_then_it_is_told(rig: &mut Rig) {
    rig.reject(true).expect("services that reject");
    for family in [0, 1] {
        for vip in TAKES[family] {
            let prefix = if family == 0 { "203.0.113.0/24" } else { "2001:db8:c::/48" };
            let deny = RuleSpec { prefix: prefix.parse().expect("a prefix"), action: RuleAction::Deny };
            rig.set_rules(vip, &[deny]).expect("rules");
        }
        let [tcp, udp] = TAKES[family];
        let frame = Frame::tcp(CLIENTS[family], tcp, SYN);
        let ran = run(rig, &frame.bytes());
        let expected = reset(&frame, 0, frame.sequence + 1 + frame.payload.len() as u32, RST | ACK);
        assert_eq!((ran.action, ran.frame), (XDP_TX, expected));
        let frame = Frame::udp(CLIENTS[family], udp);
        let ran = run(rig, &frame.bytes());
        assert_eq!((ran.action, ran.frame), (XDP_TX, error(&frame, PROHIBITED[family])));
    }
    assert_eq!(rig.replies().expect("counters").rejected, 4);
}

fn when_a_packet_must_not_be_answered_then_it_is_dropped_silently(rig: &mut Rig) {
    rig.reject(true).expect("services that reject");
    let mut sent = 0;
    let mut silent = |name: &str, frame: &[u8], reason: DropReason| {
        let before = rig.drops(reason).expect("counters");
        assert_eq!(run(rig, frame).action, XDP_DROP, "{name}");
        assert_eq!(rig.drops(reason).expect("counters"), before + 1, "{name}: {}", reason.label());
        sent += 1;
    };
    for (family, client) in CLIENTS.into_iter().enumerate() {
        let [tcp, udp] = EMPTY[family];
        for flags in [RST, RST | ACK, RST | SYN] {
            let frame = Frame::tcp(client, tcp, flags);
            silent(&format!("{client}, flags {flags}"), &frame.bytes(), DropReason::NoBackend);
        }
        for frame in [Frame::tcp(client, tcp, SYN), Frame::udp(client, udp)] {
            let group = Frame { destination_mac: [0xff; 6], ..frame };
            silent(&format!("{client}, to every station"), &group.bytes(), DropReason::NoBackend);
        }
        let martian = if family == 0 { "127.0.0.1:9" } else { "[::1]:9" };
        silent(martian, &Frame::tcp(martian, tcp, SYN).bytes(), DropReason::Martian);
        let parts = Frame { payload: vec![1; 100], ..Frame::tcp(client, tcp, SYN) }.fragments(48, 9);
        silent(&format!("{client}, a SYN in parts"), &parts[0].bytes(), DropReason::NoBackend);
        // The packet is an ICMP error about a packet that the VIP sent.
        let quoted = Frame::tcp(tcp, client, ACK).packet();
        let kind = if family == 0 { 3 } else { 1 };
        let error = Frame { payload: quoted, ..Frame::icmp(client, tcp, kind, 1, [0; 4]) };
        silent(&format!("{client}, an error"), &error.bytes(), DropReason::NoBackend);
    }
    assert!(sent > 0);
    assert_eq!(rig.replies().expect("counters").rejected, 0);
}

fn when_the_service_does_not_reject_then_no_client_is_told(rig: &mut Rig) {
    rig.reject(true).expect("services that reject");
    rig.reject(false).expect("services that do not reject");
    for family in [0, 1] {
        for (vips, reason) in [(EMPTY, DropReason::NoBackend), (DOWN, DropReason::AllDown)] {
            let [tcp, udp] = vips[family];
            for frame in [Frame::tcp(CLIENTS[family], tcp, SYN), Frame::udp(CLIENTS[family], udp)] {
                assert_eq!(run(rig, &frame.bytes()).action, XDP_DROP);
            }
            assert_eq!(rig.drops(reason).expect("counters"), 2 * (family as u64 + 1));
        }
    }
}

#[test]
fn when_rejections_exceed_the_budget_then_answers_are_limited() {
    rejecting(Budgets { rejections: 20, errors: 0, ..PLENTY }, |rig| {
        const SENT: u64 = 4000;
        let syn = Frame::tcp(CLIENTS[0], EMPTY[0][0], SYN).bytes();
        let datagram = Frame::udp(CLIENTS[1], EMPTY[1][1]).bytes();
        for number in 0..SENT {
            run(&rig, if number % 2 == 0 { &syn } else { &datagram });
        }
        let told = rig.replies().expect("counters").rejected;
        let dropped = rig.drops(DropReason::NoBackend).expect("counters");
        assert_eq!(told + dropped, SENT);
        assert!(told >= 20 && dropped > 0, "{told} and {dropped}");
    });
}

/// One service uses `reject`, and a second service has a tunnel whose MTU is too small for long packets.
#[test]
fn when_a_flood_is_rejected_then_senders_of_long_packets_are_told_all_the_same() {
    rejecting(Budgets { errors: 20, rejections: 20, ..PLENTY }, |rig| {
        let syn = Frame::tcp(CLIENTS[0], EMPTY[0][0], SYN).bytes();
        let datagram = Frame::udp(CLIENTS[0], EMPTY[0][1]).bytes();
        let long = Frame { payload: vec![1; 1460], ..Frame::tcp(CLIENTS[0], TAKES[0][0], ACK) }.bytes();
        for _ in 0..1000 {
            run(&rig, &syn);
            run(&rig, &datagram);
        }
        assert!(rig.drops(DropReason::NoBackend).expect("counters") > 0, "the flood is beyond its budget");
        assert_eq!(run(&rig, &long).action, XDP_TX);
        assert_eq!(rig.replies().expect("counters").too_big, 1);
    });
}

#[test]
fn when_services_reject_packets_then_senders_are_told() {
    rows::run(
        services(),
        Setup { features: Features::REJECT | Features::RULES, budgets: PLENTY, ..Setup::default() },
        rows![
            when_no_backend_takes_a_segment_then_it_is_reset,
            when_no_backend_takes_a_datagram_then_its_sender_is_told,
            when_a_rule_denies_a_client_then_it_is_told,
            when_a_packet_must_not_be_answered_then_it_is_dropped_silently,
            when_the_service_does_not_reject_then_no_client_is_told
        ],
    );
}
