//! The succession determines the backends that get the slots of backends which currently take no clients.
//!
//! Each slot has a sequence of backends: its runner-up ([`crate::maglev`]), then the owners of slots that are drawn
//! pseudo-randomly from the base table, as DxHash draws nodes from an array (Dong, Wang and Feng, "DxHash: A Scalable
//! Consistent Hash Based on the Pseudo-Random Sequence", arXiv:2107.07930). The slot goes to the first backend of the
//! sequence that takes clients. This rule has three consequences:
//!
//! - Backends take over slots in proportion to their weights.
//! - The failure of a backend moves only the slots of this backend, and the backend gets these slots back when it
//!   returns. No slot moves between two other backends, however many backends are absent.
//! - The removal of an absent backend moves hardly any slot, because most of its slots are already at the backends that
//!   own these slots in the table without the removed backend.
//!
//! If so few backends are left that [`DRAWS`] draws find none of them, the slot goes to its owner in a table that
//! contains only these backends.

use balancer_common::{
    client::{HashKey, slot},
    map_types::NO_BACKEND,
};

use crate::{
    maglev::{hash, mix},
    runners_up::RunnersUp,
};

/// If the remaining backends own half of the slots, this many draws fail for one slot in four billion; if they own a
/// tenth of the slots, the draws fail for one slot in 29.
const DRAWS: u64 = 32;

/// The sequence of possible successors for each slot of a base table.
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

    /// The first backend in the sequence of slot `of` for which `may` is true; `None`: no draw within the limit finds
    /// such a backend.
    #[inline(always)]
    pub(crate) fn first(&self, of: usize, may: impl Fn(u16) -> bool) -> Option<u16> {
        let runner_up = self.runners_up.of(of);
        // Usually only one backend is absent, and nearly every slot has a runner-up.
        if may(runner_up) {
            return Some(runner_up);
        }
        let draws = of as u64 * DRAWS..(of as u64 + 1) * DRAWS;
        // The function examines the first three draws together, because a processor could not predict which of them
        // succeeds.
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
