//! The state that a restart must preserve.

use std::collections::BTreeMap;

use balancer_control::{
    controller::Controller,
    state::{Clocks, SavedChanges, SavedClock, SavedCountersByService, SavedEpoch, SavedState},
};
use serde::Serialize;

/// A copy of everything that a restart must preserve, as of one moment. The copy shares nearly all data with the
/// controller, so making it is cheap; writing the [`SavedState`] is expensive.
#[derive(Clone, Debug)]
pub struct Restorable {
    /// The services and all state that follows from them.
    pub controller: Controller,
    /// The counters of removed backends.
    pub removed_backends: SavedCountersByService,
    /// The moves that other members of a fleet also count, by service and cause.
    pub repeated_moves: BTreeMap<u16, Vec<u64>>,
    /// Whether the operator has withdrawn the VIPs.
    pub withdrawn: bool,
    /// The epoch of the fleet's state that the controller follows.
    pub epoch: Option<SavedEpoch>,
    /// The moment at which the copy was made.
    pub clocks: Clocks,
    /// A timestamp of this moment that stays valid even if the wall clock is set.
    pub clock: Option<SavedClock>,
}

impl Restorable {
    /// Returns the whole state in a form that can be serialized.
    #[must_use]
    pub fn state(&self) -> SavedState<impl Serialize + '_, impl Serialize + '_, impl Serialize + '_> {
        SavedState {
            removed_backends: self.removed_backends.clone(),
            repeated_moves: self.repeated_moves.clone(),
            withdrawn: self.withdrawn,
            epoch: self.epoch,
            clock: self.clock.clone(),
            ..self.controller.export_listed(self.clocks)
        }
    }

    /// Returns the differences between this state and the earlier state `before`.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> SavedChanges {
        SavedChanges {
            removed_backends: (!same_counts(&self.removed_backends, &before.removed_backends))
                .then(|| self.removed_backends.clone()),
            repeated_moves: (self.repeated_moves != before.repeated_moves).then(|| self.repeated_moves.clone()),
            withdrawn: (self.withdrawn != before.withdrawn).then_some(self.withdrawn),
            epoch: self.epoch.filter(|_| self.epoch != before.epoch),
            clock: self.clock.clone(),
            ..self.controller.changes_since(&before.controller, self.clocks)
        }
    }
}

/// Compares counters but not their moments, which vary slightly because the process reads two clocks one after the
/// other.
fn same_counts(one: &SavedCountersByService, other: &SavedCountersByService) -> bool {
    let counts = |of: &SavedCountersByService| {
        let mut of = of.clone();
        of.values_mut().flat_map(BTreeMap::values_mut).for_each(|counters| counters.since = None);
        of
    };
    counts(one) == counts(other)
}

#[cfg(any(test, feature = "fixture"))]
impl Restorable {
    /// Makes the state of a controller, for tests. The wall clock shows the beginning of 1970 at `now`.
    #[must_use]
    pub fn of(controller: Controller, now: std::time::Instant) -> Self {
        let (removed_backends, repeated_moves) = (BTreeMap::new(), BTreeMap::new());
        let clocks = Clocks { now, wall: std::time::UNIX_EPOCH };
        Self { controller, removed_backends, repeated_moves, withdrawn: false, epoch: None, clocks, clock: None }
    }
}
