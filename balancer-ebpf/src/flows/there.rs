//! Sends the packets of flows to their backends.

use balancer_common::{map_types::FlowRow, verdict::DropReason};

use crate::{
    backends::{self, Reachable},
    flows::{
        families, rewriting, stamp,
        table::{self, Flow},
    },
    forward,
    found::Found,
    fragments::{self, Way},
    step::{Choice, FlowThere, IcmpError, Packed, Step, Toward},
};

/// Rewrites a flow's packet and sends it to the backend.
#[inline(always)]
pub(crate) fn send(found: &Found, packed: Packed<FlowThere>) -> Step {
    let Found { ingress, ip, .. } = found;
    let FlowThere(going) = packed.get();
    let Some(flow) = Flow::named(going.flow) else { return Step::drop(DropReason::FlowUnknown) };
    let choice = Choice { backend: flow.row().backend_id, decision: going.decision };
    let Some(backend) = backends::reachable(choice.backend) else { return forward::no_way_to(choice) };
    if let Err(end) = leaves(found, backend, flow.row()) {
        return forward::decided(choice, end);
    }
    if ip.fragment.is_first() {
        fragments::remember(ip, Way::Flow(flow.name()));
    }
    flow.hear(stamp::segment(*ingress, ip), table::now());
    flow.count_there(ip.length);
    let step = forward::finish_flow(*ingress, ip, backend, choice);
    if flow.row().crosses != 0 {
        return families::step(&flow, Toward::Backend, step);
    }
    if rewriting::rewrite(*ingress, ip, &flow, Toward::Backend) {
        forward::hand_flow(found, backend, choice, step)
    } else {
        Step::drop(DropReason::Malformed)
    }
}

/// Whether the program can send a packet to the backend of its flow.
#[inline(always)]
pub(super) fn leaves(found: &Found, backend: Reachable, row: &FlowRow) -> Result<(), Step> {
    let Found { ingress, ip, .. } = found;
    if row.crosses != 0 {
        families::may_cross(ip, row.backend_family(), backend.row.mtu)?;
    } else if !forward::fits(*ingress, ip, backend.row) {
        return Err(Step::to(IcmpError::TooBig(backend.row.mtu)));
    }
    if ip.ttl() <= 1 {
        return Err(Step::drop(DropReason::TtlExceeded));
    }
    Ok(())
}
