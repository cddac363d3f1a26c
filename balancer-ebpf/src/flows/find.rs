//! Finds the flow of a client's packet.

use balancer_common::{
    features::Features,
    flows,
    map_types::{Control, FAMILY_V4, FlowRow, LISTENER_QUIC, SERVICE_LOCAL, SERVICE_REMEMBERS, ServiceRow},
    query::Query,
    verdict::{DecisionIndex, DropIndex, DropReason},
};

use crate::{
    backends, control, features,
    flows::{
        compare::differ,
        pool,
        table::{self, Flow},
    },
    found::Found,
    martian, memory,
    parse::{self, Ip, Ports},
    rules, service,
    share::{self, Treated},
    signs, steer,
    step::{FlowThere, Going, Reject, Step},
};

/// The hash of a flow's endpoints as the client sees them. The hash uses the service's key, because clients choose
/// their own endpoint.
#[inline(always)]
pub(super) fn hash(
    service: &ServiceRow,
    client: &[u32; 4],
    vip: &[u32; 4],
    ends: u32,
    family: u8,
    protocol: u8,
) -> u64 {
    let rest = u64::from(ends) | u64::from(protocol) << 32;
    let key = service.hash.key();
    if family == FAMILY_V4 {
        return flows::hash(key, u64::from(client[0]) | u64::from(vip[0]) << 32, rest);
    }
    let ([low, high], [vip_low, vip_high]) = (rules::words(client), rules::words(vip));
    flows::hash(key, flows::hash(key, low, high), flows::hash(key, vip_low.rotate_left(32) ^ vip_high, rest))
}

/// Whether a row belongs to the flow with these endpoints.
#[inline(always)]
pub(super) fn is_of(row: &FlowRow, client: &[u32; 4], vip: &[u32; 4], ends: u32, family: u8, protocol: u8) -> bool {
    let kinds = u32::from(row.family ^ family) | u32::from(row.protocol ^ protocol);
    let own = u32::from(row.client_port) | u32::from(row.vip_port) << 16;
    differ(&row.client, client) | differ(&row.vip, vip) | (own ^ ends) | kinds == 0
}

/// Decides about a packet that has ports and is for a `snat` service. If the packet's listener is a QUIC listener, an
/// earlier step has counted the packet and has found no backend by its connection ID.
#[inline(always)]
pub(crate) fn decide(found: &Found) -> Step {
    let Found { ip, .. } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let Some(ports) = parse::ports(ip) else { return Step::drop(DropReason::Malformed) };
    let listeners = control::listeners(control);
    let Some(listener) = service::of_port(control, listeners, ip, ports.destination()) else { return Step::PASS };
    let service = listener.service;
    if !features::uses(Features::QUIC) || listener.listening.flags & LISTENER_QUIC == 0 {
        listener.count(ports);
    }
    if martian::is_source(ip) || ports.may_open() && martian::is_vip(control, ip) {
        let treated = Treated::of(service, ip.family, &ip.source);
        return if treated.is_steered() { Step::drop(DropReason::Martian) } else { Step::PASS };
    }
    if let Some(flow) = find(service, ip, ports) {
        return match stands(service, &flow, ports) {
            Stands::GoesOn => goes_on(control, service, ip, ports, &flow, false),
            Stands::SeenAgain => goes_on(control, service, ip, ports, &flow, true),
            Stands::Ended => begins(service, ports),
            Stands::Lost => rejected(),
        };
    }
    begins(service, ports)
}

#[inline(always)]
pub(super) fn find(service: &'static ServiceRow, ip: &Ip<'_>, ports: Ports) -> Option<Flow> {
    between(service, &ip.source, &ip.destination, ports.ends(), ip.family, ip.protocol)
}

/// The flow with these endpoints.
#[inline(always)]
pub(super) fn between(
    service: &ServiceRow,
    client: &[u32; 4],
    vip: &[u32; 4],
    ends: u32,
    family: u8,
    protocol: u8,
) -> Option<Flow> {
    let flow = table::find(hash(service, client, vip, ends, family, protocol))?;
    is_of(flow.row(), client, vip, ends, family, protocol).then_some(flow)
}

/// Decides about a packet that belongs to no existing flow.
#[inline(always)]
fn begins(service: &'static ServiceRow, ports: Ports) -> Step {
    if may_be_served(service, ports) || share::is_shared(service) { Step::FLOW_NEW } else { rejected() }
}

