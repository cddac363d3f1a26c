//! ICMP errors about packets of flows, in both directions (RFC 5508).

use balancer_common::{
    features::Features,
    map_types::{CONTROL_FLOWS, Control, ServiceRow},
    verdict::{DecisionIndex, DropReason},
};

use crate::{
    backends, features,
    flows::{back, families, find, rewriting, table::Flow, there},
    forward::{self, nat, neighbour, rewrite},
    found::Found,
    parse::Ip,
    share, signs,
    step::{Choice, FlowError, FlowErrorBack, Kind, Packed, Step, Toward},
};

/// Sends to a flow's backend an error about a packet that the VIP sent to a client. An error that belongs to no flow
/// passes to the host if the host may have sent the packet.
#[inline(always)]
pub(crate) fn about_client(service: &ServiceRow, inner: &Ip<'_>) -> Step {
    let unknown = |reason| if share::is_shared(service) { Step::PASS } else { Step::drop(reason) };
    if inner.fragment.is_later() {
        return unknown(DropReason::FragmentUnknown);
    }
    let Some([vip_port, client_port]) = inner.l4.load::<[u16; 2]>(0) else { return unknown(DropReason::Malformed) };
    let ends = u32::from(client_port) | u32::from(vip_port) << 16;
    match find::between(service, &inner.destination, &inner.source, ends, inner.family, inner.protocol) {
        Some(flow) => Step::to(FlowError { flow: flow.name() }),
        None => unknown(DropReason::FlowUnknown),
    }
}

/// Sends to a flow's client an error about a packet that a pool address sent to a backend.
#[inline(always)]
pub(crate) fn about_backend(control: &'static Control, inner: &Ip<'_>) -> Step {
    if !features::uses(Features::SNAT) || control.flags & CONTROL_FLOWS == 0 || inner.fragment.is_later() {
        return Step::PASS;
    }
    let Some([pool_port, backend_port]) = inner.l4.load::<[u16; 2]>(0) else { return Step::PASS };
    let ends = u32::from(backend_port) | u32::from(pool_port) << 16;
    match back::find(&inner.source, &inner.destination, ends, inner.family, inner.protocol) {
        Some(flow) => Step::to(FlowErrorBack { flow: flow.name() }),
        None => Step::PASS,
    }
}

/// Sends an ICMP error to the backend that sent the quoted packet.
#[inline(always)]
pub(crate) fn to_backend(found: &Found, packed: Packed<FlowError>) -> Step {
    let Found { ip, .. } = found;
    let (Some(flow), Some(inner)) = (Flow::named(packed.get().flow), found.quoted()) else { return Step::PASS };
    let choice = Choice { backend: flow.row().backend_id, decision: DecisionIndex::NONE };
    let Some(backend) = backends::reachable(choice.backend) else { return forward::no_way_to(choice) };
    if let Err(end) = there::leaves(found, backend, flow.row()) {
        // An ICMP error must not cause another ICMP error.
        return if end.is(Kind::IcmpError) { Step::drop(DropReason::TooBig) } else { end };
    }
    if features::uses(Features::CROSS) && flow.row().crosses != 0 {
        return families::error_step(&flow, Toward::Backend, forward::count_error(found, backend, choice));
    }
    if rewriting::translate_error(ip, &inner, flow.row(), Toward::Backend).is_none() {
        return Step::drop(DropReason::Malformed);
    }
    forward::send_error(found, backend, choice)
}

/// Sends an ICMP error to the client that sent the quoted packet.
#[inline(always)]
pub(crate) fn to_client(found: &Found, packed: Packed<FlowErrorBack>) -> Step {
    let (Some(flow), Some(inner)) = (Flow::named(packed.get().flow), found.quoted()) else { return Step::PASS };
    let way = back::way(found, flow.row());
    if way.is(Kind::IcmpError) {
        // An ICMP error must not cause another ICMP error.
        return Step::drop(DropReason::TooBig);
    }
    if !way.sends() {
        return way;
    }
    if nat::says_unreachable(&found.ip) {
        signs::unreachable(flow.row().backend_id);
    }
    if features::uses(Features::CROSS) && flow.row().crosses != 0 {
        return families::error_step(&flow, Toward::Client, way);
    }
    let written = rewriting::translate_error(&found.ip, &inner, flow.row(), Toward::Client)
        .and_then(|()| neighbour::macs())
        .and_then(|(to, from)| rewrite::macs(found.frame, to, from));
    match written {
        Some(()) => way,
        None => Step::drop(DropReason::Malformed),
    }
}
