//! Finds an address and a port of the pool for a new flow.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use balancer_common::{
    flows::{
        FLOW_DATAGRAMS, FLOW_TAKEN, FlowWord, PATIENT_TRIES, PORT_TRIES, ReturnWord, candidate, expendable,
        first_bucket, is_gone, return_hash,
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
    opaque,
    parse::UDP,
    scratch::{self, Row},
    step::{Choice, FlowPort, FlowThere, Packed, Step},
};

/// The result of a successful attempt.
const FOUND: u64 = 1;
/// The part of an attempt that is its number, which is below [`PORT_TRIES`].
const NUMBER: u64 = PORT_TRIES as u64 - 1;
const NUMBER_BITS: u32 = PORT_TRIES.trailing_zeros();
/// A flag of an attempt: the attempt may replace a flow that gives way.
const REPLACES: u64 = 1 << 31;

/// Finds an address and a port of the pool for a flow that has a row, and lets packets find the flow.
#[inline(always)]
pub(crate) fn find(ingress: Ingress, packed: Packed<FlowPort>) -> Step {
    // The compiler would drop an unused argument, but the verifier requires this argument.
    let _ = ingress.frame();
    let FlowPort(going) = packed.get();
    // SAFETY: the helper takes no pointer.
    let start = unsafe { bpf_get_prandom_u32() };
    let now = table::now();
    let backend = table::row(going.row).map_or(0, |row| row.backend_id);
    let refusal = u32::from(backend) << 16 | (now & 0xffff);
    let is_refused = noted(backend) == refusal;
    let tries = if is_refused { PATIENT_TRIES } else { PORT_TRIES };
    if balancer_flow_port(going.row.into(), start.into(), u64::from(now) | u64::from(tries) << 32) != 0
        && balancer_flow_publish(going.row.into(), now.into()) != 0
    {
        if is_refused {
            note(backend, 0);
        }
        return Step::to(FlowThere(going));
    }
    note(backend, refusal);
    place::give_up(going.row);
    decided(Choice { backend, decision: going.decision }, Step::drop(DropReason::NoPort))
}

/// The place of the note that no port was free for a backend in a tick. After such a refusal, the program makes fewer
/// attempts for this backend in the same tick. Backends whose ids have the same low bits share a place.
#[inline(always)]
fn note_of(backend: u16) -> Option<*mut u32> {
    const PLACES: u16 = 16;
    let notes = scratch::place::<[u32; PLACES as usize]>(Row::Ports)?;
    // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
    Some(unsafe { &raw mut (*notes)[(backend % PLACES) as usize] })
}

#[inline(always)]
fn noted(backend: u16) -> u32 {
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    note_of(backend).map_or(0, |place| unsafe { place.read() })
}

#[inline(always)]
fn note(backend: u16, note: u32) {
    if let Some(place) = note_of(backend) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { place.write(note) };
    }
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

/// Takes an address and port that is free. After [`PATIENT_TRIES`] attempts, the program takes the place of the flow that
/// gives way most readily among those it has met. The low half of `now_and_tries` is the time, and the high half is the
/// number of attempts. Returns 1 on success.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_port(row: u64, start: u64, now_and_tries: u64) -> u64 {
    let (now, tries) = (now_and_tries << 32, (now_and_tries >> 32) as u32);
    // The score of the best flow that gives way, above the number of the attempt that met the flow.
    let mut best = 0u64;
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        if attempt >= tries {
            break;
        }
        let score = balancer_flow_try(row, start, u64::from(attempt) | now);
        if score == FOUND {
            return 1;
        }
        best = opaque::mixed(best.max(score << NUMBER_BITS | u64::from(attempt)), row);
        if attempt + 1 >= PATIENT_TRIES && best > NUMBER {
            if balancer_flow_try(row, start, best & NUMBER | REPLACES | now) == FOUND {
                return 1;
            }
            best = 0;
        }
        attempt += 1;
    }
    0
}

/// Tries one address and port for a flow's row. The low half of `attempt` is the number of the attempt with the flag
/// [`REPLACES`], and the high half is the time; `start` is the random start of the sequence of attempts. Returns
/// [`FOUND`], or the score of the flow that has the address and port (see [`expendable`]).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_try(row: u64, start: u64, attempt: u64) -> u64 {
    let index = row as u32;
    let (Some(control), Some(row)) = (table::control(), table::pointer(index)) else { return 0 };
    if !choose(row, start as u32, (attempt & NUMBER) as u32) {
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
        (Some(taken), _) => match balancer_flow_leaves(taken.into(), attempt) {
            FOUND => taken,
            score => return score,
        },
        (None, Some(free)) => free,
        (None, None) => return 0,
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
    FOUND
}

/// Frees the address and port of the flow at a position of the index if this flow has ended, or if it gives way and the
/// attempt may replace it. Returns [`FOUND`] if the address and port are free now, or else the score of the flow.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_leaves(place: u64, attempt: u64) -> u64 {
    let now = (attempt >> 32) as u32;
    let (Some(control), Some(way)) = (table::control(), Word::of_return(place as u32)) else { return 0 };
    let row = ReturnWord(way.load()).row();
    let Some(word) = Word::of_row(row) else { return 0 };
    let score = expendable(FlowWord(word.load()), 0, now, &control.idle);
    if !is_gone(score) && attempt & REPLACES == 0 {
        return score.into();
    }
    if !place::empty(row, now) {
        return 0;
    }
    place::give_up(row);
    FOUND
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
