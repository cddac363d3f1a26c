//! Tests with values at which one's complement sums wrap around: an incremental update must yield the same checksum as
//! a computation from scratch.

use balancer_testkit::{
    frame::{ACK, Frame, Transport},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, nat, services},
    rows::{self, Row, rows},
};

fn when_sums_wrap_around_then_the_incremental_update_is_right(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip, tcp_backend, udp_backend) in [
        ("203.0.113.7:40000", "198.51.100.20", "10.0.0.21:8080", "10.0.0.22:5353"),
        ("[2001:db8:c::7]:40000", "[2001:db8::20]", "[fd00::21]:8080", "[fd00::22]:5353"),
    ] {
        let (tcp, udp) = (format!("{vip}:80"), format!("{vip}:53"));
        // With a suitable payload word, the transport checksum has one of the following values before or after the
        // translation.
        for wanted in [0x0000u16, 0x0001, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            for (transport, service, backend) in
                [(Transport::Tcp(ACK), &tcp, tcp_backend), (Transport::Udp, &udp, udp_backend)]
            {
                let plain = Frame { payload: vec![0; 8], ..Frame::new(client, service, transport) };
                for (when, target) in [("before", &plain), ("after", &nat(rig, &plain, service, backend))] {
                    let payload = payload_for(target, wanted);
                    let frame = Frame { payload, ..plain.clone() };
                    let out = nat(rig, &frame, service, backend);
                    let name = format!("{vip} {transport:?} checksum {wanted:#06x} {when}");
                    cases.push(Case::new(name, &frame, Then::Tx(out.bytes())));
                }
            }
        }
    }
    // With these identifications, the IPv4 header checksum goes through all of its wrap-arounds.
    for id in (0..=u16::MAX).step_by(257).chain([0, 1, 0xfffe, 0xffff]) {
        let frame = Frame { id, ..Frame::tcp("203.0.113.7:40000", "198.51.100.20:80", ACK) };
        let out = nat(rig, &frame, "198.51.100.20:80", "10.0.0.21:8080");
        cases.push(Case::new(format!("identification {id:#06x}"), &frame, Then::Tx(out.bytes())));
    }
    cases
}

pub(crate) const ROWS: &[Row] = rows![when_sums_wrap_around_then_the_incremental_update_is_right];

/// Returns an eight-byte payload with which the transport checksum of `frame` is `wanted` (0 and 0xffff are
/// equivalent).
fn payload_for(frame: &Frame, wanted: u16) -> Vec<u8> {
    let (at, header) = match frame.transport {
        Transport::Tcp(_) => (16, 20),
        Transport::Udp | Transport::UdpWithoutChecksum => (6, 8),
        Transport::Icmp(..) | Transport::Raw(_) => unreachable!("only TCP and UDP are asked for"),
    };
    let bytes = Frame { payload: vec![0; 8], ..frame.clone() }.bytes();
    let segment = bytes.len() - header - 8;
    let check = u16::from_be_bytes([bytes[segment + at], bytes[segment + at + 1]]);
    // The checksum is the one's complement of the sum, so adding `check - wanted` to the sum yields `wanted`.
    let difference = (u32::from(check) + u32::from(!wanted)) % 0xffff;
    let mut payload = vec![0; 8];
    payload[2..4].copy_from_slice(&(difference as u16).to_be_bytes());
    payload
}

#[test]
fn when_checksums_are_updated_then_they_are_right() {
    rows::run(services(), Setup::default(), ROWS);
}
