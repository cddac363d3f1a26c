//! Tests of IPv6 extension headers: the program skips extension headers to find the ports, and leaves the headers
//! unchanged.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{
        ACK, DESTINATION_OPTIONS, Extension, FRAGMENT, Frame, HOP_BY_HOP, SYN, Transport, fragment, options, routing,
    },
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, nat, services},
    rows::{self, Row, rows},
};

const CLIENT: &str = "[2001:db8:c::7]:40000";

/// Returns header chains behind which the program finds the ports.
fn chains() -> Vec<(&'static str, Vec<Extension>)> {
    let padding = |units| options(DESTINATION_OPTIONS, units);
    vec![
        ("hop-by-hop options", vec![options(HOP_BY_HOP, 1)]),
        ("24 bytes of hop-by-hop options", vec![options(HOP_BY_HOP, 3)]),
        ("destination options", vec![padding(1)]),
        ("256 bytes of destination options", vec![padding(32)]),
        ("1024 bytes of destination options", vec![padding(128)]),
        ("a routing header at its end", vec![routing(0)]),
        ("an atomic fragment", vec![fragment(0, false, 7)]),
        ("all four", vec![options(HOP_BY_HOP, 1), padding(2), routing(0), fragment(0, false, 7), padding(1)]),
        ("eight headers", (0..8).map(|_| padding(1)).collect()),
    ]
}

fn when_extension_headers_lead_to_the_ports_then_the_packet_is_forwarded(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, extensions) in chains() {
        let frame = |to: &str| Frame { extensions: extensions.clone(), ..Frame::tcp(CLIENT, to, ACK) };
        let to_dsr = frame("[2001:db8::10]:80");
        cases.push(Case::new(format!("dsr, {name}"), &to_dsr, Then::Tx(dsr(rig, &to_dsr).bytes())));
        let to_nat = frame("[2001:db8::20]:80");
        let out = nat(rig, &to_nat, "[2001:db8::20]:80", "[fd00::21]:8080");
        cases.push(Case::new(format!("nat, {name}"), &to_nat, Then::Tx(out.bytes())));
        let udp = Frame { extensions: extensions.clone(), ..Frame::udp(CLIENT, "[2001:db8::20]:53") };
        let out = nat(rig, &udp, "[2001:db8::20]:53", "[fd00::22]:5353");
        cases.push(Case::new(format!("nat udp, {name}"), &udp, Then::Tx(out.bytes())));
        let tagged = Frame { vlans: vec![4, 5], ..to_nat };
        let out = nat(rig, &tagged, "[2001:db8::20]:80", "[fd00::21]:8080");
        cases.push(Case::new(format!("nat, VLAN tags, {name}"), &tagged, Then::Tx(out.bytes())));
        let port = frame("[2001:db8::10]:8080");
        cases.push(Case::new(format!("another port, {name}"), &port, Then::Pass));
        let elsewhere = frame("[2001:db8::99]:80");
        cases.push(Case::new(format!("another address, {name}"), &elsewhere, Then::Pass));
    }
    let reply =
        Frame { extensions: vec![options(DESTINATION_OPTIONS, 2)], ..Frame::tcp("[fd00::21]:8080", CLIENT, ACK) };
    let out = Frame {
        destination_mac: balancer_testkit::rig::ROUTER_MAC,
        source_mac: balancer_testkit::rig::IN_MAC,
        source: "[2001:db8::20]:80".parse().expect("an address"),
        ttl: reply.ttl - 1,
        ..reply.clone()
    };
    cases.push(Case::new("a nat reply with destination options", &reply, Then::Tx(out.bytes())));
    cases
}

fn when_extension_headers_lead_nowhere_then_the_packet_is_not_forwarded(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for host in ["10", "20"] {
        let vip = format!("[2001:db8::{host}]:80");
        let with = |extensions: Vec<Extension>| Frame { extensions, ..Frame::tcp(CLIENT, &vip, SYN) };
        let padding = |units| options(DESTINATION_OPTIONS, units);
        let dropped = || Then::Drop(DropReason::Malformed);
        cases.push(Case::new(format!("{host}: nine headers"), &with((0..9).map(|_| padding(1)).collect()), dropped()));
        cases.push(Case::new(format!("{host}: two kilobytes of headers"), &with(vec![padding(251)]), dropped()));
        let mut beyond = with(vec![padding(1)]).bytes();
        beyond[14 + 40 + 1] = 200;
        cases.push(Case { name: format!("{host}: a header beyond the packet"), frame: beyond, then: dropped() });
        let cut = Frame { transport: Transport::Raw(DESTINATION_OPTIONS), payload: vec![6], ..with(Vec::new()) };
        cases.push(Case::new(format!("{host}: half a header"), &cut, dropped()));
        let none = Frame { transport: Transport::Raw(FRAGMENT), payload: Vec::new(), ..with(Vec::new()) };
        cases.push(Case::new(format!("{host}: a fragment header that is not there"), &none, dropped()));
        let short = Frame { payload: vec![0; 7], transport: Transport::Raw(6), ..with(vec![padding(1)]) };
        cases.push(Case::new(format!("{host}: half a TCP header behind options"), &short, dropped()));
        cases.push(Case::new(
            format!("{host}: segments left, so only a waypoint"),
            &with(vec![routing(1)]),
            Then::Pass,
        ));
        let mut behind = with(vec![routing(1)]).bytes();
        behind[14 + 4..14 + 6].copy_from_slice(&[0, 4]);
        cases.push(Case {
            name: format!("{host}: segments left in a header behind the packet's end"),
            frame: behind,
            then: dropped(),
        });
        let late = with(vec![padding(1), options(HOP_BY_HOP, 1)]);
        cases.push(Case::new(format!("{host}: hop-by-hop options that are not first"), &late, Then::Pass));
        for (name, protocol) in [("AH", 51), ("ESP", 50), ("no next header", 59), ("mobility", 135), ("SCTP", 132)] {
            let frame = Frame { transport: Transport::Raw(protocol), ..with(vec![padding(1)]) };
            cases.push(Case::new(format!("{host}: {name} behind options"), &frame, Then::Pass));
        }
    }
    let nine = Frame {
        extensions: (0..9).map(|_| options(DESTINATION_OPTIONS, 1)).collect(),
        ..Frame::tcp(CLIENT, "[2001:db8::99]:80", SYN)
    };
    cases.push(Case::new("nine headers for another address", &nine, Then::Pass));
    cases
}

pub(crate) const ROWS: &[Row] = rows![
    when_extension_headers_lead_to_the_ports_then_the_packet_is_forwarded,
    when_extension_headers_lead_nowhere_then_the_packet_is_not_forwarded
];

#[test]
fn when_packets_have_extension_headers_then_their_ports_are_found() {
    rows::run(services(), Setup::default(), ROWS);
}
