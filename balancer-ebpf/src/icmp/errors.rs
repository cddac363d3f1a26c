//! ICMP errors about packets of services: they belong to the flow that they quote, whichever router sent them.

use balancer_common::{
    map_types::{Control, ListenerRow, PortlessMatch, ServiceKey},
    service_table::TableView,
    verdict::DropReason,
};

use super::ICMP_HEADER_LEN;
use crate::{
    opaque,
    packet::Packet,
    parse::{self, Ip, TCP, UDP},
    returns, service, steer,
    step::{ErrorToBackend, ErrorToClient, Step},
};

/// Source and destination port.
const PORTS_LEN: usize = 4;

/// The packet that an error quotes. `None`: too short, or broken.
#[inline(always)]
pub(crate) fn quoted<'a>(frame: Packet<'a>, ip: &Ip<'a>) -> Option<Ip<'a>> {
    let mut inner = parse::inner(frame, ip.l4_offset() + ICMP_HEADER_LEN, ip.family)?;
    opaque::follow(frame, &mut inner).ok()?;
    let room = ip.l4_length().wrapping_sub(ICMP_HEADER_LEN);
    let needed = inner.headers_length + if inner.fragment.is_later() { 0 } else { PORTS_LEN };
    (needed <= room).then_some(inner)
}

/// An error to a VIP about a packet that a backend sent as the VIP: to the backend of the client it was for. Nothing is
/// recorded, and no decision is counted.
#[inline(always)]
pub(super) fn about_vip(
    frame: Packet<'_>,
    control: &'static Control,
    listeners: TableView,
    ip: &Ip<'_>,
    marker: &ListenerRow,
) -> Step {
    let Some(inner) = quoted(frame, ip) else { return Step::drop(DropReason::Malformed) };
    if !is_ours(ip, &inner) {
        return Step::PASS;
    }
    let port = if inner.fragment.is_later() {
        match marker.portless().find(inner.protocol) {
            PortlessMatch::Only(port) => port,
            PortlessMatch::Ambiguous => return Step::drop(DropReason::FragmentUnknown),
            PortlessMatch::None => return Step::PASS,
        }
    } else {
        match inner.l4.load(0) {
            Some(port) => port,
            None => return Step::drop(DropReason::Malformed),
        }
    };
    let key = ServiceKey { address: inner.source, port, protocol: inner.protocol, family: inner.family };
    let Some(listener) = service::of_key(control, listeners, key) else { return Step::PASS };
    let client_port = if inner.fragment.is_later() { None } else { inner.l4.load(2) };
    steer::peek_later(
        control,
        listener.service,
        inner.family,
        &inner.destination,
        client_port,
        ErrorToBackend::unchosen(listener.listening.port),
    )
}

/// An error to a client about a packet that was translated on its way to a `nat` backend.
#[inline(always)]
pub(super) fn about_translated(frame: Packet<'_>, control: &'static Control, ip: &Ip<'_>) -> Step {
    let Some(inner) = quoted(frame, ip) else { return Step::PASS };
    if !is_ours(ip, &inner) {
        return Step::PASS;
    }
    let key = ServiceKey { address: inner.destination, port: 0, protocol: inner.protocol, family: inner.family };
    let row = if inner.fragment.is_later() {
        match returns::portless(control, &inner.destination, inner.family, inner.protocol) {
            PortlessMatch::Only(port) => returns::exact(control, &ServiceKey { port, ..key }),
            PortlessMatch::None | PortlessMatch::Ambiguous => None,
        }
    } else {
        inner.l4.load(2).and_then(|port| returns::of_key(control, &ServiceKey { port, ..key }))
    };
    match row {
        Some(row) => Step::to(ErrorToClient { port: row.key.port }),
        None => Step::PASS,
    }
}

/// Whether the error went to the sender of what it quotes, and that may belong to a service.
#[inline(always)]
fn is_ours(ip: &Ip<'_>, inner: &Ip<'_>) -> bool {
    inner.source == ip.destination && (inner.protocol == TCP || inner.protocol == UDP)
}
