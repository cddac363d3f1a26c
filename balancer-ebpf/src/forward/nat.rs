//! Stateless network address translation: backend rows contain the translation of packets to backends, and the return
//! table contains the translation of replies.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    checksum,
    map_types::{FAMILY_V4, ReturnRow, ServiceKey},
    verdict::DropReason,
};
use network_types::tcp::TcpHdr;

use crate::{
    backends::Reachable,
    control,
    forward::{
        neighbour,
        next_hop_cache::CachedHop,
        rewrite::{self, End, Translation},
    },
    found::Found,
    ingress::Ingress,
    local_mac,
    packet::Packet,
    parse::{ACK, Ip, RST, SYN, TCP},
    returns, signs,
    step::{Carries, ErrorToClient, Kind, Packed, Step, ToClient},
};

/// The new address and port for one end of `ip`: the end is a VIP with port `old` (network order), and the backend
/// replaces it. `port` is the backend's port for the packet's listener; 0: the port stays unchanged.
#[inline(always)]
fn there(backend: Reachable, ip: &Ip<'_>, end: End, old: u16, port: u16) -> Option<Translation> {
    let row = backend.row;
    let port = if row.port == 0 { port } else { row.port };
    let delta = rewrite::leaving(ip, end)? + u64::from(row.address_sum);
    let changed = if port == 0 { 0 } else { checksum::replace_u16(old, port) };
    Some(Translation {
        end,
        address: row.address,
        port: (port != 0).then_some(port),
        address_delta: delta,
        l4_delta: delta + changed,
    })
}

#[inline(always)]
fn back(row: &ReturnRow, end: End) -> Translation {
    Translation {
        end,
        address: row.vip,
        port: row.port(),
        address_delta: u64::from(row.address_delta),
        l4_delta: u64::from(row.l4_delta),
    }
}

#[inline(always)]
pub(crate) fn to_backend(
    frame: Packet<'_>,
    ip: &Ip<'_>,
    carries: Carries,
    backend: Reachable,
    port: u16,
) -> Result<(), DropReason> {
    if ip.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let row = backend.row;
    let old = match carries {
        Carries::Header => ip.l4.load(2).ok_or(DropReason::Malformed)?,
        Carries::Nothing => 0,
    };
    there(backend, ip, End::Destination, old, port)
        .and_then(|new| rewrite::translate(ip, carries, &new))
        .and_then(|()| rewrite::macs_to(frame, row))
        .ok_or(DropReason::Malformed)
}

/// Translates a packet that the program passes to this machine, which is the backend.
#[inline(always)]
pub(super) fn to_this_machine(ip: &Ip<'_>, carries: Carries, backend: Reachable, port: u16) -> Result<(), DropReason> {
    if ip.ttl() == 0 {
        return Err(DropReason::TtlExceeded);
    }
    let old = match carries {
        Carries::Header => ip.l4.load(2).ok_or(DropReason::Malformed)?,
        Carries::Nothing => 0,
    };
    there(backend, ip, End::Destination, old, port)
        .and_then(|new| rewrite::translate(ip, carries, &new))
        .ok_or(DropReason::Malformed)
}

/// Like [`to_client`] for a reply whose next hop is cached; returns `otherwise` for other replies.
#[inline(always)]
pub(crate) fn to_client_again(ingress: Ingress, ip: &Ip<'_>, row: &'static ReturnRow, otherwise: Step) -> Step {
    // SAFETY: a Rust reference is always valid for reads; the controller replaces the word in one store.
    let expected = local_mac::came_by(ingress, unsafe { (&raw const row.interfaces).read_volatile() });
    if !expected || ip.ttl() <= 1 {
        return otherwise;
    }
    // The program reads the destination from the packet again, so that the destination does not occupy the stack between
    // parsing and this lookup.
    match rewrite::destination(ip).and_then(|destination| neighbour::recent(ingress, ip, &row.vip, &destination)) {
        Some(hop) => Step::of_word(sent_again(ingress.context(), row, hop, ip.place())),
        None => otherwise,
    }
}

/// This is a separate function, so that its stack does not add to the stack of the steps on the path of most packets.
#[inline(never)]
extern "C" fn sent_again(context: *mut xdp_md, row: &'static ReturnRow, hop: &'static CachedHop, place: u64) -> u64 {
    // SAFETY: the function above passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    let frame = ingress.frame();
    let sent = Ip::placed(frame, place).and_then(|ip| {
        rewrite::translate_ip(&ip, End::Source, &row.vip, row.address_delta.into())?;
        rewrite::translate_l4(&ip, End::Source, row.port(), row.l4_delta.into())?;
        hop.send(ingress, frame)
    });
    sent.unwrap_or(Step::drop(DropReason::Malformed)).word()
}

/// Replaces the source of a backend's reply by the VIP, and sends the reply to the client along the kernel's route.
#[inline(always)]
pub(crate) fn to_client(found: &Found, packed: Packed<ToClient>) -> Step {
    let Found { ingress, frame, ip } = found;
    let ToClient { port, protocol, carries } = packed.get();
    let Some(control) = control::words() else { return Step::PASS };
    let key = ServiceKey { address: ip.source, port, protocol, family: ip.family };
    let Some(row) = returns::exact(control, &key) else { return Step::PASS };
    let way = way_back(*ingress, ip, row);
    if way.is(Kind::Pass) {
        return Step::unserved();
    }
    if !way.sends() {
        return way;
    }
    if matches!(carries, Carries::Header) && refuses(ip) && signs::withholds(row.backend) {
        return Step::drop(DropReason::Withheld);
    }
    let written = rewrite::translate(ip, carries, &back(row, End::Source));
    send(way, *frame, written)
}

