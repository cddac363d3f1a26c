//! Frames that XDP cannot send, so the kernel sends them. In `forward::mark`, the XDP program marks the frame;
//! [`process`] handles the frame at the kernel's ingress, before firewall, routing and source address checks.
//!
//! The kernel's transmit path resolves neighbours, keeps packets until they are resolved, and supports every kind of
//! interface.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh},
    helpers::{
        bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head, bpf_skb_load_bytes_relative, bpf_skb_pull_data,
        bpf_skb_vlan_pop,
    },
    macros::map,
    maps::PerCpuArray,
};
use balancer_common::{
    handover::Handed,
    map_types::{FAMILY_V4, Mac},
};
use network_types::{eth::EthHdr, ip::Ipv6Hdr};

use crate::{
    backends,
    forward::{mark, neighbour, rewrite},
    packet::Packet,
    parse::{self, MAX_VLAN_TAGS},
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Sends a frame if the frame is marked; otherwise the kernel handles the frame as usual. The result is one of the
/// `TC_ACT_*` codes.
#[inline(always)]
pub fn process(skb: *mut __sk_buff) -> i32 {
    let mut word = marked(frame(skb)).unwrap_or(0);
    if word == 0 {
        word = with_header(skb).unwrap_or(0);
    }
    if word == 0 { TC_ACT_UNSPEC } else { sent(skb, word).unwrap_or(TC_ACT_SHOT) }
}

/// The recipient of a marked frame: the first four bytes of the destination MAC, which are not 0. `None`: the frame is
/// not marked. The result is a number because, for an enum, the compiler would read fields that are not set.
#[inline(always)]
fn marked(frame: Packet<'_>) -> Option<u32> {
    let source: Mac = frame.load(size_of::<Mac>())?;
    if source == mark::own_source() { frame.load(0) } else { None }
}

/// The bytes of a link-layer header. This header is not on the stack, where the verifier requires aligned words.
#[map]
static HEADER: PerCpuArray<[u8; EthHdr::LEN]> = PerCpuArray::with_max_entries(1, 0);

/// If generic XDP has copied the frame, the kernel forgets the length of its link-layer header, and the frame begins
/// with the IP header (seen in Linux 6.18). This function restores the link-layer header of a marked frame.
#[inline(always)]
fn with_header(skb: *mut __sk_buff) -> Option<u32> {
    const MAC_HEADER: u32 = 0;
    let [first, _, _, _]: [u8; 4] = frame(skb).load(0)?;
    if first >> 4 != 4 && first >> 4 != 6 {
        return None;
    }
    let place = HEADER.get_ptr_mut(0)?;
    let length = EthHdr::LEN as u32;
    // SAFETY: the context is the kernel's, and the target is a map value of this CPU that holds this many bytes.
    if unsafe { bpf_skb_load_bytes_relative(skb.cast(), 0, place.cast(), length, MAC_HEADER) } != 0 {
        return None;
    }
    // SAFETY: the target is a map value of this CPU; programs on one CPU do not interrupt each other in the receive
    // path.
    let [a, b, c, d, _, _, g, h, i, j, k, l, m, n] = unsafe { &*place };
    if [*g, *h, *i, *j, *k, *l] != mark::own_source() {
        return None;
    }
    let (destination, ether_type) = ([*a, *b, *c, *d, 0, 0], [*m, *n]);
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_skb_change_head(skb, length, 0) } != 0 {
        return None;
    }
    rewrite::macs(frame(skb), destination, mark::own_source())?;
    frame(skb).store(2 * size_of::<Mac>(), ether_type)?;
    Some(u32::from_ne_bytes([*a, *b, *c, *d]))
}

/// The linear part of the frame. Views of the frame become invalid when a helper changes the frame.
#[inline(always)]
pub(crate) fn frame(skb: *mut __sk_buff) -> Packet<'static> {
    // SAFETY: the context is the kernel's, and only this program uses the frame, from `data` to `data_end`. The program
    // reads each word separately, because the verifier requires separate reads.
    unsafe {
        let start = (&raw const (*skb).data).read_volatile();
        let end = (&raw const (*skb).data_end).read_volatile();
        Packet::new(start as usize, end as usize)
    }
}

#[inline(always)]
fn sent(skb: *mut __sk_buff, word: u32) -> Option<i32> {
    // The program removes all VLAN tags, because the egress interface writes its own tag.
    for _ in 0..MAX_VLAN_TAGS {
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_skb_vlan_pop(skb) } != 0 {
            return None;
        }
    }
    let [a, b, c, d] = word.to_ne_bytes();
    match Handed::of([a, b, c, d, 0, 0])? {
        Handed::Client => to_client(skb),
        Handed::Backend(id) => to_backend(skb, id),
    }
}

#[inline(always)]
fn to_backend(skb: *mut __sk_buff, id: u16) -> Option<i32> {
    let row = backends::reachable(id)?.row;
    rewrite::macs_to(frame(skb), row)?;
    // SAFETY: the helper takes no pointer.
    Some(unsafe { bpf_redirect(row.ifindex, 0) } as i32)
}

/// The next hop of the frame, for the kernel's helper. This value is not on the stack, where the verifier requires
/// 64-bit words to be aligned.
#[map]
static REDIRECTED: PerCpuArray<bpf_redir_neigh> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn to_client(skb: *mut __sk_buff) -> Option<i32> {
    // A frame with an IPv4 packet may be shorter than the requested length. SAFETY: the context is the kernel's.
    let _shorter = unsafe { bpf_skb_pull_data(skb, (EthHdr::LEN + Ipv6Hdr::LEN) as u32) };
    let ip = parse::ip(frame(skb))?;
    // SAFETY: the context is the kernel's.
    let ifindex = unsafe { (&raw const (*skb).ifindex).read_volatile() };
    let hop = neighbour::way(skb.cast(), ifindex, &ip)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let neighbour = unsafe { &mut *REDIRECTED.get_ptr_mut(0)? };
    neighbour.nh_family = if hop.family == u32::from(FAMILY_V4) { AF_INET } else { AF_INET6 };
    // An IPv4 address is stored in the first word.
    neighbour.__bindgen_anon_1.ipv6_nh = hop.address;
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the structure lives through the call, and the call gives its size.
    Some(unsafe { bpf_redirect_neigh(hop.ifindex, &raw mut *neighbour, size, 0) } as i32)
}
