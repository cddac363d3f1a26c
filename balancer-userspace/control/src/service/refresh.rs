//! Evaluates a service: derives the state of its backends, and updates the live table.

use std::{collections::BTreeSet, mem, sync::Arc, time::Instant};

use balancer_config::states::Admin;

use super::{
    Backend, Service,
    backend::{Assessment, Drain},
};
use crate::{
    moves::Moves,
    next_hops::NextHops,
    report::Transition,
    table::{Made, Tier},
};

/// The part of a service that may have changed since the last evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look<'a> {
    /// Any fact about the service may have changed.
    Whole,
    /// Only the check results of the backends at these positions may have changed.
    Checked(&'a [usize]),
}

/// The changes that an evaluation of a service has found.
pub(crate) struct Refreshed {
    /// Whether the live table (or its base table) has changed.
    pub(crate) swap: bool,
    pub(crate) moves: Moves,
    pub(crate) transitions: Vec<Transition>,
    /// The new tier, if the tier has changed (in the first evaluation: if the new tier is not the tier of primary
    /// backends).
    pub(crate) tier: Option<Tier>,
}

impl Service {
    /// The positions of the backends that the controller must evaluate, in ascending order. If only check results
    /// changed, the result contains only the backends concerned, unless something is due or a backend starts slowly.
    pub(crate) fn places(&self, look: Look<'_>, now: Instant) -> Vec<usize> {
        match look {
            Look::Checked(places) if self.settings.slow_start.is_zero() && self.due.is_none_or(|due| due > now) => {
                places.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
            }
            Look::Checked(_) | Look::Whole => (0..self.backends.len()).collect(),
        }
    }

    /// Assesses the backends at these positions (`places`), and updates the live table. The function reuses tables in
    /// `made`.
    pub(crate) fn refresh(&mut self, places: &[usize], hops: &NextHops, now: Instant, made: &[Made]) -> Refreshed {
        let is_whole = places.len() == self.backends.len();
        let mut assessments: Vec<Assessment> =
            places.iter().filter_map(|&place| self.look_at(place, hops, now)).collect();
        if is_whole {
            self.has_leaving = self.backends.iter().any(Backend::is_leaving);
            self.start_slowly(&assessments, now);
        }
        for (&place, assessment) in places.iter().zip(&mut assessments) {
            if let Some(backend) = self.backends.get_mut(place) {
                // A backend without clients has no load.
                let stays = assessment.standing.takes_new || assessment.standing.keeps_known;
                backend.bound = backend.bound.filter(|_| stays);
                backend.full = backend.full.filter(|_| stays);
                backend.explain(assessment);
            }
        }
        let mut takes_new: Vec<bool> = self.backends.iter().map(Backend::may_take_new).collect();
        for (&place, assessment) in places.iter().zip(&assessments) {
            if let Some(takes_new) = takes_new.get_mut(place) {
                *takes_new = assessment.standing.takes_new;
            }
        }
        let takes_new = self.counted(takes_new.into_iter(), hops);
        self.all_full = self.are_all_full(&takes_new);
        let mut builder = mem::take(&mut self.builder);
        let live = self.build(&mut builder, &takes_new, made);
        self.builder = builder;

        let changed = !Arc::ptr_eq(&self.live, &live.slots) && *self.live != *live.slots;
        let moves = if changed {
            Moves::between(&self.live, &self.shares, &live.slots, &live.shares)
        } else {
            Moves::default()
        };
        self.required += u64::from(moves.total() - moves.needless());
        self.needless += u64::from(moves.needless());
        let swap = changed || self.remembers() && self.home != live.home;
        if swap {
            // Without client memory, the data path does not need the home table; it receives the table when it first
            // needs it.
            self.home = live.home;
        }
        if changed {
            let is_as_long = self.live.len() == live.slots.len();
            self.live = live.slots;
            self.generation += 1;
            self.count_slots(is_as_long.then_some(&moves));
        }
        self.steer(live.shares, is_whole);
        let before = self.tier.replace(live.tier).unwrap_or(Tier::Primaries);
        let tier = (before != live.tier).then_some(live.tier);

        let mut transitions = Vec::new();
        for (&place, assessment) in places.iter().zip(assessments) {
            if let Some(backend) = self.backends.get_mut(place) {
                transitions.extend(backend.enter(&self.settings.name, assessment, now));
            }
        }
        self.due = self.backends.iter().filter_map(Backend::deadline).min();
        debug_assert!(self.slots_are_counted(), "{}", self.name());
        debug_assert!(
            self.backends.iter().all(|backend| backend.steered == self.shares.has(backend.id.0)),
            "{}",
            self.name()
        );
        Refreshed { swap, moves, transitions, tier }
    }

    /// Assesses the backend at a position, and starts or ends the backend's drain.
    fn look_at(&mut self, place: usize, hops: &NextHops, now: Instant) -> Option<Assessment> {
        let remembers = self.keeps_clients();
        let backend = self.backends.get(place)?;
        let assessment = self.assess(backend, hops, now);
        let timeout = backend.drain.timeout.unwrap_or(self.settings.drain_timeout);
        // A drain that the operator has started ends at its time, whatever fails and recovers before this time.
        let drain = if assessment.drains || backend.effective_admin() == Admin::Drain && remembers {
            Drain { until: Some(backend.drain.until.unwrap_or(now + timeout)), ..backend.drain }
        } else {
            Drain { timeout: backend.drain.timeout, ..Drain::default() }
        };
        if drain == backend.drain {
            return Some(assessment);
        }
        self.backends.get_mut(place)?.drain = drain;
        Some(self.assess(self.backends.get(place)?, hops, now))
    }
}
