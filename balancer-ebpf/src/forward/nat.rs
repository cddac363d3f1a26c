//! Network address translation without state: the way there by the backend's row, the way back by the return table.

use balancer_common::{
    checksum,
    map_types::{ReturnRow, ServiceKey},
    verdict::DropReason,
};

use crate::{
    backends::Reachable,
    control,
    forward::{
        neighbour::{self, Hop, Route},
        rewrite::{self, End, Translation},
    },
    found::Found,
    ingress::Ingress,
    packet::Packet,
    parse::Ip,
    returns, station,
    step::{Carries, ErrorToClient, IcmpError, Kind, Step, ToClient, Told},
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
        port: (row.vip_port != 0).then_some(row.vip_port),
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
    if ip.ttl <= 1 {
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

/// Turns a backend's reply into the VIP's and sends it to the client, where the kernel's routes say.
#[inline(always)]
pub(crate) fn to_client(found: &Found, told: Told<ToClient>) -> Step {
    let Found { ingress, frame, ip } = found;
    let ToClient { port, protocol, carries } = told.get();
    let Some(control) = control::words() else { return Step::PASS };
    let key = ServiceKey { address: ip.source, port, protocol, family: ip.family };
    let Some(row) = returns::exact(control, &key) else { return Step::PASS };
    let hop = match way_back(*ingress, ip, row) {
        Ok(hop) => hop,
        Err(end) => return end,
    };
    let written = rewrite::translate(ip, carries, &back(row, End::Source));
    send(*ingress, *frame, &hop, written)
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
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let old = if inner.fragment.is_later() { 0 } else { inner.l4.load(0).ok_or(DropReason::Malformed)? };
    let outer = there(backend, ip, End::Destination, 0, 0).ok_or(DropReason::Malformed)?;
    let new = there(backend, inner, End::Source, old, port).ok_or(DropReason::Malformed)?;
    rewrite::translate_ip(ip, End::Destination, &row.address, outer.address_delta)
        .and_then(|()| rewrite::translate_quoted(ip, inner, outer.address_delta, &new))
        .and_then(|()| rewrite::macs_to(frame, row))
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
    let hop = match way_back(*ingress, ip, row) {
        Ok(hop) => hop,
        // No error about an error.
        Err(end) if end.is(Kind::IcmpError) => return Step::drop(DropReason::TooBig),
        Err(end) => return end,
    };
    let source_delta = checksum::replace_address(&ip.source, &row.vip);
    let written = rewrite::translate_ip(ip, End::Source, &row.vip, source_delta)
        .and_then(|()| rewrite::translate_quoted(ip, &inner, source_delta, &back(row, End::Destination)));
    send(*ingress, *frame, &hop, written)
}

/// The next hop to the client. A packet for this machine itself (the answer to a health check) passes unchanged, and the
/// sender of one that is too big is shown what it sent, so the way is looked up before anything is written. (The kernel
/// cannot be left to tell it: it forwards IPv6 only if it does so on all interfaces.)
///
/// A packet that came in by another interface than the backend's may be anybody's who says that it is the backend.
#[inline(always)]
fn way_back(ingress: Ingress, ip: &Ip<'_>, row: &ReturnRow) -> Result<Hop, Step> {
    // SAFETY: a reference is valid for reads; the controller replaces the word in one piece.
    let expected = station::came_by(ingress, unsafe { (&raw const row.interfaces).read_volatile() });
    match neighbour::route(ingress, ip, &row.vip) {
        Route::Kernel => Err(Step::PASS),
        _ if !expected => Err(Step::drop(DropReason::WrongInterface)),
        Route::Hop(_) if ip.ttl <= 1 => Err(Step::drop(DropReason::TtlExceeded)),
        Route::Hop(hop) => Ok(hop),
        Route::TooBig(mtu) => Err(Step::to(IcmpError::TooBig(mtu))),
        Route::None(reason) => Err(Step::drop(reason)),
    }
}

#[inline(always)]
fn send(ingress: Ingress, frame: Packet<'_>, hop: &Hop, written: Option<()>) -> Step {
    match written.and_then(|()| rewrite::macs(frame, hop.destination_mac, hop.source_mac)) {
        Some(()) if hop.ifindex == 0 => Step::HANDED,
        Some(()) => Step::send(ingress.ifindex(), hop.ifindex),
        None => Step::drop(DropReason::Malformed),
    }
}
