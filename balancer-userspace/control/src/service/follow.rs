//! Services about whose state another balancer decides.

use std::time::Instant;

use balancer_common::map_types::ALL_DOWN;
use balancer_config::config::CheckKind;

use super::{Backend, Service};
use crate::{
    agreed::{Judgement, Opinion, Way},
    health::{FailureKind, Health, Verdict},
    io::Report,
    next_hops::{Hop, NextHops},
    outage::Outage,
};

impl Service {
    /// Continues from `before`, the same service in the previous state: takes over what the controller had passed to
    /// the shell, and the knowledge that only this balancer has.
    pub(crate) fn succeed(&mut self, before: Self) {
        self.told_rules = before.told_rules;
        self.outage_seen_alone = before.outage_seen_alone;
        self.builder = before.builder;
        self.live = before.live;
        self.home = before.home;
        self.shares = before.shares;
        self.tier = before.tier;
        self.generation = before.generation;
        (self.required, self.needless) = (before.required, before.needless);
        for mut old in before.backends {
            if let Some(backend) = self.position(old.id).and_then(|place| self.backends.get_mut(place)) {
                backend.succeed(&mut old);
            }
        }
    }

    /// Lets each backend follow the agreed verdicts; with `witness`, the backend also stores the results of its own
    /// checks separately.
    pub(crate) fn is_agreed_on(&mut self, witness: bool) {
        for backend in &mut self.backends {
            let fleet = backend.in_fleet();
            fleet.agreed_way.get_or_insert_default();
            if witness {
                fleet.witness.get_or_insert_default();
            }
        }
    }

    /// Applies an agreed verdict to a backend. Returns true if the verdict differs from the previous one.
    pub(crate) fn judge(&mut self, judgement: &Judgement) -> bool {
        let place = self.position(judgement.backend);
        let Some(backend) = place.and_then(|place| self.backends.get_mut(place)) else { return false };
        let news = backend.agreed_way() != Some(&judgement.way) || *backend.health.verdict() != judgement.verdict;
        backend.in_fleet().agreed_way = Some(judgement.way.clone());
        if *backend.health.verdict() != judgement.verdict {
            backend.health = Health::agreed(judgement.verdict.clone());
        }
        news
    }

    /// Returns this balancer's opinion of a backend, from its own checks and next hops.
    pub(crate) fn opinion(&self, backend: &Backend, hops: &NextHops) -> Opinion {
        match (self.way(backend, hops), backend.health().verdict()) {
            (Hop::Failed(why), _) => Opinion::NoWay(why),
            (Hop::Pending, _) => Opinion::Waiting,
            (Hop::Resolved(_), _) if self.check_config(backend).kind == CheckKind::None => Opinion::Up,
            (Hop::Resolved(_), Verdict::Unknown) => Opinion::Unknown,
            (Hop::Resolved(_), Verdict::Up) => Opinion::Up,
            (Hop::Resolved(_), Verdict::Down { kind, reason }) => Opinion::Down { kind: *kind, reason: reason.clone() },
        }
    }

    /// If no other member decides, treats a backend whose checks by this balancer fail hard as failed, unless so many
    /// backends fail that there is an outage. Returns whether something has changed, and news about an outage.
    pub(crate) fn overrule(&mut self, hops: &NextHops, alone: bool, now: Instant) -> (bool, Option<Report>) {
        let report = if alone {
            let facts = self.facts_seen_here(hops);
            let turn = self.outage_seen_alone.judge(&facts, self.settings.outage, now);
            turn.news.map(|news| self.outage_report(&news))
        } else {
            self.outage_seen_alone = Outage::default();
            None
        };
        let mut news = false;
        for index in 0..self.backends.len() {
            let Some(backend) = self.backends.get(index) else { continue };
            let fails = self.fails_here(backend, hops, alone);
            let fails = fails.filter(|_| self.outage_seen_alone.holds(backend.id).is_none());
            let Some(backend) = self.backends.get_mut(index) else { continue };
            news |= fails.is_some() != backend.overruled().is_some();
            backend.overrule(fails);
        }
        (news, report)
    }

