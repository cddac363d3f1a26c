//! Packets of flows whose client and backend have different address families: the program replaces the IP header (RFC
//! 7915). The sums over the pseudo-headers of both families differ only by the addresses, so the checksums of TCP and
//! UDP change as in a flow of one family.

mod errors;

use balancer_common::{
    checksum,
    map_types::{FAMILY_V4, FlowRow},
    verdict::{DecisionIndex, DropReason},
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    backends,
    debug_log::{self, Oddity},
    flows::{
        rewriting::{self, Place},
        table::Flow,
    },
    forward::{self, neighbour, rewrite, tunnel},
    found::Found,
    ingress::Ingress,
    link::{self, V4, V6},
    packet::Packet,
    parse::{FRAGMENT, Fragment, Ip, TCP, UDP},
    step::{Choice, FlowCross, FlowCrossError, IcmpError, Kind, Packed, Step, Toward},
    sum,
};

/// A bound for the length of headers before layer 4, as a bit mask for the verifier.
const MAX_HEADERS: usize = 0x7ff;
/// The length of a fragment header of IPv6.
const FRAGMENT_LEN: usize = 8;
const UDP_LENGTH: usize = core::mem::offset_of!(UdpHdr, len);
const UDP_CHECK: usize = core::mem::offset_of!(UdpHdr, check);
/// Longer IPv4 packets may not be fragmented, so that their senders can find the MTU of the path (RFC 7915 section 5.1).
const MAX_FRAGMENTED: usize = 1260;

/// The length of the headers before layer 4 of a packet of `family`.
#[inline(always)]
pub(super) const fn headers(family: u8, fragment: Fragment) -> usize {
    if family == FAMILY_V4 {
        Ipv4Hdr::LEN
    } else if fragment.is_part() {
        Ipv6Hdr::LEN + FRAGMENT_LEN
    } else {
        Ipv6Hdr::LEN
    }
}

/// Whether a packet can become a packet of `family` that is not too long for its path; `mtu` is the MTU of the path, or
/// 0 if the MTU is unknown. The error that the sender gets contains the MTU for packets of the sender's family.
#[inline(always)]
pub(super) fn may_cross(ip: &Ip<'_>, family: u8, mtu: u32) -> Result<(), Step> {
    if lacks_checksum(ip) && !can_be_added_up(ip) {
        return Err(Step::drop(DropReason::Malformed));
    }
    let new = headers(family, ip.fragment) as u64;
    match balancer_flow_too_long(ip.length as u64, ip.headers_length as u64, new, mtu.into()) {
        0 => Ok(()),
        mtu => Err(Step::to(IcmpError::TooBig(mtu as u32))),
    }
}

/// The MTU that the sender of a packet must learn; 0: the packet is not too long. The arguments are the length of the
/// packet, the lengths of its headers before layer 4 now and after the change, and the MTU of the path. This is a
/// separate function, so that its stack does not add to that of its callers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_too_long(length: u64, old: u64, new: u64, mtu: u64) -> u64 {
    if mtu == 0 || length.wrapping_sub(old).wrapping_add(new) <= mtu {
        return 0;
    }
    mtu.wrapping_add(old).wrapping_sub(new)
}

/// The step for a packet of a flow that otherwise takes the step `end`, which sends the packet.
#[inline(always)]
pub(super) fn step(flow: &Flow, toward: Toward, end: Step) -> Step {
    Step::to(payload(flow, toward, end))
}

/// The step for an ICMP error that otherwise takes the step `end`, which sends the error.
#[inline(always)]
pub(super) fn error_step(flow: &Flow, toward: Toward, end: Step) -> Step {
    Step::to(FlowCrossError(payload(flow, toward, end)))
}

#[inline(always)]
fn payload(flow: &Flow, toward: Toward, end: Step) -> FlowCross {
    FlowCross { flow: flow.name(), toward, handed: end.is(Kind::Handed) }
}

/// Replaces the headers of a packet, for which an earlier step has counted and found the path, and sends the packet.
#[inline(always)]
pub(crate) fn send(found: &Found, packed: Packed<FlowCross>) -> Step {
    let FlowCross { flow, toward, .. } = packed.get();
    let Some(flow) = Flow::named(flow) else { return Step::drop(DropReason::FlowUnknown) };
    let crossed = cross(found, flow.row(), toward);
    finish(found, packed.get(), &flow, crossed)
}

