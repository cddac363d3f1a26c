//! Bounded load: decides which backends of a service have too much load, and how many slots they give away.
//!
//! A backend whose load exceeds `factor` times the expected load keeps fewer of its slots, so that it gets fewer new
//! clients. No known client moves, so the load of a backend falls only as clients leave, and a decision takes effect
//! slowly. Therefore the controller changes a service's bounds at most once in [`DWELL`], and does not change the bound
//! of a backend whose load is already falling. A backend gets slots back only when its load is below the middle between
//! 1 and `factor` times the expected load.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use balancer_config::bounded::{Bound, BoundedLoad, Load};

use crate::{
    health::Verdict,
    io::CheckOutcome,
    service::{Backend, Service},
    table::STEPS,
};

/// The minimum time between two changes of a service's bounds. The first change of a service's bounds may happen at any
/// time.
pub const DWELL: Duration = Duration::from_secs(600);
/// The interval at which the controller evaluates loads.
pub const LOOK: Duration = Duration::from_secs(10);
/// The time over which the controller computes rates and medians.
const WINDOW: Duration = Duration::from_secs(60);
/// The minimum time for computing a rate; right after the start, a rate over a shorter time would say little.
const LEAST_WINDOW: Duration = Duration::from_secs(45);
/// The minimum number of checks for computing a median. If checks are slow, the median includes older checks to reach
/// this number.
const LEAST_CHECKS: usize = 5;
/// The difference in seconds below which two durations count as equal.
const LEAST_DELAY: f64 = 0.001;
/// A load counts as falling if it has fallen by more than this fraction since the last change of bounds.
const FALLS: f64 = 0.03;
/// The number of [`STEPS`] slots that a backend keeps at least.
const LEAST_STEPS: u8 = 1;
/// The number of standard deviations by which clients or connections must exceed the expected number.
const DEVIATIONS: f64 = 3.0;

/// The facts about a backend that determine its bound, over all address families.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// Whether the controller steers new clients to the backend.
    pub steered: bool,
    /// The effective weight of the backend, which is reduced during a slow start.
    pub weight: f64,
    /// Whether the backend is in a slow start, so that it takes no slots that other backends give away.
    pub starts: bool,
    /// The current bound of the backend.
    pub bound: Option<Bound>,
}

/// Returns the backends of a service, given the parts of the service for the address families.
pub fn members<'a>(legs: impl Iterator<Item = &'a Service>) -> BTreeMap<String, Member> {
    let mut members = BTreeMap::<String, Member>::new();
    for backend in legs.flat_map(Service::backends) {
        let member = members.entry(backend.name().to_owned()).or_default();
        let step = backend.slow_start_step();
        let weight = f64::from(backend.effective_weight()) * f64::from(step.unwrap_or(STEPS)) / f64::from(STEPS);
        member.steered |= backend.takes_new_clients();
        member.weight = member.weight.max(weight);
        member.starts |= step.is_some();
        member.bound = member.bound.or_else(|| backend.bound());
    }
    members
}

/// The observed loads of a service's backends, and the time at which the service's bounds last changed.
#[derive(Clone, Debug)]
pub struct Watch {
    by: Load,
    readings: BTreeMap<String, VecDeque<(Instant, f64)>>,
    /// The bounds at the last evaluation of loads.
    seen: BTreeMap<String, Bound>,
    changed: Option<Instant>,
    looked: Option<Instant>,
}

impl Watch {
    /// An observation without readings yet.
    #[must_use]
    pub const fn new(by: Load) -> Self {
        Self { by, readings: BTreeMap::new(), seen: BTreeMap::new(), changed: None, looked: None }
    }

    /// Returns the kind of load that the controller observes.
    #[must_use]
    pub const fn by(&self) -> Load {
        self.by
    }

