//! Tests of the kernel program on backends, which strips tunnel headers only from packets for local VIPs.

use std::net::IpAddr;

use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, Transport, options},
    rig::Decap,
};

/// The expected fate of a frame.
#[expect(clippy::large_enum_variant, reason = "a few dozen cases")]
enum Then {
    Stripped(Frame),
    Refused,
    Malformed,
    Passed,
}

struct Case {
    name: String,
    frame: Vec<u8>,
    then: Then,
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn run(cases: &[Case]) {
    run_from(&[], cases);
}

/// Runs `cases` on a program that allows tunnels only from the prefixes `from`. If `from` is empty, the program allows
/// all tunnels.
fn run_from(from: &[&str], cases: &[Case]) {
    let vips = ["198.51.100.10", "2001:db8::10"].map(address);
    let own = OUTER.map(|(_, own)| address(own));
    let from: Vec<_> = from.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
    let decap = Decap::new(&vips, &own, &from).expect("the program");
    let mut failures = Vec::new();
    for case in cases {
        let before = decap.counters().expect("counters");
        let ran = decap.run(&case.frame).expect("a run");
        let after = decap.counters().expect("counters");
        let counted: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let (action, frame, expected) = match &case.then {
            Then::Stripped(inner) => (XDP_PASS, Some(inner.bytes()), [1, 0, 0, 0]),
            Then::Refused => (XDP_DROP, None, [0, 1, 0, 0]),
            Then::Malformed => (XDP_DROP, None, [0, 0, 1, 0]),
            Then::Passed => (XDP_PASS, Some(case.frame.clone()), [0, 0, 0, 1]),
        };
        if ran.action != action || counted != expected {
            failures.push(format!("{}: action {}, counted {counted:?}", case.name, ran.action));
        } else if let Some(frame) = frame
            && frame != ran.frame
        {
            failures.push(format!("{}:\n  {:02x?}\ninstead of\n  {frame:02x?}", case.name, ran.frame));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

const OUTER: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.50"), ("fd00::1", "fd00::50")];
const CLIENTS: [(&str, &str, &str); 2] = [
    ("203.0.113.7:40000", "198.51.100.10:80", "198.51.100.99:80"),
    ("[2001:db8:c::7]:40000", "[2001:db8::10]:80", "[2001:db8::99]:80"),
];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

type Wrap = Box<dyn Fn(&Frame) -> Frame>;

/// Returns, for every pair of mode and family, the name of the pair, an inner packet to a VIP, and the encapsulation.
fn pairs() -> Vec<(String, Frame, Wrap)> {
    let mut pairs: Vec<(String, Frame, Wrap)> = Vec::new();
    for (source, destination) in OUTER {
        let (source, destination) = (address(source), address(destination));
        for (client, vip, _) in CLIENTS {
            let inner = Frame::tcp(client, vip, ACK);
            let name = format!("{client} in {source}");
            pairs.push((format!("ipip {name}"), inner.clone(), Box::new(move |f| f.in_ip(source, destination, 0))));
            pairs.push((format!("gue {name}"), inner, Box::new(move |f| f.in_gue(source, destination, 0xc123))));
        }
    }
    pairs
}

#[test]
fn when_a_tunnel_packet_is_for_a_local_vip_then_its_header_is_stripped() {
    let mut cases = Vec::new();
    for (name, inner, wrap) in pairs() {
        let mut stripped = |what: &str, inner: Frame, outer: Frame| {
            cases.push(Case { name: format!("{name} {what}"), frame: outer.bytes(), then: Then::Stripped(inner) });
        };
        stripped("tcp", inner.clone(), wrap(&inner));
        for vlans in [vec![1], vec![1, 2]] {
            let inner = Frame { vlans, ..inner.clone() };
            stripped(&format!("VLAN {:?}", inner.vlans), inner.clone(), wrap(&inner));
        }
        let long = Frame { payload: vec![4; 1300], ..inner.clone() };
        stripped("1300 bytes", long.clone(), wrap(&long));
        let last_hop = Frame { ttl: 1, ..inner.clone() };
        stripped("TTL 1", last_hop.clone(), wrap(&last_hop));
        // The rows of RFC 6040, figure 4, as ECN fields: outer header, inner header, result.
        for (outer, before, after) in [
            (0, 0, 0),
            (0, 1, 1),
            (0, 2, 2),
            (0, 3, 3),
            (1, 0, 0),
            (1, 1, 1),
            (1, 2, 1),
            (1, 3, 3),
            (2, 0, 0),
            (2, 1, 1),
            (2, 2, 2),
            (2, 3, 3),
            (3, 1, 3),
            (3, 2, 3),
            (3, 3, 3),
        ] {
            let packet = Frame { tos: 0xb8 | before, ..inner.clone() };
            let wrapped = Frame { tos: 0x20 | outer, ..wrap(&packet) };
            stripped(&format!("ECN {outer} over {before}"), Frame { tos: 0xb8 | after, ..inner.clone() }, wrapped);
        }
        let outer = wrap(&inner);
        if outer.source.is_ipv4() {
            stripped("outer IPv4 options", inner.clone(), Frame { options: vec![1; 8], ..outer });
        } else {
            let extensions = vec![options(DESTINATION_OPTIONS, 1)];
            stripped("outer extension headers", inner.clone(), Frame { extensions, ..outer });
        }
    }
    run(&cases);
}

#[test]
fn when_a_tunnel_packet_is_for_another_address_then_it_is_refused() {
    let mut cases = Vec::new();
    for (name, inner, wrap) in pairs() {
        let [v4, v6] = CLIENTS;
        let elsewhere = if inner.source.is_ipv4() { v4.2 } else { v6.2 };
        let other = Frame::tcp(&inner.source.to_string(), elsewhere, ACK);
        cases.push(Case { name: format!("{name}, no local VIP"), frame: wrap(&other).bytes(), then: Then::Refused });
        let congested = Frame { tos: 3, ..wrap(&inner) };
        cases.push(Case { name: format!("{name}, CE over Not-ECT"), frame: congested.bytes(), then: Then::Refused });
    }
    run(&cases);
}

#[test]
fn when_a_tunnel_ends_at_another_machine_then_its_packets_pass() {
    let mut cases = Vec::new();
    for (name, inner, wrap) in pairs() {
        let mut outer = wrap(&inner);
        // The tunnel ends at the router of another tunnel or at the VIP itself; neither address is an end of the
        // machine's tunnel.
        for end in if outer.source.is_ipv4() { ["10.0.0.51", "198.51.100.10"] } else { ["fd00::51", "2001:db8::10"] } {
            outer.destination.set_ip(address(end));
            cases.push(Case { name: format!("{name} to {end}"), frame: outer.bytes(), then: Then::Passed });
        }
        let mut broken = outer.bytes();
        broken.truncate(broken.len() - 1);
        cases.push(Case { name: format!("{name}, cut short, to another"), frame: broken, then: Then::Passed });
    }
    run(&cases);
}

#[test]
fn when_a_tunnel_comes_from_an_allowed_prefix_then_its_header_is_stripped() {
    let mut cases = Vec::new();
    for (name, inner, wrap) in pairs() {
        let outer = wrap(&inner);
        cases.push(Case { name: name.clone(), frame: outer.bytes(), then: Then::Stripped(inner.clone()) });
        let v4 = outer.source.is_ipv4();
        for (source, may) in if v4 {
            [("10.0.0.7", true), ("10.0.0.8", false), ("192.0.2.1", true), ("192.0.2.2", false)]
        } else {
            [("fd00::f", true), ("fd00::10", false), ("2001:db8:9::1", true), ("2001:db8:9::2", false)]
        } {
            let mut outer = outer.clone();
            outer.source.set_ip(address(source));
            let then = if may { Then::Stripped(inner.clone()) } else { Then::Refused };
            cases.push(Case { name: format!("{name}, from {source}"), frame: outer.bytes(), then });
        }
    }
    run_from(&["10.0.0.0/29", "192.0.2.1/32", "fd00::/124", "2001:db8:9::1/128"], &cases);
}

/// If no prefix of a family is allowed, the program refuses all tunnels of that family.
#[test]
fn when_only_one_family_has_prefixes_then_the_other_is_unaffected() {
    let mut cases = Vec::new();
    for (name, inner, wrap) in pairs() {
        let outer = wrap(&inner);
        let then = if outer.source.is_ipv4() { Then::Stripped(inner) } else { Then::Refused };
        cases.push(Case { name, frame: outer.bytes(), then });
    }
    run_from(&["0.0.0.0/0"], &cases);
}

#[test]
fn when_a_tunnel_packet_is_malformed_then_it_is_refused() {
    let mut cases = Vec::new();
    for (name, inner, wrap) in pairs() {
        let whole = wrap(&inner);
        let mut malformed = |what: &str, frame: Vec<u8>| {
            cases.push(Case { name: format!("{name} {what}"), frame, then: Then::Malformed });
        };
        let gue = name.starts_with("gue");
        for length in [0, 1, 19, if inner.source.is_ipv4() { 19 } else { 39 }] {
            let payload = whole.payload[..length].to_vec();
            malformed(&format!("{length} bytes inside"), Frame { payload, ..whole.clone() }.bytes());
        }
        let payload = whole.payload[..whole.payload.len() - 1].to_vec();
        malformed("an inner packet longer than the outer", Frame { payload, ..whole.clone() }.bytes());
        let mut payload = whole.payload.clone();
        payload[0] = payload[0] & 0x0f | 0x90;
        malformed("inner version 9", Frame { payload, ..whole.clone() }.bytes());
        let bytes = whole.bytes();
        malformed("cut short", bytes[..bytes.len() - 1].to_vec());
        if inner.source.is_ipv4() {
            let mut payload = whole.payload.clone();
            payload[0] = 0x44;
            malformed("inner IHL 4", Frame { payload, ..whole.clone() }.bytes());
        }
        if gue {
            let mut payload = whole.payload.clone();
            payload[0] = 0x00;
            malformed("GUE variant 0", Frame { payload, ..whole.clone() }.bytes());
            let header = if whole.source.is_ipv4() { 20 } else { 40 };
            let mut bytes = whole.bytes();
            bytes[14 + header + 5] ^= 1;
            malformed("a UDP length of its own", bytes);
        }
    }
    run(&cases);
}

#[test]
fn when_a_packet_is_no_tunnel_packet_then_it_passes() {
    let mut cases = Vec::new();
    let mut passed = |name: &str, frame: Vec<u8>| {
        cases.push(Case { name: name.to_owned(), frame, then: Then::Passed });
    };
    for (client, vip, other) in CLIENTS {
        passed("tcp to the VIP", Frame::tcp(client, vip, ACK).bytes());
        passed("tcp elsewhere", Frame::tcp(client, other, ACK).bytes());
        passed("udp to another port", Frame::udp(client, vip).bytes());
        passed("tcp to port 6080", Frame::tcp(client, &vip.replace(":80", ":6080"), ACK).bytes());
        passed("GRE", Frame { transport: Transport::Raw(47), ..Frame::tcp(client, vip, ACK) }.bytes());
    }
    for (name, inner, wrap) in pairs() {
        let outer = wrap(&inner);
        for (index, part) in outer.fragments(32, 7).iter().enumerate() {
            passed(&format!("{name} in fragments, part {index}"), part.bytes());
        }
    }
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    passed("ARP", arp);
    run(&cases);
}
