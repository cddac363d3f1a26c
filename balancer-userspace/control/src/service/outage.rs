//! Outages of a service: collects the facts that determine outages.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use balancer_config::{
    config::{CheckConfig, CheckKind},
    states::{Admin, Forced},
};

use super::{Backend, Service};
use crate::{
    agreed::{Opinion, Way},
    health::{FailureKind, Health, Verdict},
    io::{BackendId, Report},
    next_hops::NextHops,
    outage::{Fact, Facts, News, Turn},
    report,
};

impl Service {
    /// Decides about the failures of all backends of the service together.
    pub(crate) fn judge_outage(&mut self, hops: &NextHops, now: Instant) -> Turn {
        let facts = self.facts(hops);
        self.outage.judge(&facts, self.settings.outage, now)
    }

    /// Whether a down backend belongs to a declared or suspected outage.
    #[cfg(test)]
    pub(crate) fn holds(&self, id: BackendId) -> bool {
        self.outage.holds(id).is_some()
    }

    /// The duration of the service's outage as of `now`, also as text; `None` if the service has no outage.
    #[must_use]
    pub fn outage(&self, now: Instant) -> Option<(Duration, String)> {
        let lasted = now.saturating_duration_since(self.outage.since().or(self.outage_seen_alone.since())?);
        let held = self.held().count();
        let line = report::outage_lasts(&self.label(), lasted, held, self.backends.len(), self.known_of_held());
        Some((lasted, line))
    }

    /// Returns the report to users about an outage that has begun or ended.
    pub(crate) fn outage_report(&self, news: &News) -> Report {
        match news {
            News::Began { failing, eligible } => {
                report::outage_began(self.name(), &self.label(), (*failing, *eligible), self.known_of_held())
            }
            News::Ended { lasted, fallen } => {
                let down: Vec<&Backend> = self.backends.iter().filter(|backend| fallen.contains(&backend.id)).collect();
                let moved = if self.remembers() { down.iter().map(|backend| backend.known).sum() } else { 0 };
                let names: Vec<&str> = down.iter().map(|backend| backend.name()).collect();
                report::outage_ended(self.name(), &self.label(), *lasted, &names, moved)
            }
        }
    }

    fn held(&self) -> impl Iterator<Item = &Backend> {
        let held = |backend: &&Backend| {
            self.outage.holds(backend.id).is_some() || self.outage_seen_alone.holds(backend.id).is_some()
        };
        self.backends.iter().filter(held)
    }

    fn known_of_held(&self) -> u64 {
        if self.remembers() { self.held().map(|backend| backend.known).sum() } else { 0 }
    }

    /// Whether a backend that is down in an outage may keep what it has: its clients if the service remembers clients,
    /// otherwise its slots. If all backends are down, none of them may keep its slots, because
    /// [`WhenAllDown`](balancer_config::config::WhenAllDown) determines this case.
    pub(super) fn may_be_held(&self, backend: &Backend) -> bool {
        self.sources(backend).is_judged_by_checks() && (self.remembers() || self.outage.spares_some())
    }

    /// Returns the facts about the service's backends that determine outages.
    pub(super) fn facts(&self, hops: &NextHops) -> Facts {
        let judged = || self.backends.iter().filter(|backend| self.sources(backend).is_judged_by_checks());
        let has_primaries = self.backends.iter().any(|backend| !backend.config.backup && may_serve(backend));
        let facts: Vec<Fact> = judged().map(|backend| self.fact(backend, has_primaries, hops)).collect();
        let relieved = has_primaries
            && self.backends.iter().any(|backend| {
                backend.config.backup && may_serve(backend) && {
                    let fact = self.fact(backend, false, hops);
                    fact.eligible && !fact.fails && !fact.down
                }
            });
        let lasts = |lasts: fn(&CheckConfig) -> Duration| {
            judged().map(|backend| lasts(self.check_config(backend))).max().unwrap_or_default()
        };
        let (round, return_takes) = (lasts(CheckConfig::fast_round), lasts(CheckConfig::return_takes));
        Facts { backends: facts, relieved, round, return_takes }
    }

