//! Data that a controller leaves for its successor in maps that the kernel program does not use.

use bytemuck::{Pod, Zeroable};

/// A line of JSON for the next controller, padded with zero bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct NotesRow {
    /// The text of the line.
    pub text: [[u8; 1024]; 16],
}

/// Counters of a backend that only the controller updates; the map is indexed by backend id. Row 0, which belongs to no
/// backend, begins with the number of seconds for which the clocks of client memory have run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendHistory {
    /// Numbers of health checks that passed, failed softly and failed hard, in this order.
    pub checks: [u64; 3],
    /// The number of times that the backend entered each state.
    pub transitions: [u64; 7],
    /// This field is always zero.
    pub reserved: [u64; 6],
}

/// Counters of a service that only the controller updates; the map is indexed by service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceHistory {
    /// The number of times that the controller replaced the live table.
    pub table_generation: u64,
    /// The number of slots that moved because a backend's share rose or fell.
    pub slots_moved_required: u64,
    /// The number of slots that moved although no backend's share rose or fell.
    pub slots_moved_needless: u64,
    /// The service's clock of client memory, in ticks.
    pub tick: u64,
    /// The number of packets that removed rules had pinned to backends which took no clients.
    pub rule_fallbacks: u64,
    /// This field is always zero.
    pub reserved: [u64; 3],
}

/// The minimum number of [`ServiceHistory`] rows.
pub const FEWEST_SERVICE_HISTORIES: u32 = 4096;
/// The map has one row for each possible service id.
pub const MOST_SERVICE_HISTORIES: u32 = 1 << 16;

const _: () = {
    assert!(size_of::<BackendHistory>() == 128);
    assert!(size_of::<ServiceHistory>() == 64);
};

// SAFETY: the type derives `bytemuck::Pod`, which checks that it has no padding and that every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for NotesRow {}