    /// Whether a call of [`overrule`](Self::overrule) would change anything.
    pub(crate) fn is_to_be_overruled(&self, hops: &NextHops, alone: bool) -> bool {
        self.outage_seen_alone.is_under_way()
            || self
                .backends
                .iter()
                .any(|backend| self.fails_here(backend, hops, alone).as_deref() != backend.overruled())
    }

    fn fails_here(&self, backend: &Backend, hops: &NextHops, alone: bool) -> Option<String> {
        if !alone {
            return None;
        }
        match self.opinion(backend, hops) {
            Opinion::Down { kind: FailureKind::Hard, reason } | Opinion::NoWay(reason) => Some(reason),
            Opinion::Waiting | Opinion::Unknown | Opinion::Up | Opinion::Down { .. } => None,
        }
    }

    /// Whether some slot leaves a backend that still keeps its known clients. Before a balancer uses the new table, it
    /// must know the clients of these slots.
    pub(crate) fn gives(&self, before: &Self) -> bool {
        if !self.remembers() || !before.remembers() {
            return false;
        }
        let mut keeps = vec![false; usize::from(ALL_DOWN) + 1];
        for backend in self.backends.iter().filter(|backend| backend.may_keep_known()) {
            if let Some(keeps) = keeps.get_mut(usize::from(backend.id.0)) {
                *keeps = true;
            }
        }
        self.live.len() != before.live.len()
            || before
                .live
                .iter()
                .zip(self.live.iter())
                .any(|(old, new)| old != new && keeps.get(usize::from(*old)).copied().unwrap_or(false))
    }

    /// For each slot, whether its entry differs between `self` and `before`; true for all slots if the tables differ in
    /// size.
    #[must_use]
    pub fn slots_changed_since(&self, before: &Self) -> Vec<bool> {
        if self.live.len() != before.live.len() {
            return vec![true; before.live.len()];
        }
        before.live.iter().zip(self.live.iter()).map(|(old, new)| old != new).collect()
    }
}

impl Backend {
    /// Continues from the backend's previous state.
    fn succeed(&mut self, before: &mut Self) {
        self.told = std::mem::take(&mut before.told);
        self.assessment = before.assessment.take();
        self.since = before.since;
        self.transitions = before.transitions;
        self.slots = before.slots;
        self.checks = before.checks;
        self.known = before.known;
        let fleet = before.fleet.take().unwrap_or_default();
        self.overrule(fleet.overruled);
        if self.reached == before.reached {
            if self.witness().is_some() || fleet.witness.is_some() {
                self.in_fleet().witness = fleet.witness;
            }
            self.last_check = before.last_check.take();
            self.verdict_since = before.verdict_since;
        }
        if self.config.name != before.config.name {
            self.called_otherwise();
        }
    }

    /// Returns the path and the health on which the fleet has agreed.
    #[must_use]
    pub fn agreed(&self) -> (&Way, &Verdict) {
        (self.agreed_way().unwrap_or(&Way::Unknown), self.health.verdict())
    }

    /// Returns the reason why this balancer cannot use the backend, if the fleet has agreed that the backend is usable.
    #[must_use]
    pub fn unreachable_here(&self, opinion: &Opinion) -> Option<String> {
        let agreed = matches!(self.health.verdict(), Verdict::Up | Verdict::Unknown)
            && self.agreed_way().is_some_and(|way| *way == Way::Open);
        match opinion {
            Opinion::Down { reason, .. } | Opinion::NoWay(reason) if agreed => Some(reason.clone()),
            Opinion::Waiting | Opinion::Unknown | Opinion::Up | Opinion::Down { .. } | Opinion::NoWay(_) => None,
        }
    }
}
