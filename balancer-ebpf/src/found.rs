//! A frame in which the layer-4 header has been found; also the packet that an ICMP error quotes.

use aya_ebpf::bindings::xdp_md;

use crate::{
    features,
    ingress::Ingress,
    opaque,
    packet::Packet,
    parse::{self, ICMP_HEADER_LEN, Ip, Stopped},
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

/// Stores the position of the headers of an unfragmented packet without options and extension headers.
#[inline(always)]
pub(crate) fn keep_plain(ingress: Ingress) {
    balancer_keep_plain(ingress.context());
}

/// This function reads the headers again, so that the path of most packets does not need their position any longer.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_keep_plain(context: *mut xdp_md) -> u64 {
    // SAFETY: `keep_plain` passes the program's context.
    let frame = unsafe { Ingress::new(context) }.frame();
    let keep = |ip: Ip<'_>| store(Row::Kept, ip.place(), 0);
    parse::with_plain_ip(frame, opaque::offset, keep, ()).is_some().into()
}

#[inline(always)]
fn store(row: Row, place: u64, fragment: u64) {
    if let Some(kept) = scratch::place::<Kept>(row) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { kept.write(Kept { place, fragment: fragment as u32, reserved: 0 }) };
    }
}

const FOUND: u64 = 0;
const MALFORMED: u64 = 1;
const WAYPOINT: u64 = 2;

/// Why the program uses no layer-4 header of a packet.
pub(crate) enum Unfound {
    /// The packet passes: it is no IP packet, or its destination address is not the final destination.
    Passes,
    Malformed,
}

/// A flag of the position of a well-formed IP header.
const PLACED: u64 = 1 << 63;

/// The position of the IP header of a frame with the flag [`PLACED`], or [`MALFORMED`] or 0: no IP packet. This is a
/// separate function, so that its stack does not add to that of the function that follows the header.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_ip(context: *mut xdp_md) -> u64 {
    // SAFETY: `of` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    match parse::ip(ingress.frame()) {
        Some(ip) if !features::family(ip.family) => 0,
        Some(ip) if ip.well_formed && ingress.holds_all(&ip) => ip.place() | PLACED,
        Some(_) => MALFORMED,
        None => 0,
    }
}

/// Finds the layer-4 header of the packet whose well-formed IP header is at `place`, and stores the position of the
/// packet's headers for [`Found::again`], or for [`Found::quoted`] if the packet is `quoted`. This is a global function,
/// so the verifier, which follows each of the extension headers, checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_follow(context: *mut xdp_md, place: u64, quoted: u64) -> u64 {
    // SAFETY: the callers pass the program's context.
    let frame = unsafe { Ingress::new(context) }.frame();
    let Some(mut ip) = kept(frame, place, 0) else { return MALFORMED };
    match opaque::follow(frame, &mut ip) {
        Ok(()) => {
            store(if quoted == 0 { Row::Kept } else { Row::Quoted }, ip.place(), ip.fragment.id.into());
            FOUND
        }
        Err(Stopped::Malformed) => MALFORMED,
        Err(Stopped::Waypoint) => WAYPOINT,
    }
}

/// A frame whose layer-4 header has been found.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) ingress: Ingress,
    pub(crate) frame: Packet<'static>,
    pub(crate) ip: Ip<'static>,
}

impl Found {
    /// Finds the layer-4 header of a packet, and stores its position.
    #[inline(always)]
    pub(crate) fn of(ingress: Ingress) -> Result<Self, Unfound> {
        let place = balancer_ip(ingress.context());
        if place & PLACED == 0 {
            return Err(if place == MALFORMED { Unfound::Malformed } else { Unfound::Passes });
        }
        match balancer_follow(ingress.context(), place, 0) {
            FOUND => Self::again(ingress).ok_or(Unfound::Passes),
            MALFORMED => Err(Unfound::Malformed),
            _ => Err(Unfound::Passes),
        }
    }

    /// Reads the position of the headers that an earlier step has stored.
    #[inline(always)]
    pub(crate) fn again(ingress: Ingress) -> Option<Self> {
        let frame = ingress.frame();
        Some(Self { ingress, frame, ip: stored(frame, Row::Kept)? })
    }

    /// The packet that an ICMP error quotes, after an earlier step has [found](find_quoted) its headers.
    #[inline(always)]
    pub(crate) fn quoted(&self) -> Option<Ip<'static>> {
        stored(self.frame, Row::Quoted)
    }
}

/// Finds the headers of the packet that an ICMP error quotes, and stores their position for [`Found::quoted`]. Returns
/// whether the packet is quoted as far as the program needs it.
#[inline(always)]
pub(crate) fn find_quoted(ingress: Ingress) -> bool {
    let place = balancer_quoted(ingress.context());
    place != 0
        && balancer_follow(ingress.context(), place, 1) == FOUND
        && balancer_quotes_enough(ingress.context()) != 0
}

/// The position of the IP header of the packet that an ICMP error quotes, with the flag [`PLACED`]; 0: there is none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_quoted(context: *mut xdp_md) -> u64 {
    // SAFETY: `find_quoted` passes the program's context.
    let Some(Found { frame, ip, .. }) = Found::again(unsafe { Ingress::new(context) }) else { return 0 };
    match parse::inner(frame, ip.l4_offset() + ICMP_HEADER_LEN, ip.family) {
        Some(inner) => inner.place() | PLACED,
        None => 0,
    }
}

/// Whether the headers of the quoted packet lie within the error.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_quotes_enough(context: *mut xdp_md) -> u64 {
    // SAFETY: `find_quoted` passes the program's context.
    let Some(found) = Found::again(unsafe { Ingress::new(context) }) else { return 0 };
    let Some(inner) = found.quoted() else { return 0 };
    let room = found.ip.l4_length().wrapping_sub(ICMP_HEADER_LEN);
    let needed = inner.headers_length + if inner.fragment.is_later() { 0 } else { PORTS_LEN };
    (needed <= room).into()
}

#[inline(always)]
fn stored(frame: Packet<'static>, row: Row) -> Option<Ip<'static>> {
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let Kept { place, fragment, .. } = unsafe { scratch::place::<Kept>(row)?.read() };
    kept(frame, place, fragment)
}

/// Calls [`Ip::kept`] for a packet of a family that the configuration uses.
#[inline(always)]
pub(crate) fn kept(frame: Packet<'_>, place: u64, fragment: u32) -> Option<Ip<'_>> {
    Ip::kept(frame, place, fragment).filter(|ip| features::family(ip.family))
}
