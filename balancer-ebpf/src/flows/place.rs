//! Finding a row for a new flow.

use balancer_common::{
    features::Features,
    flows::{FLOW_RESTS, FLOW_TAKEN, FlowWord, ReturnWord, expendable, first_bucket, home, rank, second_bucket},
    map_types::FLOWS_PER_LINE,
    verdict::DropReason,
};

use crate::{
    features,
    flows::table::{self, NONE, Word},
    opaque,
};

/// Takes a row for the flow with the given hash. The program cannot find this row for a packet until the flow is
/// published.
#[inline(always)]
pub(super) fn take(hash: u64, now: u32) -> Result<u32, DropReason> {
    match balancer_flow_take(hash, now.into()) {
        NONE => Err(DropReason::FlowTableFull),
        row => Ok(row as u32),
    }
}

/// Takes the best row of both candidate buckets, and retries a few times if other CPUs take this row first.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_take(hash: u64, now: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    const TRIES: u32 = 4;
    let Some(control) = table::control() else { return NONE };
    let first = first_bucket(hash, control.lines) * FLOWS_PER_LINE;
    let second = second_bucket(hash, control.lines) * FLOWS_PER_LINE;
    let now_and_home = u64::from(now as u32) | u64::from(home((hash >> 32) as u32)) << 32;
    for _ in 0..TRIES {
        let best = best(first.into(), second.into(), now_and_home);
        if best == NONE {
            return NONE;
        }
        if balancer_flow_empty(best, now_and_home) != 0 {
            return best;
        }
    }
    NONE
}

/// The best row in two buckets, given the first row of each. Lookups read the first bucket first, so this function
/// prefers a row of the first bucket unless this bucket is nearly full and the second bucket has more empty rows.
#[inline(always)]
fn best(first: u64, second: u64, now_and_home: u64) -> u64 {
    const ENOUGH: u64 = 3;
    let (one, other) = (balancer_flow_bucket(first, now_and_home), balancer_flow_bucket(second, now_and_home));
    let (room, more) = (one >> 32, other >> 32);
    let chosen = if room >= ENOUGH || room >= more && (room > 0 || one as u32 >= other as u32) { one } else { other };
    if chosen as u32 == 0 {
        return NONE;
    }
    let begin = if chosen == one { first } else { second };
    (begin as u32).wrapping_add(chosen as u32 & 15).into()
}

/// The best row of a bucket according to [`expendable`] in the low half of the result, and the number of empty rows in
/// the high half. The low four bits of the result are the position of the best row. The result is 0 if no row can be
/// taken, or if the controller has blocked a row of the bucket. The low half of `now_and_home` is the time, and the high
/// half is the [`home`] of the flow that needs a row.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_bucket(begin: u64, now_and_home: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    let Some(control) = table::control() else { return 0 };
    let (now, home) = (now_and_home as u32, (now_and_home >> 32) as u32);
    let (mut best, mut empty, mut blocked) = (0u64, 0u64, 0u64);
    let mut place = 0;
    while place < FLOWS_PER_LINE {
        if let Some(word) = Word::of_row((begin as u32).wrapping_add(place)) {
            let word = FlowWord(word.load());
            let score = expendable(word, rank(home, place), now, &control.idle);
            empty += u64::from(word == FlowWord::EMPTY);
            blocked |= u64::from(score == 0 && word.is_block());
            best = best.max(u64::from(score));
        }
        best = opaque::mixed(best, now_and_home);
        empty = opaque::mixed(empty, now_and_home);
        blocked = opaque::mixed(blocked, now_and_home);
        place += 1;
    }
    if best == 0 || blocked != 0 {
        return 0;
    }
    best & !15 | u64::from(rank(home, best as u32 & 15)) | empty << 32
}

/// Takes a row away from its present flow if this flow may be removed. Returns whether the row now belongs to the
/// caller.
#[inline(always)]
pub(super) fn empty(row: u32, now: u32) -> bool {
    balancer_flow_empty(row.into(), now.into()) != 0
}

/// Returns 1 if the row now belongs to the caller.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_empty(row: u64, now: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    let (row, now) = (row as u32, now as u32);
    let (Some(control), Some(word)) = (table::control(), Word::of_row(row)) else { return 0 };
    let was = FlowWord(word.load());
    if expendable(was, 0, now, &control.idle) == 0 {
        return 0;
    }
    // The inverted tag tells a CPU that still holds the old flow that this flow is gone.
    let taken = FlowWord::new(!was.tag(), FLOW_TAKEN | FLOW_RESTS, now);
    if !word.swap(was.0, taken.0) {
        return 0;
    }
    if was.0 != 0 {
        give_back(row, was.holds());
    }
    1
}

/// Removes the entry of a row from the index that finds flows by their replies. `held` says whether the row's flow has
/// held its port.
#[inline(always)]
fn give_back(row: u32, held: bool) {
    let Some(old) = table::row(row) else { return };
    if held {
        table::note_held(old, false);
    }
    let Some(word) = Word::of_return(old.returns) else { return };
    let there = word.load();
    if there != 0 && ReturnWord(there).row() == row {
        word.swap(there, 0);
    }
}

/// Releases a flow's row if no free address and port were found for this flow.
#[inline(always)]
pub(super) fn give_up(row: u32) {
    if let Some(word) = Word::of_row(row) {
        word.store(0);
    }
}
