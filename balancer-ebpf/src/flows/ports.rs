//! Finds an address and a port of the pool for a new flow.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use balancer_common::{
    features::Features,
    flows::{
        FLOW_DATAGRAMS, FLOW_TAKEN, FlowWord, PATIENT_TRIES, PORT_TRIES, ReturnWord, candidate, expendable,
        first_bucket, held::block, is_gone, is_good, of_port, return_hash,
    },
    map_types::{FAMILY_V4, FlowRow},
    verdict::DropReason,
};

use crate::{
    backends, features,
    flows::{
        again, held, place, pool, rewriting,
        table::{self, Word},
    },
    forward::decided,
    ingress::Ingress,
    opaque,
    parse::{TCP, UDP},
    step::{Choice, FlowPort, FlowThere, Going, Packed, Step},
    words::by_words,
};

/// The result of a successful attempt.
const FOUND: u64 = 1;
/// Open flows hold all ports of one address of the pool.
const HELD: u64 = u64::MAX - 1;
/// Open flows hold all ports of all addresses of the pool.
const NONE: u64 = u64::MAX;
/// The bits of an address and port of the pool: the index of the address and, in the low 16 bits, the port (host order).
const END: u64 = (1 << END_BITS) - 1;
const END_BITS: u32 = 19;
/// A flag of an attempt: the attempt may replace a flow that gives way.
const REPLACES: u64 = 1 << 32;

/// Finds an address and a port of the pool for a flow that has a row, and lets packets find the flow.
#[inline(always)]
pub(crate) fn find(ingress: Ingress, packed: Packed<FlowPort>) -> Step {
    // The compiler would drop an unused argument, but the verifier requires this argument.
    let _ = ingress.frame();
    let FlowPort(going) = packed.get();
    let row = going.flow;
    if let Some(flow) = again::begins(row) {
        return Step::to(FlowThere(Going { flow, ..going }));
    }
    let now = table::now();
    if balancer_flow_port(row.into(), now.into()) != 0 {
        let flow = balancer_flow_publish(row.into(), now.into());
        if flow != NONE {
            return Step::to(FlowThere(Going { flow: flow as u32, ..going }));
        }
    }
    let backend = table::row(row).map_or(0, |row| row.backend_id);
    place::give_up(row);
    decided(Choice { backend, decision: going.decision }, Step::drop(DropReason::NoPort))
}

/// Publishes a flow's row, so that the program finds it for packets. This is a separate function, so that its stack
/// does not add to the stack of the search for a port. Returns the flow's name, or [`NONE`]. The name comes from the
/// flow's own tag, because another CPU may already have taken the row for another flow.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_publish(index: u64, now: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return NONE;
    }
    let (Some(pointer), Some(word)) = (table::pointer(index as u32), Word::of_row(index as u32)) else { return NONE };
    // SAFETY: the pointer points to a map value, and the row belongs to this CPU.
    let row = unsafe { &mut *pointer };
    let [there, back] = rewriting::deltas(row);
    row.there_addresses = there.addresses;
    row.there_all = there.all;
    row.back_addresses = back.addresses;
    row.back_all = back.all;
    let state = if row.protocol == UDP { FLOW_TAKEN | FLOW_DATAGRAMS } else { FLOW_TAKEN };
    let tag = (row.ends >> 32) as u32;
    word.store(FlowWord::new(tag, state, now as u32).0);
    table::name(index as u32, tag).into()
}

/// Takes an address and port that is free: first tries one at random, then those that no open flow holds, in turn.
/// After [`PATIENT_TRIES`] attempts, the program takes the place of the flow that gives way most readily among those it
/// has met, if that disturbs nobody; after [`PORT_TRIES`], in any case. Returns 1 on success.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_port(row: u64, now: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    // SAFETY: the helper takes no pointer.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    // The score of the best flow that gives way, above its address and port.
    let mut best = 0u64;
    // The number of addresses all of whose ports are held.
    let mut held = 0u64;
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        let end = balancer_flow_end(row, random, if attempt == 0 { NONE } else { held });
        let is_last = end == NONE || attempt + 1 == PORT_TRIES;
        if end > END {
            held += 1;
        } else {
            let score = balancer_flow_try(row, end, now);
            if score == FOUND {
                return 1;
            }
            best = opaque::mixed(best.max(score << END_BITS | end), row);
        }
        let is_enough = attempt + 1 >= PATIENT_TRIES && is_good((best >> END_BITS) as u32);
        if best > END && (is_last || is_enough) {
            if balancer_flow_try(row, best & END, now | REPLACES) == FOUND {
                return 1;
            }
            best = 0;
        }
        if is_last {
            return 0;
        }
        held = opaque::mixed(held, row);
        attempt += 1;
    }
    0
}

