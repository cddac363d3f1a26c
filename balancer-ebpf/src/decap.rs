//! The program of `balancer decap` runs on a backend: the program removes the outer headers of `ipip` and `gue` packets
//! and hands the inner packets to the kernel.
//!
//! Outer fragments pass to the kernel, which reassembles them if the kernel has a tunnel device of its own.

use core::{mem::offset_of, ptr};

use aya_ebpf::{
    Global,
    macros::map,
    maps::{
        HashMap, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use balancer_common::{
    checksum,
    map_types::{
        DECAP_OWN, DECAP_PREFIX_BITS, DECAP_VIP, DecapKey, DecapPrefix, DecapStats, FAMILY_V4, FAMILY_V6, GUE_PORT,
        MAX_DECAP_ADDRESSES, MAX_DECAP_PREFIXES,
    },
};
use network_types::{
    ip::{IpProto, Ipv4Hdr},
    udp::UdpHdr,
};

use crate::{
    ingress::Ingress,
    link, opaque, order,
    packet::Packet,
    parse::{self, Ip, UDP},
    rules,
};

/// The machine's local addresses, each with its kind: `DECAP_*`.
#[map]
static DECAP_ADDRESSES: HashMap<DecapKey, u32> = HashMap::with_max_entries(MAX_DECAP_ADDRESSES, 0);

/// The source prefixes from which the program accepts tunnel packets if [`DECAP_FROM_SOME`] is set. Only the keys of
/// this map have a meaning; its values do not.
#[map]
static DECAP_FROM: LpmTrie<DecapPrefix, u32> = LpmTrie::with_max_entries(MAX_DECAP_PREFIXES, 0);

/// Whether the program accepts tunnel packets only from some source prefixes. The controller sets this value when it
/// loads the program.
#[unsafe(no_mangle)]
static DECAP_FROM_SOME: Global<u32> = Global::new(0);

#[map]
static DECAP_STATS: PerCpuArray<DecapStats> = PerCpuArray::with_max_entries(1, 0);

const IP_IN_IP: u8 = IpProto::Ipv4 as u8;
const IPV6_IN_IP: u8 = IpProto::Ipv6 as u8;

/// The result of processing a frame that may be a tunnel packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decapsulated {
    /// The program removed the outer headers and handed the packet to the kernel.
    Stripped,
    /// The program handed the frame to the kernel unchanged: the frame is no tunnel packet, or its tunnel ends on
    /// another machine.
    Passed,
    /// The program dropped the packet: the inner destination is no local VIP, the source may not send tunnel packets,
    /// or the outer header signals congestion that the inner sender does not understand.
    Refused,
    /// The program dropped a tunnel packet whose headers contradict each other.
    Malformed,
}

/// Removes the outer headers of a tunnel packet.
#[inline(always)]
pub fn process(ingress: Ingress) -> Decapsulated {
    let decapsulated = decapsulate(ingress);
    if let Some(stats) = DECAP_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        let stats = unsafe { &mut *stats };
        match decapsulated {
            Decapsulated::Stripped => stats.stripped += 1,
            Decapsulated::Passed => stats.passed += 1,
            Decapsulated::Refused => stats.refused += 1,
            Decapsulated::Malformed => stats.malformed += 1,
        }
    }
    decapsulated
}

#[inline(always)]
fn decapsulate(ingress: Ingress) -> Decapsulated {
    let frame = ingress.frame();
    let Some(mut outer) = parse::ip(frame) else { return Decapsulated::Passed };
    if !outer.well_formed || opaque::follow(frame, &mut outer).is_err() || outer.fragment.is_part() {
        return Decapsulated::Passed;
    }
    let is_tunnel = outer.protocol == IP_IN_IP
        || outer.protocol == IPV6_IN_IP
        || outer.protocol == UDP && outer.l4.load(offset_of!(UdpHdr, dst)) == Some(GUE_PORT.to_be());
    // Tunnel packets for other machines pass to the kernel.
    if !is_tunnel || !is_local(&outer.destination, outer.family, DECAP_OWN) {
        return Decapsulated::Passed;
    }
    if !may_come_from(&outer.source, outer.family) {
        return Decapsulated::Refused;
    }
    let (tunnel_length, family) = match outer.protocol {
        IP_IN_IP => (0, FAMILY_V4),
        IPV6_IN_IP => (0, FAMILY_V6),
        _ => match gue_family(&outer) {
            Some(family) => (UdpHdr::LEN, family),
            None => return Decapsulated::Malformed,
        },
    };
    let Some(inner) = parse::inner(frame, outer.l4_offset() + tunnel_length, family) else {
        return Decapsulated::Malformed;
    };
    let room = outer.l4_length().wrapping_sub(tunnel_length);
    if !ingress.holds_all(&outer) || inner.length > room || room > outer.length {
        return Decapsulated::Malformed;
    }
    if !is_local(&inner.destination, family, DECAP_VIP) {
        return Decapsulated::Refused;
    }
    let (Some(outer_class), Some(inner_class)) = (outer.traffic_class(), inner.traffic_class()) else {
        return Decapsulated::Malformed;
    };
    match congestion(outer_class, inner_class) {
        None => return Decapsulated::Refused,
        Some(class) if class != inner_class => {
            if set_traffic_class(&inner, class).is_none() {
                return Decapsulated::Malformed;
            }
        }
        Some(_) => {}
    }
    let by = outer.headers_length + tunnel_length;
    match strip(ingress, frame, outer.l3_offset, by, family) {
        Some(()) => Decapsulated::Stripped,
        None => Decapsulated::Malformed,
    }
}

