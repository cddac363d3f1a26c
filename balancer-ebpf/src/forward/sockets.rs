//! What is this machine's own where the kernel does not say so: it looks up no route while forwarding is off.

use core::{mem, ptr};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    macros::map,
    maps::PerCpuArray,
};
use balancer_common::{map_types::FAMILY_V4, verdict::DropReason};

use crate::{
    found::Found,
    ingress::Ingress,
    parse::{Ip, TCP, UDP},
    step::Step,
};

/// Means the network namespace of the interface that the packet came in by.
const THIS_NAMESPACE: u64 = u64::MAX;

/// The ends that a socket is looked up by. Not on the stack, of which the steps leave too little.
#[map]
static ENDS: PerCpuArray<bpf_sock_tuple> = PerCpuArray::with_max_entries(1, 0);

/// The end of a backend's packet, or of an error about a packet to a backend: it passes if a socket of this machine waits for
/// it, such as a health check's.
#[inline(always)]
pub(crate) fn pass(found: &Found) -> Step {
    let Found { ingress, ip, .. } = found;
    if matches!(ip.protocol, TCP | UDP) {
        return pass_to_socket(*ingress, ip, Direction::Here);
    }
    match found.quoted() {
        Some(inner) => pass_to_socket(*ingress, &inner, Direction::FromHere),
        None => Step::drop(DropReason::NoRoute),
    }
}

/// Where a packet goes, if it is this machine's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Here,
    FromHere,
}

#[inline(always)]
fn pass_to_socket(ingress: Ingress, ip: &Ip<'_>, direction: Direction) -> Step {
    let nowhere = Step::drop(DropReason::NoRoute);
    if ip.fragment.is_later() {
        return nowhere;
    }
    let Some([source_port, destination_port]) = ip.l4.load::<[u16; 2]>(0) else { return nowhere };
    let Some(place) = ENDS.get_ptr_mut(0) else { return nowhere };
    let source = (&ip.source, source_port);
    let destination = (&ip.destination, destination_port);
    let (from, to) = match direction {
        Direction::Here => (source, destination),
        Direction::FromHere => (destination, source),
    };
    // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path. Either member of the
    // union has no invalid bit patterns.
    let length = unsafe {
        if ip.family == FAMILY_V4 {
            let ends = &mut (*place).__bindgen_anon_1.ipv4;
            (ends.saddr, ends.daddr) = (from.0[0], to.0[0]);
            (ends.sport, ends.dport) = (from.1, to.1);
            mem::size_of_val(ends) as u32
        } else {
            let ends = &mut (*place).__bindgen_anon_1.ipv6;
            (ends.saddr, ends.daddr) = (*from.0, *to.0);
            (ends.sport, ends.dport) = (from.1, to.1);
            mem::size_of_val(ends) as u32
        }
    };
    let context = ingress.untyped();
    let socket: *mut bpf_sock = match ip.protocol {
        // SAFETY: the context is the kernel's, and the ends as long as is said.
        TCP => unsafe { bpf_skc_lookup_tcp(context, place, length, THIS_NAMESPACE, 0) },
        // SAFETY: as above.
        UDP => unsafe { bpf_sk_lookup_udp(context, place, length, THIS_NAMESPACE, 0) },
        _ => ptr::null_mut(),
    };
    if socket.is_null() {
        return nowhere;
    }
    // SAFETY: a socket that the kernel has just given.
    unsafe { bpf_sk_release(socket.cast()) };
    Step::PASS
}
