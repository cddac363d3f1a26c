//! Telling the sender of a packet that is too big for its way what would fit (RFC 792 and 1191, RFC 4443), and that of a
//! datagram that nobody takes that it is in vain (RFC 1812 section 5.2.7.1).

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    checksum,
    map_types::FAMILY_V4,
    verdict::{DropIndex, DropReason},
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{ICMP_CHECK, ICMP_HEADER_LEN, REPLY_TTL, is_group, is_one_host, swap_macs};
use crate::{
    budget,
    ingress::Ingress,
    link::{self, V4, V6},
    opaque,
    outcome::{Kind, Step},
    packet::Packet,
    parse::{self, ICMP, ICMP_V6, Ip},
    stats,
};

/// An error is at most 576 bytes long (RFC 1812 section 4.3.2.3), and its quote here a multiple of eight.
const MAX_QUOTE_V4: usize = 544;
/// An error is at most 1280 bytes long (RFC 4443 section 2.4).
const MAX_QUOTE_V6: usize = 1232;
/// Summed in steps of eight bytes.
const STEP: usize = 8;
const STEPS: usize = MAX_QUOTE_V6 / STEP;

/// Precedence "internetwork control" (RFC 1812 section 4.3.2.5).
const TOS: u8 = 0xc0;

/// Answers a packet to a VIP, or a `nat` backend's reply, that nothing longer than the step's MTU fits its way, or that
/// nobody takes it. The senders of IPv4 packets that may be fragmented are told of MTUs as well: nothing here fragments,
/// but they can.
#[inline(always)]
pub(crate) fn answer(ingress: Ingress, step: Step) -> Step {
    Step(balancer_icmp_error(ingress.context(), step.0))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_icmp_error(context: *mut xdp_md, step: u64) -> u64 {
    let step = Step(step);
    let unreachable = step.is(Kind::Unreachable);
    // SAFETY: `answer` passes the program's context on.
    let outcome = match reply(unsafe { Ingress::new(context) }, step) {
        Some(()) if unreachable => {
            stats::count_rejected();
            Step::TX
        }
        Some(()) => {
            stats::count_too_big();
            Step::TX
        }
        None if unreachable => step.given_up(),
        None => Step::drop(DropReason::TooBig),
    };
    outcome.0
}

/// The first eight bytes of the message.
#[inline(always)]
fn message(step: Step, family: u8) -> [u8; ICMP_HEADER_LEN] {
    let denied = step.reason() == DropIndex(DropReason::Denied as u8);
    let mtu = step.value();
    match (step.is(Kind::Unreachable), family == FAMILY_V4) {
        // Destination unreachable: administratively prohibited, or the port.
        (true, true) => [3, if denied { 13 } else { 3 }, 0, 0, 0, 0, 0, 0],
        (true, false) => [1, if denied { 1 } else { 4 }, 0, 0, 0, 0, 0, 0],
        // Destination unreachable, fragmentation needed: the MTU of the next hop in the low half of the second word.
        (false, true) => {
            let [high, low] = (mtu.min(u32::from(u16::MAX)) as u16).to_be_bytes();
            [3, 4, 0, 0, 0, 0, high, low]
        }
        // Packet too big: the MTU in the second word.
        (false, false) => {
            let [a, b, c, d] = mtu.to_be_bytes();
            [2, 0, 0, 0, a, b, c, d]
        }
    }
}

/// `None`: the sender is not told. The frame may then be anything.
#[inline(always)]
fn reply(ingress: Ingress, step: Step) -> Option<()> {
    let frame = ingress.frame();
    let mut ip = parse::ip(frame)?;
    opaque::follow(frame, &mut ip).ok()?;
    let told =
        !ip.fragment.is_later() && !is_group(frame) && is_one_host(&ip.source, ip.family) && budget::may_send_error();
    if !told {
        return None;
    }
    let (header, most) =
        if ip.family == FAMILY_V4 { (Ipv4Hdr::LEN, MAX_QUOTE_V4) } else { (Ipv6Hdr::LEN, MAX_QUOTE_V6) };
    let there = frame.len().wrapping_sub(ip.l3_offset).min(ip.length).min(most);
    let quote = there & !(STEP - 1);
    let added = header + ICMP_HEADER_LEN;
    ingress.cut_tail(ingress.frame_length().checked_sub(ip.l3_offset + quote)?)?;
    ingress.grow_head(added as i32)?;
    let frame = ingress.frame();
    link::relocate(frame, added, 0, ip.l3_offset, ip.family)?;
    swap_macs(frame)?;
    let outer = frame.skip(ip.l3_offset);
    let pseudo = if ip.family == FAMILY_V4 { v4(outer, &ip, quote) } else { v6(outer, &ip, quote) }?;
    outer.store(header, message(step, ip.family))?;
    let check = checksum::fold(pseudo + opaque::number(sum(outer.skip(header), ICMP_HEADER_LEN + quote))?);
    ingress.frame().skip(ip.l3_offset + header).store(ICMP_CHECK, !check)
}

/// Writes the IP header. Returns what the checksum covers apart from the message: nothing.
#[inline(always)]
fn v4(outer: Packet<'_>, ip: &Ip<'_>, quote: usize) -> Option<u64> {
    let header = V4 {
        tos: TOS,
        length: Ipv4Hdr::LEN + ICMP_HEADER_LEN + quote,
        id: None,
        ttl: REPLY_TTL,
        protocol: ICMP,
        source: ip.destination[0],
        destination: ip.source[0],
    };
    link::store_v4(outer, &header)?;
    Some(0)
}

/// Writes the IP header. Returns the sum of the pseudo-header.
#[inline(always)]
fn v6(outer: Packet<'_>, ip: &Ip<'_>, quote: usize) -> Option<u64> {
    let length = ICMP_HEADER_LEN + quote;
    let header =
        V6 { traffic_class: 0, flow_label: 0, payload_length: length, next_header: ICMP_V6, hop_limit: REPLY_TTL };
    link::store_v6(outer, &header, &ip.destination, &ip.source)?;
    let addresses = checksum::sum_address(&ip.source) + checksum::sum_address(&ip.destination);
    Some(addresses + u64::from((length as u16).to_be()) + u64::from(u16::from(ICMP_V6).to_be()))
}

/// The sum of the first `length` bytes, a multiple of eight, as 16-bit words: unfolded. They end where the frame ends.
#[inline(always)]
fn sum(bytes: Packet<'_>, length: usize) -> u64 {
    let mut sum = 0;
    for step in 0..=STEPS {
        if step * STEP >= length {
            break;
        }
        let Some([low, high]) = bytes.load::<[u32; 2]>(step * STEP) else { break };
        sum += u64::from(low) + u64::from(high);
    }
    sum
}