/// Whether `address` is a local address of the given kind.
#[inline(always)]
fn is_local(address: &[u32; 4], family: u8, kind: u32) -> bool {
    let key = DecapKey { address: *address, family: u32::from(family), reserved: 0 };
    // SAFETY: the pointer points to a map value, which is an aligned word.
    DECAP_ADDRESSES.get_ptr(key).is_some_and(|kinds| unsafe { kinds.read_volatile() } & kind != 0)
}

/// Whether the program accepts tunnel packets from the source `address`.
#[inline(always)]
fn may_come_from(address: &[u32; 4], family: u8) -> bool {
    if DECAP_FROM_SOME.load() == 0 {
        return true;
    }
    let [low, high] = rules::words(address);
    balancer_decap_from(low, high, u64::from(family)) != 0
}

/// The layout of `Key<DecapPrefix>` with the alignment that the verifier requires for 64-bit words.
#[repr(C, align(8))]
struct Lookup {
    bits: u32,
    prefix: DecapPrefix,
}

/// This is a global function, so the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_decap_from(low: u64, high: u64, family: u64) -> u64 {
    let address = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    let lookup = Lookup { bits: DECAP_PREFIX_BITS, prefix: DecapPrefix { family: family as u32, address } };
    // SAFETY: both types have the same layout.
    let key = unsafe { &*ptr::from_ref(&lookup).cast::<Key<DecapPrefix>>() };
    u64::from(DECAP_FROM.get(key).is_some())
}

/// The family of the IP packet directly behind the UDP header (GUE variant 1). `None`: the datagram uses another GUE
/// variant, or contains no IP packet.
#[inline(always)]
fn gue_family(outer: &Ip<'_>) -> Option<u8> {
    let length = order::length(outer.l4.load(offset_of!(UdpHdr, len))?);
    if length != outer.l4_length() {
        return None;
    }
    match outer.l4.load::<u8>(UdpHdr::LEN)? >> 4 {
        4 => Some(FAMILY_V4),
        6 => Some(FAMILY_V6),
        _ => None,
    }
}

const ECN: u8 = 3;
const NOT_CAPABLE: u8 = 0;
const CAPABLE_1: u8 = 1;
const CAPABLE_0: u8 = 2;
const CONGESTED: u8 = 3;

/// The inner traffic class after decapsulation (RFC 6040, figure 4). `None`: the program must drop the packet.
#[inline(always)]
#[must_use]
pub const fn congestion(outer: u8, inner: u8) -> Option<u8> {
    match (outer & ECN, inner & ECN) {
        (CONGESTED, NOT_CAPABLE) => None,
        (CONGESTED, _) => Some(inner | CONGESTED),
        (CAPABLE_1, CAPABLE_0) => Some(inner & !ECN | CAPABLE_1),
        _ => Some(inner),
    }
}

#[inline(always)]
fn set_traffic_class(ip: &Ip<'_>, class: u8) -> Option<()> {
    let old: u16 = ip.header.load(0)?;
    let [first, second] = old.to_ne_bytes();
    if ip.family == FAMILY_V4 {
        const CHECK: usize = offset_of!(Ipv4Hdr, check);
        let new = u16::from_ne_bytes([first, class]);
        let check: u16 = ip.header.load(CHECK)?;
        ip.header.store(CHECK, checksum::apply(check, checksum::replace_u16(old, new)))?;
        ip.header.store(0, new)
    } else {
        ip.header.store(0, [first & 0xf0 | class >> 4, class << 4 | second & 0x0f])
    }
}

/// Removes `by` bytes directly behind the link-layer headers of a frame.
#[inline(always)]
fn strip(ingress: Ingress, frame: Packet<'_>, l3_offset: usize, by: usize, family: u8) -> Option<()> {
    link::relocate(frame, 0, by, l3_offset, family)?;
    ingress.grow_head(-(by as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_tunnel_ends_then_congestion_is_combined_as_rfc_6040_says() {
        let dscp = 0xb8;
        // Each row is an inner value; its columns are the outer values Not-ECT, ECT(0), ECT(1) and CE.
        for (inner, expected) in [
            (NOT_CAPABLE, [Some(0), Some(0), Some(0), None]),
            (CAPABLE_0, [Some(2), Some(2), Some(1), Some(3)]),
            (CAPABLE_1, [Some(1), Some(1), Some(1), Some(3)]),
            (CONGESTED, [Some(3), Some(3), Some(3), Some(3)]),
        ] {
            for (outer, expected) in [NOT_CAPABLE, CAPABLE_0, CAPABLE_1, CONGESTED].into_iter().zip(expected) {
                assert_eq!(congestion(0x20 | outer, dscp | inner), expected.map(|ecn| dscp | ecn), "{outer} {inner}");
            }
        }
    }
}
