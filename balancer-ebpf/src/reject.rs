//! Rejections: a reset or an ICMP error tells a client immediately that no backend takes its packet.

use balancer_common::{checksum, map_types::FAMILY_V4};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    answer::{REPLY_TTL, is_group, is_one_host, swap_macs},
    budget,
    found::Found,
    link::{self, V4, V6},
    packet::Packet,
    parse::{ACK, FIN, Ip, RST, SYN, TCP},
    stats,
    step::{IcmpError, Packed, Payload as _, Reject, Step},
};

/// The length of the shortest frame on a link, without the frame check sequence.
const SHORTEST: usize = 60;
/// The number of bytes between the end of the shortest answer and the end of the shortest frame.
const PADDING: usize = 6;

/// Rejects a packet that has a TCP or UDP header and that no backend takes.
#[inline(always)]
pub(crate) fn answer(found: &Found, packed: Packed<Reject>) -> Step {
    if found.ip.protocol != TCP {
        return Step::to(IcmpError::Unreachable(packed.get().reason));
    }
    match reset(found) {
        Some(()) => {
            stats::count_rejected();
            Step::TX
        }
        None => packed.get().given_up(),
    }
}

/// The values of the segment that the reset needs, copied because the views of the frame become invalid.
struct Segment {
    /// Source and destination port in the packet's byte order, like the fields below.
    ports: [u16; 2],
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    /// The number of sequence numbers that the segment occupies.
    length: u32,
}

impl Segment {
    #[inline(always)]
    fn of(ip: &Ip<'_>) -> Option<Self> {
        let [ends, sequence, acknowledgement, control, _]: [u32; 5] = ip.l4.load(0)?;
        let [offset, flags, ..]: [u8; 4] = bytemuck::cast(control);
        // A segment whose header is longer than the segment gets no answer.
        let bytes = ip.l4_length().checked_sub(usize::from(offset >> 4) * 4)?;
        let length = bytes as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        Some(Self { ports: bytemuck::cast(ends), sequence, acknowledgement, flags, length })
    }

    /// Sequence number, acknowledgement and flags of the reset for a connection that does not exist (RFC 9293 section
    /// 3.10.7.1).
    #[inline(always)]
    fn reset(&self) -> (u32, u32, u8) {
        if self.flags & ACK != 0 {
            (self.acknowledgement, 0, RST)
        } else {
            (0, u32::from_be(self.sequence).wrapping_add(self.length).to_be(), RST | ACK)
        }
    }
}

/// Turns a segment into the reset that answers it. `None`: the program cannot answer the segment, and the frame may be
/// half rewritten.
#[inline(always)]
fn reset(found: &Found) -> Option<()> {
    let Found { ingress, ip, .. } = found;
    let segment = Segment::of(ip)?;
    // The first fragment of a segment does not show the segment's length.
    let known = segment.flags & ACK != 0 || !ip.fragment.is_part();
    let told = segment.flags & RST == 0
        && known
        && !is_group(ingress.frame())
        && is_one_host(&ip.source, ip.family)
        && budget::may_reject();
    if !told {
        return None;
    }
    let header = if ip.family == FAMILY_V4 { Ipv4Hdr::LEN } else { Ipv6Hdr::LEN };
    let length = ip.l3_offset + header + TcpHdr::LEN;
    let there = ingress.frame_length();
    let kept = if there < SHORTEST { length } else { length.max(SHORTEST) };
    ingress.cut_tail(there.checked_sub(kept)?)?;
    let frame = ingress.frame();
    if kept == SHORTEST {
        // The answer's headers do not overwrite these bytes, so this store sets them to zero.
        frame.store(SHORTEST - PADDING, [0u8; PADDING])?;
    }
    swap_macs(frame)?;
    let outer = frame.skip(ip.l3_offset);
    store_ip(outer, ip)?;
    let l4 = outer.skip(header);
    let (sequence, acknowledgement, flags) = segment.reset();
    let [from, to] = segment.ports;
    let ends: u32 = bytemuck::cast([to, from]);
    let control = u32::from_ne_bytes([(TcpHdr::LEN as u8 / 4) << 4, flags, 0, 0]);
    let sum = checksum::sum_address(&ip.source)
        + checksum::sum_address(&ip.destination)
        + u64::from((TcpHdr::LEN as u16).to_be())
        + u64::from(u16::from(TCP).to_be())
        + checksum::sum_u32(ends)
        + checksum::sum_u32(sequence)
        + checksum::sum_u32(acknowledgement)
        + checksum::sum_u32(control);
    let last: u32 = bytemuck::cast([!checksum::fold(sum), 0]);
    l4.store(0, [ends, sequence, acknowledgement, control, last])
}

#[inline(always)]
fn store_ip(outer: Packet<'_>, ip: &Ip<'_>) -> Option<()> {
    if ip.family == FAMILY_V4 {
        let header = V4 {
            tos: 0,
            length: Ipv4Hdr::LEN + TcpHdr::LEN,
            id: None,
            fragment: 0,
            ttl: REPLY_TTL,
            protocol: TCP,
            source: ip.destination[0],
            destination: ip.source[0],
        };
        return link::store_v4(outer, &header);
    }
    let header =
        V6 { traffic_class: 0, flow_label: 0, payload_length: TcpHdr::LEN, next_header: TCP, hop_limit: REPLY_TTL };
    link::store_v6(outer, &header, &ip.destination, &ip.source)
}
