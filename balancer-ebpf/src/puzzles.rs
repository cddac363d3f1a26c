//! A word to the log, at level debug, about what is rare and puzzling: states that a controller does not bring about, or
//! only for a moment. All of them are counted elsewhere; this says more.
//!
//! Off, unless the controller sets `AYA_LOG_LEVEL` when it loads the program. The verifier then knows the answer to
//! `wanted`, and takes away what comes after it.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use balancer_common::map_types::Budget;

use crate::budget;

/// What there is to say, with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Puzzle {
    /// A packet whose steps came to no end; the last one.
    NoOutcome,
    /// The kernel takes no redirect to an interface; its index.
    Redirect,
    /// A table, a fragment or a rule names a backend whose next hop is not known; the backend.
    NoNextHop,
    /// A service's table lies beyond the map of tables; the slot.
    BeyondTables,
    /// A client's bucket lies beyond the client table; the bucket.
    BeyondClients,
    /// There is no way to the client of a reply; what the kernel's lookup answers.
    NoRoute,
    /// The way of a first fragment cannot be kept; the error.
    Fragment,
    /// There is no room for an outer header; its length.
    NoHeadroom,
}

const PUZZLES: u32 = 8;

/// Lines about each that a CPU writes in a period of 2^30 ns.
const LINES_PER_PERIOD: u32 = 8;

#[map]
static PUZZLE_BUDGETS: PerCpuArray<Budget> = PerCpuArray::with_max_entries(PUZZLES, 0);

/// Says it, if somebody wants to know.
#[inline(always)]
pub fn tell(puzzle: Puzzle, number: u32) {
    if wanted() {
        balancer_tell(puzzle as u64, u64::from(number));
    }
}

#[inline(always)]
fn wanted() -> bool {
    level_enabled(Level::Debug)
}

/// A global function: the verifier looks at it once, and the paths that lead here are as short as they were.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_tell(puzzle: u64, number: u64) -> u64 {
    if !wanted() || !budget::spend(&PUZZLE_BUDGETS, puzzle as u32, LINES_PER_PERIOD) {
        return 0;
    }
    let number = number as u32;
    match puzzle as u8 {
        puzzle if puzzle == Puzzle::NoOutcome as u8 => debug!((), "a packet has come to no end: step {}", number),
        puzzle if puzzle == Puzzle::Redirect as u8 => debug!((), "no redirect to interface {}", number),
        puzzle if puzzle == Puzzle::NoNextHop as u8 => debug!((), "a packet for backend row {}: no next hop", number),
        puzzle if puzzle == Puzzle::BeyondTables as u8 => debug!((), "slot {} is beyond the tables", number),
        puzzle if puzzle == Puzzle::BeyondClients as u8 => debug!((), "bucket {} is beyond the client table", number),
        puzzle if puzzle == Puzzle::NoRoute as u8 => debug!((), "a reply has no way: the route lookup says {}", number),
        puzzle if puzzle == Puzzle::Fragment as u8 => debug!((), "a fragment's way is not kept: error {}", number),
        puzzle if puzzle == Puzzle::NoHeadroom as u8 => debug!((), "no headroom for {} bytes", number),
        _ => {}
    }
    1
}
