//! What a controller leaves to the next one in maps that no packet touches.

use bytemuck::{Pod, Zeroable};

/// What the controller tells the next one: a line of JSON, zero bytes behind it. No packet touches it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct NotesRow {
    /// The text.
    pub text: [[u8; 1024]; 16],
}

/// Counters of a backend that only the controller keeps, by backend id. Row 0, which is no backend's, begins with the
/// seconds that the clocks of client memory have run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendHistory {
    /// Health checks that passed, failed softly, failed hard.
    pub checks: [u64; 3],
    /// How often it entered each state.
    pub transitions: [u64; 7],
    /// Zero.
    pub reserved: [u64; 6],
}

/// Counters of a service that only the controller keeps, by service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceHistory {
    /// How often the live table was replaced.
    pub table_generation: u64,
    /// Slots moved because a backend came to deserve more or less.
    pub slots_moved_required: u64,
    /// Slots moved beyond that.
    pub slots_moved_needless: u64,
    /// The service's clock, in ticks.
    pub tick: u64,
    /// Packets that rules which are gone had pinned to backends that took no clients.
    pub rule_fallbacks: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

/// Rows of [`ServiceHistory`] that there are at least.
pub const FEWEST_SERVICE_HISTORIES: u32 = 4096;
/// One for each id that a service can have.
pub const MOST_SERVICE_HISTORIES: u32 = 1 << 16;

const _: () = {
    assert!(size_of::<BackendHistory>() == 128);
    assert!(size_of::<ServiceHistory>() == 64);
};

// SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for NotesRow {}
