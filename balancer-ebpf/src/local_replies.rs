//! Replies to `nat` packets from servers on this machine. A traffic-control classifier replaces the source of these
//! replies by the VIP, except in connections that clients have made to the server's own address. The classifier sees the
//! packets that the host sends out of the attached interfaces, after firewall and routing.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_pull_data, bpf_skb_store_bytes},
};
use balancer_common::{
    direct::Event,
    map_types::{CONTROL_RETURNS, Control, FAMILY_V4, PortlessMatch, ReturnRow, ServiceKey},
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use core::mem::offset_of;

use crate::{
    backends, control,
    fragments::{self, Way},
    handover::frame,
    opaque, own_connections,
    packet::Packet,
    parse::{self, ACK, FIN, Ip, RST, SYN, TCP, UDP},
    returns,
};

/// The maximum length of a frame's headers without options.
const HEADERS: u32 = 14 + 40 + 20;

/// Translates a frame that is a reply of a `nat` backend on this machine. Traffic-control programs that follow this one
/// still see every frame. The result is one of the `TC_ACT_*` codes.
#[inline(always)]
pub fn process(skb: *mut __sk_buff) -> i32 {
    // The features are those of the start, and a backend may have become local since.
    let Some(control) = control::words().filter(|control| control.flags & CONTROL_RETURNS != 0) else {
        return TC_ACT_UNSPEC;
    };
    let frame = with_headers(skb);
    let Some(mut ip) = parse::ip(frame) else { return TC_ACT_UNSPEC };
    let has_ports = (ip.protocol == TCP || ip.protocol == UDP) && !ip.fragment.is_part();
    if !has_ports && opaque::follow(frame, &mut ip).is_err() {
        return TC_ACT_UNSPEC;
    }
    if ip.protocol != TCP && ip.protocol != UDP {
        return TC_ACT_UNSPEC;
    }
    let Some(row) = of_local_backend(control, &ip) else { return TC_ACT_UNSPEC };
    if is_direct(&ip) {
        return TC_ACT_UNSPEC;
    }
    let carries_ports = !ip.fragment.is_later();
    if translated(skb, &ip, row, carries_ports).is_some() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// The linear part of the frame, extended to contain all headers of a reply.
#[inline(always)]
fn with_headers(skb: *mut __sk_buff) -> Packet<'static> {
    // A shorter frame is already completely in its linear part. SAFETY: the context is the kernel's.
    let _shorter = unsafe { bpf_skb_pull_data(skb, HEADERS) };
    frame(skb)
}

/// The return table's row for a packet from a backend that is this machine.
#[inline(always)]
fn of_local_backend(control: &'static Control, ip: &Ip<'_>) -> Option<&'static ReturnRow> {
    let row = if ip.fragment.is_later() {
        let PortlessMatch::Only(port) = returns::portless(control, &ip.source, ip.family, ip.protocol) else {
            return None;
        };
        returns::exact(control, &ServiceKey { address: ip.source, port, protocol: ip.protocol, family: ip.family })?
    } else {
        returns::find(control, ip, ip.l4.load(0)?)?
    };
    backends::reachable(row.backend).is_some_and(|backend| backend.row.is_local()).then_some(row)
}

/// Whether a packet belongs to a connection that the client has made to the backend's own address. The later fragments
/// of a datagram, which have no ports, follow the first.
#[inline(always)]
fn is_direct(ip: &Ip<'_>) -> bool {
    if ip.fragment.is_later() {
        return matches!(fragments::recall(ip), Some(Way::Passed));
    }
    let Some(ends) = ip.l4.load::<u32>(0) else { return false };
    let ends = ends.rotate_left(u16::BITS);
    let hash = own_connections::hash(&ip.destination, &ip.source, ends, ip.family, ip.protocol);
    let is_direct = hash.is_some_and(|hash| own_connections::is_direct(hash, event(ip)));
    if is_direct && ip.fragment.is_first() {
        fragments::remember(ip, Way::Passed);
    }
    is_direct
}

#[inline(always)]
fn event(ip: &Ip<'_>) -> Event {
    if ip.protocol != TCP {
        return Event::Answers;
    }
    // The length in the header of merged segments may be 0, so the flags are read without it.
    let Some([_, flags]) = ip.l4.load::<[u8; 2]>(offset_of!(TcpHdr, ack_seq) + 4) else { return Event::Answers };
    if flags & (FIN | RST) != 0 {
        Event::Closes
    } else if flags & SYN == 0 {
        Event::Continues
    } else if flags & ACK == 0 {
        Event::Opens
    } else {
        Event::Answers
    }
}

#[inline(always)]
fn translated(skb: *mut __sk_buff, ip: &Ip<'_>, row: &ReturnRow, carries_ports: bool) -> Option<()> {
    let (l3, l4) = (ip.l3_offset as u32, ip.l4_offset() as u32);
    let (is_v4, source) = (ip.family == FAMILY_V4, ip.source[0]);
    if carries_ports {
        let (check, zero_stays) = if ip.protocol == TCP {
            (l4 + offset_of!(TcpHdr, check) as u32, 0)
        } else {
            (l4 + offset_of!(UdpHdr, check) as u32, u64::from(BPF_F_MARK_MANGLED_0))
        };
        let old_port: u16 = ip.l4.load(0)?;
        let flags = u64::from(BPF_F_PSEUDO_HDR) | zero_stays;
        // The kernel's helper accepts the sum of the address change in place of a checksum difference. SAFETY: the
        // context is the kernel's.
        ok(unsafe { bpf_l4_csum_replace(skb, check, 0, u64::from(row.address_delta), flags) })?;
        if let Some(port) = row.port() {
            // SAFETY: the context is the kernel's, and the port lives through the call.
            unsafe {
                ok(bpf_l4_csum_replace(skb, check, u64::from(old_port), u64::from(port), 2 | zero_stays))?;
                ok(bpf_skb_store_bytes(skb, l4, (&raw const port).cast(), 2, 0))?;
            }
        }
    }
    let (place, length) = if is_v4 {
        let check = l3 + offset_of!(Ipv4Hdr, check) as u32;
        // SAFETY: the context is the kernel's.
        ok(unsafe { bpf_l3_csum_replace(skb, check, u64::from(source), u64::from(row.vip[0]), 4) })?;
        (l3 + offset_of!(Ipv4Hdr, src_addr) as u32, 4)
    } else {
        (l3 + offset_of!(Ipv6Hdr, src_addr) as u32, 16)
    };
    // SAFETY: the context is the kernel's; the address is a map value of 16 bytes.
    ok(unsafe { bpf_skb_store_bytes(skb, place, (&raw const row.vip).cast(), length, 0) })
}

#[inline(always)]
fn ok(result: impl Into<i64>) -> Option<()> {
    if result.into() == 0 { Some(()) } else { None }
}