/// Sends an ICMP error about a packet from the VIP to the backend that sent this packet.
#[inline(always)]
pub(super) fn error_to_backend(
    frame: Packet<'_>,
    ip: &Ip<'_>,
    inner: &Ip<'_>,
    backend: Reachable,
    port: u16,
) -> Result<(), DropReason> {
    let row = backend.row;
    if ip.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let old = if inner.fragment.is_later() { 0 } else { inner.l4.load(0).ok_or(DropReason::Malformed)? };
    let outer = there(backend, ip, End::Destination, 0, 0).ok_or(DropReason::Malformed)?;
    let new = there(backend, inner, End::Source, old, port).ok_or(DropReason::Malformed)?;
    rewrite::translate_ip(ip, End::Destination, &row.address, outer.address_delta)
        .and_then(|()| rewrite::translate_quoted(ip, inner, outer.address_delta, &new))
        .and_then(|()| if row.is_local() { Some(()) } else { rewrite::macs_to(frame, row) })
        .ok_or(DropReason::Malformed)
}

/// Sends an ICMP error about a translated packet to the client, as if the error were about the client's packet to the
/// VIP. The VIP becomes the error's source, no matter which host sent the error (RFC 5508, REQ-5), because this host
/// may have no route to the client.
#[inline(always)]
pub(crate) fn error_to_client(found: &Found, packed: Packed<ErrorToClient>) -> Step {
    let ErrorToClient { port } = packed.get();
    let Found { ingress, frame, ip } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let Some(inner) = found.quoted() else { return Step::PASS };
    let key = ServiceKey { address: inner.destination, port, protocol: inner.protocol, family: inner.family };
    let Some(row) = returns::exact(control, &key) else { return Step::PASS };
    let way = way_back(*ingress, ip, row);
    if way.is(Kind::IcmpError) {
        // An ICMP error must not cause another ICMP error.
        return Step::drop(DropReason::TooBig);
    }
    if !way.sends() {
        return way;
    }
    if says_unreachable(ip) {
        signs::unreachable(row.backend);
    }
    let Some(left) = rewrite::leaving(ip, End::Source) else { return Step::drop(DropReason::Malformed) };
    let source_delta = left + checksum::sum_address(&row.vip);
    let written = rewrite::translate_ip(ip, End::Source, &row.vip, source_delta)
        .and_then(|()| rewrite::translate_quoted(ip, &inner, source_delta, &back(row, End::Destination)));
    send(way, *frame, written)
}

/// Whether a segment refuses a connection. A reset that answers a segment without ACK has sequence number 0 (RFC 9293,
/// 3.10.7.1), whereas a reset that ends a connection has no ACK flag.
#[inline(always)]
pub(crate) fn refuses(ip: &Ip<'_>) -> bool {
    if ip.protocol != TCP {
        return false;
    }
    let flags = ip.l4.load::<[u8; 2]>(offset_of!(TcpHdr, ack_seq) + 4).map_or(0, |[_, flags]| flags);
    flags & (SYN | RST | ACK) == RST | ACK && ip.l4.load::<u32>(offset_of!(TcpHdr, seq)) == Some(0)
}

/// Whether an ICMP error says that the quoted packet cannot be delivered, rather than that this packet is too big.
#[inline(always)]
pub(crate) fn says_unreachable(ip: &Ip<'_>) -> bool {
    let Some([message, code]) = ip.l4.load::<[u8; 2]>(0) else { return false };
    if ip.family == FAMILY_V4 { message == 3 && code != 4 } else { message == 1 }
}

/// Finds the path of a reply to its client, before the program rewrites the reply. A packet for this machine itself
/// (the answer to a health check) must pass unchanged. An ICMP error about a packet that is too big must quote the
/// packet as its sender sent it. (The kernel cannot send the "too big" error, because it forwards IPv6 only if
/// forwarding is on for all interfaces.)
///
/// The program drops a packet that did not arrive by the backend's interface, because the sender may only pretend to be
/// the backend.
#[inline(always)]
fn way_back(ingress: Ingress, ip: &Ip<'_>, row: &ReturnRow) -> Step {
    // SAFETY: a Rust reference is always valid for reads; the controller replaces the word in one store.
    let expected = local_mac::came_by(ingress, unsafe { (&raw const row.interfaces).read_volatile() });
    let way = neighbour::route(ingress, ip, &row.vip, &ip.destination);
    if way.is(Kind::Pass) || way.is(Kind::Own) {
        way
    } else if !expected {
        Step::drop(DropReason::WrongInterface)
    } else if way.sends() && ip.ttl() <= 1 {
        Step::drop(DropReason::TtlExceeded)
    } else {
        way
    }
}

#[inline(always)]
fn send(way: Step, frame: Packet<'_>, written: Option<()>) -> Step {
    match written.and_then(|()| neighbour::macs()).and_then(|(to, from)| rewrite::macs(frame, to, from)) {
        Some(()) => way,
        None => Step::drop(DropReason::Malformed),
    }
}
