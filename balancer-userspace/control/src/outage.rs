//! Detects that failures of single backends belong to an outage of the whole service, or of nearly all of its backends.
//!
//! ```text
//!            a backend goes down while more than `share` of the eligible ones fail
//!   calm ───────────────────────────────────────────────────────────────► suspected
//!    ▲  ▲                                                                  │   │
//!    │  └────── a round later fewer fail: those that still do are down ────┘   │ a round later
//!    │                                                                         ▼ they still fail
//!    │   `hold` has passed since the last one of its backends came back      outage
//!    └──────────────── ebbing ◄───────────────────────────────────────────────┘  ▲
//!                         │             the first of its backends is back        │
//!                         └────────── more than `share` fail again ──────────────┘
//! ```
//!
//! Backends that go down during an outage are *held*, which means that they keep their known clients. All other
//! backends that are down have *fallen*.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use balancer_config::config::Outage as Rule;

use crate::{
    io::BackendId,
    standing::Held,
    state::{Clocks, SavedOutage, SavedPhase},
};

/// The facts about a backend that determine outages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fact {
    pub(crate) id: BackendId,
    /// Whether the backend would get new clients if it worked.
    pub(crate) eligible: bool,
    /// Whether anything is known about the backend's health.
    pub(crate) known: bool,
    /// Whether the backend's latest check failed, or the backend has no path.
    pub(crate) fails: bool,
    /// Whether the backend is down according to the verdict.
    pub(crate) down: bool,
    /// Whether the backend's checks found it up.
    pub(crate) up: bool,
}

/// The facts about a service's backends that determine outages, and the time that checks need.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) backends: Vec<Fact>,
    /// Whether backup backends can take over the clients.
    pub(crate) relieved: bool,
    /// The longest time that a round of fast checks can take.
    pub(crate) round: Duration,
    /// The maximum time between the check that first finds a backend up again and the check that finds the last backend
    /// up, if all backends work again at the same time.
    pub(crate) return_takes: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// An outage is suspected, and the controller decides about it at this time.
    Suspected(Instant),
    /// The controller has declared the outage.
    Lasts,
    /// Some backends are up again; the other backends have until this time to return, and each return gives them more
    /// time. Without `declared`, the outage was only suspected before.
    Ebbing { until: Instant, declared: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Episode {
    phase: Phase,
    /// The time at which the first backend of the outage would have gone down.
    since: Instant,
    held: BTreeSet<BackendId>,
}

/// The state of the outages of a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outage {
    episode: Option<Episode>,
    /// The backends that are down and belong to no outage, each with the time at which it went down, if the time is
    /// known.
    fallen: BTreeMap<BackendId, Option<Instant>>,
    /// The backends of the current outage that have just come back.
    returned: BTreeSet<BackendId>,
    /// Whether some eligible backend is not down.
    sound: bool,
}

/// A change of an outage that the controller must report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// An outage began, and this many of the eligible backends fail.
    Began { failing: usize, eligible: usize },
    /// The outage has ended.
    Ended { lasted: Duration, fallen: Vec<BackendId> },
}

/// The result of evaluating the facts about the backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Whether the set of held backends has changed, or the reason for holding them.
    pub(crate) changed: bool,
    pub(crate) news: Option<News>,
}

impl Outage {
    /// Whether a backend keeps its clients although it is down, and the reason.
    pub(crate) fn holds(&self, id: BackendId) -> Option<Held> {
        let episode = self.episode.as_ref().filter(|episode| episode.held.contains(&id))?;
        Some(if episode.is_declared() { Held::Outage } else { Held::Suspect })
    }

