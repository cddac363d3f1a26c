//! Lookup tables of services.

use bytemuck::{Pod, Zeroable};

/// A slot without a backend, because the service has no backends. No backend has this id, so the row of this id is
/// never reachable.
pub const NO_BACKEND: u16 = 0;
/// A slot without a backend, because all backends are down and the service drops packets. No backend has the id with
/// this value.
pub const ALL_DOWN: u16 = u16::MAX;

/// The location of a service's live table in the map of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveTable {
    /// The index of the table's first line.
    pub first: u32,
    /// The number of slots of the table, M.
    pub size: u32,
}

impl LiveTable {
    /// Packs the location into the word that [`ServiceRow::table`](super::ServiceRow::table) contains.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        (self.size as u64) << 32 | self.first as u64
    }

    /// Unpacks the location from its 64-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { first: word as u32, size: (word >> 32) as u32 }
    }

    /// The location of `slot` (below 2^27) of this table.
    #[inline(always)]
    #[must_use]
    pub const fn place(self, slot: u32) -> SlotPlace {
        // The multiplication replaces a division (Granlund and Montgomery, 1994), which takes dozens of cycles in BPF.
        const RECIPROCAL: u64 = (1u64 << 32).div_ceil(SLOTS_PER_LINE as u64);
        let line = ((slot as u64 * RECIPROCAL) >> 32) as u32;
        SlotPlace { line: self.first.wrapping_add(line), index: slot.wrapping_sub(line.wrapping_mul(SLOTS_PER_LINE)) }
    }
}

/// The location of one slot in the map of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    /// The index of the slot's line.
    pub line: u32,
    /// The slot's position within the line.
    pub index: u32,
}

/// One slot of a live table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSlot {
    /// Backend id, [`NO_BACKEND`] or [`ALL_DOWN`].
    pub backend: u16,
    /// The flags: `SLOT_*` bits.
    pub flags: u64,
}

/// `TableSlot::flags`: some known client of this slot may be recorded at a backend other than the slot's, so the
/// program must read the client's entry for each packet.
pub const SLOT_EXCEPTIONS: u64 = 1;
/// `TableSlot::flags`: the slot's backend differs from the backend in the base table.
pub const SLOT_REFILLED: u64 = 1 << 32;
/// Number of slots in one element of the map of slots (a cache line).
pub const SLOTS_PER_LINE: u32 = 28;

/// An element of the map of slots: consecutive slots.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SlotLine {
    /// The backends of the slots, which do not change while the program may read them.
    pub backends: [u16; SLOTS_PER_LINE as usize],
    /// The flags of all slots in the line; the flags of each slot are shifted by the slot's index. Each change of the
    /// flags is one store.
    pub flags: u64,
}

impl SlotLine {
    #[must_use]
    pub const fn slot(&self, index: u32) -> TableSlot {
        let flags = (self.flags >> index) & (SLOT_EXCEPTIONS | SLOT_REFILLED);
        TableSlot { backend: self.backends[index as usize], flags }
    }

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
        fn when_a_slot_is_located_then_slots_follow_each_other(first in 0u32..1 << 24, slot in 0u32..1 << 27) {
            let place = LiveTable { first, size: 1 << 27 }.place(slot);
            prop_assert_eq!(place, SlotPlace { line: first + slot / SLOTS_PER_LINE, index: slot % SLOTS_PER_LINE });
        }

        #[test]
        fn when_a_slot_is_replaced_then_no_other_slot_changes(
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
    fn when_a_slot_is_the_first_or_last_of_a_line_then_its_place_is_right() {
        let table = LiveTable { first: 7, size: 1 << 27 };
        for line in (0..(1 << 27) / SLOTS_PER_LINE).step_by(1001) {
            for index in [0, SLOTS_PER_LINE - 1] {
                assert_eq!(table.place(line * SLOTS_PER_LINE + index), SlotPlace { line: 7 + line, index });
            }
        }
    }
}