/// Whether a packet that belongs to no existing flow may be for a backend. Connections to this machine itself have no
/// flow.
#[inline(always)]
pub(super) fn may_be_served(service: &ServiceRow, ports: Ports) -> bool {
    ports.may_open() || service.flags & SERVICE_LOCAL != 0
}

/// The step for a segment whose connection is lost, whether or not the service rejects packets: without an answer, both
/// ends would wait.
#[inline(always)]
pub(super) fn rejected() -> Step {
    Step::to(Reject { reason: DropIndex(DropReason::FlowUnknown as u8) })
}

/// The state of a packet's flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    GoesOn,
    /// The flow is alive, and the packet is the first of this flow in the current tick.
    SeenAgain,
    /// The flow has ended, so the packet may open another flow, with the same row or another.
    Ended,
    /// The backend of the flow has failed or was removed.
    Lost,
}

const GOES_ON: u64 = Stands::GoesOn as u64;
const SEEN_AGAIN: u64 = Stands::SeenAgain as u64;
const ENDED: u64 = Stands::Ended as u64;
const LOST: u64 = Stands::Lost as u64;

#[inline(always)]
pub(super) fn stands(service: &'static ServiceRow, flow: &Flow, ports: Ports) -> Stands {
    match balancer_flow_stands(flow.name().into(), u64::from(ports.may_open()) | u64::from(service.id) << 16) {
        GOES_ON => Stands::GoesOn,
        SEEN_AGAIN => Stands::SeenAgain,
        ENDED => Stands::Ended,
        _ => Stands::Lost,
    }
}

/// Determines whether the flow of a packet is alive, has ended or has lost its backend. `what` says whether the packet
/// may open a flow, and for which service the flow would be. This is a global function, so the verifier checks it only
/// once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_stands(flow: u64, what: u64) -> u64 {
    let (may_open, service) = (what & 1 != 0, (what >> 16) as u16);
    let (Some(flow), Some(pool)) = (Flow::named(flow as u32), pool::of_service(service)) else { return ENDED };
    let now = table::now();
    if flow.was.has_ended(now, &pool.idle) {
        if may_open {
            return ENDED;
        }
        if !flow.was.lives(now, &pool.idle) {
            flow.rest(now);
            return ENDED;
        }
    }
    let row = flow.row();
    let facts = backends::facts(row.backend_id);
    if facts.is_some_and(|facts| facts.keeps_known && facts.service == service) {
        // A flow keeps its backend while the next hop of this backend is temporarily unknown.
        let elsewhere = |backend: backends::Reachable| differ(&backend.row.address, &row.backend) != 0;
        if !backends::reachable(row.backend_id).is_some_and(elsewhere) {
            return if flow.see(now) { SEEN_AGAIN } else { GOES_ON };
        }
    }
    flow.rest(now);
    if may_open { ENDED } else { LOST }
}

#[inline(always)]
pub(super) fn goes_on(
    control: &'static Control,
    service: &'static ServiceRow,
    ip: &Ip<'_>,
    ports: Ports,
    flow: &Flow,
    first_in_tick: bool,
) -> Step {
    if rules::find(service, &ip.source, false).denies() {
        return steer::nobody(service, DropReason::Denied);
    }
    if signs::watches(control, ports) {
        signs::watch(ip, ports, flow.row().backend_id);
    }
    if first_in_tick && service.flags & SERVICE_REMEMBERS != 0 {
        return remember(service, flow);
    }
    Step::to(FlowThere(Going { flow: flow.name(), decision: DecisionIndex::NONE }))
}

/// Records in the client table that the client is active at a backend: the one in the client's entry, or the one of the
/// flow.
#[inline(always)]
fn remember(service: &'static ServiceRow, flow: &Flow) -> Step {
    let query = Query {
        hash: steer::client_hash(service, flow.row().family, &flow.row().client),
        service: service.id,
        live: Some(flow.row().backend_id),
        live_is_home: true,
        pinned: false,
        migrates: false,
        opens: false,
        datagram: false,
        failback: false,
        peeks: false,
        marks: true,
        now: steer::now(service),
        remember: service.remember,
        idle: service.idle,
    };
    let on = FlowThere::unchosen(flow.name());
    let otherwise = Step::to(FlowThere(Going { flow: flow.name(), decision: DecisionIndex::NONE }));
    memory::consult_later(&query, on, otherwise).unwrap_or(otherwise)
}
