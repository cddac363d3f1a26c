//! ICMP errors about packets of flows between families: the program replaces the IP header, the ICMP header and the IP
//! header of the quoted packet (RFC 7915 sections 4.2, 4.3, 5.2 and 5.3).

use balancer_common::{
    checksum,
    map_types::{FAMILY_V4, FlowRow},
    verdict::DropReason,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use super::{Header, headers};
use crate::{
    flows::rewriting::{self, Place},
    found::Found,
    link,
    packet::Packet,
    parse::{Fragment, ICMP, ICMP_CHECK, ICMP_HEADER_LEN, ICMP_V6, Ip, TCP},
    step::Toward,
    sum,
};

/// The longest ICMPv6 error (RFC 4443 section 2.4), which is also the smallest MTU of IPv6.
const LEAST_MTU_V6: u32 = 1280;
/// The number of bytes by which the header of IPv6 is longer.
const LONGER: u32 = (Ipv6Hdr::LEN - Ipv4Hdr::LEN) as u32;
const TCP_CHECK: usize = core::mem::offset_of!(TcpHdr, check);
const UDP_CHECK: usize = super::UDP_CHECK;

/// The type and the code of an ICMP error as a word in memory order, and the second word of the message.
#[derive(Clone, Copy)]
struct Message {
    kind: u16,
    rest: u32,
}

impl Message {
    const fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self { kind: u16::from_ne_bytes([kind, code]), rest: rest.to_be() }
    }

    /// The message of ICMPv6 with the meaning of this message of ICMP. `None`: there is none.
    #[inline(always)]
    const fn to_v6(self) -> Option<Self> {
        let [kind, code] = self.kind.to_ne_bytes();
        Some(match (kind, code) {
            (3, 4) => {
                let mtu = (u32::from_be(self.rest) & 0xffff) + LONGER;
                Self::new(2, 0, if mtu < LEAST_MTU_V6 { LEAST_MTU_V6 } else { mtu })
            }
            (3, 3) => Self::new(1, 4, 0),
            (3, 9 | 10 | 13 | 15) => Self::new(1, 1, 0),
            (3, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => Self::new(1, 0, 0),
            (11, code) => Self::new(3, code, 0),
            _ => return None,
        })
    }

    /// The message of ICMP with the meaning of this message of ICMPv6. `None`: there is none.
    #[inline(always)]
    const fn to_v4(self) -> Option<Self> {
        let [kind, code] = self.kind.to_ne_bytes();
        Some(match (kind, code) {
            (2, _) => {
                let mtu = u32::from_be(self.rest).saturating_sub(LONGER);
                Self::new(3, 4, if mtu > 0xffff { 0xffff } else { mtu })
            }
            (1, 4) => Self::new(3, 3, 0),
            (1, 1) => Self::new(3, 10, 0),
            (1, 0 | 2 | 3) => Self::new(3, 1, 0),
            (3, code) => Self::new(11, code, 0),
            _ => return None,
        })
    }

    #[inline(always)]
    const fn sum(self) -> u64 {
        self.kind as u64 + checksum::sum_u32(self.rest)
    }
}

/// Replaces the headers of an ICMP error about a flow's packet. `None`: the other family has no such error, or the
/// quoted packet is a fragment or has options. Views of the frame that were created before the call become invalid.
#[inline(always)]
pub(super) fn cross(found: &Found, row: &FlowRow, toward: Toward) -> Result<(), DropReason> {
    translated(found, row, toward).ok_or(DropReason::Malformed)
}

#[inline(always)]
fn translated(found: &Found, row: &FlowRow, toward: Toward) -> Option<()> {
    let Found { ingress, ip, .. } = found;
    let inner = found.quoted()?;
    let family = rewriting::family(row, toward);
    let (old, new) = (headers(ip.family, Fragment::NONE), headers(family, Fragment::NONE));
    if inner.fragment.is_part() || inner.headers_length != old {
        return None;
    }
    let before = Message { kind: ip.l4.load(0)?, rest: ip.l4.load(4)? };
    let after = if family == FAMILY_V4 { before.to_v4()? } else { before.to_v6()? };
    let message = ip.l4_length().wrapping_sub(old).wrapping_add(new);
    if family != FAMILY_V4 && (new + message) as u32 > LEAST_MTU_V6 {
        return None;
    }
    let quoted = Header {
        traffic_class: inner.traffic_class()?,
        ttl: inner.ttl(),
        protocol: inner.protocol,
        payload: inner.length.wrapping_sub(old),
        fragment: Fragment::NONE,
    };
    let outer = Header {
        traffic_class: ip.traffic_class()?,
        ttl: ip.ttl().wrapping_sub(1),
        protocol: if family == FAMILY_V4 { ICMP } else { ICMP_V6 },
        payload: message,
        fragment: Fragment::NONE,
    };
    let removed = before.sum() + sum_header(inner.header, ip.family)? + pseudo(ip.family, ip.header, ip.l4_length())?;
    let layer4 = quoted_ports(ip, &inner, row, toward)?;
    let check: u16 = ip.l4.load(ICMP_CHECK)?;
    let tags = link::tags(ingress.frame())?;
    let (l3_offset, length) = (ip.l3_offset, ip.headers_length);
    let longer = (2 * new + ICMP_HEADER_LEN) as i32;
    ingress.grow_head(longer.wrapping_sub((length + ICMP_HEADER_LEN + old) as i32))?;
    let frame = ingress.frame();
    link::store_tags(frame, tags, l3_offset, family)?;
    let at = frame.skip(l3_offset);
    let [from, to] = rewriting::ends(row, toward);
    outer.store(at, family, [from, to])?;
    let l4 = at.skip(new);
    let header = l4.skip(ICMP_HEADER_LEN);
    quoted.store(header, family, [to, from])?;
    let added = after.sum() + sum_header(header, family)? + pseudo(family, at, message)?;
    let delta = u64::from(!checksum::fold(removed)) + u64::from(checksum::fold(added)) + layer4;
    l4.store(0, after.kind)?;
    l4.store(ICMP_CHECK, checksum::apply(check, delta))?;
    l4.store(4, after.rest)
}

/// Replaces the ports and the checksum of the quoted packet, which travelled in the opposite direction. Returns the
/// amount that these changes add to a complemented checksum.
#[inline(always)]
fn quoted_ports(ip: &Ip<'_>, inner: &Ip<'_>, row: &FlowRow, toward: Toward) -> Option<u64> {
    let [from, to]: [Place<'_>; 2] = rewriting::ends(row, toward);
    let ports = u32::from(to.port) | u32::from(from.port) << 16;
    let mut delta = checksum::replace_u32(inner.l4.load(0)?, ports);
    inner.l4.store(0, ports)?;
    // The quote ends with the error; link-layer padding may follow.
    let quoted = ip.l4_length().wrapping_sub(ICMP_HEADER_LEN).wrapping_sub(inner.headers_length);
    let at = if inner.protocol == TCP { TCP_CHECK } else { UDP_CHECK };
    if quoted >= at + 2 {
        let old: u16 = inner.l4.load(at)?;
        let all = u64::from(rewriting::all(row, toward));
        let new = if inner.protocol == TCP { checksum::apply(old, all) } else { checksum::apply_udp(old, all) };
        delta += checksum::replace_u16(old, new);
        inner.l4.store(at, new)?;
    }
    Some(delta)
}

/// The sum of an IP header without options.
#[inline(always)]
fn sum_header(at: Packet<'_>, family: u8) -> Option<u64> {
    let sum = sum_half(at, 0)?;
    if family == FAMILY_V4 { Some(sum) } else { Some(sum + sum_half(at, Ipv6Hdr::LEN / 2)?) }
}

/// The sum of as many bytes as the IPv4 header or half of the IPv6 header has.
#[inline(always)]
fn sum_half(bytes: Packet<'_>, at: usize) -> Option<u64> {
    let [a, b, c, d, e]: [u32; 5] = bytes.load(at)?;
    let [a, b, c, d, e] = [a, b, c, d, e].map(checksum::sum_u32);
    Some(a + b + c + d + e)
}

/// The sum over the pseudo-header of an ICMPv6 message of `length` bytes. ICMP has no pseudo-header.
#[inline(always)]
fn pseudo(family: u8, header: Packet<'_>, length: usize) -> Option<u64> {
    const ADDRESSES: usize = core::mem::offset_of!(Ipv6Hdr, src_addr);
    if family == FAMILY_V4 {
        return Some(0);
    }
    let [source, destination]: [[u32; 4]; 2] = header.load(ADDRESSES)?;
    Some(sum::pseudo_header(&source, &destination, length, ICMP_V6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(message: Message) -> (u8, u8, u32) {
        let [kind, code] = message.kind.to_ne_bytes();
        (kind, code, u32::from_be(message.rest))
    }

    #[test]
    fn when_an_error_has_a_counterpart_in_the_other_family_then_it_becomes_this_counterpart() {
        for ((kind, code, rest), expected) in [
            ((3, 4, 1400), Some((2, 0, 1420))),
            ((3, 4, 0), Some((2, 0, 1280))),
            ((3, 4, 0xffff_0578), Some((2, 0, 1420))),
            ((3, 3, 0), Some((1, 4, 0))),
            ((3, 1, 0), Some((1, 0, 0))),
            ((3, 13, 0), Some((1, 1, 0))),
            ((11, 0, 0), Some((3, 0, 0))),
            ((11, 1, 0), Some((3, 1, 0))),
            ((3, 2, 0), None),
            ((12, 0, 0), None),
        ] {
            assert_eq!(Message::new(kind, code, rest).to_v6().map(parts), expected, "{kind} {code}");
        }
        for ((kind, code, rest), expected) in [
            ((2, 0, 1280), Some((3, 4, 1260))),
            ((2, 0, u32::MAX), Some((3, 4, 0xffff))),
            ((2, 0, 5), Some((3, 4, 0))),
            ((1, 4, 0), Some((3, 3, 0))),
            ((1, 1, 0), Some((3, 10, 0))),
            ((1, 0, 0), Some((3, 1, 0))),
            ((3, 0, 0), Some((11, 0, 0))),
            ((4, 1, 40), None),
        ] {
            assert_eq!(Message::new(kind, code, rest).to_v4().map(parts), expected, "{kind} {code}");
        }
    }
}
