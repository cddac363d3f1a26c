//! `ipip` and `gue`: the program lowers the packet's TTL and sends the packet, otherwise unchanged, to the backend
//! behind an outer header.
//!
//! The outer header copies "don't fragment" (RFC 2003; always set for an inner IPv6 packet, which routers never
//! fragment) and the traffic class with its congestion bits (RFC 6040, normal mode). GUE is variant 1: the IP packet
//! directly follows the UDP header. The UDP header has no checksum, even over IPv6, because the inner packet has its
//! own checksum (RFC 6935, RFC 6936). The UDP source port, or the IPv6 flow label (RFC 6438), differs between clients,
//! so that routers spread clients over paths.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, macros::map, maps::PerCpuArray};
use balancer_common::{
    client,
    map_types::{BACKEND_V6, BackendRow, FAMILY_V4, FAMILY_V6, Forwarding, GUE_PORT},
    verdict::DropReason,
};
use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    backends::Reachable,
    debug_log::{self, Oddity},
    devices,
    forward::rewrite,
    ingress::Ingress,
    link::{self, V4, V6},
    packet::Packet,
    parse::{Ip, UDP},
    step::Step,
};

const OUTER_TTL: u8 = 64;
const IPIP: u8 = Forwarding::Ipip as u8;
const GUE: u8 = Forwarding::Gue as u8;
pub(super) const MALFORMED: Step = Step::drop(DropReason::Malformed);

/// The number of outer IPv4 packets without "don't fragment" that this CPU has sent.
#[map]
static IDS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Wraps a plain packet in an outer packet to its backend, and returns the number of bytes added. `None`: this function
/// has changed nothing, and [`super::encapsulate`] must handle the packet.
#[inline(always)]
pub(super) fn wrap_plain(ingress: Ingress, ip: &Ip<'_>, backend: Reachable) -> Option<Result<usize, Step>> {
    let row = backend.row;
    if ip.l3_offset != EthHdr::LEN || ip.ttl() <= 1 || devices::must_be_asked(ingress, ip, row) {
        return None;
    }
    let ip = &Ip { l3_offset: EthHdr::LEN, ..*ip };
    // The compiler compiles each kind of tunnel separately, so constants that depend on the kind cost nothing at run
    // time.
    let v6 = backend.flags & BACKEND_V6 != 0;
    match row.mode() {
        IPIP if v6 => wrap_fitting(ingress, ip, row, Tunnel { gue: false, v6: true }),
        IPIP => wrap_fitting(ingress, ip, row, Tunnel { gue: false, v6: false }),
        GUE if v6 => wrap_fitting(ingress, ip, row, Tunnel { gue: true, v6: true }),
        GUE => wrap_fitting(ingress, ip, row, Tunnel { gue: true, v6: false }),
        _ => None,
    }
}

#[inline(always)]
fn wrap_fitting(ingress: Ingress, ip: &Ip<'_>, row: &BackendRow, tunnel: Tunnel) -> Option<Result<usize, Step>> {
    let longest = row.mtu.min(u32::from(u16::MAX)) as usize;
    if ip.length + tunnel.overhead() <= longest { Some(wrap(ingress, ip, ip.family, row, tunnel)) } else { None }
}

/// The outer headers that precede the packets to a backend.
#[derive(Clone, Copy)]
pub(super) struct Tunnel {
    gue: bool,
    v6: bool,
}

impl Tunnel {
    #[inline(always)]
    pub(super) fn of(backend: Reachable) -> Self {
        Self { gue: backend.row.mode() == Forwarding::Gue as u8, v6: backend.flags & BACKEND_V6 != 0 }
    }

    /// The length of the outer headers in bytes.
    #[inline(always)]
    pub(super) const fn overhead(self) -> usize {
        let ip = if self.v6 { Ipv6Hdr::LEN } else { Ipv4Hdr::LEN };
        if self.gue { UdpHdr::LEN + ip } else { ip }
    }

