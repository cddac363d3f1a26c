//! Tests of fragments: the ports steer the first fragment of a datagram, and the later fragments follow the first
//! fragment.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, Transport, fragment, options},
    rig::{IN_MAC, ROUTER_MAC, Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, nat, services, to_backend_mac},
    rows::{self, Row, rows},
};

/// Returns a datagram of 108 bytes from port 40000, which has three fragments of 40 bytes.
fn datagram(client: &str, to: &str) -> Frame {
    Frame { payload: (0..100).collect(), dont_fragment: false, ..Frame::udp(client, to) }
}

const FAMILIES: [(&str, &str, &str); 2] =
    [("203.0.113.7:40000", "198.51.100.", ""), ("[2001:db8:c::7]:40000", "[2001:db8::", "]")];

/// Returns cases in which every fragment of `whole` becomes the fragment of `out` with the same position.
fn pairs(name: &str, whole: &Frame, out: &Frame, id: u32) -> Vec<Case> {
    let parts = whole.fragments(40, id).into_iter().zip(out.fragments(40, id)).enumerate();
    parts.map(|(index, (part, out))| Case::new(format!("{name}, part {index}"), &part, Then::Tx(out.bytes()))).collect()
}

fn when_the_first_fragment_was_seen_then_later_ones_follow_it(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, prefix, close) in FAMILIES {
        let at = |host: &str, port: u16| format!("{prefix}{host}{close}:{port}");
        let backend = |host: &str, port| {
            if close.is_empty() { format!("10.0.0.{host}:{port}") } else { format!("[fd00::{host}]:{port}") }
        };
        let whole = datagram(client, &at("10", 53));
        cases.extend(pairs(&format!("{client} dsr"), &whole, &dsr(rig, &whole), 1));
        let whole = datagram(client, &at("20", 53));
        let out = nat(rig, &whole, &at("20", 53), &backend("22", 5353));
        cases.extend(pairs(&format!("{client} nat"), &whole, &out, 1));
        let tagged = Frame { vlans: vec![8], ..whole.clone() };
        let out = Frame { vlans: vec![8], ..out };
        cases.extend(pairs(&format!("{client} nat, VLAN"), &tagged, &out, 2));
        let tcp = Frame { payload: (0..100).collect(), ..Frame::tcp(client, &at("10", 80), ACK) };
        cases.extend(pairs(&format!("{client} dsr tcp"), &tcp, &dsr(rig, &tcp), 3));
        // A fragment with the same identification from another client belongs to another datagram.
        let other = client.replace(":40000", ":40001").replace("113.7", "113.8").replace("::7", "::8");
        let later = datagram(&other, &at("10", 53)).fragments(40, 1).remove(1);
        cases.push(match close {
            // The destination address has only one UDP service, so the program sends the fragment to that service
            // anyway.
            "" => Case::new("another client", &later, Then::Tx(dsr_part(rig, &later, &at("10", 53)))),
            _ => Case::new("another client, IPv6", &later, Then::Tx(dsr_part(rig, &later, &at("10", 53)))),
        });
        // The destination address has two TCP services, so the program cannot match a fragment to a service if it
        // missed the first fragment.
        let tcp = Frame { payload: (0..100).collect(), ..Frame::tcp(&other, &at("10", 80), ACK) };
        let parts = tcp.fragments(40, 9);
        for index in [2, 1] {
            cases.push(Case::new(
                format!("{client} part {index} before the first"),
                &parts[index],
                Then::Drop(DropReason::FragmentUnknown),
            ));
        }
        cases.extend(pairs(&format!("{client} dsr tcp, again in order"), &tcp, &dsr(rig, &tcp), 9));
        let last = parts[2].clone();
        cases.push(Case::new(format!("{client} a part twice"), &last, Then::Tx(dsr_part(rig, &last, &at("10", 80)))));
    }
    cases
}

fn dsr_part(rig: &Rig, part: &Frame, service: &str) -> Vec<u8> {
    to_backend_mac(rig, part, service).bytes()
}

