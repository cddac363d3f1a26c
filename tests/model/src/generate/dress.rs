//! Random values for the fields of a frame that no scene determines.

use std::net::IpAddr;

use balancer_testkit::frame::{self, DESTINATION_OPTIONS, Extension, Frame, HOP_BY_HOP, Transport};
use fastrand::Rng;

use super::{once_in, one_of};

/// A packet of the family of `source`, with random values in all secondary fields. The caller sets the source and the
/// destination.
pub(super) fn dressed(rng: &mut Rng, source: IpAddr, transport: Transport) -> Frame {
    let v4 = source.is_ipv4();
    let payload = match rng.u32(..20) {
        0..14 => rng.usize(..40),
        14..16 => rng.usize(..600),
        // A payload length near a common MTU.
        16 => one_of(rng, &[1300, 1280, 1500, 576]) - rng.usize(20..100),
        17 => rng.usize(..1460),
        _ => 0,
    };
    Frame {
        vlans: (0..one_of(rng, &[0, 0, 0, 0, 0, 0, 1, 2])).map(|_| rng.u16(..4096)).collect(),
        ttl: one_of(rng, &[64, 64, 64, 64, 64, 255, 63, 2, 1, 0]),
        tos: if once_in(rng, 3) { rng.u8(..) } else { 0 },
        id: rng.u16(..),
        options: if v4 && once_in(rng, 8) { vec![1; 4 * rng.usize(1..=10)] } else { Vec::new() },
        flow_label: rng.u32(..1 << 20),
        extensions: if !v4 && once_in(rng, 5) { extensions(rng) } else { Vec::new() },
        dont_fragment: !once_in(rng, 4),
        payload: bytes(rng, payload),
        ..Frame::new("0.0.0.0:0", "0.0.0.0:0", transport)
    }
}

fn extensions(rng: &mut Rng) -> Vec<Extension> {
    let count = if once_in(rng, 8) { rng.usize(7..=10) } else { rng.usize(1..4) };
    let mut headers = Vec::new();
    for index in 0..count {
        headers.push(match rng.u32(..12) {
            0..3 if index == 0 => frame::options(HOP_BY_HOP, rng.usize(1..4)),
            0..3 => frame::routing(0),
            3 => frame::routing(rng.u8(..2)),
            // A fragment of a datagram: usually the only fragment, and sometimes the first of several fragments.
            4 => frame::fragment(0, once_in(rng, 3), rng.u32(..500)),
            5 if once_in(rng, 4) => long_options(rng.u8(100..170)),
            6 if once_in(rng, 4) => frame::options(HOP_BY_HOP, 1),
            _ => frame::options(DESTINATION_OPTIONS, rng.usize(1..6)),
        });
    }
    headers
}

/// Destination options of `units` × 8 bytes that consist of Pad1 options.
fn long_options(units: u8) -> Extension {
    let mut header = vec![0; usize::from(units) * 8];
    header[1] = units - 1;
    (DESTINATION_OPTIONS, header)
}

pub(super) fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // Checksums have special cases for data that consists of only zeros or only ones.
    match rng.u32(..16) {
        0 => {}
        1 => bytes.fill(0xff),
        _ => rng.fill(&mut bytes),
    }
    bytes
}