    #[inline(always)]
    const fn protocol(self, inner: u8) -> u8 {
        match (self.gue, inner) {
            (true, _) => UDP,
            (false, FAMILY_V4) => IpProto::Ipv4 as u8,
            (false, _) => IpProto::Ipv6 as u8,
        }
    }
}

/// Wraps a packet of this `family` in an outer packet, and returns the number of bytes added. Views of the frame that
/// were created before the call become invalid.
#[inline(always)]
pub(super) fn wrap(ingress: Ingress, ip: &Ip<'_>, family: u8, row: &BackendRow, tunnel: Tunnel) -> Result<usize, Step> {
    let inner = Inner::of(ip, family).ok_or(MALFORMED)?;
    rewrite::one_hop_less(ip).ok_or(MALFORMED)?;
    let overhead = tunnel.overhead();
    ingress.grow_head(overhead as i32).ok_or_else(|| {
        debug_log::tell(Oddity::NoHeadroom, overhead as u32);
        Step::drop(DropReason::NoHeadroom)
    })?;
    put(ingress.frame(), &inner, row, tunnel).ok_or(MALFORMED)?;
    Ok(overhead)
}

/// The values of the inner headers that the outer headers need; they are copied because the views of the frame become
/// invalid.
struct Inner {
    l3_offset: usize,
    length: usize,
    family: u8,
    tos: u8,
    may_be_fragmented: bool,
    entropy: u16,
}

impl Inner {
    #[inline(always)]
    fn of(ip: &Ip<'_>, family: u8) -> Option<Self> {
        Some(Self {
            l3_offset: ip.l3_offset,
            length: ip.length,
            family,
            tos: ip.traffic_class()?,
            may_be_fragmented: ip.may_be_fragmented(),
            entropy: client::entropy(&ip.source),
        })
    }
}

/// Writes the link-layer header and the outer headers into the space added in front of the packet.
#[inline(always)]
fn put(frame: Packet<'_>, inner: &Inner, row: &BackendRow, tunnel: Tunnel) -> Option<()> {
    let family = if tunnel.v6 { FAMILY_V6 } else { FAMILY_V4 };
    if inner.l3_offset != EthHdr::LEN {
        link::relocate(frame, tunnel.overhead(), 0, inner.l3_offset, family)?;
        rewrite::macs_to(frame, row)?;
    } else {
        link::store_ethernet(frame, row, family)?;
    }
    let outer = frame.skip(inner.l3_offset);
    let l4 = if tunnel.v6 {
        let header = V6 {
            traffic_class: inner.tos,
            flow_label: u32::from(inner.entropy),
            payload_length: tunnel.overhead() - Ipv6Hdr::LEN + inner.length,
            next_header: tunnel.protocol(inner.family),
            hop_limit: OUTER_TTL,
        };
        link::store_v6(outer, &header, &row.tunnel_source, &row.address)?;
        outer.skip(Ipv6Hdr::LEN)
    } else {
        let header = V4 {
            tos: inner.tos,
            length: tunnel.overhead() + inner.length,
            id: inner.may_be_fragmented.then(next_id),
            fragment: 0,
            ttl: OUTER_TTL,
            protocol: tunnel.protocol(inner.family),
            source: row.tunnel_source[0],
            destination: row.address[0],
        };
        link::store_v4_between(outer, &header, u64::from(row.address_sum))?;
        outer.skip(Ipv4Hdr::LEN)
    };
    if !tunnel.gue {
        return Some(());
    }
    let length = (UdpHdr::LEN + inner.length) as u16;
    l4.store(0, [inner.entropy.to_be(), GUE_PORT.to_be(), length.to_be(), 0u16])
}

/// The identification of the next outer IPv4 packet that may be fragmented. Each CPU counts from its own start value,
/// so that two CPUs use the same number as far apart in time as possible.
#[inline(always)]
pub(crate) fn next_id() -> u16 {
    let Some(count) = IDS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let (count, cpu) = unsafe {
        *count += 1;
        (*count, bpf_get_smp_processor_id())
    };
    (count as u16).wrapping_add((cpu as u16).reverse_bits())
}
