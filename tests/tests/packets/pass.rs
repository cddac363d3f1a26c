//! Tests that packets for no service pass to the kernel unchanged.

use balancer_testkit::{
    frame::{DESTINATION_OPTIONS, Frame, SYN, Transport},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, services},
    rows::{self, Row, rows},
};

fn raw(name: &str, frame: Vec<u8>) -> Case {
    Case { name: name.into(), frame, then: Then::Pass }
}

/// Returns `frame` with a different layer-4 protocol number. The IPv4 checksum stays unchanged, because the program
/// does not check it.
fn with_protocol(frame: &Frame, protocol: u8) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let at = if frame.source.is_ipv4() { 14 + 9 } else { 14 + 6 };
    bytes[at] = protocol;
    bytes
}

fn when_a_packet_is_for_no_service_then_it_passes_unchanged(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip, other) in [
        ("203.0.113.7:40000", "198.51.100.10", "198.51.100.99"),
        ("[2001:db8:c::7]:40000", "[2001:db8::10]", "[2001:db8::99]"),
    ] {
        let pass = |name: &str, frame: &Frame| Case::new(format!("{vip} {name}"), frame, Then::Pass);
        cases.push(pass("wrong port", &Frame::tcp(client, &format!("{vip}:8080"), SYN)));
        cases.push(pass("port 0", &Frame::tcp(client, &format!("{vip}:0"), SYN)));
        cases.push(pass("wrong protocol, tcp to a udp service", &Frame::tcp(client, &format!("{vip}:53"), SYN)));
        cases.push(pass("wrong protocol, udp to a tcp service", &Frame::udp(client, &format!("{vip}:80"))));
        cases.push(pass("wrong address", &Frame::tcp(client, &format!("{other}:80"), SYN)));
        cases.push(pass("wrong address, udp", &Frame::udp(client, &format!("{other}:53"))));
        let tagged = Frame { vlans: vec![9], ..Frame::tcp(client, &format!("{other}:80"), SYN) };
        cases.push(pass("wrong address, VLAN", &tagged));
        let icmp = if vip.starts_with('[') { 58 } else { 1 };
        for (name, protocol) in [("ICMP", icmp), ("SCTP", 132), ("GRE", 47), ("protocol 255", 255)] {
            let frame = with_protocol(&Frame::tcp(client, &format!("{vip}:80"), SYN), protocol);
            cases.push(raw(&format!("{vip} {name}"), frame));
        }
    }
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 9, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 203, 0, 113, 7]);
    arp.extend([0, 0, 0, 0, 0, 0, 198, 51, 100, 10]);
    cases.push(raw("ARP for a VIP", arp));
    let mut lldp = vec![1, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 9, 0x88, 0xcc];
    lldp.extend([0; 46]);
    cases.push(raw("LLDP", lldp));
    let mut length = vec![1, 0x80, 0xc2, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 38];
    length.extend([0x42; 46]);
    cases.push(raw("IEEE 802.3 length instead of a type", length));
    let later = Frame {
        fragment_offset: 5,
        transport: Transport::Raw(DESTINATION_OPTIONS),
        ..Frame::udp("203.0.113.7:0", "198.51.100.10:0")
    };
    cases.push(Case::new("later fragment of the protocol that is IPv6's destination options", &later, Then::Pass));
    let three_tags = Frame { vlans: vec![1, 2, 3], ..Frame::tcp("203.0.113.7:1", "198.51.100.10:80", SYN) };
    cases.push(Case::new("three VLAN tags", &three_tags, Then::Pass));
    cases
}

pub(crate) const ROWS: &[Row] = rows![when_a_packet_is_for_no_service_then_it_passes_unchanged];

#[test]
fn when_packets_are_for_no_service_then_they_pass() {
    rows::run(services(), Setup::default(), ROWS);
}
