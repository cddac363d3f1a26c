//! Frame → headers: Ethernet with up to two VLAN tags, IPv4 with options, IPv6, TCP and UDP.
//!
//! Nothing is judged before the destination is known: a frame that is not for a VIP passes, however broken it is.

use core::mem::offset_of;

use balancer_common::map_types::{FAMILY_V4, FAMILY_V6};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::packet::Packet;

const VLAN_TAG_LEN: usize = 4;
const MAX_VLAN_TAGS: usize = 2;

/// The IANA number of TCP.
pub const TCP: u8 = IpProto::Tcp as u8;
/// The IANA number of UDP.
pub const UDP: u8 = IpProto::Udp as u8;

/// An IP header whose addresses could be read.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    /// The frame from the IP header on.
    pub header: Packet<'a>,
    /// The frame from the layer-4 header on.
    pub l4: Packet<'a>,
    /// Bytes before the IP header.
    pub l3_offset: usize,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// The layer-4 protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether this is a fragment other than the first, so that no layer-4 header follows.
    pub later_fragment: bool,
    /// Whether more fragments follow.
    pub first_fragment: bool,
    /// Whether the header agrees with itself and with the bytes that are there.
    pub well_formed: bool,
    /// Length of the IP packet in bytes, as the header says.
    pub length: usize,
    /// Length of its layer-4 part in bytes, as the header says.
    pub l4_length: usize,
    /// Network order; IPv4 in the first word.
    pub source: [u32; 4],
    /// Network order; IPv4 in the first word.
    pub destination: [u32; 4],
}

/// The ports of a TCP or UDP header, and what else of it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Network order.
    pub source: u16,
    /// Network order.
    pub destination: u16,
    /// A TCP segment that opens a connection: SYN without ACK.
    pub opens: bool,
}

/// The IP header of a frame. `None`: not IP, or too short to tell where it goes.
#[inline(always)]
#[must_use]
pub fn ip(frame: Packet<'_>) -> Option<Ip<'_>> {
    let (l3_offset, ether_type) = ethernet(frame)?;
    let header = frame.skip(l3_offset);
    if ether_type == EtherType::Ipv4 as u16 {
        ipv4(header, l3_offset)
    } else if ether_type == EtherType::Ipv6 as u16 {
        ipv6(header, l3_offset)
    } else {
        None
    }
}

/// Length of the link-layer headers and the type of what follows (in memory order, as the variants of [`EtherType`]).
#[inline(always)]
fn ethernet(frame: Packet<'_>) -> Option<(usize, u16)> {
    let mut offset = EthHdr::LEN;
    let mut ether_type: u16 = frame.load(offset_of!(EthHdr, ether_type))?;
    for _ in 0..MAX_VLAN_TAGS {
        if ether_type != EtherType::Ieee8021q as u16 && ether_type != EtherType::Ieee8021ad as u16 {
            break;
        }
        ether_type = frame.load(offset + 2)?;
        offset += VLAN_TAG_LEN;
    }
    Some((offset, ether_type))
}

#[inline(always)]
fn ipv4(header: Packet<'_>, l3_offset: usize) -> Option<Ip<'_>> {
    let [source, destination]: [u32; 2] = header.load(offset_of!(Ipv4Hdr, src_addr))?;
    let [version_ihl, _tos]: [u8; 2] = header.load(0)?;
    let length = u16::from_be(header.load(offset_of!(Ipv4Hdr, tot_len))?) as usize;
    let fragment = u16::from_be(header.load(offset_of!(Ipv4Hdr, frags))?);
    let [ttl, protocol]: [u8; 2] = header.load(offset_of!(Ipv4Hdr, ttl))?;
    let header_length = ((version_ihl & 0xf) as usize) * 4;
    let offset = fragment & 0x1fff;
    Some(Ip {
        header,
        l4: header.skip(header_length),
        l3_offset,
        family: FAMILY_V4,
        protocol,
        ttl,
        later_fragment: offset != 0,
        first_fragment: offset == 0 && fragment & 0x2000 != 0,
        well_formed: version_ihl >> 4 == 4 && header_length >= Ipv4Hdr::LEN && length >= header_length,
        length,
        l4_length: length.wrapping_sub(header_length),
        source: [source, 0, 0, 0],
        destination: [destination, 0, 0, 0],
    })
}

#[inline(always)]
fn ipv6(header: Packet<'_>, l3_offset: usize) -> Option<Ip<'_>> {
    let [source, destination]: [[u32; 4]; 2] = header.load(offset_of!(Ipv6Hdr, src_addr))?;
    let [version, _flow]: [u8; 2] = header.load(0)?;
    let l4_length = u16::from_be(header.load(offset_of!(Ipv6Hdr, payload_len))?) as usize;
    let [protocol, ttl]: [u8; 2] = header.load(offset_of!(Ipv6Hdr, next_hdr))?;
    Some(Ip {
        header,
        l4: header.skip(Ipv6Hdr::LEN),
        l3_offset,
        family: FAMILY_V6,
        protocol,
        ttl,
        later_fragment: false,
        first_fragment: false,
        well_formed: version >> 4 == 6,
        length: Ipv6Hdr::LEN + l4_length,
        l4_length,
        source,
        destination,
    })
}

/// The ports of a TCP or UDP packet. `None`: the header is not there or contradicts itself.
#[inline(always)]
#[must_use]
pub fn ports(ip: &Ip<'_>) -> Option<Ports> {
    let [source, destination]: [u16; 2] = ip.l4.load(0)?;
    if ip.protocol == TCP {
        let [offset, flags]: [u8; 2] = ip.l4.load(12)?;
        // The rest of the fixed header must be there as well: the checksum may have to be rewritten.
        let _: u32 = ip.l4.load(TcpHdr::LEN - 4)?;
        let header_length = (offset >> 4) as usize * 4;
        let fits = header_length >= TcpHdr::LEN && (header_length <= ip.l4_length || ip.first_fragment);
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        (fits && ip.l4_length >= TcpHdr::LEN).then_some(Ports {
            source,
            destination,
            opens: flags & (SYN | ACK) == SYN,
        })
    } else {
        let length = u16::from_be(ip.l4.load(offset_of!(UdpHdr, len))?) as usize;
        let _: u16 = ip.l4.load(offset_of!(UdpHdr, check))?;
        let fits = length >= UdpHdr::LEN && (length <= ip.l4_length || ip.first_fragment);
        (fits && ip.l4_length >= UdpHdr::LEN).then_some(Ports { source, destination, opens: false })
    }
}