    /// Records a value that was measured `at` this time: a number of clients, a counter, or a check's duration in
    /// seconds.
    pub fn note(&mut self, backend: &str, at: Instant, value: f64) {
        let readings = self.readings.entry(backend.to_owned()).or_default();
        if readings.back().is_some_and(|&(last, _)| last >= at) {
            return;
        }
        if self.by != Load::Latency
            && readings.back().is_some_and(|&(_, last)| last > value && self.by != Load::Clients)
        {
            // The counter was reset.
            readings.clear();
        }
        readings.push_back((at, value));
        let least = if self.by == Load::Latency { LEAST_CHECKS } else { 2 };
        while readings.len() > least && readings.front().is_some_and(|&(then, _)| at.duration_since(then) > WINDOW) {
            readings.pop_front();
        }
    }

    /// Records the last checks of a service's backends, given the parts of the service for the address families.
    ///
    /// A check that fails before the timeout does not show how fast a backend works. A check that ran into its timeout
    /// shows that the backend is at least as slow as the timeout. Without the checks that time out, the controller
    /// would judge an overloaded backend only by the few checks that the backend still answers. The readings of a
    /// backend that is down are dropped, because its load may not have been the reason for the failure.
    pub fn note_checks<'a>(&mut self, legs: impl Iterator<Item = &'a Service>) {
        let mut down = BTreeMap::new();
        for (service, backend) in legs.flat_map(|leg| leg.backends().iter().map(move |backend| (leg, backend))) {
            let is_down = matches!(backend.health().verdict(), Verdict::Down { .. });
            *down.entry(backend.name()).or_insert(true) &= is_down;
            if let Some((at, took)) = duration(service, backend).filter(|_| !is_down) {
                self.note(backend.name(), at, took);
            }
        }
        self.readings.retain(|name, _| down.get(name.as_str()) != Some(&true));
    }

    /// Whether the loads are due for evaluation.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK)
    }

    /// Evaluates the loads of all `members`. Returns the new bounds if they differ from the current bounds.
    pub fn look(
        &mut self,
        rule: &BoundedLoad,
        members: &BTreeMap<String, Member>,
        now: Instant,
    ) -> Option<BTreeMap<String, Bound>> {
        self.looked = Some(now);
        self.readings.retain(|name, _| members.contains_key(name));
        let in_force: BTreeMap<String, Bound> =
            members.iter().filter_map(|(name, member)| Some((name.clone(), member.bound?))).collect();
        if in_force != self.seen {
            // This balancer, the previous leader or the previous process may have made the decision.
            self.seen.clone_from(&in_force);
            self.changed = Some(now);
        }
        if self.changed.is_some_and(|changed| now.saturating_duration_since(changed) < DWELL) {
            return None;
        }
        let loads = self.loads(members);
        let bounds = decide(rule, members, &loads);
        let keeps = |bounds: &BTreeMap<String, Bound>| {
            bounds.iter().map(|(name, bound)| (name.clone(), bound.keeps)).collect::<Vec<_>>()
        };
        (keeps(&bounds) != keeps(&in_force)).then_some(bounds)
    }

    /// The known loads of backends to which the controller steers new clients.
    fn loads<'a>(&self, members: &'a BTreeMap<String, Member>) -> BTreeMap<&'a str, f64> {
        let steered = members.iter().filter(|(_, member)| member.steered && member.weight > 0.0);
        steered.filter_map(|(name, _)| Some((name.as_str(), self.load(name)?))).collect()
    }

    fn load(&self, backend: &str) -> Option<f64> {
        let readings = self.readings.get(backend)?;
        match self.by {
            Load::Clients => readings.back().map(|&(_, clients)| clients),
            Load::Connections | Load::Bytes => {
                let (&(from, before), &(to, after)) = (readings.front()?, readings.back()?);
                let lasted = to.duration_since(from);
                (lasted >= LEAST_WINDOW).then(|| (after - before) * WINDOW.as_secs_f64() / lasted.as_secs_f64())
            }
            Load::Latency => {
                let mut took: Vec<f64> = readings.iter().map(|&(_, took)| took).collect();
                took.sort_unstable_by(f64::total_cmp);
                took.get(took.len() / 2).copied().filter(|_| took.len() >= LEAST_CHECKS)
            }
        }
    }
}

