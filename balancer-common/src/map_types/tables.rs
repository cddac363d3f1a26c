//! Lookup tables of services.

use bytemuck::{Pod, Zeroable};

/// A table entry that names no backend: the service has none configured. No backend has this id, so its row is never reachable.
pub const NO_BACKEND: u16 = 0;
/// A table entry that names no backend: all of them are down and the service drops. As above.
pub const ALL_DOWN: u16 = u16::MAX;

/// Where a live table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveTable {
    /// Its first line in the map of slots.
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

    /// Where `slot` (below 2^27) lies.
    #[inline(always)]
    #[must_use]
    pub const fn place(self, slot: u32) -> SlotPlace {
        // A division by multiplication (Granlund and Montgomery, 1994): BPF divides in dozens of cycles.
        const RECIPROCAL: u64 = (1u64 << 32).div_ceil(SLOTS_PER_LINE as u64);
        let line = ((slot as u64 * RECIPROCAL) >> 32) as u32;
        SlotPlace { line: self.first.wrapping_add(line), index: slot.wrapping_sub(line.wrapping_mul(SLOTS_PER_LINE)) }
    }
}

/// Where a slot lies in the map of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    /// The line.
    pub line: u32,
    /// Which of its slots.
    pub index: u32,
}

/// One slot of a live table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSlot {
    /// Backend id, [`NO_BACKEND`] or [`ALL_DOWN`].
    pub backend: u16,
    /// `SLOT_*` bits.
    pub flags: u64,
}

/// `TableSlot::flags`: some known client of this slot may be at another backend, so its entry must be read.
pub const SLOT_EXCEPTIONS: u64 = 1;
/// `TableSlot::flags`: the slot's backend is not the one of the base table.
pub const SLOT_REFILLED: u64 = 1 << 32;
/// Slots in one element of the map of slots (a cache line).
pub const SLOTS_PER_LINE: u32 = 28;

/// One element of the map of slots: consecutive ones.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SlotLine {
    /// Their backends, which stay while packets may read them.
    pub backends: [u16; SLOTS_PER_LINE as usize],
    /// The flags of each, shifted by its index. Replaced with one store.
    pub flags: u64,
}

impl SlotLine {
    /// A slot, by its index.
    #[must_use]
    pub const fn slot(&self, index: u32) -> TableSlot {
        let flags = (self.flags >> index) & (SLOT_EXCEPTIONS | SLOT_REFILLED);
        TableSlot { backend: self.backends[index as usize], flags }
    }

    /// Replaces a slot.
    pub const fn set(&mut self, index: u32, slot: TableSlot) {
        self.backends[index as usize] = slot.backend;
        self.flags = (self.flags & !((SLOT_EXCEPTIONS | SLOT_REFILLED) << index)) | (slot.flags << index);
    }
}

const _: () = assert!(size_of::<SlotLine>() == 64 && SLOTS_PER_LINE <= 32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_lie_one_after_the_other(first in 0u32..1 << 24, slot in 0u32..1 << 27) {
            let place = LiveTable { first, size: 1 << 27 }.place(slot);
            prop_assert_eq!(place, SlotPlace { line: first + slot / SLOTS_PER_LINE, index: slot % SLOTS_PER_LINE });
        }

        #[test]
        fn a_slot_is_replaced_alone(
            backends: [u16; SLOTS_PER_LINE as usize], all in any::<u64>(), index in 0..SLOTS_PER_LINE, backend: u16, flags in 0u64..4
        ) {
            let before = SlotLine { backends, flags: all & 0x0fff_ffff_0fff_ffff };
            let slot = TableSlot { backend, flags: (flags & 1) * SLOT_EXCEPTIONS + (flags >> 1) * SLOT_REFILLED };
            let mut after = before;
            after.set(index, slot);
            for other in 0..SLOTS_PER_LINE {
                prop_assert_eq!(after.slot(other), if other == index { slot } else { before.slot(other) });
            }
            prop_assert_eq!(after.flags & !0x0fff_ffff_0fff_ffff, 0);
        }
    }

    #[test]
    fn first_and_last_slots_of_lines_have_places() {
        let table = LiveTable { first: 7, size: 1 << 27 };
        for line in (0..(1 << 27) / SLOTS_PER_LINE).step_by(1001) {
            for index in [0, SLOTS_PER_LINE - 1] {
                assert_eq!(table.place(line * SLOTS_PER_LINE + index), SlotPlace { line: 7 + line, index });
            }
        }
    }
}
