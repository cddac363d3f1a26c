//! The succession: determines which backends get the slots of backends that currently take no clients.
//!
//! Each slot has a sequence of backends: its runner-up ([`crate::maglev`]), then the owners of slots drawn
//! pseudo-randomly from the base table, as DxHash draws nodes from an array (Dong, Wang and Feng, "DxHash: A Scalable
//! Consistent Hash Based on the Pseudo-Random Sequence", arXiv:2107.07930). The slot goes to the first backend of the
//! sequence to which clients are steered. Therefore:
//!
//! - Backends take slots over in proportion to their weights.
//! - A backend that fails moves only its own slots, and gets them back when it returns. No slot moves between two
//!   others, however many are absent.
//! - Removing an absent backend moves hardly any slot, because most of its slots are already at the backends that own
//!   them in the table without it.
//!
//! If so few backends are left that [`DRAWS`] draws find none of them, the slot goes to its owner in a table of these
//! backends alone.

use balancer_common::{
    client::{HashKey, slot},
    map_types::NO_BACKEND,
};

use crate::{
    maglev::{hash, mix},
    runners_up::RunnersUp,
};

/// With the backends of half of the slots left, this many draws fail for one slot in four billion; with those of a
/// tenth left, for one slot in 29.
const DRAWS: u64 = 32;

/// The sequence of successors of each slot of a base table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Succession<'a> {
    base: &'a [u16],
    runners_up: &'a RunnersUp,
    offset: u64,
    skip: u64,
}

impl<'a> Succession<'a> {
    /// Returns the succession for the base table `base`, whose draws depend on `key`.
    pub(crate) fn new(base: &'a [u16], runners_up: &'a RunnersUp, key: HashKey) -> Self {
        Self { base, runners_up, offset: hash(key, 2, ""), skip: hash(key, 3, "") | 1 }
    }

    /// The first backend in the sequence of slot `of` for which `may` is true; `None`: no such backend within the
    /// allowed draws.
    #[inline(always)]
    pub(crate) fn first(&self, of: usize, may: impl Fn(u16) -> bool) -> Option<u16> {
        let runner_up = self.runners_up.of(of);
        // Mostly one backend is absent, and a slot has nearly always a runner-up.
        if may(runner_up) {
            return Some(runner_up);
        }
        let draws = of as u64 * DRAWS..(of as u64 + 1) * DRAWS;
        // The first three draws are examined together, because a processor could not predict which of them succeeds.
        let few = [0, 1, 2].map(|n| self.drawn(draws.start + n));
        let may_have = few.iter().zip(0..).fold(0u32, |bits, (&id, at)| bits | u32::from(may(id)) << at);
        if let Some(&id) = few.get(may_have.trailing_zeros() as usize) {
            return Some(id);
        }
        draws.skip(3).map(|n| self.drawn(n)).find(|&id| may(id))
    }

    #[inline(always)]
    fn drawn(&self, n: u64) -> u16 {
        let draw = mix(self.offset.wrapping_add(self.skip.wrapping_mul(n)));
        self.base.get(slot(draw, self.base.len() as u32) as usize).copied().unwrap_or(NO_BACKEND)
    }
}