    /// The start of the current outage.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.episode.as_ref().filter(|episode| episode.is_declared()).map(|episode| episode.since)
    }

    /// Whether an outage is declared or suspected at present.
    pub(crate) const fn is_under_way(&self) -> bool {
        self.episode.is_some()
    }

    /// Whether a backend has just come back from an outage that it had together with other backends.
    pub(crate) fn has_returned(&self, id: BackendId) -> bool {
        self.returned.contains(&id)
    }

    /// Whether some eligible backend is not down.
    pub(crate) const fn spares_some(&self) -> bool {
        self.sound
    }

    /// The time of the next decision about an outage.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.episode.as_ref()?.phase {
            Phase::Suspected(until) | Phase::Ebbing { until, .. } => Some(until),
            Phase::Lasts => None,
        }
    }

    /// Assumes that backends which are down and not held went down long ago.
    pub(crate) fn take_for_granted(&mut self, facts: &Facts) {
        let down = facts.backends.iter().filter(|fact| fact.down && self.holds(fact.id).is_none());
        self.fallen = down.map(|fact| (fact.id, None)).collect();
        self.sound = facts.has_sound();
    }

    /// Evaluates the current facts about the backends.
    pub(crate) fn judge(&mut self, facts: &Facts, rule: Rule, now: Instant) -> Turn {
        let was_sound = std::mem::replace(&mut self.sound, facts.has_sound());
        self.returned.clear();
        let before = self.episode.clone();
        let back = self.forget_those_that_are_not_down(facts);
        let new: Vec<BackendId> = facts
            .backends
            .iter()
            .filter(|fact| fact.down && !self.fallen.contains_key(&fact.id) && self.holds(fact.id).is_none())
            .map(|fact| fact.id)
            .collect();
        let news = if rule.is_on() { self.advance(facts, rule, (new, back), now) } else { self.switch_off(new, now) };
        let ground = |episode: &Option<Episode>| {
            episode.as_ref().map(|episode| (episode.held.clone(), episode.is_declared())).unwrap_or_default()
        };
        let changed = ground(&before) != ground(&self.episode) || was_sound != self.sound;
        Turn { changed, news }
    }

    /// Removes backends that are no longer down from the sets of held and fallen backends. Returns whether one of the
    /// removed backends was held.
    fn forget_those_that_are_not_down(&mut self, facts: &Facts) -> bool {
        let down: BTreeSet<BackendId> = facts.backends.iter().filter(|fact| fact.down).map(|fact| fact.id).collect();
        self.fallen.retain(|id, _| down.contains(id));
        let Some(episode) = &mut self.episode else { return false };
        let up = facts.backends.iter().filter(|fact| fact.up && episode.held.contains(&fact.id));
        self.returned = up.map(|fact| fact.id).collect();
        episode.held.retain(|id| down.contains(id));
        !self.returned.is_empty()
    }

    fn advance(
        &mut self,
        facts: &Facts,
        rule: Rule,
        (new, back): (Vec<BackendId>, bool),
        now: Instant,
    ) -> Option<News> {
        let exceeds = |(failing, eligible)| rule.is_exceeded(failing, eligible);
        let failing = self.count(facts, |_| true, |fact| fact.fails, now);
        // The outage may have a cause that disappears at one backend after the other.
        let next_return = now + facts.return_takes.max(rule.hold);
        let looks_like_one = exceeds(failing) && !facts.relieved;
        let Some(episode) = &mut self.episode else {
            if !looks_like_one || new.is_empty() {
                self.fall(new, now);
                return None;
            }
            let phase = Phase::Suspected(now + facts.round);
            let held = new.into_iter().chain(self.take_back(facts, now)).collect();
            self.episode = Some(Episode { phase, since: now, held });
            return None;
        };
        match episode.phase {
            Phase::Suspected(until) => {
                if looks_like_one {
                    episode.held.extend(new);
                } else {
                    self.fall(new, now);
                }
                if now >= until {
                    self.decide(facts, (looks_like_one, failing), now)
                } else {
                    self.end_if_none_is_held(now)
                }
            }
            Phase::Lasts => {
                episode.held.extend(new);
                if back {
                    episode.phase = Phase::Ebbing { until: next_return, declared: true };
                    return self.end_if_none_is_held(now);
                }
                // A newly added backend proves nothing before its first check.
                let lasts = exceeds(self.count(facts, |fact| fact.known, |fact| fact.fails || fact.down, now));
                if lasts { None } else { self.end(now) }
            }
            Phase::Ebbing { until, declared } => {
                let until = if back && declared { until.max(next_return) } else { until };
                episode.phase = Phase::Ebbing { until, declared };
                if new.is_empty() {
                    return if now >= until { self.end(now) } else { self.end_if_none_is_held(now) };
                }
                if looks_like_one {
                    episode.held.extend(new);
                    episode.phase = if declared { Phase::Lasts } else { Phase::Suspected(now + facts.round) };
                    return None;
                }
                self.fall(new, now);
                if now >= until { self.end(now) } else { self.end_if_none_is_held(now) }
            }
        }
    }

    /// Decides about the suspected outage after the next round of checks.
    fn decide(
        &mut self,
        facts: &Facts,
        (is_one, (failing, eligible)): (bool, (usize, usize)),
        now: Instant,
    ) -> Option<News> {
        let episode = self.episode.as_mut()?;
        if is_one && !episode.held.is_empty() {
            episode.phase = Phase::Lasts;
            return Some(News::Began { failing, eligible });
        }
        let held = &mut episode.held;
        let fail: Vec<BackendId> =
            facts.backends.iter().filter(|fact| fact.fails && held.remove(&fact.id)).map(|fact| fact.id).collect();
        // The other backends of the outage are expected to come back.
        episode.phase = Phase::Ebbing { until: now + facts.return_takes, declared: false };
        self.fall(fail, now);
        self.end_if_none_is_held(now)
    }

    fn end_if_none_is_held(&mut self, now: Instant) -> Option<News> {
        let is_empty = self.episode.as_ref().is_some_and(|episode| episode.held.is_empty());
        if is_empty { self.end(now) } else { None }
    }

    /// Ends the outage: from now on, backends that are still held have fallen.
    fn end(&mut self, now: Instant) -> Option<News> {
        let episode = self.episode.take()?;
        let fallen: Vec<BackendId> = episode.held.iter().copied().collect();
        self.fall(fallen.iter().copied(), now);
        let lasted = now.saturating_duration_since(episode.since);
        episode.is_declared().then_some(News::Ended { lasted, fallen })
    }

    fn switch_off(&mut self, new: Vec<BackendId>, now: Instant) -> Option<News> {
        self.fall(new, now);
        self.end(now)
    }

    fn fall(&mut self, ids: impl IntoIterator<Item = BackendId>, now: Instant) {
        self.fallen.extend(ids.into_iter().map(|id| (id, Some(now))));
    }

    /// Adds recently fallen backends to the outage: those that fell within the last round of checks, before enough
    /// other backends failed. Clients that have not sent a packet since the backend fell are still known at the
    /// backend.
    fn take_back(&mut self, facts: &Facts, now: Instant) -> Vec<BackendId> {
        let fails = |id: BackendId| facts.backends.iter().any(|fact| fact.id == id && fact.fails);
        let is_recent =
            |since: Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) < facts.round);
        let recent = self.fallen.iter().filter(|&(&id, &since)| is_recent(since) && fails(id));
        let recent: Vec<BackendId> = recent.map(|(&id, _)| id).collect();
        self.fallen.retain(|id, _| !recent.contains(id));
        recent
    }

    /// Counts the eligible backends that `fail`, and all eligible backends. A fallen backend does not count, unless it
    /// fell within the last round of checks as the first of several backends.
    fn count(
        &self,
        facts: &Facts,
        counts: impl Fn(&Fact) -> bool,
        fail: impl Fn(&Fact) -> bool,
        now: Instant,
    ) -> (usize, usize) {
        let stands = |fact: &&Fact| match self.fallen.get(&fact.id) {
            Some(since) => since.is_some_and(|since| now.saturating_duration_since(since) < facts.round),
            None => true,
        };
        let eligible = || facts.backends.iter().filter(|fact| fact.eligible && counts(fact)).filter(stands);
        (eligible().filter(|fact| fail(fact)).count(), eligible().count())
    }

    pub(crate) fn export(&self, clocks: Clocks) -> Option<SavedOutage> {
        let Episode { phase, since, held } = self.episode.as_ref()?;
        let phase = match *phase {
            Phase::Suspected(until) => SavedPhase::Suspected { until: clocks.moment(until) },
            Phase::Lasts => SavedPhase::Lasts,
            Phase::Ebbing { until, declared } => SavedPhase::Ebbing { until: clocks.moment(until), declared },
        };
        Some(SavedOutage { phase, since: clocks.moment(*since), held: held.iter().copied().collect() })
    }

    pub(crate) fn restored(saved: Option<SavedOutage>, clocks: Clocks) -> Self {
        let episode = saved.map(|SavedOutage { phase, since, held }| Episode {
            phase: match phase {
                SavedPhase::Suspected { until } => Phase::Suspected(clocks.instant(until)),
                SavedPhase::Lasts => Phase::Lasts,
                SavedPhase::Ebbing { until, declared } => Phase::Ebbing { until: clocks.instant(until), declared },
            },
            since: clocks.instant(since),
            held: held.into_iter().collect(),
        });
        Self { episode, ..Self::default() }
    }

    /// Whether a controller restored from the saved state would find the same state of the outage.
    pub(crate) fn is_saved_as(&self, before: &Self) -> bool {
        self.episode == before.episode
    }
}

impl Episode {
    const fn is_declared(&self) -> bool {
        match self.phase {
            Phase::Suspected(_) => false,
            Phase::Lasts => true,
            Phase::Ebbing { declared, .. } => declared,
        }
    }
}

impl Facts {
    fn has_sound(&self) -> bool {
        self.backends.iter().any(|fact| fact.eligible && !fact.down)
    }
}
