//! Limits on the work that outsiders can cause in a period.

use bytemuck::{Pod, Zeroable};

/// The number of new clients recorded in a period for one service, or for all services beyond their own limits. All
/// CPUs share each row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NewcomerBudget {
    /// The number of the period by the kernel's clock, so that the program records new clients even while no controller
    /// runs.
    pub period: u64,
    /// The number of new clients recorded in that period.
    pub used: u64,
}

/// The number of [`NewcomerBudget`] rows for single services: a service's row is its id modulo this number. One
/// additional row is common to all services.
pub const NEWCOMER_ROWS: u32 = 1024;
/// The length of a period is this power of two in nanoseconds, about a second.
pub const NEWCOMER_PERIOD_BITS: u32 = 30;

/// The number of times in a period that a CPU has performed an action that outsiders can trigger.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// The number of the period in which `used` counts.
    pub period: u64,
    /// The number of times that the CPU has performed the action in that period.
    pub used: u64,
}

/// The maximum number of kinds of [`Budget`].
pub const BUDGETS: u32 = 5;
