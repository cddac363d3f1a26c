//! Tests of direct server return: the program changes the link-layer addresses and reduces the TTL or hop limit.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, services},
    rows::{self, Row, rows},
};

const CLIENTS: [(&str, &str); 2] =
    [("203.0.113.7:40000", "198.51.100.10"), ("[2001:db8:c::7]:40000", "[2001:db8::10]")];

fn when_a_packet_is_forwarded_then_its_macs_and_its_ttl_change_and_nothing_else(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip) in CLIENTS {
        for (what, flags) in
            [("SYN", SYN), ("ACK", ACK), ("FIN+ACK", ACK | 1), ("RST", 4), ("no flags", 0), ("all flags", 0xff)]
        {
            let frame = Frame::tcp(client, &format!("{vip}:80"), flags);
            cases.push(Case::new(format!("{vip} tcp {what}"), &frame, Then::Tx(dsr(rig, &frame).bytes())));
        }
        let other = Frame::tcp(client, &format!("{vip}:81"), SYN);
        cases.push(Case::new(format!("{vip} other interface"), &other, Then::Redirect(dsr(rig, &other).bytes())));
        let udp = Frame::udp(client, &format!("{vip}:53"));
        cases.push(Case::new(format!("{vip} udp"), &udp, Then::Tx(dsr(rig, &udp).bytes())));
        let empty = Frame { payload: Vec::new(), ..udp.clone() };
        cases.push(Case::new(format!("{vip} empty udp"), &empty, Then::Tx(dsr(rig, &empty).bytes())));
        let full =
            Frame { payload: (0..1400u16).map(|i| i as u8).collect(), ..Frame::tcp(client, &format!("{vip}:80"), ACK) };
        cases.push(Case::new(format!("{vip} full segment"), &full, Then::Tx(dsr(rig, &full).bytes())));
        for ttl in [2, 3, 128, 255] {
            let frame = Frame { ttl, ..Frame::tcp(client, &format!("{vip}:80"), SYN) };
            let out = dsr(rig, &frame);
            assert_eq!(out.ttl, ttl - 1);
            cases.push(Case::new(format!("{vip} TTL {ttl} loses a hop"), &frame, Then::Tx(out.bytes())));
        }
        for (ttl, port) in [(0, 80), (1, 80), (0, 81), (1, 81)] {
            let frame = Frame { ttl, ..Frame::tcp(client, &format!("{vip}:{port}"), SYN) };
            let then = Then::Drop(DropReason::TtlExceeded);
            cases.push(Case::new(format!("{vip} port {port} TTL {ttl} is used up"), &frame, then));
        }
        for vlans in [vec![5], vec![7, 4094]] {
            let frame = Frame { vlans: vlans.clone(), ..Frame::tcp(client, &format!("{vip}:80"), SYN) };
            cases.push(Case::new(format!("{vip} VLAN {vlans:?} kept"), &frame, Then::Tx(dsr(rig, &frame).bytes())));
        }
    }
    for options in [vec![1; 4], vec![1; 40]] {
        let frame = Frame { options: options.clone(), ..Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", SYN) };
        let name = format!("{} bytes of IPv4 options", options.len());
        cases.push(Case::new(name, &frame, Then::Tx(dsr(rig, &frame).bytes())));
    }
    let mut padded = Frame { payload: Vec::new(), ..Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", SYN) }.bytes();
    let mut out = dsr(rig, &Frame { payload: Vec::new(), ..Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", SYN) }).bytes();
    padded.extend([0xaa; 6]);
    out.extend([0xaa; 6]);
    cases.push(Case { name: "Ethernet padding stays".into(), frame: padded, then: Then::Tx(out) });
    let first = Frame { more_fragments: true, ..Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", ACK) };
    cases.push(Case::new("first fragment", &first, Then::Tx(dsr(rig, &first).bytes())));
    let any = Frame::tcp(CLIENTS[0].0, "198.51.100.30:9999", SYN);
    let index = rig.service("198.51.100.30:0").expect("the wildcard service");
    let out = Frame {
        destination_mac: balancer_testkit::rig::backend_mac(index),
        source_mac: balancer_testkit::rig::IN_MAC,
        ttl: any.ttl - 1,
        ..any.clone()
    };
    cases.push(Case::new("every port", &any, Then::Tx(out.bytes())));
    cases
}

fn when_packets_are_forwarded_then_connections_packets_and_bytes_are_counted(rig: &mut Rig) {
    let syn = Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", SYN).bytes();
    let ack = Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", ACK).bytes();
    let syn_ack = Frame::tcp(CLIENTS[0].0, "198.51.100.10:80", SYN | ACK).bytes();
    for frame in [&syn, &ack, &ack, &syn_ack] {
        rig.run(frame).expect("a run");
    }
    let stats = rig.backend_stats(0).expect("counters");
    assert_eq!((stats.packets, stats.connections), (4, 1));
    assert_eq!(stats.bytes, (syn.len() + 2 * ack.len() + syn_ack.len()) as u64);
    assert_eq!(stats.decisions.iter().sum::<u64>(), 1);
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_packet_is_forwarded_then_its_macs_and_its_ttl_change_and_nothing_else,
    when_packets_are_forwarded_then_connections_packets_and_bytes_are_counted
];

#[test]
fn when_packets_are_for_dsr_services_then_they_are_forwarded_and_counted() {
    rows::run(services(), Setup::default(), ROWS);
}
