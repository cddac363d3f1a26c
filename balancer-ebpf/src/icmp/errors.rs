//! ICMP errors about packets of services. An ICMP error belongs to the flow whose packet it quotes, no matter which
//! router sent the error.

use balancer_common::{
    features::Features,
    map_types::{Control, ListenerRow, PortlessMatch, SERVICE_FLOWS, ServiceKey},
    service_table::PublishedView,
    verdict::DropReason,
};

use crate::{
    features,
    flows::errors as flows,
    found::Found,
    parse::{Ip, TCP, UDP},
    returns, service, share, steer,
    step::{ErrorToBackend, ErrorToClient, Step},
};

/// Sends an ICMP error about a packet from the VIP to a client; the error goes to the client's backend. For this error,
/// the program records no client and counts no decision.
#[inline(always)]
pub(super) fn about_vip(
    found: &Found,
    inner: &Ip<'_>,
    control: &'static Control,
    listeners: PublishedView,
    marker: &ListenerRow,
) -> Step {
    if !is_ours(&found.ip, inner) {
        return Step::PASS;
    }
    let port = if inner.fragment.is_later() {
        match marker.portless().find(inner.protocol) {
            PortlessMatch::Only(port) => port,
            PortlessMatch::Ambiguous => return share::refused(marker, DropReason::FragmentUnknown),
            PortlessMatch::None => return Step::PASS,
        }
    } else {
        match inner.l4.load(0) {
            Some(port) => port,
            None => return share::refused(marker, DropReason::Malformed),
        }
    };
    let key = ServiceKey { address: inner.source, port, protocol: inner.protocol, family: inner.family };
    let Some(listener) = service::of_key(control, listeners, key) else { return flows::about_backend(control, inner) };
    if features::uses(Features::SNAT) && listener.service.flags & SERVICE_FLOWS != 0 {
        return flows::about_client(listener.service, inner);
    }
    let client_port = if inner.fragment.is_later() { None } else { inner.l4.load(2) };
    steer::peek_later(
        control,
        listener.service,
        (inner.family, &inner.destination),
        client_port,
        inner.protocol == TCP,
        ErrorToBackend::unchosen(listener.listening.port),
    )
}

/// Sends to the client an ICMP error about a packet that the program had translated for a `nat` backend.
#[inline(always)]
pub(super) fn about_translated(found: &Found, inner: &Ip<'_>, control: &'static Control) -> Step {
    if !is_ours(&found.ip, inner) {
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
        None => flows::about_backend(control, inner),
    }
}

/// Whether the ICMP error is addressed to the sender of the quoted packet, which may belong to a service.
#[inline(always)]
fn is_ours(ip: &Ip<'_>, inner: &Ip<'_>) -> bool {
    inner.source == ip.destination && (inner.protocol == TCP || inner.protocol == UDP)
}