/// Like [`send`], for an ICMP error about a packet of a flow.
#[inline(always)]
pub(crate) fn send_error(found: &Found, packed: Packed<FlowCrossError>) -> Step {
    let FlowCrossError(cross) = packed.get();
    let Some(flow) = Flow::named(cross.flow) else { return Step::drop(DropReason::FlowUnknown) };
    let crossed = errors::cross(found, flow.row(), cross.toward);
    finish(found, packed.get().0, &flow, crossed)
}

/// Sends a packet whose headers have been replaced, unless this has failed.
#[inline(always)]
fn finish(
    found: &Found,
    FlowCross { toward, handed, .. }: FlowCross,
    flow: &Flow,
    crossed: Result<(), DropReason>,
) -> Step {
    if let Err(reason) = crossed {
        return Step::drop(reason);
    }
    if !flow.is_still() {
        return Step::drop(DropReason::Malformed);
    }
    let found = Found { frame: found.ingress.frame(), ..*found };
    match toward {
        Toward::Backend => to_backend(&found, flow),
        Toward::Client => to_client(&found, handed),
    }
}

#[inline(always)]
fn to_backend(found: &Found, flow: &Flow) -> Step {
    let choice = Choice { backend: flow.row().backend_id, decision: DecisionIndex::NONE };
    match backends::reachable(choice.backend) {
        Some(backend) => {
            let step = Step::send(found.ingress.ifindex(), backend.row.ifindex);
            forward::hand_flow(found, backend, choice, step)
        }
        None => Step::drop(DropReason::NoNextHop),
    }
}

#[inline(always)]
fn to_client(found: &Found, handed: bool) -> Step {
    match neighbour::macs().and_then(|(to, from)| rewrite::macs(found.frame, to, from)) {
        Some(()) if handed => Step::HANDED,
        Some(()) => Step::send(found.ingress.ifindex(), neighbour::egress()),
        None => Step::drop(DropReason::Malformed),
    }
}

/// Replaces the headers of a packet before layer 4, the ports and the checksum. Views of the frame that were created
/// before the call become invalid.
#[inline(always)]
fn cross(found: &Found, row: &FlowRow, toward: Toward) -> Result<(), DropReason> {
    let new = headers(rewriting::family(row, toward), found.ip.fragment);
    let (header, tags) = prepared(found, row, toward).ok_or(DropReason::Malformed)?;
    resize(found.ingress, found.ip.headers_length, new)?;
    placed(found, header, tags, row, toward).ok_or(DropReason::Malformed)
}

/// Makes the frame longer or shorter by the difference of the headers' lengths.
#[inline(always)]
fn resize(ingress: Ingress, old: usize, new: usize) -> Result<(), DropReason> {
    let longer = (new as i32).wrapping_sub(old as i32);
    ingress.grow_head(longer).ok_or_else(|| {
        debug_log::tell(Oddity::NoHeadroom, longer as u32);
        DropReason::NoHeadroom
    })
}

/// Replaces the ports and the checksum, and reads what the new headers need.
#[inline(always)]
fn prepared(found: &Found, row: &FlowRow, toward: Toward) -> Option<(Header, [u32; 2])> {
    let Found { frame, ip, .. } = found;
    if ip.family != FAMILY_V4 && ip.fragment.is_part() && !ends_with_fragment(ip) {
        return None;
    }
    if !ip.fragment.is_later() {
        rewriting::ports_of(ip, row, toward)?;
        if lacks_checksum(ip) {
            add_checksum(found, rewriting::ends(row, toward))?;
        }
    }
    let header = Header {
        traffic_class: ip.traffic_class()?,
        ttl: ip.ttl().wrapping_sub(1),
        protocol: ip.protocol,
        payload: ip.l4_length(),
        fragment: ip.fragment,
    };
    Some((header, link::tags(*frame)?))
}

/// Writes the link-layer header and the new headers before layer 4.
#[inline(always)]
fn placed(found: &Found, header: Header, tags: [u32; 2], row: &FlowRow, toward: Toward) -> Option<()> {
    let (frame, l3_offset) = (found.ingress.frame(), found.ip.l3_offset);
    let family = rewriting::family(row, toward);
    link::store_tags(frame, tags, l3_offset, family)?;
    header.store(frame.skip(l3_offset), family, rewriting::ends(row, toward))
}

