//! How much of what anybody can send is done in a time.

use bytemuck::{Pod, Zeroable};

/// Newcomers recorded in a period: of a service, or beyond the services' own shares. All CPUs share the row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NewcomerBudget {
    /// Number of the period, by the kernel's clock: nobody need run for newcomers to be recorded.
    pub period: u64,
    /// How many.
    pub used: u64,
}

/// Rows of [`NewcomerBudget`]s of services, by id modulo this; one more is for what is beyond.
pub const NEWCOMER_ROWS: u32 = 1024;
/// A period is 2^this nanoseconds, about a second.
pub const NEWCOMER_PERIOD_BITS: u32 = 30;

/// How often a CPU has done something that somebody from outside can have it do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// The period that `used` counts in.
    pub period: u64,
    /// Times in that period.
    pub used: u64,
}

/// Kinds of [`Budget`], at most.
pub const BUDGETS: u32 = 5;
