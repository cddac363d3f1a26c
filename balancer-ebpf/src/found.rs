//! A frame in which the layer-4 header has been found; also the packet that an ICMP error quotes.

use crate::{
    ingress::Ingress,
    opaque,
    packet::Packet,
    parse::{self, ICMP_HEADER_LEN, Ip, TCP, UDP},
    scratch::{self, Row},
};

/// Length of the source port and the destination port together.
const PORTS_LEN: usize = 4;

/// The position of a packet's headers, stored for later steps of the packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kept {
    place: u64,
    /// The identification field of the packet, if the packet is a fragment.
    fragment: u32,
    reserved: u32,
}

/// Stores the position of a packet's headers, which [`Found::again`] reads.
#[inline(always)]
pub(crate) fn keep(ip: &Ip<'_>) {
    balancer_keep(ip.place(), ip.fragment.id.into());
}

/// This is a separate function, so that its stack does not add to that of its callers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_keep(place: u64, fragment: u64) -> u64 {
    if let Some(kept) = scratch::place::<Kept>(Row::Kept) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { kept.write(Kept { place, fragment: fragment as u32, reserved: 0 }) };
    }
    0
}

/// A frame whose layer-4 header has been found.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) ingress: Ingress,
    pub(crate) frame: Packet<'static>,
    pub(crate) ip: Ip<'static>,
}

impl Found {
    #[inline(always)]
    pub(crate) fn of(ingress: Ingress) -> Option<Self> {
        let frame = ingress.frame();
        let mut ip = parse::ip(frame)?;
        opaque::follow(frame, &mut ip).ok()?;
        keep(&ip);
        Some(Self { ingress, frame, ip })
    }

    /// Finds the header quickly if the packet has no options and no extension headers, which is true of most packets.
    #[inline(always)]
    pub(crate) fn plain(ingress: Ingress) -> Option<Self> {
        let frame = ingress.frame();
        // In an IPv6 fragment, ports may still follow another extension header.
        let plain = |ip: Ip<'static>| {
            let has_ports = ip.protocol == TCP || ip.protocol == UDP;
            if has_ports {
                keep(&ip);
            }
            has_ports
        };
        if parse::with_plain_ip(frame, plain, false)? || Self::of(ingress).is_some() {
            Self::again(ingress)
        } else {
            None
        }
    }

    /// Reads the position of the headers that an earlier step has [stored](keep).
    #[inline(always)]
    pub(crate) fn again(ingress: Ingress) -> Option<Self> {
        let frame = ingress.frame();
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        let Kept { place, fragment, .. } = unsafe { scratch::place::<Kept>(Row::Kept)?.read() };
        let ip = Ip::kept(frame, place, fragment)?;
        Some(Self { ingress, frame, ip })
    }

    /// The packet that an ICMP error quotes. `None`: the quote is too short or malformed.
    #[inline(always)]
    pub(crate) fn quoted(&self) -> Option<Ip<'static>> {
        let Self { frame, ip, .. } = self;
        let mut inner = parse::inner(*frame, ip.l4_offset() + ICMP_HEADER_LEN, ip.family)?;
        opaque::follow(*frame, &mut inner).ok()?;
        let room = ip.l4_length().wrapping_sub(ICMP_HEADER_LEN);
        let needed = inner.headers_length + if inner.fragment.is_later() { 0 } else { PORTS_LEN };
        (needed <= room).then_some(inner)
    }
}
