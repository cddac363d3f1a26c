//! ICMP and ICMPv6: errors about flows of services, echo requests to VIPs, and errors of our own.

mod echo;
pub(crate) mod errors;
pub(crate) mod too_big;

use balancer_common::{
    map_types::{CONTROL_RETURNS, FAMILY_V4, Mac},
    verdict::DropReason,
};

use crate::{
    control,
    forward::rewrite,
    packet::Packet,
    parse::{ICMP, ICMP_V6},
    path, service,
    step::Step,
    steps::Found,
};

/// Length of the fixed ICMP header, which an error quotes the packet behind.
pub(crate) const ICMP_HEADER_LEN: usize = 8;
/// Offset of the checksum in it.
pub(crate) const ICMP_CHECK: usize = 2;

/// TTL or hop limit of everything the program answers.
pub(crate) const REPLY_TTL: u8 = 64;

/// What an ICMP message means here.
enum Kind {
    EchoRequest,
    Error,
    Other,
}

/// RFC 792: destination unreachable, time exceeded, parameter problem. RFC 4443: these and packet too big.
#[inline(always)]
const fn kind(family: u8, message: u8) -> Kind {
    if family == FAMILY_V4 {
        match message {
            8 => Kind::EchoRequest,
            3 | 11 | 12 => Kind::Error,
            _ => Kind::Other,
        }
    } else {
        match message {
            128 => Kind::EchoRequest,
            1..=4 => Kind::Error,
            _ => Kind::Other,
        }
    }
}

/// Decides about an ICMP message that is not fragmented.
#[inline(always)]
pub(crate) fn decide(found: &Found) -> Step {
    let Found { frame, ip, .. } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let listeners = path::listeners(control);
    let expected = if ip.family == FAMILY_V4 { ICMP } else { ICMP_V6 };
    if ip.protocol != expected {
        return Step::PASS;
    }
    let marker = service::vip(listeners, ip);
    let Some([message, _code]) = ip.l4.load::<[u8; 2]>(0).filter(|_| ip.l4_length() >= ICMP_HEADER_LEN) else {
        return if marker.is_some() { Step::drop(DropReason::Malformed) } else { Step::PASS };
    };
    match (kind(ip.family, message), marker) {
        (Kind::EchoRequest, Some(_)) => echo::answer(*frame, ip),
        (Kind::Error, Some(marker)) => errors::about_vip(*frame, control, listeners, ip, marker),
        (Kind::Error, None) if control.flags & CONTROL_RETURNS != 0 => errors::about_translated(*frame, control, ip),
        (Kind::EchoRequest | Kind::Error, None) | (Kind::Other, _) => Step::PASS,
    }
}

/// Whether `address` can be one host's, so that it may be answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
#[inline(always)]
pub(crate) fn is_one_host(address: &[u32; 4], family: u8) -> bool {
    let [first, ..] = address[0].to_ne_bytes();
    if family == FAMILY_V4 {
        first != 0 && first != 127 && first < 224
    } else {
        first != 0xff && (address[0] | address[1] | address[2] | address[3] & u32::from_be(!1)) != 0
    }
}

/// Whether the frame was sent to more than one station.
#[inline(always)]
pub(crate) fn is_group(frame: Packet<'_>) -> bool {
    frame.load::<u8>(0).is_none_or(|first| first & 1 != 0)
}

/// Sends a frame back to where it came from on the link.
#[inline(always)]
pub(crate) fn swap_macs(frame: Packet<'_>) -> Option<()> {
    let [destination, source]: [Mac; 2] = frame.load(0)?;
    rewrite::macs(frame, source, destination)
}
