//! The sizes of lookup tables, and the number of slots that backends need.

use serde::{Deserialize, Serialize};

use super::primes::MAX_TABLE_SIZE;

/// The number of slots for each backend; with fewer slots, the shares become uneven.
pub(super) const SLOTS_PER_BACKEND: usize = 100;
/// Prime numbers, each about four times the previous one, so that a small change in the number of backends changes no
/// table size.
const STEPS: [u32; 7] = [4_099, 16_411, 65_537, 262_147, 1_048_583, 4_194_319, MAX_TABLE_SIZE];

/// The size of a service's lookup tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum TableSize {
    /// The size is fixed: a prime above the number of backends.
    Fixed(u32),
    /// The size depends only on the number of backends, so that balancers with the same file use the same size.
    Auto,
}

impl TableSize {
    /// The number of slots of a table for this number of backends.
    #[must_use]
    pub fn slots(self, backends: usize) -> u32 {
        match self {
            Self::Fixed(slots) => slots,
            Self::Auto => {
                let enough = |slots: &u32| *slots as usize > backends.saturating_mul(SLOTS_PER_BACKEND);
                STEPS.into_iter().find(enough).unwrap_or(MAX_TABLE_SIZE)
            }
        }
    }
}

impl From<u32> for TableSize {
    fn from(slots: u32) -> Self {
        Self::Fixed(slots)
    }
}

/// The serialized form of the size: a number, or a word.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Slots(u32),
    Word(Word),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Auto,
}

impl From<Written> for TableSize {
    fn from(written: Written) -> Self {
        match written {
            Written::Slots(slots) => Self::Fixed(slots),
            Written::Word(Word::Auto) => Self::Auto,
        }
    }
}

impl From<TableSize> for Written {
    fn from(size: TableSize) -> Self {
        match size {
            TableSize::Fixed(slots) => Self::Slots(slots),
            TableSize::Auto => Self::Word(Word::Auto),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primes::is_prime;

    #[test]
    fn when_backends_are_many_then_steps_are_primes_with_enough_slots() {
        assert!(STEPS.into_iter().all(is_prime));
        assert!(STEPS.windows(2).all(|pair| pair[1] > pair[0]));
        for (backends, slots) in [
            (0, 4099),
            (40, 4099),
            (41, 16_411),
            (164, 16_411),
            (165, 65_537),
            (655, 65_537),
            (656, 262_147),
            (2621, 262_147),
            (2622, 1_048_583),
            (10_485, 1_048_583),
            (10_486, 4_194_319),
            (41_943, 4_194_319),
            (41_944, MAX_TABLE_SIZE),
            (65_534, MAX_TABLE_SIZE),
            (usize::MAX, MAX_TABLE_SIZE),
        ] {
            assert_eq!(TableSize::Auto.slots(backends), slots, "{backends} backends");
        }
        assert_eq!(TableSize::Fixed(251).slots(10_000), 251);
    }
}
