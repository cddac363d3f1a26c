//! Adds an IP header in front of a packet, or removes one, and moves the link-layer headers, including VLAN tags.

use core::mem::offset_of;

use balancer_common::{
    checksum,
    map_types::{BackendRow, FAMILY_V4},
};
use bytemuck::{Pod, Zeroable};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::packet::Packet;

/// Writes the link-layer header, without tags, of a packet of `family` to a backend.
#[inline(always)]
#[must_use]
pub(crate) fn store_ethernet(frame: Packet<'_>, row: &BackendRow, family: u8) -> Option<()> {
    frame.store(0, Ethernet { macs_start: row.macs_start, macs_end: row.macs_end, ether_type: ether_type(family) })
}

/// The link-layer header as words of the sizes that the program writes.
#[repr(C, packed)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ethernet {
    macs_start: u64,
    macs_end: u32,
    ether_type: u16,
}

#[inline(always)]
const fn ether_type(family: u8) -> u16 {
    if family == FAMILY_V4 { EtherType::Ipv4 as u16 } else { EtherType::Ipv6 as u16 }
}

const MACS_LEN: usize = offset_of!(EthHdr, ether_type);
const TAG_LEN: usize = 4;

/// Moves the link-layer headers (`l3_offset` bytes) from offset `from` to offset `to`, for a packet of `family`.
#[inline(always)]
#[must_use]
pub(crate) fn relocate(frame: Packet<'_>, from: usize, to: usize, l3_offset: usize, family: u8) -> Option<()> {
    // The function reads all bytes before it writes any, because the old and the new position may overlap.
    let (start, end): (u64, u32) = (frame.load(from)?, frame.load(from + size_of::<u64>())?);
    let tags = tags(frame.skip(from))?;
    let to = frame.skip(to);
    to.store(0, start)?;
    to.store(size_of::<u64>(), end)?;
    store_tags(to, tags, l3_offset, family)
}

/// The bytes of a frame that may be VLAN tags.
#[inline(always)]
pub(crate) fn tags(frame: Packet<'_>) -> Option<[u32; 2]> {
    Some([frame.load(MACS_LEN)?, frame.load(MACS_LEN + TAG_LEN)?])
}

/// Writes the VLAN tags and the type of a frame whose link-layer headers are `l3_offset` bytes long, for a packet of
/// `family`.
#[inline(always)]
#[must_use]
pub(crate) fn store_tags(frame: Packet<'_>, [first, second]: [u32; 2], l3_offset: usize, family: u8) -> Option<()> {
    let ether_type = ether_type(family);
    if l3_offset <= EthHdr::LEN {
        return frame.store(MACS_LEN, ether_type);
    }
    frame.store(MACS_LEN, first)?;
    if l3_offset <= EthHdr::LEN + TAG_LEN {
        return frame.store(MACS_LEN + TAG_LEN, ether_type);
    }
    frame.store(MACS_LEN + TAG_LEN, second)?;
    frame.store(MACS_LEN + 2 * TAG_LEN, ether_type)
}

/// The variable fields of an IPv4 header besides its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct V4 {
    pub(crate) tos: u8,
    pub(crate) length: usize,
    /// `None`: routers must not fragment the packet, so it needs no identification (RFC 6864).
    pub(crate) id: Option<u16>,
    /// The fragment's offset in units of eight bytes, and the flag of more fragments; 0: the packet is no fragment.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    /// The source address in network order.
    pub(crate) source: u32,
    /// The destination address in network order.
    pub(crate) destination: u32,
}

/// Writes an IPv4 header without options.
#[inline(always)]
#[must_use]
pub(crate) fn store_v4(at: Packet<'_>, header: &V4) -> Option<()> {
    store_v4_between(at, header, checksum::sum_u32(header.source) + checksum::sum_u32(header.destination))
}

/// Writes an IPv4 header without options, for which the caller gives the sum of both addresses.
#[inline(always)]
#[must_use]
pub(crate) fn store_v4_between(at: Packet<'_>, header: &V4, addresses: u64) -> Option<()> {
    const DONT_FRAGMENT: u16 = 0x4000;
    let a = u16::from_ne_bytes([0x45, header.tos]);
    let b = (header.length as u16).to_be();
    let c = header.id.unwrap_or(0);
    let d = if header.id.is_some() { header.fragment.to_be() } else { DONT_FRAGMENT.to_be() };
    let e = u16::from_ne_bytes([header.ttl, header.protocol]);
    let sum = addresses + u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d) + u64::from(e);
    let check = !checksum::fold(sum);
    at.store(0, WholeV4 { a, b, c, d, e, check, source: header.source, destination: header.destination })
}

/// The IPv4 header as words of the sizes that the program writes.
#[repr(C, packed)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WholeV4 {
    a: u16,
    b: u16,
    c: u16,
    d: u16,
    e: u16,
    check: u16,
    source: u32,
    destination: u32,
}

const _: () = assert!(size_of::<WholeV4>() == Ipv4Hdr::LEN && offset_of!(WholeV4, check) == offset_of!(Ipv4Hdr, check));

/// The variable fields of an IPv6 header besides its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct V6 {
    pub(crate) traffic_class: u8,
    /// The flow label, below 2^20.
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
    let [source_start, source_end] = halves(source);
    let [destination_start, destination_end] = halves(destination);
    at.store(
        0,
        WholeV6 {
            first: first.to_be(),
            payload_length: (header.payload_length as u16).to_be(),
            next: u16::from_ne_bytes([header.next_header, header.hop_limit]),
            source_start,
            source_end,
            destination_start,
            destination_end,
        },
    )
}

#[inline(always)]
const fn halves(address: &[u32; 4]) -> [u64; 2] {
    [address[0] as u64 | (address[1] as u64) << 32, address[2] as u64 | (address[3] as u64) << 32]
}

/// The IPv6 header as words of the sizes that the program writes.
#[repr(C, packed)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WholeV6 {
    first: u32,
    payload_length: u16,
    next: u16,
    source_start: u64,
    source_end: u64,
    destination_start: u64,
    destination_end: u64,
}

const _: () = assert!(size_of::<WholeV6>() == Ipv6Hdr::LEN);
