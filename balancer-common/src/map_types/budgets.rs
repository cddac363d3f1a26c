//! Budgets: limits on work that outsiders can cause in a period.

use bytemuck::{Pod, Zeroable};

/// Newcomers recorded in a period, for one service, or for all services beyond their own shares. All CPUs share the
/// row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NewcomerBudget {
    /// Number of the period by the kernel's clock, so that newcomers are recorded even while no controller runs.
    pub period: u64,
    /// Newcomers recorded in that period.
    pub used: u64,
}

/// Number of services' rows of [`NewcomerBudget`]: a service's row is its id modulo this number. One more row is common
/// to all services.
pub const NEWCOMER_ROWS: u32 = 1024;
/// The length of a period as a power of two of nanoseconds: about a second.
pub const NEWCOMER_PERIOD_BITS: u32 = 30;

/// How often a CPU has done something that outsiders can trigger.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// The period that `used` counts in.
    pub period: u64,
    /// Number of times in that period.
    pub used: u64,
}

/// The maximum number of kinds of [`Budget`].
pub const BUDGETS: u32 = 5;
