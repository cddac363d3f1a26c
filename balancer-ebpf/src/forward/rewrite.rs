//! Rewriting addresses, ports and TTL with incremental checksums (RFC 1624). Payload is never touched or summed.

use core::mem::offset_of;

use balancer_common::{
    checksum,
    map_types::{FAMILY_V4, Mac},
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    packet::Packet,
    parse::{Ip, TCP},
};

/// Which end of a packet is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The source address and port.
    Source,
    /// The destination address and port.
    Destination,
}

/// The new end of a packet and what it does to checksums.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// Which end.
    pub end: End,
    /// Network order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Network order; `None` leaves the port alone.
    pub port: Option<u16>,
    /// What the address change adds to a complemented checksum, folded.
    pub address_delta: u16,
    /// What address and port change together add, folded.
    pub l4_delta: u16,
}

/// Writes both link-layer addresses. `None`: the frame is too short.
#[inline(always)]
#[must_use]
pub fn macs(frame: Packet<'_>, destination: Mac, source: Mac) -> Option<()> {
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    frame.store(0, [a, b, c, d, e, f, g, h, i, j, k, l])
}

/// Replaces one end of a TCP or UDP packet and takes one hop off its TTL. `None`: a header is not there; the packet may
/// then be half written and must be dropped. The caller has made sure that the TTL is above 1.
#[inline(always)]
#[must_use]
pub fn translate(ip: &Ip<'_>, new: &Translation) -> Option<()> {
    if ip.family == FAMILY_V4 {
        let address = match new.end {
            End::Source => offset_of!(Ipv4Hdr, src_addr),
            End::Destination => offset_of!(Ipv4Hdr, dst_addr),
        };
        let ttl_protocol: u16 = ip.header.load(offset_of!(Ipv4Hdr, ttl))?;
        let hop_less = u16::from_ne_bytes([ip.ttl.wrapping_sub(1), ip.protocol]);
        let delta = u64::from(new.address_delta) + checksum::replace_u16(ttl_protocol, hop_less);
        let check: u16 = ip.header.load(offset_of!(Ipv4Hdr, check))?;
        ip.header.store(offset_of!(Ipv4Hdr, ttl), hop_less)?;
        ip.header.store(offset_of!(Ipv4Hdr, check), checksum::apply(check, delta))?;
        ip.header.store(address, new.address[0])?;
    } else {
        let address = match new.end {
            End::Source => offset_of!(Ipv6Hdr, src_addr),
            End::Destination => offset_of!(Ipv6Hdr, dst_addr),
        };
        ip.header.store(offset_of!(Ipv6Hdr, hop_limit), ip.ttl.wrapping_sub(1))?;
        ip.header.store(address, new.address)?;
    }
    if let Some(port) = new.port {
        let at = match new.end {
            End::Source => 0,
            End::Destination => 2,
        };
        ip.l4.store(at, port)?;
    }
    let delta = u64::from(new.l4_delta);
    if ip.protocol == TCP {
        const CHECK: usize = offset_of!(TcpHdr, check);
        ip.l4.store(CHECK, checksum::apply(ip.l4.load(CHECK)?, delta))
    } else {
        const CHECK: usize = offset_of!(UdpHdr, check);
        ip.l4.store(CHECK, checksum::apply_udp(ip.l4.load(CHECK)?, delta))
    }
}
