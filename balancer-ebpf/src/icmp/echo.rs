//! Answers to echo requests.

use core::mem::offset_of;

use balancer_common::{checksum, map_types::FAMILY_V4, verdict::DropReason};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    answer::{REPLY_TTL, is_group, is_one_host, swap_macs},
    budget,
    packet::Packet,
    parse::{ICMP_CHECK, Ip},
    stats,
    step::Step,
};

/// Turns an echo request to a VIP into an echo reply.
#[inline(always)]
pub(super) fn answer(frame: Packet<'_>, ip: &Ip<'_>) -> Step {
    if is_group(frame) || !is_one_host(&ip.source, ip.family) {
        return Step::PASS;
    }
    if !budget::may_answer_echo() {
        return Step::drop(DropReason::EchoLimited);
    }
    match turn_round(frame, ip) {
        Some(()) => {
            stats::count_echo();
            Step::TX
        }
        None => Step::drop(DropReason::Malformed),
    }
}

#[inline(always)]
fn turn_round(frame: Packet<'_>, ip: &Ip<'_>) -> Option<()> {
    let [_request, code]: [u8; 2] = ip.l4.load(0)?;
    let old: u16 = ip.l4.load(0)?;
    let reply = if ip.family == FAMILY_V4 {
        const TTL: usize = offset_of!(Ipv4Hdr, ttl);
        const CHECK: usize = offset_of!(Ipv4Hdr, check);
        let ttl_protocol: u16 = ip.header.load(TTL)?;
        let new = u16::from_ne_bytes([REPLY_TTL, ip.protocol]);
        let check: u16 = ip.header.load(CHECK)?;
        ip.header.store(TTL, new)?;
        ip.header.store(CHECK, checksum::apply(check, checksum::replace_u16(ttl_protocol, new)))?;
        // Swapping the addresses changes no checksum.
        ip.header.store(offset_of!(Ipv4Hdr, src_addr), [ip.destination[0], ip.source[0]])?;
        0
    } else {
        ip.header.store(offset_of!(Ipv6Hdr, hop_limit), REPLY_TTL)?;
        ip.header.store(offset_of!(Ipv6Hdr, src_addr), [ip.destination, ip.source])?;
        129
    };
    let new = u16::from_ne_bytes([reply, code]);
    let check: u16 = ip.l4.load(ICMP_CHECK)?;
    ip.l4.store(0, new)?;
    let check = match checksum::apply(check, checksum::replace_u16(old, new)) {
        // As checksums, 0 and 0xffff are equivalent, but a reply that consists only of zeros must carry 0xffff.
        0 if ip.family == FAMILY_V4 => 0xffff,
        check => check,
    };
    ip.l4.store(ICMP_CHECK, check)?;
    swap_macs(frame)
}
