//! Another connection in the row of an ended one: a client that opens the same connection again takes its own row, with
//! the same address and port of the pool.

use balancer_common::{
    features::Features,
    flows::{FLOW_RESTS, FLOW_TAKEN, FlowWord, Life, Segment},
    map_types::FlowRow,
};

use crate::{
    features,
    flows::{
        compare::differ,
        place, pool,
        table::{self, Flow, NONE},
    },
    parse::UDP,
};

/// The name of the ended flow that goes on as the flow in the row `opening`, which is not published yet. The function
/// gives up the row `opening` in this case. If the ended flow does not go on, packets no longer find it.
#[inline(always)]
pub(super) fn begins(opening: u32) -> Option<u32> {
    match balancer_flow_again(opening.into()) {
        NONE => None,
        flow => {
            place::give_up(opening);
            Some(flow as u32)
        }
    }
}

/// This is a global function, so that its stack does not add to that of the search for a port.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_again(opening: u64) -> u64 {
    // Old kernels verify functions that nothing calls.
    if !features::uses(Features::SNAT) {
        return NONE;
    }
    let Some(opening) = table::row(opening as u32) else { return NONE };
    let Some(flow) = table::find(opening.ends).filter(|flow| has_ends(flow.row(), opening)) else { return NONE };
    let Some(pool) = pool::of_service(opening.service) else { return NONE };
    let now = table::now();
    if !flow.was.has_ended(now, &pool.idle) {
        // Another CPU has begun this connection.
        return flow.name().into();
    }
    let fits = flow.was.begins_again(flow.numbers(), opening.numbers) && has_server(flow.row(), opening);
    if fits && pool::gives(pool, flow.row()) && begun(&flow, opening, now) {
        return flow.name().into();
    }
    flow.rest(now);
    NONE
}

/// Whether two rows have the same ends as the client sees them.
#[inline(always)]
fn has_ends(one: &FlowRow, other: &FlowRow) -> bool {
    let ports = u32::from(one.client_port ^ other.client_port) | u32::from(one.vip_port ^ other.vip_port);
    let kinds = u32::from(one.family ^ other.family) | u32::from(one.protocol ^ other.protocol);
    differ(&one.client, &other.client) | differ(&one.vip, &other.vip) | ports | kinds == 0
}

/// Whether two rows have the same service and the same server.
#[inline(always)]
fn has_server(one: &FlowRow, other: &FlowRow) -> bool {
    let ids = u32::from(one.service ^ other.service) | u32::from(one.backend_id ^ other.backend_id);
    let kinds = u32::from(one.backend_port ^ other.backend_port) | u32::from(one.crosses ^ other.crosses);
    differ(&one.backend, &other.backend) | ids | kinds == 0
}

/// Takes the row of an ended flow for another connection, and publishes it. `false`: another CPU was first.
#[inline(always)]
fn begun(flow: &Flow, opening: &FlowRow, now: u32) -> bool {
    // The inverted tag tells a CPU that still holds the old flow that this flow is gone.
    let taken = FlowWord::new(!flow.was.tag(), FLOW_TAKEN | FLOW_RESTS, now);
    let Some(pointer) = table::pointer(flow.index).filter(|_| flow.word.swap(flow.was.0, taken.0)) else {
        return false;
    };
    if flow.was.holds() {
        table::note_held(flow.row(), false);
    }
    // SAFETY: the pointer points to a map value, and the row belongs to this CPU.
    let row = unsafe { &mut *pointer };
    row.numbers = opening.numbers;
    row.begun = now;
    row.bytes_there = 0;
    row.bytes_back = 0;
    let first = Segment { datagram: row.protocol == UDP, ..Segment::default() };
    flow.word.store(FlowWord::new(flow.was.tag(), Life::opened_by(first).state, now).0);
    true
}
