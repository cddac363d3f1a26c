//! The ports that open flows hold: see [`balancer_common::flows::held`].

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    features::Features,
    flows::held::{self, PORTS_PER_LINE, first_unheld},
    map_types::{FlowRow, HeldLine},
};

use crate::{
    cpu_rows::{clear_shared, set_shared},
    features, opaque,
};

/// Blocks of lines. The controller sets the real size of this map when it loads the program.
#[map]
static FLOW_HELD: Array<HeldLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

const NONE: u64 = u64::MAX;
const WORDS: u32 = PORTS_PER_LINE / u64::BITS;
/// The number of lines of all ports.
const LINES: u32 = held::LINES_PER_BLOCK - 1;

/// Notes whether the flow in a row holds its port. `blocks` is the number of blocks.
#[inline(always)]
pub(super) fn note(blocks: u32, row: &FlowRow, holds: bool) {
    let block = held::block(row.backend_id, row.pool_index.into(), blocks);
    let bit = held::bit(block, u16::from_be(row.pool_port));
    let Some(line) = FLOW_HELD.get_ptr_mut(bit.line) else { return };
    // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
    unsafe {
        let word = &raw mut (*line).words[(bit.word & (WORDS - 1)) as usize];
        if holds { set_shared(word, bit.mask) } else { clear_shared(word, !bit.mask) }
    }
}

/// The next port from `first` to `last` that no open flow holds, in turn. `block` is the first line of the block of the
/// backend and the pool's address.
#[inline(always)]
pub(super) fn next(block: u32, first: u16, last: u16) -> Option<u16> {
    match balancer_flow_next(block.into(), u64::from(first) | u64::from(last) << 32) {
        NONE => None,
        port => Some(port as u16),
    }
}

/// This is a global function, so that the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_next(block: u64, range: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return NONE;
    }
    let Some(begin) = FLOW_HELD.get_ptr_mut(block as u32) else { return NONE };
    // SAFETY: the pointer points to a map value.
    let last_found = unsafe { &raw mut (*begin).words[0] };
    // SAFETY: the pointer points to a map value.
    let behind = unsafe { last_found.read_volatile() } + 1;
    let (first, last) = (range as u32, (range >> 32) as u32);
    let from = if behind > u64::from(first) && behind <= u64::from(last) { behind as u32 } else { first };
    let mut found = balancer_flow_unheld(block, u64::from(from) | u64::from(last) << 32);
    if found == NONE && from > first {
        found = balancer_flow_unheld(block, u64::from(first) | u64::from(from - 1) << 32);
    }
    if found != NONE {
        // SAFETY: the pointer points to a map value. If two CPUs search at the same time, they may find the same port,
        // and one of them searches again.
        unsafe { last_found.write_volatile(found) };
    }
    found
}

/// The first port of a range that no open flow holds. The low half of `range` is the first port, and the high half is
/// the last.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_unheld(block: u64, range: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return NONE;
    }
    let (first, last) = (range as u16, (range >> 32) as u16);
    let mut line = u32::from(first) / PORTS_PER_LINE;
    #[expect(clippy::explicit_counter_loop, reason = "the verifier follows a loop with a constant bound best")]
    for _ in 0..LINES {
        if line > u32::from(last) / PORTS_PER_LINE {
            break;
        }
        let found = balancer_flow_unheld_in(block.wrapping_add(1).wrapping_add(line.into()), line.into(), range);
        if found != NONE {
            return found;
        }
        line += 1;
    }
    NONE
}

/// The first port of a range in the line `place` of the map, which has the number `line` among the lines with bits.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_unheld_in(place: u64, line: u64, range: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return NONE;
    }
    let Some(words) = FLOW_HELD.get_ptr(place as u32) else { return NONE };
    let (first, last) = (range as u16, (range >> 32) as u16);
    let mut begin = (line as u32).wrapping_mul(PORTS_PER_LINE);
    let mut index = 0;
    while index < WORDS {
        // SAFETY: the pointer points to a map value, and the index is below its length.
        let word = unsafe { (&raw const (*words).words[index as usize]).read_volatile() };
        if let Some(port) = first_unheld(word, begin, first.into(), last.into()) {
            return port.into();
        }
        begin = opaque::mixed(begin.wrapping_add(u64::BITS).into(), range) as u32;
        index += 1;
    }
    NONE
}
