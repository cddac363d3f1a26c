//! Finds the flow of a reply from a `snat` backend, and sends the reply to its client.

use balancer_common::{
    flows::return_hash,
    map_types::{CONTROL_RETURNS, Control, FlowRow},
    verdict::DropReason,
};

use crate::{
    control,
    flows::{
        compare::differ,
        families, pool, rewriting,
        table::{self, Flow},
        ways,
    },
    forward::{nat, neighbour, rewrite},
    found::Found,
    fragments::{self, Way},
    parse::{self, Ip, Ports},
    returns, signs,
    step::{Carries, FlowReturn, Kind, Packed, Step, ToClient, Toward},
};

/// The flow of a packet with these endpoints, which are the endpoints that the backend sees.
#[inline(always)]
pub(super) fn find(pool: &[u32; 4], backend: &[u32; 4], ends: u32, family: u8, protocol: u8) -> Option<Flow> {
    let hash = return_hash(pool, backend, ends, protocol);
    let flow = Flow::at(table::find_reply(hash)?)?;
    is_of(flow.row(), pool, backend, ends, family, protocol).then_some(flow)
}

#[inline(always)]
fn is_of(row: &FlowRow, pool: &[u32; 4], backend: &[u32; 4], ends: u32, family: u8, protocol: u8) -> bool {
    let kinds = u32::from(row.backend_family() ^ family) | u32::from(row.protocol ^ protocol);
    let own = u32::from(row.backend_port) | u32::from(row.pool_port) << 16;
    differ(&row.pool, pool) | differ(&row.backend, backend) | (own ^ ends) | kinds == 0
}

/// Finds the flow or the `nat` backend that a reply belongs to. A packet from a backend that belongs to no flow and to
/// no `nat` backend is for this machine.
#[inline(always)]
pub(crate) fn decide(found: &Found) -> Step {
    let Found { ip, .. } = found;
    let Some(ports) = parse::ports(ip) else { return Step::PASS };
    if pool::has(ports.destination())
        && let Some(flow) = find(&ip.destination, &ip.source, ports.ends(), ip.family, ip.protocol)
    {
        if ip.fragment.is_first() {
            fragments::remember(ip, Way::FlowBack(flow.name()));
        }
        return Step::to(FlowReturn { flow: flow.name() });
    }
    match control::words() {
        Some(control) if control.flags & CONTROL_RETURNS != 0 => of_nat(control, ip, ports),
        _ => Step::PASS,
    }
}

#[inline(always)]
fn of_nat(control: &'static Control, ip: &Ip<'_>, ports: Ports) -> Step {
    match returns::find(control, ip, ports.source()) {
        Some(row) => Step::to(ToClient { port: row.key.port, protocol: ip.protocol, carries: Carries::Header }),
        None => Step::unserved(),
    }
}

/// Sends a reply to the client of its flow.
#[inline(always)]
pub(crate) fn to_client(found: &Found, packed: Packed<FlowReturn>) -> Step {
    let Found { ip, .. } = found;
    let Some(flow) = Flow::named(packed.get().flow) else { return Step::PASS };
    let way = way(found, flow.row());
    if !way.sends() {
        return way;
    }
    if nat::refuses(ip) && signs::withholds(flow.row().backend_id) {
        return Step::drop(DropReason::Withheld);
    }
    flow.hear(parse::segment(ip, false), table::now());
    flow.count_back(ip.length);
    send(found, &flow, way)
}

/// Finds the network path from this machine to the client of a reply. The program drops a reply that did not arrive by
/// an interface that leads to the backend, because its sender may only pretend to be the backend.
#[inline(always)]
pub(super) fn way(found: &Found, row: &FlowRow) -> Step {
    // If a packet changes its family, the length of the packet changes as well, and `may_cross` checks the new length.
    let length = if row.crosses == 0 { found.ip.length } else { 0 };
    let ip = Ip { family: row.family, length, ..found.ip };
    let way = neighbour::route(found.ingress, &ip, &row.vip, &row.client);
    if !way.is(Kind::Pass) && !way.is(Kind::Own) && !ways::lead_to_backend(found.ingress, row) {
        return Step::drop(DropReason::WrongInterface);
    }
    if !way.sends() {
        return way;
    }
    if row.crosses != 0
        && let Err(step) = families::may_cross(&found.ip, row.family, neighbour::mtu())
    {
        return step;
    }
    if found.ip.ttl() <= 1 { Step::drop(DropReason::TtlExceeded) } else { way }
}

/// Rewrites a reply and sends it to its client.
#[inline(always)]
pub(super) fn send(found: &Found, flow: &Flow, way: Step) -> Step {
    if flow.row().crosses != 0 {
        return families::step(flow, Toward::Client, way);
    }
    if !rewriting::rewrite(found.ingress, &found.ip, flow, Toward::Client) {
        return Step::drop(DropReason::Malformed);
    }
    match neighbour::macs().and_then(|(to, from)| rewrite::macs(found.frame, to, from)) {
        Some(()) => way,
        None => Step::drop(DropReason::Malformed),
    }
}
