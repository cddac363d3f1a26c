//! Tests of packets for a service from source addresses that no client can have.

use std::net::{IpAddr, SocketAddr};

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, options},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, services},
    rows::{self, Row, rows},
};

const MARTIAN: Then = Then::Drop(DropReason::Martian);

/// For most sources, one word of bits shows the program that the source is not a VIP.
const FAMILIES: [(&str, &str, &[&str], &[&str]); 2] = [
    (
        "198.51.100.10:80",
        "198.51.100.10:53",
        &[
            "127.0.0.1",
            "127.255.255.254",
            "224.0.0.1",
            "239.255.255.255",
            "0.0.0.0",
            "255.255.255.255",
            "198.51.100.10",
        ],
        &["0.0.0.1", "10.0.0.9", "126.0.0.1", "128.0.0.1", "223.255.255.255", "240.0.0.1", "198.51.100.11"],
    ),
    (
        "[2001:db8::10]:80",
        "[2001:db8::10]:53",
        &["[::1]", "[::]", "[ff02::1]", "[ff0e::1]", "[2001:db8::10]"],
        &["[::2]", "[::1:0:0]", "[2001:db8::11]", "[fe80::1]", "[fd00::9]"],
    ),
];

fn when_a_source_cannot_be_a_client_then_the_packet_is_dropped(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tcp, udp, nobody, somebody) in FAMILIES {
        for source in nobody.iter().map(|address| format!("{address}:40000")) {
            for flags in [SYN, ACK] {
                let frame = Frame::tcp(&source, tcp, flags);
                cases.push(Case::new(format!("{source}, flags {flags}"), &frame, MARTIAN));
            }
            cases.push(Case::new(format!("{source}, UDP"), &Frame::udp(&source, udp), MARTIAN));
            let tagged = Frame { vlans: vec![5], ..Frame::tcp(&source, tcp, ACK) };
            cases.push(Case::new(format!("{source} in a VLAN"), &tagged, MARTIAN));
            let mut dressed = Frame::tcp(&source, tcp, ACK);
            if dressed.source.is_ipv4() {
                dressed.options = vec![1; 4];
            } else {
                dressed.extensions = vec![options(DESTINATION_OPTIONS, 1)];
            }
            cases.push(Case::new(format!("{source} with options"), &dressed, MARTIAN));
            let first = Frame { payload: vec![0; 64], ..Frame::udp(&source, udp) }.fragments(32, 77);
            cases.push(Case::new(format!("{source}, a first fragment"), &first[0], MARTIAN));
            let elsewhere = Frame::tcp(&source, &tcp.replace(":80", ":8888"), SYN);
            cases.push(Case::new(format!("{source} for no service"), &elsewhere, Then::Pass));
        }
        for source in somebody.iter().map(|address| format!("{address}:40000")) {
            let frame = Frame::tcp(&source, tcp, SYN);
            cases.push(Case::new(source, &frame, Then::Tx(dsr(rig, &frame).bytes())));
        }
    }
    cases
}

fn when_a_source_is_another_vip_then_the_packet_is_dropped(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (source, tcp, udp) in [
        ("198.51.100.20:80", "198.51.100.10:80", "198.51.100.10:53"),
        ("198.51.100.20:9", "198.51.100.10:80", "198.51.100.10:53"),
        ("[2001:db8::20]:80", "[2001:db8::10]:80", "[2001:db8::10]:53"),
    ] {
        cases.push(Case::new(format!("{source} to {tcp}"), &Frame::tcp(source, tcp, SYN), MARTIAN));
        cases.push(Case::new(format!("{source} to {udp}"), &Frame::udp(source, udp), MARTIAN));
    }
    cases
}

/// The controller updates this word of bits when services change. If the program missed the first fragment, a later
/// fragment goes to the only service of the fragment's protocol, unless the source address is impossible.
fn when_a_service_comes_and_goes_then_its_address_is_a_vip_meanwhile(rig: &mut Rig) {
    const DROP: u32 = 1;
    const TX: u32 = 3;
    for (vip, other, service) in
        [("198.51.100.20", "198.51.100.99", "198.51.100.10:80"), ("2001:db8::20", "2001:db8::99", "[2001:db8::10]:80")]
    {
        let [vip, other]: [IpAddr; 2] = [vip, other].map(|address| address.parse().expect("an address"));
        let action = |rig: &Rig, source: IpAddr| {
            let frame = Frame::tcp(&SocketAddr::new(source, 40000).to_string(), service, SYN).bytes();
            rig.run(&frame).expect("a run").action
        };
        for _ in 0..2 {
            assert_eq!([action(rig, vip), action(rig, other)], [DROP, TX], "{vip}, then {other}");
            rig.move_vip(vip, other).expect("services");
            assert_eq!([action(rig, vip), action(rig, other)], [TX, DROP], "{vip}, then {other}");
            rig.move_vip(other, vip).expect("services");
        }
    }
}

/// A later fragment whose first fragment was missed goes to the only service of its protocol, unless its source is
/// impossible.
fn when_a_later_fragments_source_cannot_be_a_client_then_it_is_dropped(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (_, udp, nobody, _) in FAMILIES {
        for source in nobody.iter().map(|address| format!("{address}:40000")) {
            let parts = Frame { payload: vec![0; 64], ..Frame::udp(&source, udp) }.fragments(32, 99);
            cases.push(Case::new(format!("{source}, a later fragment"), &parts[1], MARTIAN));
        }
    }
    cases
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_source_cannot_be_a_client_then_the_packet_is_dropped,
    when_a_source_is_another_vip_then_the_packet_is_dropped,
    when_a_service_comes_and_goes_then_its_address_is_a_vip_meanwhile,
    when_a_later_fragments_source_cannot_be_a_client_then_it_is_dropped
];

#[test]
fn when_sources_cannot_be_clients_then_packets_are_dropped() {
    rows::run(services(), Setup::default(), ROWS);
}
