//! A frame whose layer-4 header has been found, and what an ICMP error quotes.

use crate::{
    ingress::Ingress,
    opaque,
    packet::Packet,
    parse::{self, ICMP_HEADER_LEN, Ip},
};

/// Source and destination port.
const PORTS_LEN: usize = 4;

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
        Some(Self { ingress, frame, ip })
    }

    /// The packet that an ICMP error quotes. `None`: too short, or broken.
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