    /// Returns the facts according to this balancer's own checks and next hops, for the case that other members have
    /// decided.
    pub(super) fn facts_seen_here(&self, hops: &NextHops) -> Facts {
        let facts = self.facts(hops);
        let seen = |fact: Fact| {
            let backend = self.backends.get(self.position(fact.id)?)?;
            // A backend that the fleet considers down needs no decision by this balancer.
            if matches!(backend.health.verdict(), Verdict::Down { .. }) && self.outage.holds(fact.id).is_none() {
                return None;
            }
            let opinion = self.opinion(backend, hops);
            let down = matches!(opinion, Opinion::Down { kind: FailureKind::Hard, .. } | Opinion::NoWay(_));
            Some(Fact {
                fails: down || fails(backend.health(), false),
                down,
                up: opinion == Opinion::Up && backend.forced.is_none(),
                ..fact
            })
        };
        Facts { backends: facts.backends.into_iter().filter_map(seen).collect(), ..facts }
    }

    /// The backends whose latest check by this balancer failed, if so many backends fail that an outage is likely.
    pub(crate) fn failing_in_numbers(&self, hops: &NextHops) -> Vec<BackendId> {
        let fails_here = |backend: &Backend| {
            fails(backend.health(), false) || matches!(self.opinion(backend, hops), Opinion::NoWay(_))
        };
        if !self.settings.outage.is_on() || !self.backends.iter().any(fails_here) {
            return Vec::new();
        }
        let facts = self.facts_seen_here(hops);
        let eligible: Vec<&Fact> = facts.backends.iter().filter(|fact| fact.eligible).collect();
        let failing: Vec<BackendId> = eligible.iter().filter(|fact| fact.fails).map(|fact| fact.id).collect();
        if self.settings.outage.is_exceeded(failing.len(), eligible.len()) { failing } else { Vec::new() }
    }

    /// Whether a call of [`note_failing`](Self::note_failing) would change anything.
    pub(crate) fn differs_in_failing(&self, failing: &HashSet<BackendId>) -> bool {
        self.backends.iter().any(|backend| backend.fails_for_the_fleet() != failing.contains(&backend.id))
    }

    /// Records the backends whose latest checks failed at most members of the fleet.
    pub(crate) fn note_failing(&mut self, failing: &HashSet<BackendId>) {
        for backend in &mut self.backends {
            let fails = failing.contains(&backend.id);
            if backend.fails_for_the_fleet() != fails {
                backend.in_fleet().fails = fails;
            }
        }
    }

    /// The facts about a backend that determine outages; with `primaries`, a backup does not count.
    fn fact(&self, backend: &Backend, primaries: bool, hops: &NextHops) -> Fact {
        let is_checked = self.check_config(backend).kind != CheckKind::None;
        let has_no_way = backend.overruled().is_some() || matches!(self.judged_way(backend, hops), Way::Closed(_));
        let verdict = backend.health.verdict();
        let (says_up, says_down, fails) = if backend.forced == Some(Forced::Up) || !is_checked {
            (true, false, false)
        } else {
            let down = matches!(verdict, Verdict::Down { .. });
            (*verdict == Verdict::Up, down, fails(&backend.health, backend.fails_for_the_fleet()))
        };
        Fact {
            id: backend.id,
            known: has_no_way || says_up || says_down || fails,
            eligible: may_serve(backend) && (!primaries || !backend.config.backup),
            fails: has_no_way || fails,
            down: has_no_way || says_down,
            up: !has_no_way && says_up && backend.forced.is_none(),
        }
    }
}

/// Whether the latest check of a backend failed.
fn fails(health: &Health, for_the_fleet: bool) -> bool {
    let (passes, failures) = health.streak();
    match health.verdict() {
        Verdict::Down { .. } => passes == 0,
        Verdict::Up | Verdict::Unknown => failures > 0 || health.is_doubted() || for_the_fleet,
    }
}

/// Whether the backend would get new clients if its checks passed.
fn may_serve(backend: &Backend) -> bool {
    backend.effective_admin() == Admin::Ready
        && backend.effective_weight() > 0
        && backend.effective_forced() != Some(Forced::Down)
}
