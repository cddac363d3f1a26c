//! Errors to the senders of packets. These errors report the MTU if a packet is too big for its path (RFC 792 and 1191,
//! RFC 4443), or "unreachable" if no backend takes a datagram (RFC 1812 section 5.2.7.1).

use balancer_common::{
    checksum,
    map_types::FAMILY_V4,
    verdict::{DropIndex, DropReason},
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    answer::{REPLY_TTL, is_group, is_one_host, swap_macs},
    budget,
    found::Found,
    link::{self, V4, V6},
    packet::Packet,
    parse::{ICMP, ICMP_CHECK, ICMP_HEADER_LEN, ICMP_V6, Ip},
    stats,
    step::{IcmpError, Packed, Payload as _, Step},
    sum,
};

/// The longest quote in an IPv4 error. An error is at most 576 bytes long (RFC 1812 section 4.3.2.3), and the length of
/// this quote is a multiple of eight.
const MAX_QUOTE_V4: usize = 544;
/// The longest quote in an IPv6 error. An error is at most 1280 bytes long (RFC 4443 section 2.4).
const MAX_QUOTE_V6: usize = 1232;
const _: () = assert!(ICMP_HEADER_LEN + MAX_QUOTE_V6 <= sum::LONGEST);

/// TOS of ICMP errors: precedence "internetwork control" (RFC 1812 section 4.3.2.5).
const TOS: u8 = 0xc0;

/// Answers a packet to a VIP, or a `nat` backend's reply. Senders of IPv4 packets that may be fragmented also learn the
/// MTU: the program does not fragment packets, but these senders can.
#[inline(always)]
pub(crate) fn answer(found: &Found, packed: Packed<IcmpError>) -> Step {
    if reply(found, packed).is_none() {
        return packed.get().given_up();
    }
    match packed.get() {
        IcmpError::TooBig(_) => stats::count_too_big(),
        IcmpError::Unreachable(_) => stats::count_rejected(),
    }
    Step::TX
}

/// The first eight bytes of the message.
#[inline(always)]
fn message(error: IcmpError, family: u8) -> [u8; ICMP_HEADER_LEN] {
    match (error, family == FAMILY_V4) {
        // Destination unreachable: administratively prohibited, or port unreachable.
        (IcmpError::Unreachable(reason), true) => [3, if is_denied(reason) { 13 } else { 3 }, 0, 0, 0, 0, 0, 0],
        (IcmpError::Unreachable(reason), false) => [1, if is_denied(reason) { 1 } else { 4 }, 0, 0, 0, 0, 0, 0],
        // Destination unreachable, fragmentation needed; the low half of the second word is the MTU of the next hop.
        (IcmpError::TooBig(mtu), true) => {
            let [high, low] = (mtu.min(u32::from(u16::MAX)) as u16).to_be_bytes();
            [3, 4, 0, 0, 0, 0, high, low]
        }
        // Packet too big; the second word is the MTU.
        (IcmpError::TooBig(mtu), false) => {
            let [a, b, c, d] = mtu.to_be_bytes();
            [2, 0, 0, 0, a, b, c, d]
        }
    }
}

#[inline(always)]
fn is_denied(reason: DropIndex) -> bool {
    reason == DropIndex(DropReason::Denied as u8)
}

/// Writes the ICMP error. `None`: the sender is not informed, and the frame may be half rewritten.
#[inline(always)]
fn reply(found: &Found, packed: Packed<IcmpError>) -> Option<()> {
    let Found { ingress, frame, ip } = *found;
    if ip.fragment.is_later() || is_group(ingress.frame()) || !is_one_host(&ip.source, ip.family) {
        return None;
    }
    let may = match packed.get() {
        IcmpError::TooBig(_) => budget::may_send_error(),
        IcmpError::Unreachable(_) => budget::may_reject(),
    };
    if !may {
        return None;
    }
    let (header, most) =
        if ip.family == FAMILY_V4 { (Ipv4Hdr::LEN, MAX_QUOTE_V4) } else { (Ipv6Hdr::LEN, MAX_QUOTE_V6) };
    // The error quotes a short packet completely. Linux requires eight bytes behind the IP header; even an empty
    // datagram has eight bytes there, because of its UDP header.
    let quote = frame.len().wrapping_sub(ip.l3_offset).min(ip.length).min(most);
    let added = header + ICMP_HEADER_LEN;
    ingress.cut_tail(ingress.frame_length().checked_sub(ip.l3_offset + quote)?)?;
    ingress.grow_head(added as i32)?;
    let frame = ingress.frame();
    link::relocate(frame, added, 0, ip.l3_offset, ip.family)?;
    swap_macs(frame)?;
    let outer = frame.skip(ip.l3_offset);
    let pseudo = if ip.family == FAMILY_V4 { v4(outer, &ip, quote) } else { v6(outer, &ip, quote) }?;
    outer.store(header, message(packed.get(), ip.family))?;
    let check = checksum::fold(pseudo + sum::of(ingress, ip.l3_offset + header, ICMP_HEADER_LEN + quote));
    ingress.frame().skip(ip.l3_offset + header).store(ICMP_CHECK, !check)
}

/// Writes the IPv4 header. Returns the sum of all data outside the message that the checksum covers, which is 0 for
/// ICMP.
#[inline(always)]
fn v4(outer: Packet<'_>, ip: &Ip<'_>, quote: usize) -> Option<u64> {
    let header = V4 {
        tos: TOS,
        length: Ipv4Hdr::LEN + ICMP_HEADER_LEN + quote,
        id: None,
        fragment: 0,
        ttl: REPLY_TTL,
        protocol: ICMP,
        source: ip.destination[0],
        destination: ip.source[0],
    };
    link::store_v4(outer, &header)?;
    Some(0)
}

/// Writes the IPv6 header. Returns the sum of the pseudo-header.
#[inline(always)]
fn v6(outer: Packet<'_>, ip: &Ip<'_>, quote: usize) -> Option<u64> {
    let length = ICMP_HEADER_LEN + quote;
    let header =
        V6 { traffic_class: 0, flow_label: 0, payload_length: length, next_header: ICMP_V6, hop_limit: REPLY_TTL };
    link::store_v6(outer, &header, &ip.destination, &ip.source)?;
    Some(sum::pseudo_header(&ip.destination, &ip.source, length, ICMP_V6))
}
