//! Rewriting addresses, ports and TTL with incremental checksums (RFC 1624). The program never changes the payload and
//! never adds it up.

use core::mem::offset_of;

use balancer_common::{
    checksum,
    map_types::{BackendRow, FAMILY_V4, Mac},
    verdict::DropReason,
};
use bytemuck::{Pod, Zeroable};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    packet::Packet,
    parse::{ICMP_CHECK, ICMP_HEADER_LEN, Ip, TCP, UDP},
    step::Carries,
};

/// The end of a packet that the program replaces: source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// The new address and port of one end of a packet, and their effects on the checksums.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// The end that is replaced, source or destination.
    pub end: End,
    /// The new address in network order; an IPv4 address is in the first word.
    pub address: [u32; 4],
    /// The new port in network order; `None` leaves the port unchanged.
    pub port: Option<u16>,
    /// The amount that the change of the address adds to a complemented checksum; below 2^34.
    pub address_delta: u64,
    /// The sum of the amounts that the changes of the address and of the port add to a complemented checksum; below
    /// 2^34.
    pub l4_delta: u64,
}

/// Writes the source and destination MAC of a frame. `None`: the frame is too short.
#[inline(always)]
#[must_use]
pub fn macs(frame: Packet<'_>, destination: Mac, source: Mac) -> Option<()> {
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    frame.store(0, [a, b, c, d, e, f, g, h, i, j, k, l])
}

/// Writes the link-layer addresses of a frame to a backend. `None`: the frame is too short.
#[inline(always)]
#[must_use]
pub(crate) fn macs_to(frame: Packet<'_>, row: &BackendRow) -> Option<()> {
    frame.store(0, Macs { start: row.macs_start, end: row.macs_end })
}

#[repr(C, packed)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Macs {
    start: u64,
    end: u32,
}

/// Replaces one end of a TCP or UDP packet and lowers the packet's TTL by one. `None`: a header is missing; the packet
/// may be half rewritten and must be dropped. The caller has checked that the packet's TTL is above 1.
#[inline(always)]
#[must_use]
pub(crate) fn translate(ip: &Ip<'_>, carries: Carries, new: &Translation) -> Option<()> {
    translate_ip(ip, new.end, &new.address, new.address_delta)?;
    match carries {
        Carries::Nothing => Some(()),
        Carries::Header => translate_l4(ip, new.end, new.port, new.l4_delta),
    }
}

/// Replaces one address of the IP header and lowers the packet's TTL by one.
#[inline(always)]
#[must_use]
pub(crate) fn translate_ip(ip: &Ip<'_>, end: End, address: &[u32; 4], address_delta: u64) -> Option<()> {
    if ip.family == FAMILY_V4 {
        v4_one_hop_less(ip, address_delta)?;
        ip.header.store(v4_address(end), address[0])
    } else {
        v6_one_hop_less(ip)?;
        ip.header.store(v6_address(end), *address)
    }
}

/// Replaces one address of the IP header and changes nothing else.
#[inline(always)]
#[must_use]
pub(crate) fn address(ip: &Ip<'_>, end: End, address: &[u32; 4]) -> Option<()> {
    if ip.family == FAMILY_V4 {
        ip.header.store(v4_address(end), address[0])
    } else {
        ip.header.store(v6_address(end), *address)
    }
}

/// The sum of the complemented 32-bit words of one address of the IP header; this sum folds to the same 16 bits as the
/// sum of the complemented 16-bit words. Replacing the address removes this amount from a checksum. The program reads
/// the address from the packet again, so that the address does not occupy the stack between parsing and this function.
#[inline(always)]
#[must_use]
pub(crate) fn leaving(ip: &Ip<'_>, end: End) -> Option<u64> {
    if ip.family == FAMILY_V4 {
        Some(u64::from(!ip.header.load::<u32>(v4_address(end))?))
    } else {
        let [a, b, c, d]: [u32; 4] = ip.header.load(v6_address(end))?;
        Some(u64::from(!a) + u64::from(!b) + u64::from(!c) + u64::from(!d))
    }
}

/// The packet's destination in network order; an IPv4 address is in the first word. The program reads the destination
/// from the packet again to save stack space.
#[inline(always)]
#[must_use]
pub(crate) fn destination(ip: &Ip<'_>) -> Option<[u32; 4]> {
    if ip.family == FAMILY_V4 {
        Some([ip.header.load(v4_address(End::Destination))?, 0, 0, 0])
    } else {
        ip.header.load(v6_address(End::Destination))
    }
}

/// The word of an IPv4 header that consists of TTL, protocol and checksum.
const V4_TTL_WORD: usize = offset_of!(Ipv4Hdr, ttl);

/// Lowers the packet's TTL by one.
#[inline(always)]
#[must_use]
pub(crate) fn one_hop_less(ip: &Ip<'_>) -> Option<()> {
    if ip.family == FAMILY_V4 {
        ip.header.store(V4_TTL_WORD, checksum::one_hop_less(ip.header.load(V4_TTL_WORD)?))
    } else {
        v6_one_hop_less(ip)
    }
}

