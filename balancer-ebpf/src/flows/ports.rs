//! Finds an address and a port of the pool for a new flow.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use balancer_common::{
    flows::{
        FLOW_DATAGRAMS, FLOW_TAKEN, FlowWord, PATIENT_TRIES, PORT_TRIES, ReturnWord, candidate, first_bucket,
        return_hash,
    },
    map_types::{FAMILY_V4, FlowRow},
    verdict::DropReason,
};

use crate::{
    backends,
    flows::{
        place, pool, rewriting,
        table::{self, Word},
    },
    forward::decided,
    ingress::Ingress,
    parse::UDP,
    step::{Choice, FlowPort, FlowThere, Packed, Step},
};

/// Finds an address and a port of the pool for a flow that has a row, and lets packets find the flow.
#[inline(always)]
pub(crate) fn find(ingress: Ingress, packed: Packed<FlowPort>) -> Step {
    // The compiler would drop an unused argument, but the verifier requires this argument.
    let _ = ingress.frame();
    let FlowPort(going) = packed.get();
    // SAFETY: the helper takes no pointer.
    let start = unsafe { bpf_get_prandom_u32() };
    let now = table::now();
    if balancer_flow_port(going.row.into(), start.into(), now.into()) != 0
        && balancer_flow_publish(going.row.into(), now.into()) != 0
    {
        return Step::to(FlowThere(going));
    }
    let backend = table::row(going.row).map_or(0, |row| row.backend_id);
    place::give_up(going.row);
    decided(Choice { backend, decision: going.decision }, Step::drop(DropReason::NoPort))
}

/// Publishes a flow's row, so that the program finds it for packets. This is a separate function, so that its stack
/// does not add to the stack of the search for a port. Returns 1 on success.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_publish(index: u64, now: u64) -> u64 {
    let (Some(pointer), Some(word)) = (table::pointer(index as u32), Word::of_row(index as u32)) else { return 0 };
    // SAFETY: the pointer points to a map value, and the row belongs to this CPU.
    let row = unsafe { &mut *pointer };
    let [there, back] = rewriting::deltas(row);
    row.there_addresses = there.addresses;
    row.there_all = there.all;
    row.back_addresses = back.addresses;
    row.back_all = back.all;
    let state = if row.protocol == UDP { FLOW_TAKEN | FLOW_DATAGRAMS } else { FLOW_TAKEN };
    word.store(FlowWord::new((row.ends >> 32) as u32, state, now as u32).0);
    1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_port(row: u64, start: u64, now: u64) -> u64 {
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        if balancer_flow_try(row, start, u64::from(attempt) | now << 32) != 0 {
            return 1;
        }
        attempt += 1;
    }
    0
}

/// Tries one address and port for a flow's row. The low half of `attempt` is the number of the attempt, and the high
/// half is the time; `start` is the random start of the sequence of attempts.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_try(row: u64, start: u64, attempt: u64) -> u64 {
    let index = row as u32;
    let (Some(control), Some(row)) = (table::control(), table::pointer(index)) else { return 0 };
    if !choose(row, start as u32, attempt as u32) {
        return 0;
    }
    // SAFETY: the pointer points to a map value, and the row belongs to the caller.
    let (hash, bucket) = unsafe {
        let hash = reply_hash(&*row);
        (hash, first_bucket(hash, control.returns))
    };
    let tag = (hash >> 32) as u32;
    let scanned = table::scan(bucket, tag);
    let place = match (scanned.taken, scanned.free) {
        (Some(taken), _) if balancer_flow_leaves(taken.into(), attempt) != 0 => taken,
        (Some(_), _) | (None, None) => return 0,
        (None, Some(free)) => free,
    };
    let Some(word) = Word::of_return(place) else { return 0 };
    let new = ReturnWord::new(tag, index);
    if !word.swap(0, new.0) {
        return 0;
    }
    // Two CPUs may have taken the same address and port at the same time, with two different entries of the index. Both
    // CPUs detect this conflict and give up the address and port.
    let again = table::scan(bucket, tag);
    if again.taken != Some(place) {
        word.swap(new.0, 0);
        return 0;
    }
    // SAFETY: the pointer points to a map value, and the row belongs to the caller.
    unsafe { (*row).returns = place };
    1
}

/// Frees the address and port of the flow at a position of the index if this flow may be removed; later attempts may
/// also remove an unanswered flow. Returns 1 if the address and port are free now.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_leaves(place: u64, attempt: u64) -> u64 {
    let now = attempt >> 32;
    let (Some(control), Some(way)) = (table::control(), Word::of_return(place as u32)) else { return 0 };
    let row = ReturnWord(way.load()).row();
    let Some(word) = Word::of_row(row) else { return 0 };
    let may_go = FlowWord(word.load()).may_go(now as u32, &control.idle);
    if !may_go && (attempt as u32) < PATIENT_TRIES || !place::empty(row, now as u32) {
        return 0;
    }
    place::give_up(row);
    1
}

/// Writes the address and port of an attempt to the flow's row. `false`: the pool has no address and port for this
/// attempt.
#[inline(always)]
fn choose(row: *mut FlowRow, start: u32, attempt: u32) -> bool {
    // SAFETY: the pointer points to a map value, and the row belongs to the caller.
    let row = unsafe { &mut *row };
    let Some(pool) = pool::of_service(row.service) else { return false };
    let family = usize::from(row.backend_family() != FAMILY_V4);
    let count = pool.count[family & 1];
    let (which, port) = candidate(start, attempt, u32::from(count.max(1)), pool.first_port, pool.last_port);
    if port < pool.first_port || port > pool.last_port {
        return false;
    }
    row.pool = if count == 0 {
        match backends::reachable(row.backend_id) {
            Some(backend) => backend.row.tunnel_source,
            None => return false,
        }
    } else {
        pool.addresses[family & 1][(which & 7) as usize]
    };
    row.pool_index = which as u8;
    row.pool_port = port.to_be();
    true
}

/// The hash of the endpoints in the backend's replies.
#[inline(always)]
fn reply_hash(row: &FlowRow) -> u64 {
    let ends = u32::from(row.backend_port) | u32::from(row.pool_port) << 16;
    return_hash(&row.pool, &row.backend, ends, row.protocol)
}
