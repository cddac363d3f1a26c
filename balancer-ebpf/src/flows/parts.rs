//! Later fragments, which carry no ports; the program sends them to the destination of the first fragment.

use balancer_common::verdict::{DecisionIndex, DropReason};

use crate::{
    backends,
    flows::{back, families, rewriting, table::Flow, there},
    forward,
    found::Found,
    step::{Choice, FlowPart, Packed, Step, Toward},
};

/// Sends a later fragment to the destination of its first fragment's flow.
#[inline(always)]
pub(crate) fn send(found: &Found, packed: Packed<FlowPart>) -> Step {
    let FlowPart { flow, toward } = packed.get();
    let Some(flow) = Flow::named(flow) else { return Step::drop(DropReason::FragmentUnknown) };
    match toward {
        Toward::Backend => to_backend(found, &flow),
        Toward::Client => to_client(found, &flow),
    }
}

#[inline(always)]
fn to_backend(found: &Found, flow: &Flow) -> Step {
    let Found { ingress, ip, .. } = found;
    let choice = Choice { backend: flow.row().backend_id, decision: DecisionIndex::NONE };
    let Some(backend) = backends::reachable(choice.backend) else { return forward::no_way_to(choice) };
    if let Err(end) = there::leaves(found, backend, flow.row()) {
        return forward::decided(choice, end);
    }
    flow.count_there(ip.length);
    let step = forward::finish_flow(*ingress, ip, backend, choice);
    if flow.row().crosses != 0 {
        return families::step(flow, Toward::Backend, step);
    }
    if rewriting::rewrite(*ingress, ip, flow, Toward::Backend) {
        forward::hand_flow(found, backend, choice, step)
    } else {
        Step::drop(DropReason::Malformed)
    }
}

#[inline(always)]
fn to_client(found: &Found, flow: &Flow) -> Step {
    let way = back::way(found, flow.row());
    if !way.sends() {
        return way;
    }
    flow.count_back(found.ip.length);
    back::send(found, flow, way)
}
