//! Tests of malformed frames. The program drops and counts malformed frames for a VIP, and passes malformed frames
//! whose destination is unknown or not a VIP.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, services},
    rows::{self, Row, rows},
};

const FAMILIES: [(&str, &str, usize); 2] =
    [("203.0.113.7:40000", "198.51.100.", 20), ("[2001:db8:c::7]:40000", "[2001:db8::", 40)];

fn vip(prefix: &str, host: &str, port: u16) -> String {
    if prefix.starts_with('[') { format!("{prefix}{host}]:{port}") } else { format!("{prefix}{host}:{port}") }
}

fn when_a_frame_is_cut_anywhere_then_it_is_passed_or_dropped(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, prefix, ip_header) in FAMILIES {
        for host in ["10", "20"] {
            for (what, frame) in [
                ("tcp", Frame::tcp(client, &vip(prefix, host, 80), SYN)),
                ("udp", Frame::udp(client, &vip(prefix, host, 53))),
            ] {
                let whole = frame.bytes();
                for length in 14..whole.len() {
                    // If a frame ends within the IP header, the destination is unknown. A frame that contains the
                    // whole IP header contradicts the length in that header.
                    let then = if length < 14 + ip_header { Then::Pass } else { Then::Drop(DropReason::Malformed) };
                    let name = format!("{prefix}{host} {what} cut to {length} of {} bytes", whole.len());
                    cases.push(Case { name, frame: whole[..length].to_vec(), then });
                }
            }
        }
        let elsewhere = Frame::tcp(client, &vip(prefix, "99", 80), SYN).bytes();
        for length in 14..elsewhere.len() {
            let name = format!("{prefix}99, no VIP, cut to {length} bytes");
            cases.push(Case { name, frame: elsewhere[..length].to_vec(), then: Then::Pass });
        }
    }
    cases
}

/// Returns the frame's bytes with some bytes replaced, and with an unchanged IPv4 header checksum.
fn patched(frame: &Frame, patches: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = frame.bytes();
    for &(at, value) in patches {
        bytes[at] = value;
    }
    bytes
}

fn when_headers_contradict_themselves_then_the_frame_is_dropped(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    let drop = || Then::Drop(DropReason::Malformed);
    for host in ["10", "20"] {
        let v4 = Frame::tcp(FAMILIES[0].0, &vip(FAMILIES[0].1, host, 80), ACK);
        for ihl in 0..5u8 {
            let name = format!("{host}: IHL {ihl}");
            cases.push(Case { name, frame: patched(&v4, &[(14, 0x40 | ihl)]), then: drop() });
        }
        cases.push(Case {
            name: format!("{host}: IHL beyond the packet"),
            frame: patched(&v4, &[(14, 0x4f)]),
            then: drop(),
        });
        cases.push(Case { name: format!("{host}: version 5"), frame: patched(&v4, &[(14, 0x55)]), then: drop() });
        for (name, length) in [
            ("0", 0u16),
            ("below the header", 19),
            ("header alone", 20),
            ("half a TCP header", 32),
            ("beyond the frame", 57),
            ("65535", 65535),
        ] {
            let [high, low] = length.to_be_bytes();
            let frame = patched(&v4, &[(16, high), (17, low)]);
            cases.push(Case { name: format!("{host}: total length {name}"), frame, then: drop() });
        }
        let v6 = Frame::tcp(FAMILIES[1].0, &vip(FAMILIES[1].1, host, 80), ACK);
        cases.push(Case { name: format!("{host}: IPv6 version 4"), frame: patched(&v6, &[(14, 0x45)]), then: drop() });
        for length in [0u16, 19, 37, 65535] {
            let [high, low] = length.to_be_bytes();
            let frame = patched(&v6, &[(18, high), (19, low)]);
            cases.push(Case { name: format!("{host}: IPv6 payload length {length}"), frame, then: drop() });
        }
        for offset in 0..5u8 {
            for (family, frame, at) in [("IPv4", &v4, 14 + 20 + 12), ("IPv6", &v6, 14 + 40 + 12)] {
                let name = format!("{host}: {family} TCP data offset {offset}");
                cases.push(Case { name, frame: patched(frame, &[(at, offset << 4)]), then: drop() });
            }
        }
        let frame = patched(&v4, &[(14 + 20 + 12, 0xf0)]);
        cases.push(Case { name: format!("{host}: TCP data offset beyond the packet"), frame, then: drop() });
        for (family, (client, prefix, header)) in [("IPv4", FAMILIES[0]), ("IPv6", FAMILIES[1])] {
            let udp = Frame::udp(client, &vip(prefix, host, 53));
            for length in [0u16, 7, 25, 65535] {
                let [high, low] = length.to_be_bytes();
                let frame = patched(&udp, &[(14 + header + 4, high), (14 + header + 5, low)]);
                cases.push(Case { name: format!("{host}: {family} UDP length {length}"), frame, then: drop() });
            }
        }
    }
    let elsewhere = Frame::tcp(FAMILIES[0].0, "198.51.100.99:80", ACK);
    for (name, patch) in [("IHL 0", (14, 0x40)), ("version 9", (14, 0x95)), ("total length 0", (17, 0))] {
        let frame = patched(&elsewhere, &[patch]);
        cases.push(Case { name: format!("no VIP: {name}"), frame, then: Then::Pass });
    }
    let later = Frame { fragment_offset: 3, ..Frame::tcp(FAMILIES[0].0, "198.51.100.10:80", ACK) };
    cases.push(Case::new("later fragment for a VIP", &later, Then::Drop(DropReason::FragmentUnknown)));
    let later = Frame { fragment_offset: 3, ..elsewhere };
    cases.push(Case::new("later fragment for another address", &later, Then::Pass));
    cases
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_frame_is_cut_anywhere_then_it_is_passed_or_dropped,
    when_headers_contradict_themselves_then_the_frame_is_dropped
];

#[test]
fn when_frames_are_malformed_then_they_are_passed_or_dropped() {
    rows::run(services(), Setup::default(), ROWS);
}
