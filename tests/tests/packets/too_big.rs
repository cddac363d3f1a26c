//! Tests of packets that are too large for their path: the program reports the path's MTU to the sender.

use std::net::SocketAddr;

use balancer_common::verdict::DropReason;
use balancer_dataplane::Budgets;
use balancer_testkit::{
    frame::{ACK, Frame, Transport},
    rig::{OUT_MTU, Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, nat, services},
    rows::{self, Row, rows},
};

/// Returns a TCP segment whose IP packet is `length` bytes long.
pub(crate) fn segment(client: &str, vip: &str, length: usize) -> Frame {
    let headers = 20 + if client.starts_with('[') { 40 } else { 20 };
    Frame { payload: (0..length - headers).map(|i| i as u8).collect(), ..Frame::tcp(client, vip, ACK) }
}

/// Returns the ICMP error that the program sends to the sender of `frame`.
pub(crate) fn told(frame: &Frame, mtu: usize) -> Frame {
    let portless = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
    let packet = frame.packet();
    let (transport, tos, quote) = if frame.source.is_ipv4() {
        let [high, low] = (mtu as u16).to_be_bytes();
        (Transport::Icmp(3, 4, [0, 0, high, low]), 0xc0, 544)
    } else {
        (Transport::Icmp(2, 0, (mtu as u32).to_be_bytes()), 0, 1232)
    };
    Frame {
        destination_mac: frame.source_mac,
        source_mac: frame.destination_mac,
        source: portless(frame.destination),
        destination: portless(frame.source),
        ttl: 64,
        tos,
        id: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        dont_fragment: true,
        transport,
        payload: packet[..packet.len().min(quote)].to_vec(),
        ..frame.clone()
    }
}

/// Returns the client, the VIP, and the MTU that remains for the client's packets, for each path.
fn ways() -> Vec<(&'static str, &'static str, usize)> {
    let (v4, v6) = ("203.0.113.7:40000", "[2001:db8:c::7]:40000");
    let out = OUT_MTU as usize;
    vec![
        (v4, "198.51.100.50:80", 1500 - 20),
        (v4, "198.51.100.52:80", 1500 - 40),
        (v6, "[2001:db8::50]:80", 1500 - 20),
        (v6, "[2001:db8::52]:80", 1500 - 40),
        (v4, "198.51.100.60:80", 1500 - 28),
        (v4, "198.51.100.62:80", 1500 - 48),
        (v6, "[2001:db8::60]:80", 1500 - 28),
        (v6, "[2001:db8::62]:80", 1500 - 48),
        (v4, "198.51.100.10:81", out),
        (v6, "[2001:db8::10]:81", out),
        (v4, "198.51.100.20:81", out),
        (v6, "[2001:db8::20]:81", out),
        (v4, "198.51.100.50:81", out - 20),
        (v6, "[2001:db8::52]:81", out - 40),
        (v4, "198.51.100.60:81", out - 28),
        (v6, "[2001:db8::62]:81", out - 48),
    ]
}

fn when_a_packet_is_too_large_then_its_sender_is_told_what_fits(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip, mtu) in ways() {
        for length in [mtu + 1, 1500] {
            let frame = segment(client, vip, length);
            let name = format!("{vip} {length} bytes where {mtu} fit");
            cases.push(Case::new(name, &frame, Then::Tx(told(&frame, mtu).bytes())));
        }
        for vlans in [vec![6], vec![6, 7]] {
            let frame = Frame { vlans, ..segment(client, vip, 1500) };
            let name = format!("{vip} VLAN {:?}", frame.vlans);
            cases.push(Case::new(name, &frame, Then::Tx(told(&frame, mtu).bytes())));
        }
        if client.starts_with('[') {
            continue;
        }
        let may = Frame { dont_fragment: false, ..segment(client, vip, mtu + 1) };
        cases.push(Case::new(format!("{vip} may be fragmented"), &may, Then::Tx(told(&may, mtu).bytes())));
        let options = Frame { options: vec![1; 40], ..segment(client, vip, 1460) };
        cases.push(Case::new(format!("{vip} IPv4 options"), &options, Then::Tx(told(&options, mtu).bytes())));
    }
    for (source, vip) in [("0.0.0.9:1", "198.51.100.50:80"), ("240.0.0.9:1", "198.51.100.10:81")] {
        let frame = segment(source, vip, 1500);
        cases.push(Case::new(format!("{source} is nobody to tell"), &frame, Then::Drop(DropReason::TooBig)));
    }
    let group = Frame { destination_mac: [0xff; 6], ..segment("203.0.113.7:1", "198.51.100.50:80", 1500) };
    cases.push(Case::new("sent to every station", &group, Then::Drop(DropReason::TooBig)));
    cases
}

