//! Lookup tables of services.

use bytemuck::{Pod, Zeroable};

/// A table entry that names no backend: the service has none configured. No backend has this id, so its row is never reachable.
pub const NO_BACKEND: u16 = 0;
/// A table entry that names no backend: all of them are down and the service drops. As above.
pub const ALL_DOWN: u16 = u16::MAX;

/// Where a live table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveTable {
    /// Its first slot in the map of slots.
    pub first: u32,
    /// Number of slots, M.
    pub size: u32,
}

impl LiveTable {
    /// Packs it into the word of [`ServiceRow::table`](super::ServiceRow::table).
    #[must_use]
    pub const fn to_word(self) -> u64 {
        (self.size as u64) << 32 | self.first as u64
    }

    /// Unpacks the word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { first: word as u32, size: (word >> 32) as u32 }
    }
}

/// One slot of a live table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TableSlot {
    /// Backend id, [`NO_BACKEND`] or [`ALL_DOWN`].
    pub backend: u16,
    /// `SLOT_*` bits.
    pub flags: u16,
}

/// `TableSlot::flags`: some known client of this slot may be at another backend, so its entry must be read.
pub const SLOT_EXCEPTIONS: u16 = 1;
/// `TableSlot::flags`: the slot's backend is not the one of the base table.
pub const SLOT_REFILLED: u16 = 2;
/// Slots in one element of the map of slots (a cache line); a power of two.
pub const SLOTS_PER_LINE: u32 = 16;

/// One element of the map of slots.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SlotLine {
    /// Consecutive slots.
    pub slots: [TableSlot; SLOTS_PER_LINE as usize],
}

const _: () = assert!(size_of::<SlotLine>() == 64);