/// Whether the fragment header is the last of an IPv6 fragment's headers. Headers behind it belong to the fragmented
/// part of the packet, and IPv4 has no counterpart for them (RFC 7915 section 5.1.1).
#[inline(always)]
fn ends_with_fragment(ip: &Ip<'_>) -> bool {
    const ID_LEN: usize = size_of::<u32>();
    let known = ip.protocol == TCP || ip.protocol == UDP;
    known && ip.header.skip(ip.headers_length.wrapping_sub(ID_LEN) & MAX_HEADERS).load(0) == Some(ip.fragment.id)
}

/// Whether the packet begins a datagram without a checksum. IPv6 requires a checksum.
#[inline(always)]
fn lacks_checksum(ip: &Ip<'_>) -> bool {
    ip.family == FAMILY_V4 && ip.protocol == UDP && !ip.fragment.is_later() && ip.l4.load::<u16>(UDP_CHECK) == Some(0)
}

/// Whether the program can write the missing checksum of a datagram: the datagram is whole, and not longer than the
/// program can add up.
#[inline(always)]
fn can_be_added_up(ip: &Ip<'_>) -> bool {
    let length = ip.l4_length();
    let whole = ip.l4.load(UDP_LENGTH).is_some_and(|field| usize::from(u16::from_be(field)) == length);
    whole && !ip.fragment.is_part() && length <= sum::LONGEST && ip.l4.holds(length)
}

/// Writes the checksum of a datagram without one. `None`: the program cannot add up the datagram.
#[inline(always)]
fn add_checksum(found: &Found, [from, to]: [Place<'_>; 2]) -> Option<()> {
    let Found { ingress, ip, .. } = found;
    let length = ip.l4_length();
    if !can_be_added_up(ip) {
        return None;
    }
    let pseudo = sum::pseudo_header(from.address, to.address, length, UDP);
    let check = match !checksum::fold(pseudo + sum::of(*ingress, ip.l4_offset(), length)) {
        0 => 0xffff,
        check => check,
    };
    ip.again(ingress.frame()).l4.store(UDP_CHECK, check)
}

/// The fields of an IP header that both families have.
struct Header {
    traffic_class: u8,
    ttl: u8,
    protocol: u8,
    /// The length of the packet from layer 4 on.
    payload: usize,
    fragment: Fragment,
}

impl Header {
    /// Writes the headers before layer 4 of a packet of `family`.
    #[inline(always)]
    fn store(&self, at: Packet<'_>, family: u8, [from, to]: [Place<'_>; 2]) -> Option<()> {
        if family == FAMILY_V4 {
            link::store_v4(at, &self.v4(from, to))
        } else if self.fragment.is_part() {
            link::store_v6(at, &self.v6(FRAGMENT, FRAGMENT_LEN), from.address, to.address)?;
            let [high, low] = self.fragment.as_v6().to_be_bytes();
            // The identification of a fragmented IPv4 packet has 16 bits.
            at.skip(Ipv6Hdr::LEN).store(0, [u32::from_ne_bytes([self.protocol, 0, high, low]), self.fragment.id << 16])
        } else {
            link::store_v6(at, &self.v6(self.protocol, 0), from.address, to.address)
        }
    }

    #[inline(always)]
    fn v4(&self, from: Place<'_>, to: Place<'_>) -> V4 {
        let length = Ipv4Hdr::LEN + self.payload;
        let id = if self.fragment.is_part() {
            Some((self.fragment.id >> 16) as u16)
        } else if length <= MAX_FRAGMENTED {
            Some(tunnel::next_id())
        } else {
            None
        };
        V4 {
            tos: self.traffic_class,
            length,
            id,
            fragment: self.fragment.as_v4(),
            ttl: self.ttl,
            protocol: self.protocol,
            source: from.address[0],
            destination: to.address[0],
        }
    }

    #[inline(always)]
    const fn v6(&self, next_header: u8, more: usize) -> V6 {
        V6 {
            traffic_class: self.traffic_class,
            flow_label: 0,
            payload_length: self.payload + more,
            next_header,
            hop_limit: self.ttl,
        }
    }
}