/// Lowers the packet's TTL by one, if the packet may make another hop. The program reads an IPv4 header once for both.
#[inline(always)]
pub(crate) fn take_hop(ip: &Ip<'_>) -> Result<(), DropReason> {
    let (ttl, word): (u8, u32) = if ip.family == FAMILY_V4 {
        let word: u32 = ip.header.load(V4_TTL_WORD).ok_or(DropReason::Malformed)?;
        (u32::from_le(word) as u8, word)
    } else {
        (ip.ttl(), 0)
    };
    if ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let taken = if ip.family == FAMILY_V4 {
        ip.header.store(V4_TTL_WORD, checksum::one_hop_less(word))
    } else {
        v6_one_hop_less(ip)
    };
    taken.ok_or(DropReason::Malformed)
}

#[inline(always)]
fn v4_one_hop_less(ip: &Ip<'_>, address_delta: u64) -> Option<()> {
    const TTL: usize = offset_of!(Ipv4Hdr, ttl);
    const CHECK: usize = offset_of!(Ipv4Hdr, check);
    /// The amount by which one hop lowers the word that consists of TTL and protocol. The TTL is above 0, so the
    /// subtraction borrows nothing from the protocol.
    const HOP: u16 = u16::from_ne_bytes([1, 0]);
    let ttl_protocol: u16 = ip.header.load(TTL)?;
    let delta = address_delta + checksum::replace_u16(HOP, 0);
    let check: u16 = ip.header.load(CHECK)?;
    ip.header.store(TTL, ttl_protocol.wrapping_sub(HOP))?;
    ip.header.store(CHECK, checksum::apply(check, delta))
}

#[inline(always)]
fn v6_one_hop_less(ip: &Ip<'_>) -> Option<()> {
    ip.header.store(offset_of!(Ipv6Hdr, hop_limit), ip.ttl().wrapping_sub(1))
}

#[inline(always)]
const fn v4_address(end: End) -> usize {
    match end {
        End::Source => offset_of!(Ipv4Hdr, src_addr),
        End::Destination => offset_of!(Ipv4Hdr, dst_addr),
    }
}

#[inline(always)]
const fn v6_address(end: End) -> usize {
    match end {
        End::Source => offset_of!(Ipv6Hdr, src_addr),
        End::Destination => offset_of!(Ipv6Hdr, dst_addr),
    }
}

#[inline(always)]
const fn port(end: End) -> usize {
    match end {
        End::Source => 0,
        End::Destination => 2,
    }
}

const TCP_CHECK: usize = offset_of!(TcpHdr, check);
const UDP_CHECK: usize = offset_of!(UdpHdr, check);

/// Replaces one port of the TCP or UDP header, unless the new port equals the old port.
#[inline(always)]
#[must_use]
pub(crate) fn translate_l4(ip: &Ip<'_>, end: End, number: Option<u16>, delta: u64) -> Option<()> {
    if let Some(number) = number {
        ip.l4.store(port(end), number)?;
    }
    if ip.protocol == TCP {
        ip.l4.store(TCP_CHECK, checksum::apply(ip.l4.load(TCP_CHECK)?, delta))
    } else {
        ip.l4.store(UDP_CHECK, checksum::apply_udp(ip.l4.load(UDP_CHECK)?, delta))
    }
}

/// Replaces one end of the packet `inner` that the ICMP error `ip` quotes: the address, the port, and those checksums
/// of `inner` that the error quotes. This function also updates the checksum of the ICMP error itself. `outer_delta` is
/// the amount that the change of the ICMP error's own addresses adds to a checksum that covers them (ICMPv6).
#[inline(always)]
#[must_use]
pub(crate) fn translate_quoted(ip: &Ip<'_>, inner: &Ip<'_>, outer_delta: u64, new: &Translation) -> Option<()> {
    let mut delta = new.address_delta;
    if ip.family == FAMILY_V4 {
        const CHECK: usize = offset_of!(Ipv4Hdr, check);
        let old: u16 = inner.header.load(CHECK)?;
        let check = checksum::apply(old, delta);
        delta += checksum::replace_u16(old, check);
        inner.header.store(CHECK, check)?;
        inner.header.store(v4_address(new.end), new.address[0])?;
    } else {
        delta += outer_delta;
        inner.header.store(v6_address(new.end), new.address)?;
    }
    if !inner.fragment.is_later() {
        // The quote ends with the error; link-layer padding may follow.
        let quoted = ip.l4_length().wrapping_sub(ICMP_HEADER_LEN).wrapping_sub(inner.headers_length);
        if let Some(number) = new.port {
            let old: u16 = inner.l4.load(port(new.end))?;
            delta += checksum::replace_u16(old, number);
            inner.l4.store(port(new.end), number)?;
        }
        let l4_delta = new.l4_delta;
        if inner.protocol == UDP && quoted >= UDP_CHECK + 2 {
            let old: u16 = inner.l4.load(UDP_CHECK)?;
            let check = checksum::apply_udp(old, l4_delta);
            delta += checksum::replace_u16(old, check);
            inner.l4.store(UDP_CHECK, check)?;
        }
        if inner.protocol == TCP && quoted >= TCP_CHECK + 2 {
            let old: u16 = inner.l4.load(TCP_CHECK)?;
            let check = checksum::apply(old, l4_delta);
            delta += checksum::replace_u16(old, check);
            inner.l4.store(TCP_CHECK, check)?;
        }
    }
    let check: u16 = ip.l4.load(ICMP_CHECK)?;
    ip.l4.store(ICMP_CHECK, checksum::apply(check, delta))
}