/// Chooses an address and a port of the pool for the flow in a row: at random if `held` is [`NONE`], otherwise the next
/// one that no open flow holds, of the address behind the first `held` ones. Returns [`HELD`] if open flows hold all
/// ports of this address, and [`NONE`] if there is no further address.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_end(row: u64, random: u64, held: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return NONE;
    }
    let (Some(control), Some(row)) = (table::control(), table::row(row as u32)) else { return NONE };
    let Some(pool) = pool::of_service(row.service) else { return NONE };
    let count = u32::from(pool.count[usize::from(row.backend_family() != FAMILY_V4) & 1]).max(1);
    let (first, last) = (pool.first_port, pool.last_port);
    let (which, port) = candidate(random as u32, count, first, last);
    if held == NONE {
        return u64::from(which) << 16 | u64::from(port);
    }
    if held >= u64::from(count) {
        return NONE;
    }
    let which = which.wrapping_add(held as u32) % count;
    match held::next(block(row.backend_id, which, control.held_blocks), first, last) {
        Some(port) => u64::from(which) << 16 | u64::from(port),
        None => HELD,
    }
}

/// Tries one address and port, which [`END`] describes, for a flow's row. `now` is the time with the flag [`REPLACES`].
/// Returns [`FOUND`], or the score of the flow that has the address and port (see [`of_port`]).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_try(row: u64, end: u64, now: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    let index = row as u32;
    let (Some(control), Some(row)) = (table::control(), table::pointer(index)) else { return 0 };
    if !choose(row, (end >> 16) as u32, end as u16) {
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
        (Some(taken), _) => match balancer_flow_leaves(taken.into(), now, index.into()) {
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

/// Frees the address and port of the flow at a position of the index if this flow has ended some time ago and the
/// backend lets in the new flow, or if it gives way and the attempt may replace it. Returns [`FOUND`] if the address
/// and port are free now, or else the score of the flow.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_leaves(place: u64, now: u64, opening: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    let replaces = now & REPLACES != 0;
    let now = now as u32;
    let (Some(control), Some(way)) = (table::control(), Word::of_return(place as u32)) else { return 0 };
    let row = ReturnWord(way.load()).row();
    let Some(word) = Word::of_row(row) else { return 0 };
    let was = FlowWord(word.load());
    let lets_in = lets_in(was, row, opening as u32);
    let score = of_port(was, expendable(was, 0, now, &control.idle), lets_in);
    if score == 0 && was.holds() {
        // The balancer has been started since the flow was opened, or the flow's bit belongs to two backends.
        note_held(row);
    }
    if !is_gone(score) && !replaces && !was.leaves(now, lets_in) {
        return score.into();
    }
    if !place::empty(row, now) {
        return 0;
    }
    place::give_up(row);
    FOUND
}

#[inline(always)]
fn note_held(row: u32) {
    if let Some(row) = table::row(row) {
        table::note_held(row, true);
    }
}

/// Whether the port of an ended flow rests, and the backend nevertheless lets in the flow in the row `opening`.
#[inline(always)]
fn lets_in(was: FlowWord, row: u32, opening: u32) -> bool {
    match (table::row(row), table::row(opening)) {
        (Some(closed), Some(opening)) if opening.protocol == TCP => was.lets_in(closed.numbers, opening.numbers),
        _ => false,
    }
}

/// Writes an address and port of the pool to the flow's row. `false`: the pool does not have this address.
#[inline(always)]
fn choose(row: *mut FlowRow, which: u32, port: u16) -> bool {
    // SAFETY: the pointer points to a map value, and the row belongs to the caller.
    let row = unsafe { &mut *row };
    let Some(pool) = pool::of_service(row.service) else { return false };
    let family = usize::from(row.backend_family() != FAMILY_V4);
    row.pool = if pool.count[family & 1] == 0 {
        match backends::reachable(row.backend_id) {
            Some(backend) => by_words(&backend.row.tunnel_source),
            None => return false,
        }
    } else {
        by_words(&pool.addresses[family & 1][(which & 7) as usize])
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