/// The time at which a backend's last check ended, and the duration in seconds, if the check shows how fast the backend
/// works.
fn duration(service: &Service, backend: &Backend) -> Option<(Instant, f64)> {
    let check = backend.last_check()?;
    let tells = match check.outcome {
        CheckOutcome::Passed => true,
        CheckOutcome::Soft(_) | CheckOutcome::Hard(_) | CheckOutcome::Shut(_) | CheckOutcome::Late(_) => {
            check.took >= service.check_config(backend).timeout
        }
        CheckOutcome::Hindered(_) => false,
    };
    tells.then_some((check.ended, check.took.as_secs_f64()))
}

/// The expected loads of the backends whose loads are known.
fn expected(by: Load, members: &BTreeMap<String, Member>, loads: &BTreeMap<&str, f64>) -> BTreeMap<String, f64> {
    let weight = |name: &str| members.get(name).map_or(0.0, |member| member.weight);
    let all: f64 = loads.values().sum();
    let weights: f64 = loads.keys().map(|name| weight(name)).sum();
    let mut sorted: Vec<f64> = loads.values().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    // Of two durations, the shorter one counts as the median, so that the longer one is measured against it.
    let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    let of = |name: &str| if by == Load::Latency { median } else { all * weight(name) / weights };
    loads.keys().map(|name| ((*name).to_owned(), of(name))).collect()
}

/// Whether the difference between a load and the expected load is larger than chance explains.
fn stands_out(by: Load, load: f64, expected: f64) -> bool {
    match by {
        Load::Clients | Load::Connections => load - expected > DEVIATIONS * expected.sqrt(),
        Load::Bytes => true,
        Load::Latency => load - expected > LEAST_DELAY,
    }
}

/// The bounds that follow from the loads of the backends. Backends with unknown loads keep their bounds.
fn decide(
    rule: &BoundedLoad,
    members: &BTreeMap<String, Member>,
    loads: &BTreeMap<&str, f64>,
) -> BTreeMap<String, Bound> {
    let expected = expected(rule.by, members, loads);
    let mut bounds = BTreeMap::new();
    for (name, member) in members {
        let known = loads.get(name.as_str()).zip(expected.get(name)).filter(|(_, expected)| **expected > 0.0);
        let bound = match known {
            Some((&load, &expected)) => next(rule, member.bound, load, expected),
            None => member.bound,
        };
        if let Some(bound) = bound {
            bounds.insert(name.clone(), bound);
        }
    }
    let takes = |name: &String, member: &Member| member.steered && !member.starts && !bounds.contains_key(name);
    if !members.iter().any(|(name, member)| takes(name, member)) {
        // If all backends had bounds, no backend could take the slots that others give away, so the least loaded
        // backend loses its bound.
        let load = |name: &String| bounds.get(name).map_or(0, |bound| bound.load);
        let candidates = members.iter().filter(|(_, member)| member.steered && !member.starts);
        if let Some(least) = candidates.map(|(name, _)| name).min_by_key(|name| load(name)).cloned() {
            bounds.remove(&least);
        }
    }
    bounds
}

/// The next bound of a backend with this load, given the backend's current bound.
fn next(rule: &BoundedLoad, bound: Option<Bound>, load: f64, expected: f64) -> Option<Bound> {
    let (ratio, middle) = (load / expected, f64::midpoint(1.0, rule.factor));
    let keeps = bound.map_or(STEPS, |bound| bound.keeps / (100 / STEPS));
    let before = bound.map(|bound| f64::from(bound.load) / 100.0);
    let falls = before.is_some_and(|before| ratio < before * (1.0 - FALLS));
    // The function limits each change to a factor of two, because earlier changes have not had their full effect yet.
    let aim = (f64::from(keeps) * (middle / ratio).clamp(0.5, 2.0)).round() as u8;
    let steps = if ratio > rule.factor && stands_out(rule.by, load, expected) && !falls {
        aim.min(keeps.saturating_sub(1)).max(LEAST_STEPS)
    } else if ratio < middle {
        aim.max(keeps + 1).min(STEPS)
    } else {
        keeps
    };
    let measured = (ratio * 100.0).round().min(1e6) as u32;
    (steps < STEPS).then_some(Bound { keeps: steps * (100 / STEPS), load: measured })
}
