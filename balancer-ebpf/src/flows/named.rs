//! Flows of QUIC connections whose connection ID names the backend.
//!
//! A flow that such a packet opens is found only by packets with an ID of the same backend. A made-up connection ID
//! therefore takes no packets away from other flows of the client's address and port.

use balancer_common::{features::Features, flows, map_types::ServiceRow, verdict::DropReason};

use crate::{
    backends, features,
    flows::{
        find::{self, Stands},
        table,
    },
    found::Found,
    parse::{self, Ip, Ports},
    quic,
    step::{OpenFlow, Packed, QuicFlow, QuicNamed, Step},
};

/// The hash of the ends of a flow to open: of a flow that only packets with a connection ID of its backend find, or the
/// `hash` itself.
#[inline(always)]
pub(super) fn hash(service: &ServiceRow, hash: u64, packed: Packed<OpenFlow>) -> u64 {
    let OpenFlow { choice, named, .. } = packed.get();
    if features::uses(Features::QUIC) && named { of_backend(service, hash, choice.backend) } else { hash }
}

#[inline(always)]
fn of_backend(service: &ServiceRow, hash: u64, backend: u16) -> u64 {
    flows::hash(service.hash.key(), hash, backend.into())
}

/// Finds the flow of a datagram at the backend that its connection ID names. If there is none, the datagram may open
/// one, unless the client may have made up the ID of a backend that takes no new clients.
#[inline(always)]
pub(crate) fn find(found: &Found, packed: Packed<QuicFlow>) -> Step {
    if !features::uses(Features::SNAT) {
        return Step::PASS;
    }
    let ip = &found.ip;
    let QuicFlow(named) = packed.get();
    let (Some(service), Some(ports)) = (quic::service(), parse::ports(ip)) else {
        return Step::drop(DropReason::Malformed);
    };
    let flow = at(service, ip, ports, named.backend);
    if flow.is_none() && !named.issued && !backends::takes_clients(named.backend) {
        quic::say_gone();
        return Step::FLOW;
    }
    Step::to(QuicNamed { flow, ..named })
}

/// The name of the flow with the ends of a packet that goes on at a backend.
#[inline(always)]
fn at(service: &'static ServiceRow, ip: &Ip<'_>, ports: Ports, backend: u16) -> Option<u32> {
    let hash = find::hash(service, &ip.source, &ip.destination, ports.ends(), ip.family, ip.protocol);
    goes_on(service, ip, ports, backend, hash)
        .or_else(|| goes_on(service, ip, ports, backend, of_backend(service, hash, backend)))
}

#[inline(always)]
fn goes_on(service: &'static ServiceRow, ip: &Ip<'_>, ports: Ports, backend: u16, hash: u64) -> Option<u32> {
    let flow = table::find(hash)?;
    let row = flow.row();
    if row.backend_id != backend || !find::is_of(row, &ip.source, &ip.destination, ports.ends(), ip.family, ip.protocol)
    {
        return None;
    }
    match find::stands(service, &flow, ports) {
        Stands::GoesOn | Stands::SeenAgain => Some(flow.name()),
        Stands::Ended | Stands::Lost => None,
    }
}
