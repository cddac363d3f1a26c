//! Network address translation without state: the way there by the backend's row, the way back by the return table.

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
        recent_hops::RecentHop,
        rewrite::{self, End, Translation},
    },
    found::Found,
    ingress::Ingress,
    packet::Packet,
    parse::{ACK, Ip, RST, SYN, TCP},
    returns, signs, station,
    step::{Carries, ErrorToClient, Kind, Step, ToClient, Told},
};

/// One end of `ip`, a VIP and its port `old` (network order), becomes the backend's. `port` is the backend's for the
/// packet's listener; 0: it stays.
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

/// The same for a packet that passes to this machine, which is the backend.
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

/// [`to_client`] for a reply whose next hop was found a moment ago; `otherwise` for any other.
#[inline(always)]
pub(crate) fn to_client_again(ingress: Ingress, ip: &Ip<'_>, row: &'static ReturnRow, otherwise: Step) -> Step {
    // SAFETY: as in `way_back`.
    let expected = station::came_by(ingress, unsafe { (&raw const row.interfaces).read_volatile() });
    if !expected || ip.ttl() <= 1 {
        return otherwise;
    }
    match neighbour::recent(ingress, ip, &row.vip) {
        Some(hop) => Step::of_word(sent_again(ingress.context(), row, hop, ip.place())),
        None => otherwise,
    }
}

/// A function, so that what it has on the stack does not add to what the path's steps have on theirs.
#[inline(never)]
extern "C" fn sent_again(context: *mut xdp_md, row: &'static ReturnRow, hop: &'static RecentHop, place: u64) -> u64 {
    // SAFETY: the function above passes the program's context on.
    let ingress = unsafe { Ingress::new(context) };
    let frame = ingress.frame();
    let written = Ip::placed(frame, place).and_then(|ip| {
        rewrite::translate_ip(&ip, End::Source, &row.vip, row.address_delta.into())?;
        rewrite::translate_l4(&ip, End::Source, row.port(), row.l4_delta.into())?;
        rewrite::macs(frame, hop.destination_mac, hop.source_mac)
    });
    let step = match written {
        Some(()) => Step::send(ingress.ifindex(), hop.egress),
        None => Step::drop(DropReason::Malformed),
    };
    step.word()
}

/// Turns a backend's reply into the VIP's and sends it to the client, where the kernel's routes say.
#[inline(always)]
pub(crate) fn to_client(found: &Found, told: Told<ToClient>) -> Step {
    let Found { ingress, frame, ip } = found;
    let ToClient { port, protocol, carries } = told.get();
    let Some(control) = control::words() else { return Step::PASS };
    let key = ServiceKey { address: ip.source, port, protocol, family: ip.family };
    let Some(row) = returns::exact(control, &key) else { return Step::PASS };
    let way = way_back(*ingress, ip, row);
    if !way.sends() {
        return way;
    }
    if matches!(carries, Carries::Header) && refuses(ip) && signs::withholds(row.backend) {
        return Step::drop(DropReason::Withheld);
    }
    let written = rewrite::translate(ip, carries, &back(row, End::Source));
    send(way, *frame, written)
}

/// Sends an ICMP error about a packet from the VIP to the backend that the packet came from.
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

/// Sends an ICMP error about a translated packet to the client, as if the VIP had been its destination. Whoever on the
/// backends' side sent the error, to the client it comes from the VIP (RFC 5508, REQ-5): it may have no route there.
#[inline(always)]
pub(crate) fn error_to_client(found: &Found, told: Told<ErrorToClient>) -> Step {
    let ErrorToClient { port } = told.get();
    let Found { ingress, frame, ip } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let Some(inner) = found.quoted() else { return Step::PASS };
    let key = ServiceKey { address: inner.destination, port, protocol: inner.protocol, family: inner.family };
    let Some(row) = returns::exact(control, &key) else { return Step::PASS };
    let way = way_back(*ingress, ip, row);
    if way.is(Kind::IcmpError) {
        // No error about an error.
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

/// Whether a segment refuses a connection: a reset that answers a segment without an ACK has a sequence number of 0 (RFC 9293,
/// 3.10.7.1), and one that ends a connection has no ACK.
#[inline(always)]
pub(crate) fn refuses(ip: &Ip<'_>) -> bool {
    if ip.protocol != TCP {
        return false;
    }
    let flags = ip.l4.load::<[u8; 2]>(offset_of!(TcpHdr, ack_seq) + 4).map_or(0, |[_, flags]| flags);
    flags & (SYN | RST | ACK) == RST | ACK && ip.l4.load::<u32>(offset_of!(TcpHdr, seq)) == Some(0)
}

/// Whether an ICMP error says that its packet cannot be delivered at all; not that it is too big.
#[inline(always)]
pub(crate) fn says_unreachable(ip: &Ip<'_>) -> bool {
    let Some([message, code]) = ip.l4.load::<[u8; 2]>(0) else { return false };
    if ip.family == FAMILY_V4 { message == 3 && code != 4 } else { message == 1 }
}

/// How a packet leaves for the client. One for this machine itself (the answer to a health check) passes unchanged, and the
/// sender of one that is too big is shown what it sent, so the way is looked up before anything is written. (The kernel
/// cannot be left to tell it: it forwards IPv6 only if it does so on all interfaces.)
///
/// A packet that came in by another interface than the backend's may be anybody's who says that it is the backend.
#[inline(always)]
fn way_back(ingress: Ingress, ip: &Ip<'_>, row: &ReturnRow) -> Step {
    // SAFETY: a reference is valid for reads; the controller replaces the word in one piece.
    let expected = station::came_by(ingress, unsafe { (&raw const row.interfaces).read_volatile() });
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