fn when_the_first_fragment_was_not_seen_then_the_only_service_takes_the_rest(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, prefix, close) in FAMILIES {
        let at = |host: &str, port: u16| format!("{prefix}{host}{close}:{port}");
        let alone = datagram(client, &at("70", 53));
        let parts = alone.fragments(40, 50);
        for index in [2, 1, 0] {
            let out = dsr_part(rig, &parts[index], &at("70", 53));
            cases.push(Case::new(format!("{client} dsr, part {index}"), &parts[index], Then::Tx(out)));
        }
        let whole = datagram(client, &at("71", 53));
        let backend = if close.is_empty() { "10.0.0.71:5353" } else { "[fd00::71]:5353" };
        let out = nat(rig, &whole, &at("71", 53), backend).fragments(40, 51);
        for (index, part) in whole.fragments(40, 51).iter().enumerate().rev() {
            cases.push(Case::new(format!("{client} nat, part {index}"), part, Then::Tx(out[index].bytes())));
        }
        let tcp = Frame { payload: vec![1; 64], ..Frame::tcp(client, &at("70", 53), ACK) };
        let part = tcp.fragments(40, 52).remove(1);
        cases.push(Case::new(format!("{client} no service of that protocol"), &part, Then::Pass));
        let sctp = Frame { transport: Transport::Raw(132), payload: vec![1; 64], ..tcp };
        let part = sctp.fragments(40, 53).remove(1);
        cases.push(Case::new(format!("{client} SCTP"), &part, Then::Pass));
        // If the program passes the first fragment to the kernel, it passes the later fragments as well.
        let passed = datagram(client, &at("70", 5000));
        for (index, part) in passed.fragments(40, 54).iter().enumerate() {
            cases.push(Case::new(format!("{client} another port, part {index}"), part, Then::Pass));
        }
        let elsewhere = datagram(client, &at("99", 53)).fragments(40, 55);
        for (index, part) in elsewhere.iter().enumerate() {
            cases.push(Case::new(format!("{client} no VIP, part {index}"), part, Then::Pass));
        }
    }
    let every = Frame { payload: vec![1; 64], ..Frame::tcp(FAMILIES[0].0, "198.51.100.31:999", ACK) };
    let out = nat(rig, &every, "198.51.100.31:0", "10.0.0.32:999").fragments(40, 60);
    let parts = every.fragments(40, 60);
    cases.push(Case::new("every port, a later part alone", &parts[1], Then::Tx(out[1].bytes())));
    cases.push(Case::new("every port, the first part", &parts[0], Then::Tx(out[0].bytes())));
    let both = Frame { payload: vec![1; 64], ..Frame::tcp(FAMILIES[0].0, "198.51.100.30:999", ACK) };
    let parts = both.fragments(40, 61);
    cases.push(Case::new(
        "every port and one port: a later part alone",
        &parts[1],
        Then::Drop(DropReason::FragmentUnknown),
    ));
    for (index, part) in parts.iter().enumerate() {
        let out = dsr_part(rig, part, "198.51.100.30:0");
        cases.push(Case::new(format!("every port and one port, part {index}"), part, Then::Tx(out)));
    }
    let hidden = Frame {
        transport: Transport::Raw(60),
        payload: vec![0; 32],
        extensions: vec![fragment(5, true, 70)],
        ..Frame::udp(FAMILIES[1].0, "[2001:db8::70]:53")
    };
    cases.push(Case::new(
        "a later part whose protocol is behind options",
        &hidden,
        Then::Drop(DropReason::FragmentUnknown),
    ));
    let hidden = Frame { destination: "[2001:db8::99]:53".parse().expect("an address"), ..hidden };
    cases.push(Case::new("the same for another address", &hidden, Then::Pass));
    let ping = Frame { payload: vec![7; 64], ..Frame::icmp(FAMILIES[0].0, "198.51.100.10:0", 8, 0, [0; 4]) };
    for (index, part) in ping.fragments(40, 71).iter().enumerate() {
        cases.push(Case::new(format!("an echo request in parts, part {index}"), part, Then::Pass));
    }
    cases
}

