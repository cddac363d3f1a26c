//! Rare and unexpected events, logged at level debug: the controller never causes these states, or causes them only for
//! a moment. Counters record all these events; the log only adds details.
//!
//! Logging is off unless the controller sets `AYA_LOG_LEVEL` when it loads the program. If logging is off, the verifier
//! knows that `wanted` returns false, and removes the code that depends on this result.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use balancer_common::map_types::Budget;

use crate::budget;

/// An event in the debug log, each with a number that gives details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Oddity {
    /// The program's steps for a packet led to no outcome; the number is the last step.
    NoOutcome,
    /// The kernel accepts no redirect to an interface; the number is the interface's index.
    Redirect,
    /// A lookup table, a stored fragment or a rule names a backend whose next hop is unknown; the number is the
    /// backend's id.
    NoNextHop,
    /// A service's lookup table extends beyond the map of tables; the number is the slot.
    BeyondTables,
    /// A client's bucket is beyond the end of the client table; the number is the bucket's index.
    BeyondClients,
    /// The kernel has no route to the client of a reply; the number is the result of the kernel's route lookup.
    NoRoute,
    /// The program could not store the destination of a first fragment; the number is the error code.
    Fragment,
    /// The driver leaves no room for an outer header; the number is the length of this header.
    NoHeadroom,
}

const ODDITIES: u32 = 8;

/// The maximum number of log lines about each event that a CPU writes in a period of 2^30 ns.
const LINES_PER_PERIOD: u32 = 8;

#[map]
static LOG_BUDGETS: PerCpuArray<Budget> = PerCpuArray::with_max_entries(ODDITIES, 0);

/// Logs an event if logging is on.
#[inline(always)]
pub fn tell(oddity: Oddity, number: u32) {
    if wanted() {
        balancer_tell(oddity as u64, u64::from(number));
    }
}

#[inline(always)]
fn wanted() -> bool {
    level_enabled(Level::Debug)
}

/// This is a global function: the verifier checks it only once, and its callers need fewer instructions.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_tell(oddity: u64, number: u64) -> u64 {
    if !wanted() || !budget::spend(&LOG_BUDGETS, oddity as u32, LINES_PER_PERIOD) {
        return 0;
    }
    let number = number as u32;
    match oddity as u8 {
        oddity if oddity == Oddity::NoOutcome as u8 => debug!((), "a packet has come to no end: step {}", number),
        oddity if oddity == Oddity::Redirect as u8 => debug!((), "no redirect to interface {}", number),
        oddity if oddity == Oddity::NoNextHop as u8 => debug!((), "a packet for backend row {}: no next hop", number),
        oddity if oddity == Oddity::BeyondTables as u8 => debug!((), "slot {} is beyond the tables", number),
        oddity if oddity == Oddity::BeyondClients as u8 => debug!((), "bucket {} is beyond the client table", number),
        oddity if oddity == Oddity::NoRoute as u8 => debug!((), "a reply has no way: the route lookup says {}", number),
        oddity if oddity == Oddity::Fragment as u8 => debug!((), "a fragment's way is not kept: error {}", number),
        oddity if oddity == Oddity::NoHeadroom as u8 => debug!((), "no headroom for {} bytes", number),
        _ => {}
    }
    1
}
