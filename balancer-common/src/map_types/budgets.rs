//! Budgets: limits on work that outsiders can cause in a period.

use bytemuck::{Pod, Zeroable};

/// Newcomers recorded in a period, for a service or beyond the services' own shares. All CPUs share the row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NewcomerBudget {
    /// Number of the period by the kernel's clock, so that newcomers are recorded even while no controller runs.
    pub period: u64,
    /// Newcomers recorded in that period.
    pub used: u64,
}

/// Rows of [`NewcomerBudget`]s of services, by service id modulo this number. One more row is the common one.
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
