//! The shared code for every packet that the program sends back as an answer.

use balancer_common::map_types::{FAMILY_V4, Mac};

use crate::{forward::rewrite, packet::Packet};

/// TTL or hop limit of every packet that the program sends as an answer.
pub(crate) const REPLY_TTL: u8 = 64;

/// Whether `address` can belong to a single host, so that the program may answer it (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4).
#[inline(always)]
pub(crate) fn is_one_host(address: &[u32; 4], family: u8) -> bool {
    let [first, ..] = address[0].to_ne_bytes();
    if family == FAMILY_V4 {
        first != 0 && first != 127 && first < 224
    } else {
        first != 0xff && (address[0] | address[1] | address[2] | address[3] & u32::from_be(!1)) != 0
    }
}

/// Whether the frame was sent to a group of stations. The function reads two bytes because the verifier does not
/// understand a bounds check of a single byte.
#[inline(always)]
pub(crate) fn is_group(frame: Packet<'_>) -> bool {
    frame.load::<[u8; 2]>(0).is_none_or(|[first, _]| first & 1 != 0)
}

/// Sends a frame back to its sender on the link.
#[inline(always)]
pub(crate) fn swap_macs(frame: Packet<'_>) -> Option<()> {
    let [destination, source]: [Mac; 2] = frame.load(0)?;
    rewrite::macs(frame, source, destination)
}
