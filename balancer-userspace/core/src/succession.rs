//! The succession: which backends take over the slots of backends that are not steered to.
//!
//! Behind each slot stands a sequence of backends: its runner-up ([`crate::maglev`]), then those that have the slots that it draws
//! from the base table, pseudo-randomly, as DxHash draws nodes from an array (Dong, Wang and Feng, "DxHash: A Scalable
//! Consistent Hash Based on the Pseudo-Random Sequence", arXiv:2107.07930). It goes to the first of them that is steered to. So:
//!
//! - Backends take slots over in proportion to their weights.
//! - One that goes moves only the slots that it has, and gets them back when it returns: nothing moves between two others,
//!   however many are away.
//! - One that is removed while it is away moves hardly anything, as its slots are mostly with those already that have them in
//!   the table without it.
//!
//! Where so few are left that [`DRAWS`] draws find none of them, the slot goes to whoever has it in a table of these alone.

use balancer_common::{
    client::{HashKey, slot},
    map_types::NO_BACKEND,
};

use crate::{
    maglev::{hash, mix},
    runners_up::RunnersUp,
};

/// As many draws find nobody for one slot in four billion where backends with half of the slots are left, and for one in 29
/// where those with a tenth are.
const DRAWS: u64 = 32;

/// The succession behind each slot of a base table.
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

    /// The first backend behind a slot that `may` have it. `None`: not among so many.
    #[inline(always)]
    pub(crate) fn first(&self, of: usize, may: impl Fn(u16) -> bool) -> Option<u16> {
        let runner_up = self.runners_up.of(of);
        // Mostly one backend is away, and hardly ever nobody is the runner-up.
        if may(runner_up) {
            return Some(runner_up);
        }
        let draws = of as u64 * DRAWS..(of as u64 + 1) * DRAWS;
        // Looked at together, as no processor could predict which of them is the first.
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
