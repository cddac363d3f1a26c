//! Finds out which packets are for this machine if the kernel's route lookup cannot tell because forwarding is off.

use core::{mem, ptr};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple, xdp_md},
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use balancer_common::{map_types::FAMILY_V4, verdict::DropReason};

use crate::{
    found::Found,
    ingress::Ingress,
    parse::{ICMP, ICMP_V6, Ip, TCP, UDP},
    scratch::{self, Row},
    step::Step,
};

/// A value of the kernel's `enum tcp_states`.
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
/// Selects the network namespace of the ingress interface for a socket lookup.
const THIS_NAMESPACE: u64 = u64::MAX;

/// Decides about a packet that belongs to no client: a backend's packet, or an ICMP error about a packet to a backend.
/// The packet passes if a socket of this machine waits for it, for example the socket of a health check.
#[inline(always)]
pub(crate) fn pass(ingress: Ingress) -> Step {
    match of_host(ingress) {
        HostSocket::None => Step::drop(DropReason::NoRoute),
        HostSocket::Connection | HostSocket::Ended | HostSocket::Listener => Step::unserved(),
    }
}

/// The kind of this machine's socket for a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostSocket {
    /// No socket matches the packet.
    None,
    /// A socket that waits for connections or datagrams.
    Listener,
    /// The socket of a connection that this machine has closed first. Such a socket has the state TIME-WAIT even while
    /// the client has not closed its end.
    Ended,
    /// The socket of a connection.
    Connection,
}

/// The kind of socket for a packet to this machine, or for a packet from this machine that an ICMP error quotes.
#[inline(always)]
pub(crate) fn of_host(ingress: Ingress) -> HostSocket {
    match balancer_socket(ingress.context()) {
        CONNECTION => HostSocket::Connection,
        ENDED => HostSocket::Ended,
        LISTENER => HostSocket::Listener,
        _ => HostSocket::None,
    }
}

const NONE: u64 = 0;
const LISTENER: u64 = 1;
const CONNECTION: u64 = 2;
const ENDED: u64 = 3;

/// This is a global function, because its callers leave little room on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_socket(context: *mut xdp_md) -> u64 {
    // SAFETY: the callers pass the program's context.
    let Some(found) = Found::again(unsafe { Ingress::new(context) }) else { return NONE };
    let Found { ingress, ip, .. } = &found;
    if matches!(ip.protocol, TCP | UDP) {
        return look_up(*ingress, ip, Direction::Here);
    }
    if !matches!(ip.protocol, ICMP | ICMP_V6) {
        return NONE;
    }
    found.quoted().map_or(NONE, |inner| look_up(*ingress, &inner, Direction::FromHere))
}

/// Whether this machine is the packet's destination or its quoted source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Here,
    FromHere,
}

#[inline(always)]
fn look_up(ingress: Ingress, ip: &Ip<'_>, direction: Direction) -> u64 {
    if ip.fragment.is_later() {
        return NONE;
    }
    let Some([source_port, destination_port]) = ip.l4.load::<[u16; 2]>(0) else { return NONE };
    // The steps leave too little room on the stack.
    let Some(place) = scratch::place::<bpf_sock_tuple>(Row::Ends) else { return NONE };
    let source = (&ip.source, source_port);
    let destination = (&ip.destination, destination_port);
    let (from, to) = match direction {
        Direction::Here => (source, destination),
        Direction::FromHere => (destination, source),
    };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path. Neither
    // member of the union has invalid bit patterns.
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
    // The verifier distinguishes TCP and UDP sockets, so the program examines each socket in the branch that found the
    // socket.
    let (socket, found): (*mut bpf_sock, _) = match ip.protocol {
        TCP => {
            // SAFETY: the context is the kernel's, and the endpoints have the given length.
            let socket = unsafe { bpf_skc_lookup_tcp(context, place, length, THIS_NAMESPACE, 0) };
            if socket.is_null() {
                return NONE;
            }
            // SAFETY: the kernel has just returned this socket.
            let state = unsafe { (&raw const (*socket).state).read_volatile() };
            let found = match state {
                TCP_LISTEN => LISTENER,
                TCP_TIME_WAIT => ENDED,
                _ => CONNECTION,
            };
            (socket, found)
        }
        UDP => {
            // SAFETY: the context is the kernel's, and the endpoints have the given length.
            let socket = unsafe { bpf_sk_lookup_udp(context, place, length, THIS_NAMESPACE, 0) };
            (socket, LISTENER)
        }
        _ => (ptr::null_mut(), NONE),
    };
    if socket.is_null() {
        return NONE;
    }
    // SAFETY: the kernel has just returned this socket.
    unsafe { bpf_sk_release(socket.cast()) };
    found
}
