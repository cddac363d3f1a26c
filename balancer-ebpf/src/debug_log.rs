//! Rare and unexpected events, logged at level debug: states that a controller never causes, or causes only for a
//! moment. Other counters count all these events; the log adds details.
//!
//! Logging is off unless the controller sets `AYA_LOG_LEVEL` when it loads the program. The verifier then knows the
//! result of `wanted` and removes the code behind it.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use balancer_common::map_types::Budget;

use crate::budget;

/// An event that is logged together with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Oddity {
    /// The steps of a packet led to no outcome; the number is the last step.
    NoOutcome,
    /// The kernel accepts no redirect to an interface; the number is its index.
    Redirect,
    /// A table, a fragment or a rule names a backend whose next hop is unknown; the number is the backend.
    NoNextHop,
    /// A service's table exceeds the map of tables; the number is the slot.
    BeyondTables,
    /// A client's bucket is beyond the client table; the number is the bucket.
    BeyondClients,
    /// A reply's client has no route; the number is the result of the kernel's lookup.
    NoRoute,
    /// The destination of a first fragment could not be stored; the number is the error.
    Fragment,
    /// There is no room for an outer header; the number is the header's length.
    NoHeadroom,
}

const ODDITIES: u32 = 8;

/// The maximum number of lines about each event that a CPU writes in a period of 2^30 ns.
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

/// This is a global function: the verifier checks it once, and its callers stay short.
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