fn when_nat_backends_reply_in_fragments_then_all_are_translated(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    let restored = |frame: &Frame, vip: &str| Frame {
        destination_mac: ROUTER_MAC,
        source_mac: IN_MAC,
        source: vip.parse().expect("an address"),
        ttl: frame.ttl - 1,
        ..frame.clone()
    };
    for (client, alone, vip_alone, shared, vip_shared) in [
        ("203.0.113.7:40000", "10.0.0.71:5353", "198.51.100.71:53", "10.0.0.22:5353", "198.51.100.20:53"),
        ("[2001:db8:c::7]:40000", "[fd00::71]:5353", "[2001:db8::71]:53", "[fd00::22]:5353", "[2001:db8::20]:53"),
    ] {
        let whole = datagram(shared, client);
        cases.extend(pairs(shared, &whole, &restored(&whole, vip_shared), 80));
        let whole = datagram(alone, client);
        let out = restored(&whole, vip_alone).fragments(40, 81);
        for (index, part) in whole.fragments(40, 81).iter().enumerate().rev() {
            cases.push(Case::new(format!("{alone} reordered, part {index}"), part, Then::Tx(out[index].bytes())));
        }
        // The backend sends its own traffic from another port.
        let own = datagram(&alone.replace("5353", "9999"), client);
        for (index, part) in own.fragments(40, 82).iter().enumerate() {
            cases.push(Case::new(format!("{alone} its own, part {index}"), part, Then::Pass));
        }
        let tcp = Frame { payload: vec![3; 64], ..Frame::tcp(alone, client, ACK) };
        let part = tcp.fragments(40, 83).remove(1);
        cases.push(Case::new(format!("{alone} another protocol"), &part, Then::Pass));
        let used_up = Frame { ttl: 1, ..whole.fragments(40, 84).remove(2) };
        cases.push(Case::new(format!("{alone} TTL used up"), &used_up, Then::Drop(DropReason::TtlExceeded)));
    }
    // Destination options are the first header inside the fragments, so a later fragment names this header instead
    // of UDP.
    let first = Frame {
        extensions: vec![fragment(0, true, 85), options(DESTINATION_OPTIONS, 1)],
        ..Frame::udp("[fd00::22]:5353", "[2001:db8:c::7]:40000")
    };
    let later = Frame {
        extensions: vec![fragment(4, false, 85)],
        transport: Transport::Raw(DESTINATION_OPTIONS),
        ..first.clone()
    };
    for (name, part) in [("first", first), ("later", later)] {
        let out = restored(&part, "[2001:db8::20]:53");
        cases.push(Case::new(format!("{name} part with destination options"), &part, Then::Tx(out.bytes())));
    }
    cases
}

fn when_fragments_are_broken_then_they_are_dropped(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, prefix, close) in FAMILIES {
        let vip = format!("{prefix}20{close}:80");
        let tiny = Frame { payload: vec![1; 64], ..Frame::tcp(client, &vip, ACK) }.fragments(8, 90).remove(0);
        cases.push(Case::new(format!("{client} eight bytes of TCP"), &tiny, Then::Drop(DropReason::Malformed)));
        let vip = format!("{prefix}20{close}:53");
        let parts = datagram(client, &vip).fragments(40, 91);
        let used_up = Frame { ttl: 1, ..parts[1].clone() };
        cases.push(Case::new(format!("{client} a later part's TTL"), &used_up, Then::Drop(DropReason::TtlExceeded)));
        let bytes = parts[1].bytes();
        cases.push(Case {
            name: format!("{client} a later part that is cut"),
            frame: bytes[..bytes.len() - 1].to_vec(),
            then: Then::Drop(DropReason::Malformed),
        });
    }
    cases
}

pub(crate) const ROWS: &[Row] = rows![
    when_the_first_fragment_was_seen_then_later_ones_follow_it,
    when_the_first_fragment_was_not_seen_then_the_only_service_takes_the_rest,
    when_nat_backends_reply_in_fragments_then_all_are_translated,
    when_fragments_are_broken_then_they_are_dropped
];

#[test]
fn when_datagrams_arrive_in_fragments_then_all_fragments_go_the_same_way() {
    rows::run(services(), Setup::default(), ROWS);
}
