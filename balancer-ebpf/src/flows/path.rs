//! The path of most packets of flows: a whole packet without extension headers, whose flow goes on in one address
//! family. All other packets of `snat` services take the longer way through [`crate::steps`].

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    features::Features,
    map_types::{BACKEND_KEEPS_KNOWN, FlowRow, Listening, ServiceRow},
    verdict::{DecisionIndex, DropReason},
};

use crate::{
    backends::{self, Reachable},
    control, devices, features,
    flows::{back, compare::differ, find, pool, rewriting, stamp, table, ways},
    forward::{self, neighbour, rewrite},
    found,
    ingress::Ingress,
    parse::{self, Ip},
    service::{self, Listener},
    step::{Choice, FlowReturn, Kind, Step, Toward},
};

/// Sends a packet for a `snat` service to the backend of its flow, or returns the step with which the packet continues:
/// `Step::FLOW` if the packet belongs to no flow that goes on. The packets of a flow have passed the check for martians
/// when the flow began.
#[inline(always)]
pub(crate) fn to_backend(ingress: Ingress, ip: &Ip<'_>, listener: Listener) -> Step {
    let listening = bytemuck::cast(listener.listening);
    Step::of_word(balancer_flow_on(ingress.context(), ip.place(), listener.row.into(), listening))
}

/// This is a global function, so that its stack does not add to that of the path of most packets.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_on(context: *mut xdp_md, place: u64, row: u64, listening: u64) -> u64 {
    // Old kernels verify functions that nothing calls.
    if !features::uses(Features::SNAT) {
        return Step::FLOW.word();
    }
    // SAFETY: `to_backend` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    there(ingress, place, row as u32, bytemuck::cast(listening)).unwrap_or(Step::FLOW).word()
}

#[inline(always)]
fn there(ingress: Ingress, place: u64, row: u32, listening: Listening) -> Option<Step> {
    let ip = found::kept(ingress.frame(), place, 0)?;
    let listener = service::listener(row, listening)?;
    let (service, ports) = (listener.service, parse::ports(&ip)?);
    let flow = find::find(service, &ip, ports)?;
    let (row, now) = (flow.row(), table::now());
    let backend = backends::reachable(row.backend_id)?;
    // A flow that has had a packet in this tick is not idle.
    let first_in_tick = flow.is_first_in_tick(now);
    let is_idle = first_in_tick && !flow.was.lives(now, &pool::of_service(service.id)?.idle);
    if is_idle || flow.was.is_ended() || !is_kept(service, row, backend) {
        return None;
    }
    listener.count(ports);
    let step = find::goes_on(control::words()?, service, &ip, ports, &flow, first_in_tick);
    if !step.is(Kind::FlowThere) || row.crosses != 0 || !xdp_sends(ingress, &ip, backend) {
        flow.see(now);
        return Some(step);
    }
    flow.hear(stamp::segment(ingress, &ip), now);
    flow.count_there(ip.length);
    let choice = Choice { backend: row.backend_id, decision: DecisionIndex::NONE };
    let step = forward::finish_flow(ingress, &ip, backend, choice);
    let written =
        rewriting::translate(&ip, row, Toward::Backend).and_then(|()| rewrite::macs_to(ingress.frame(), backend.row));
    Some(written.filter(|()| flow.is_still()).map_or(Step::drop(DropReason::Malformed), |()| step))
}

/// Whether the backend of a flow keeps its clients, at the address that the flow has.
#[inline(always)]
fn is_kept(service: &ServiceRow, row: &FlowRow, backend: Reachable) -> bool {
    let keeps = backend.flags & BACKEND_KEEPS_KNOWN != 0 && backend.service == service.id;
    keeps && differ(&backend.row.address, &row.backend) == 0
}

/// Whether XDP can send a packet to a backend without any other change than the translation.
#[inline(always)]
fn xdp_sends(ingress: Ingress, ip: &Ip<'_>, backend: Reachable) -> bool {
    !devices::must_be_asked(ingress, ip, backend.row) && forward::fits(ingress, ip, backend.row) && ip.ttl() > 1
}

/// Sends a packet that is for no service to the client of its flow. Returns `Step::PASS` for a packet without a flow.
#[inline(always)]
pub(crate) fn to_client(ingress: Ingress, ip: &Ip<'_>) -> Step {
    Step::of_word(balancer_flow_back_on(ingress.context(), ip.place()))
}

/// This is a global function, so that its stack does not add to that of the path of most packets.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_back_on(context: *mut xdp_md, place: u64) -> u64 {
    // Old kernels verify functions that nothing calls.
    if !features::uses(Features::SNAT) {
        return Step::PASS.word();
    }
    // SAFETY: `to_client` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    back(ingress, place).unwrap_or(Step::PASS).word()
}

#[inline(always)]
fn back(ingress: Ingress, place: u64) -> Option<Step> {
    let frame = ingress.frame();
    let ip = found::kept(frame, place, 0)?;
    let ports = parse::ports(&ip)?;
    if !pool::has(ports.destination()) {
        return None;
    }
    let flow = back::find(&ip.destination, &ip.source, ports.ends(), ip.family, ip.protocol)?;
    let row = flow.row();
    // The program may have to withhold a reset, so a reset takes the longer way. The longer way drops forged replies.
    let longer = row.crosses != 0 || ip.ttl() <= 1 || ports.resets() || !ways::lead_to_backend(ingress, row);
    let Some(hop) = neighbour::recent(ingress, &ip, &row.vip, &row.client).filter(|_| !longer) else {
        return Some(Step::to(FlowReturn { flow: flow.name() }));
    };
    flow.hear(parse::segment(&ip, false), table::now());
    flow.count_back(ip.length);
    let sent = rewriting::translate(&ip, row, Toward::Client).and_then(|()| hop.send(ingress, frame));
    Some(sent.filter(|_| flow.is_still()).unwrap_or(Step::drop(DropReason::Malformed)))
}
