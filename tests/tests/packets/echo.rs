//! Tests of echo requests: the program answers echo requests to VIPs, and passes all other echo requests.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{DESTINATION_OPTIONS, Frame, Transport, options},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, services},
    rows::{self, Row, rows},
};

const FAMILIES: [(&str, &str, &str, u8, u8); 2] = [
    ("203.0.113.7:0", "198.51.100.10:0", "198.51.100.99:0", 8, 0),
    ("[2001:db8:c::7]:0", "[2001:db8::10]:0", "[2001:db8::99]:0", 128, 129),
];

fn reply(request: &Frame, kind: u8) -> Frame {
    let Transport::Icmp(_, _, rest) = request.transport else { panic!("no echo request: {request:?}") };
    Frame {
        destination_mac: request.source_mac,
        source_mac: request.destination_mac,
        source: request.destination,
        destination: request.source,
        ttl: 64,
        transport: Transport::Icmp(kind, 0, rest),
        ..request.clone()
    }
}

/// Returns the bytes of the reply to an echo request. The program writes an ICMP checksum of 0 as 0xffff, which is
/// always correct.
pub(crate) fn reply_bytes(request: &Frame, kind: u8) -> Vec<u8> {
    let mut bytes = reply(request, kind).bytes();
    let check = 14 + 4 * request.vlans.len() + 20 + 2;
    if kind == 0 && bytes[check..check + 2] == [0, 0] {
        bytes[check..check + 2].fill(0xff);
    }
    bytes
}

fn when_an_echo_request_is_for_a_vip_then_it_is_answered(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip, elsewhere, request, answer) in FAMILIES {
        let ping = Frame::icmp(client, vip, request, 0, [0x12, 0x34, 0, 1]);
        let answered =
            |name: &str, frame: &Frame| Case::new(format!("{vip} {name}"), frame, Then::Tx(reply_bytes(frame, answer)));
        cases.push(answered("56 bytes", &Frame { payload: (0..56).collect(), ..ping.clone() }));
        cases.push(answered("no payload", &Frame { payload: Vec::new(), ..ping.clone() }));
        cases.push(answered("odd length", &Frame { payload: vec![9; 33], ..ping.clone() }));
        cases.push(answered("1400 bytes", &Frame { payload: vec![3; 1400], ..ping.clone() }));
        for ttl in [1, 64, 255] {
            cases.push(answered(&format!("TTL {ttl}"), &Frame { ttl, ..ping.clone() }));
        }
        for vlans in [vec![7], vec![7, 8]] {
            cases.push(answered(&format!("VLAN {vlans:?}"), &Frame { vlans, ..ping.clone() }));
        }
        // The sequence numbers cover every possible carry in the checksum. An error in the change from type 8 to
        // type 0 once broke one in ten thousand replies.
        for sequence in (0..=u16::MAX).step_by(1021).chain([0xfff6, 0xfff7, 0xfff8, 0xfffe, 0xffff]) {
            let [high, low] = sequence.to_be_bytes();
            let ping = Frame { payload: vec![0; 8], ..Frame::icmp(client, vip, request, 0, [0, 0, high, low]) };
            cases.push(answered(&format!("sequence {sequence}"), &ping));
        }
        cases.push(Case::new(
            format!("{elsewhere}, no VIP"),
            &Frame::icmp(client, elsewhere, request, 0, [0; 4]),
            Then::Pass,
        ));
        cases.push(Case::new(format!("{vip} an echo reply"), &Frame::icmp(client, vip, answer, 0, [0; 4]), Then::Pass));
        let group = Frame { destination_mac: [0xff; 6], ..ping.clone() };
        cases.push(Case::new(format!("{vip} to every station"), &group, Then::Pass));
        let whole = ping.bytes();
        let short = Frame {
            transport: Transport::Raw(if request == 8 { 1 } else { 58 }),
            payload: vec![request, 0, 0, 0],
            ..ping.clone()
        };
        cases.push(Case::new(format!("{vip} half a header"), &short, Then::Drop(DropReason::Malformed)));
        cases.push(Case {
            name: format!("{vip} cut short"),
            frame: whole[..whole.len() - 1].to_vec(),
            then: Then::Drop(DropReason::Malformed),
        });
    }
    for source in ["0.0.0.0:0", "127.0.0.1:0", "224.0.0.1:0", "255.255.255.255:0"] {
        let ping = Frame::icmp(source, FAMILIES[0].1, 8, 0, [0; 4]);
        cases.push(Case::new(format!("from {source}, which is no host"), &ping, Then::Pass));
    }
    for source in ["[::]:0", "[::1]:0", "[ff02::1]:0"] {
        let ping = Frame::icmp(source, FAMILIES[1].1, 128, 0, [0; 4]);
        cases.push(Case::new(format!("from {source}, which is no host"), &ping, Then::Pass));
    }
    let ping = Frame { options: vec![1; 8], ..Frame::icmp(FAMILIES[0].0, FAMILIES[0].1, 8, 0, [1; 4]) };
    cases.push(Case::new("IPv4 options", &ping, Then::Tx(reply(&ping, 0).bytes())));
    let extensions = vec![options(DESTINATION_OPTIONS, 1)];
    let ping = Frame { extensions, ..Frame::icmp(FAMILIES[1].0, FAMILIES[1].1, 128, 0, [1; 4]) };
    cases.push(Case::new("IPv6 destination options", &ping, Then::Tx(reply(&ping, 129).bytes())));
    for (name, kind) in [("timestamp", 13), ("redirect", 5), ("address mask", 17)] {
        let frame = Frame::icmp(FAMILIES[0].0, FAMILIES[0].1, kind, 0, [0; 4]);
        cases.push(Case::new(format!("ICMP {name}"), &frame, Then::Pass));
    }
    for (name, kind) in [("neighbour solicitation", 135), ("router solicitation", 133), ("redirect", 137)] {
        let frame = Frame::icmp(FAMILIES[1].0, FAMILIES[1].1, kind, 0, [0; 4]);
        cases.push(Case::new(format!("ICMPv6 {name}"), &frame, Then::Pass));
    }
    cases
}

fn when_echo_requests_are_answered_then_they_are_counted(rig: &mut Rig) {
    for (client, vip, elsewhere, request, _) in FAMILIES {
        for to in [vip, elsewhere, vip] {
            rig.run(&Frame::icmp(client, to, request, 0, [0; 4]).bytes()).expect("a run");
        }
    }
    assert_eq!(rig.replies().expect("counters").echo, 4);
}

pub(crate) const ROWS: &[Row] =
    rows![when_an_echo_request_is_for_a_vip_then_it_is_answered, when_echo_requests_are_answered_then_they_are_counted];

#[test]
fn when_echo_requests_arrive_then_they_are_answered_and_counted() {
    rows::run(services(), Setup::default(), ROWS);
}
