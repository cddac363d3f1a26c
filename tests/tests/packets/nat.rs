//! Tests of packets that the program forwards with `nat` from the client to the backend.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, nat, services},
    rows::{self, Row, rows},
};

const FAMILIES: [(&str, &str, &str, &str); 2] = [
    ("203.0.113.7:40000", "198.51.100.20", "10.0.0.2", "10.0.1.2"),
    ("[2001:db8:c::7]:40000", "[2001:db8::20]", "[fd00::2", "[fd01::2"),
];

fn when_a_packet_is_for_a_nat_service_then_its_destination_changes_and_checksums_hold(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip, near, far) in FAMILIES {
        let close = if vip.starts_with('[') { "]" } else { "" };
        let (tcp, udp, other) = (format!("{vip}:80"), format!("{vip}:53"), format!("{vip}:81"));
        let backend = |which: &str, host: &str, port: u16| format!("{which}{host}{close}:{port}");
        for flags in [SYN, ACK, ACK | 1, 4] {
            let frame = Frame::tcp(client, &tcp, flags);
            let out = nat(rig, &frame, &tcp, &backend(near, "1", 8080));
            cases.push(Case::new(format!("{vip} tcp flags {flags}"), &frame, Then::Tx(out.bytes())));
        }
        for (name, frame) in [
            ("udp", Frame::udp(client, &udp)),
            ("udp, odd length", Frame { payload: vec![0x5a; 7], ..Frame::udp(client, &udp) }),
            ("udp, empty", Frame { payload: Vec::new(), ..Frame::udp(client, &udp) }),
            ("udp without checksum", Frame::new(client, &udp, Transport::UdpWithoutChecksum)),
        ] {
            let out = nat(rig, &frame, &udp, &backend(near, "2", 5353));
            cases.push(Case::new(format!("{vip} {name}"), &frame, Then::Tx(out.bytes())));
        }
        let frame = Frame::tcp(client, &other, SYN);
        let out = nat(rig, &frame, &other, &backend(far, "1", 8081));
        cases.push(Case::new(format!("{vip} other interface"), &frame, Then::Redirect(out.bytes())));
        for vlans in [vec![5], vec![7, 4094]] {
            let frame = Frame { vlans, ..Frame::tcp(client, &tcp, SYN) };
            let out = nat(rig, &frame, &tcp, &backend(near, "1", 8080));
            cases.push(Case::new(format!("{vip} VLAN {:?} kept", frame.vlans), &frame, Then::Tx(out.bytes())));
        }
        for ttl in [2, 128, 255] {
            let frame = Frame { ttl, ..Frame::tcp(client, &tcp, ACK) };
            let out = nat(rig, &frame, &tcp, &backend(near, "1", 8080));
            cases.push(Case::new(format!("{vip} TTL {ttl} loses a hop"), &frame, Then::Tx(out.bytes())));
        }
        for ttl in [0, 1] {
            let frame = Frame { ttl, ..Frame::tcp(client, &tcp, ACK) };
            cases.push(Case::new(format!("{vip} TTL {ttl} is used up"), &frame, Then::Drop(DropReason::TtlExceeded)));
        }
        let frame = Frame { tos: 0xb9, ..Frame::tcp(client, &tcp, ACK) };
        let out = nat(rig, &frame, &tcp, &backend(near, "1", 8080));
        cases.push(Case::new(format!("{vip} DSCP and ECN kept"), &frame, Then::Tx(out.bytes())));
    }
    let (client, options) = (FAMILIES[0].0, vec![1; 12]);
    let frame = Frame { options, ..Frame::tcp(client, "198.51.100.20:80", SYN) };
    let out = nat(rig, &frame, "198.51.100.20:80", "10.0.0.21:8080");
    cases.push(Case::new("IPv4 options kept", &frame, Then::Tx(out.bytes())));
    let frame = Frame::tcp(client, "198.51.100.31:12345", SYN);
    let out = nat(rig, &frame, "198.51.100.31:0", "10.0.0.32:12345");
    cases.push(Case::new("every port, unchanged", &frame, Then::Tx(out.bytes())));
    let frame = Frame::tcp(client, "198.51.100.30:443", SYN);
    let out = nat(rig, &frame, "198.51.100.30:443", "10.0.0.33:8443");
    cases.push(Case::new("an exact port before every port", &frame, Then::Tx(out.bytes())));
    cases
}

pub(crate) const ROWS: &[Row] =
    rows![when_a_packet_is_for_a_nat_service_then_its_destination_changes_and_checksums_hold];

#[test]
fn when_packets_are_for_nat_services_then_they_are_translated() {
    rows::run(services(), Setup::default(), ROWS);
}
