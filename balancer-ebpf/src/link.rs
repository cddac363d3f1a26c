//! Putting an IP header in front of a packet or taking one away: the link-layer headers move, VLAN tags and all.

use core::mem::offset_of;

use balancer_common::{checksum, map_types::FAMILY_V4};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::Ipv4Hdr,
};

use crate::packet::Packet;

const MACS_LEN: usize = offset_of!(EthHdr, ether_type);
const TAG_LEN: usize = 4;

/// Moves the link-layer headers, of `l3_offset` bytes, from byte `from` to byte `to`, for a packet of `family`.
#[inline(always)]
#[must_use]
pub(crate) fn relocate(frame: Packet<'_>, from: usize, to: usize, l3_offset: usize, family: u8) -> Option<()> {
    let ether_type = if family == FAMILY_V4 { EtherType::Ipv4 } else { EtherType::Ipv6 } as u16;
    // Everything is read before anything is written, as the places may overlap.
    let macs: [u32; 3] = frame.load(from)?;
    let first: u32 = frame.load(from + MACS_LEN)?;
    let second: u32 = frame.load(from + MACS_LEN + TAG_LEN)?;
    frame.store(to, macs)?;
    let at = to + MACS_LEN;
    if l3_offset <= EthHdr::LEN {
        return frame.store(at, ether_type);
    }
    frame.store(at, first)?;
    if l3_offset <= EthHdr::LEN + TAG_LEN {
        return frame.store(at + TAG_LEN, ether_type);
    }
    frame.store(at + TAG_LEN, second)?;
    frame.store(at + 2 * TAG_LEN, ether_type)
}

/// What decides about an IPv4 header apart from its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct V4 {
    pub(crate) tos: u8,
    pub(crate) length: usize,
    /// `None`: not to be fragmented, so that it needs no identification (RFC 6864).
    pub(crate) id: Option<u16>,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    /// Network order.
    pub(crate) source: u32,
    /// Network order.
    pub(crate) destination: u32,
}

/// Writes an IPv4 header without options.
#[inline(always)]
#[must_use]
pub(crate) fn store_v4(at: Packet<'_>, header: &V4) -> Option<()> {
    const DONT_FRAGMENT: u16 = 0x4000;
    let fragment = if header.id.is_some() { 0 } else { DONT_FRAGMENT.to_be() };
    let words = [
        u16::from_ne_bytes([0x45, header.tos]),
        (header.length as u16).to_be(),
        header.id.unwrap_or(0),
        fragment,
        u16::from_ne_bytes([header.ttl, header.protocol]),
    ];
    let [a, b, c, d, e] = words;
    let addresses = checksum::sum_u32(header.source) + checksum::sum_u32(header.destination);
    let sum = addresses + u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d) + u64::from(e);
    at.store(0, words)?;
    at.store(offset_of!(Ipv4Hdr, check), !checksum::fold(sum))?;
    at.store(offset_of!(Ipv4Hdr, src_addr), [header.source, header.destination])
}

/// What decides about an IPv6 header apart from its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct V6 {
    pub(crate) traffic_class: u8,
    /// Below 2^20.
    pub(crate) flow_label: u32,
    pub(crate) payload_length: usize,
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
}

/// Writes an IPv6 header.
#[inline(always)]
#[must_use]
pub(crate) fn store_v6(at: Packet<'_>, header: &V6, source: &[u32; 4], destination: &[u32; 4]) -> Option<()> {
    let first = 6 << 28 | u32::from(header.traffic_class) << 20 | header.flow_label;
    at.store(0, first.to_be())?;
    at.store(4, (header.payload_length as u16).to_be())?;
    at.store(6, [header.next_header, header.hop_limit])?;
    at.store(8, *source)?;
    at.store(24, *destination)
}
