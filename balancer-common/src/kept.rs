//! Data that a controller leaves to its successor, in maps that the kernel program does not use.

use bytemuck::{Pod, Zeroable};

/// A line of JSON for the next controller, padded with zero bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct NotesRow {
    /// The text.
    pub text: [[u8; 1024]; 16],
}

/// Counters of a backend that only the controller updates, by backend id. Row 0, which belongs to no backend, begins
/// with the number of seconds for which the clocks of client memory have run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendHistory {
    /// Numbers of health checks that passed, failed softly and failed hard.
    pub checks: [u64; 3],
    /// Number of times that the backend entered each state.
    pub transitions: [u64; 7],
    /// Zero.
    pub reserved: [u64; 6],
}

/// Counters of a service that only the controller updates, by service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceHistory {
    /// Number of times that the live table was replaced.
    pub table_generation: u64,
    /// Slots that moved because a backend's share rose or fell.
    pub slots_moved_required: u64,
    /// Slots that moved without such a reason.
    pub slots_moved_needless: u64,
    /// The service's clock, in ticks.
    pub tick: u64,
    /// Packets that removed rules had pinned to backends that took no clients.
    pub rule_fallbacks: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

/// The minimum number of [`ServiceHistory`] rows.
pub const FEWEST_SERVICE_HISTORIES: u32 = 4096;
/// One row for each possible service id.
pub const MOST_SERVICE_HISTORIES: u32 = 1 << 16;

const _: () = {
    assert!(size_of::<BackendHistory>() == 128);
    assert!(size_of::<ServiceHistory>() == 64);
};

// SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for NotesRow {}