fn when_a_packet_fits_exactly_then_it_is_forwarded(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, client, vip, backend, mtu) in [
        ("ipip", "203.0.113.7:40000", "198.51.100.50:80", "10.0.0.50", 1480),
        ("ipip", "203.0.113.7:40000", "198.51.100.52:80", "fd00::52", 1460),
        ("ipip", "[2001:db8:c::7]:40000", "[2001:db8::52]:80", "fd00::56", 1460),
        ("gue", "203.0.113.7:40000", "198.51.100.60:80", "10.0.0.60", 1472),
        ("gue", "[2001:db8:c::7]:40000", "[2001:db8::62]:80", "fd00::66", 1452),
    ] {
        let frame = segment(client, vip, mtu);
        let out = crate::tunnel::wrapped(rig, mode, &frame, vip, backend);
        cases.push(Case::new(format!("{mode} {vip}"), &frame, Then::Tx(out.bytes())));
    }
    let out_mtu = OUT_MTU as usize;
    let frame = segment("203.0.113.7:40000", "198.51.100.10:81", out_mtu);
    cases.push(Case::new("dsr", &frame, Then::Redirect(dsr(rig, &frame).bytes())));
    let frame = segment("[2001:db8:c::7]:40000", "[2001:db8::20]:81", out_mtu);
    let out = nat(rig, &frame, "[2001:db8::20]:81", "[fd01::21]:8081");
    cases.push(Case::new("nat", &frame, Then::Redirect(out.bytes())));
    cases
}

fn when_a_reply_is_too_large_for_the_clients_interface_then_its_sender_is_told(_: &mut Rig) -> Vec<Case> {
    let restored = |frame: &Frame, vip: &str| Frame {
        destination_mac: [2, 0, 0, 0, 0, 8],
        source_mac: balancer_testkit::rig::OUT_MAC,
        source: vip.parse().expect("an address"),
        ttl: frame.ttl - 1,
        ..frame.clone()
    };
    let fits = segment("10.0.0.21:8080", "203.0.114.7:40000", 1300);
    let fits_v6 = segment("[fd00::21]:8080", "[2001:db8:d::7]:40000", 1300);
    let long = segment("10.0.0.21:8080", "203.0.114.7:40000", 1301);
    let long_v6 = segment("[fd00::21]:8080", "[2001:db8:d::7]:40000", 1301);
    let may = Frame { dont_fragment: false, ..long.clone() };
    vec![
        Case::new("fits", &fits, Then::Redirect(restored(&fits, "198.51.100.20:80").bytes())),
        Case::new("fits, IPv6", &fits_v6, Then::Redirect(restored(&fits_v6, "[2001:db8::20]:80").bytes())),
        Case::new("the backend is told", &long, Then::Tx(told(&long, 1300).bytes())),
        Case::new("the backend is told, IPv6", &long_v6, Then::Tx(told(&long_v6, 1300).bytes())),
        Case::new("may be fragmented", &may, Then::Tx(told(&may, 1300).bytes())),
    ]
}

#[test]
fn when_senders_are_told_then_answers_are_counted_and_limited() {
    std::thread::spawn(|| {
        let budgets = Budgets { errors: 20, rejections: 0, echo: 0, fragments: 0, waiting: 0 };
        let rig = Rig::with(&services(), &Setup { budgets, ..Setup::default() }).expect("a rig");
        let frame = segment("203.0.113.7:40000", "198.51.100.50:80", 1500).bytes();
        const SENT: u64 = 4000;
        for _ in 0..SENT {
            rig.run(&frame).expect("a run");
        }
        let told = rig.replies().expect("counters").too_big;
        let dropped = rig.drops(DropReason::TooBig).expect("counters");
        assert_eq!(told + dropped, SENT);
        // The budget applies per CPU and second, and the test sends all packets within a short time.
        assert!(told >= 20, "{told}");
        assert!(dropped > 0);
    })
    .join()
    .expect("the thread panicked");
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_packet_is_too_large_then_its_sender_is_told_what_fits,
    when_a_packet_fits_exactly_then_it_is_forwarded,
    when_a_reply_is_too_large_for_the_clients_interface_then_its_sender_is_told
];

#[test]
fn when_packets_are_large_then_senders_learn_what_fits() {
    rows::run(services(), Setup::default(), ROWS);
}
