//! Backends at run time.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::verdict::MoveCause;
use balancer_model::{
    agent::Said,
    bounded::Bound,
    config::{BackendConfig, CheckConfig},
    limits::Full,
    names::BackendName,
    states::{Admin, BackendState, Forced},
};

use crate::{
    agreed::Way,
    health::Health,
    io::{BackendId, BackendSpec, CheckNumber, CheckOutcome},
    next_hops::{Hop, NextHops},
    report::Transition,
    standing::{HealthFact, Standing},
    table::STEPS,
};

/// A backend.
#[derive(Clone, Debug)]
pub struct Backend {
    pub(super) id: BackendId,
    pub(super) config: BackendConfig,
    /// Where it is reached; port 0: by its service's listeners.
    pub(super) reached: SocketAddr,
    pub(super) admin: Admin,
    pub(super) health: Health,
    pub(super) assessment: Option<Assessment>,
    /// When the state shown began.
    pub(super) since: Instant,
    pub(super) slots: u32,
    pub(super) steered: bool,
    /// Known clients at the last sweep.
    pub(super) known: u64,
    /// The number of its connections when they were last counted. `None`: they are not.
    pub(super) flows: Option<u64>,
    /// Whether its drains wait for its connections, not for its clients.
    pub(super) waits_for_connections: bool,
    pub(super) drain: Drain,
    pub(super) slow_start: Option<Box<SlowStart>>,
    /// Whether it is removed once it is drained.
    pub(super) leaving: bool,
    /// Whether it came (or its address did) to a service that is in use: new clients then wait for its next hop.
    pub(super) late: bool,
    pub(super) checks: [u64; 3],
    pub(super) last_check: Option<LastCheck>,
    /// When the verdict of the checks last changed.
    pub(super) verdict_since: Instant,
    /// The verdict that the operator has set instead of the checks'.
    pub(super) forced: Option<Forced>,
    /// The words of its agent that take something away; `None`: nothing is taken away.
    pub(super) agent: Option<Box<Said>>,
    /// The part of its slots that its load leaves it; `None`: all.
    pub(super) bound: Option<Bound>,
    /// What it has too much of to take new clients; `None`: nothing.
    pub(super) full: Option<Full>,
    pub(super) transitions: [u64; BackendState::ALL.len()],
    pub(crate) told: Told,
    /// Whether whoever checks it must forget what has been counted.
    checked_anew: bool,
    /// `None`: there is no fleet.
    pub(super) fleet: Option<Box<InFleet>>,
}

/// The additional state of a backend in a fleet.
#[derive(Clone, Debug, Default)]
pub(super) struct InFleet {
    /// The way to the backend that the fleet has agreed on; `None`: the own next hop decides.
    pub(super) agreed_way: Option<Way>,
    /// The results of the own checks, where the fleet's verdict is in the backend's `health`.
    pub(super) witness: Option<Health>,
    /// Why it counts as failed, whatever the fleet agreed on before it was out of reach.
    pub(super) overruled: Option<String>,
    /// Whether its latest checks failed, as most members see it.
    pub(super) fails: bool,
}

/// The specifications of a backend that the shell was last given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) row: Option<Arc<BackendSpec>>,
    pub(crate) watched: Option<IpAddr>,
    pub(crate) check: Option<Box<ToldCheck>>,
}

/// A check that runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToldCheck {
    pub(crate) number: CheckNumber,
    pub(crate) target: SocketAddr,
    pub(crate) config: CheckConfig,
}

/// A health check that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCheck {
    /// How.
    pub outcome: CheckOutcome,
    /// How long it took.
    pub took: Duration,
    /// When.
    pub ended: Instant,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drain {
    /// Instead of the service's drain timeout.
    pub(super) timeout: Option<Duration>,
    /// When it ends at the latest, while it lasts.
    pub(super) until: Option<Instant>,
    /// Complete sweeps in a row that found no known client, of those that ended during it.
    pub(super) empty_sweeps: u32,
}

impl Drain {
    /// The sweep that is under way when a drain begins may have passed a client by; the second cannot.
    pub(super) const ENOUGH_SWEEPS: u32 = 2;

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until) || self.empty_sweeps >= Self::ENOUGH_SWEEPS
    }
}

/// How far a slow start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlowStart {
    pub(super) since: Instant,
    /// How long it takes.
    pub(super) lasts: Duration,
    /// The step that the live table knows, from 1.
    pub(super) step: u8,
}

impl SlowStart {
    /// The first step is taken at once, the last one at the end.
    fn step_begins(self, step: u8) -> Instant {
        self.since + self.lasts * u32::from(step.saturating_sub(1)) / u32::from(STEPS - 1)
    }

    /// Takes the steps that are due.
    pub(super) fn advance(self, now: Instant) -> Self {
        let step = (1..=STEPS).rev().find(|&step| self.step_begins(step) <= now).unwrap_or(1);
        Self { step, ..self }
    }

    fn next_step(self) -> Option<Instant> {
        (self.step < STEPS).then(|| self.step_begins(self.step + 1))
    }
}

/// The conclusions from all facts about a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assessment {
    pub(super) health: HealthFact,
    pub(super) standing: Standing,
    pub(super) drains: bool,
    /// Whether it keeps its clients although its drain is over.
    pub(super) beyond: bool,
    pub(super) reason: String,
}

impl Backend {
    pub(crate) fn new(id: BackendId, config: BackendConfig, reached: SocketAddr, late: bool, now: Instant) -> Self {
        Self {
            id,
            config,
            reached,
            admin: Admin::Ready,
            health: Health::default(),
            assessment: None,
            since: now,
            slots: 0,
            steered: false,
            known: 0,
            flows: None,
            waits_for_connections: false,
            drain: Drain::default(),
            slow_start: None,
            leaving: false,
            late,
            checks: [0; 3],
            last_check: None,
            verdict_since: now,
            forced: None,
            agent: None,
            bound: None,
            full: None,
            transitions: [0; BackendState::ALL.len()],
            told: Told::default(),
            checked_anew: false,
            fleet: None,
        }
    }

    /// Returns the index of its row in the kernel's maps.
    #[must_use]
    pub const fn id(&self) -> BackendId {
        self.id
    }

    /// Returns the backend's name, which is unique in the service.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns the backend's present configuration.
    #[must_use]
    pub const fn config(&self) -> &BackendConfig {
        &self.config
    }

    /// Where it is reached; port 0: by the ports of its service's listeners.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.reached
    }

    /// 0–65535.
    #[must_use]
    pub const fn weight(&self) -> u16 {
        self.config.weight
    }

    /// Whether it is a backup.
    #[must_use]
    pub const fn is_backup(&self) -> bool {
        self.config.backup
    }

    /// Returns the administrative state that the operator wants.
    #[must_use]
    pub const fn admin(&self) -> Admin {
        self.admin
    }

    /// `unknown`, `up` or `down`.
    #[must_use]
    pub fn health_word(&self) -> &'static str {
        self.assessment.as_ref().map_or(HealthFact::Unknown, |assessment| assessment.health).word()
    }

    /// Returns the state that it is shown with.
    #[must_use]
    pub fn state(&self) -> BackendState {
        self.assessment.as_ref().map_or(BackendState::Checking, |assessment| assessment.standing.state)
    }

    /// Why, in a few words; empty when there is nothing to explain.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.assessment.as_ref().map_or("", |assessment| &assessment.reason)
    }

    /// Returns the number of its slots in the live table.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether new clients are steered to it now. A backup that is not needed gets none.
    #[must_use]
    pub const fn takes_new_clients(&self) -> bool {
        self.steered
    }

    /// Whether rules may pin clients to it: its weight, and whether a backup is needed, do not matter then.
    #[must_use]
    pub fn takes_pinned(&self) -> bool {
        self.may_take_new()
    }

    /// Whether its standing lets it take new clients.
    pub(crate) fn may_take_new(&self) -> bool {
        self.assessment.as_ref().is_some_and(|assessment| assessment.standing.takes_new)
    }

    /// Health checks that passed, failed softly, failed hard.
    #[must_use]
    pub const fn checks(&self) -> [u64; 3] {
        self.checks
    }

    /// The last health check.
    #[must_use]
    pub const fn last_check(&self) -> Option<&LastCheck> {
        self.last_check.as_ref()
    }

    /// The verdict of this balancer's own checks.
    #[must_use]
    pub fn health(&self) -> &Health {
        self.witness().unwrap_or(&self.health)
    }

    pub(super) fn health_mut(&mut self) -> &mut Health {
        own_health(&mut self.health, self.fleet.as_deref_mut())
    }

    /// Returns the results of the own checks, where the verdict is a fleet's.
    pub(super) fn witness(&self) -> Option<&Health> {
        self.fleet.as_ref()?.witness.as_ref()
    }

    /// Returns the way to the backend that its fleet has agreed on.
    pub(super) fn agreed_way(&self) -> Option<&Way> {
        self.fleet.as_ref()?.agreed_way.as_ref()
    }

    /// Why it counts as failed, whatever its fleet has agreed on.
    pub(super) fn overruled(&self) -> Option<&str> {
        self.fleet.as_ref()?.overruled.as_deref()
    }

    /// Whether its latest checks failed, as most members of its fleet see it.
    pub(super) fn fails_for_the_fleet(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.fails)
    }

    /// Returns its state in its fleet, created if it is not there yet.
    pub(super) fn in_fleet(&mut self) -> &mut InFleet {
        self.fleet.get_or_insert_default()
    }

    pub(super) fn overrule(&mut self, why: Option<String>) {
        if why.as_deref() != self.overruled() {
            self.in_fleet().overruled = why;
        }
    }

    /// When the verdict of its checks last changed.
    #[must_use]
    pub const fn verdict_since(&self) -> Instant {
        self.verdict_since
    }

    /// Returns the verdict that the operator has set instead of the checks'.
    #[must_use]
    pub const fn forced(&self) -> Option<Forced> {
        self.forced
    }

    /// Overrides the checks, which go on.
    pub(crate) const fn force(&mut self, forced: Option<Forced>) {
        self.forced = forced;
    }

    /// Counts a check. `service_check` is the service's.
    pub(super) fn record(&mut self, outcome: &CheckOutcome, took: Duration, service_check: &CheckConfig, now: Instant) {
        let word = |health: &Health| std::mem::discriminant(health.verdict());
        let before = word(self.health());
        let check = self.config.check.as_deref().unwrap_or(service_check);
        own_health(&mut self.health, self.fleet.as_deref_mut()).record(outcome, check);
        if word(self.health()) != before {
            self.verdict_since = now;
        }
        self.last_check = Some(LastCheck { outcome: outcome.clone(), took, ended: now });
        let [passed, soft, hard] = &mut self.checks;
        match outcome {
            CheckOutcome::Passed => *passed += 1,
            CheckOutcome::Soft(_) => *soft += 1,
            CheckOutcome::Hard(_) => *hard += 1,
            CheckOutcome::Hindered(_) => {}
        }
    }

    /// How often it entered each of [`BackendState::ALL`]. The state it was first in is not counted.
    #[must_use]
    pub const fn transitions(&self) -> [u64; BackendState::ALL.len()] {
        self.transitions
    }

    /// Takes over another configuration. Another address is another server, of which nothing is known.
    pub(crate) fn configure(&mut self, config: BackendConfig, reached: SocketAddr) {
        let ports = [self.reached.port(), reached.port()];
        if self.reached.ip() != reached.ip() || ports[0] != ports[1] && !ports.contains(&0) {
            self.forget_verdict();
            if let Some(way) = self.fleet.as_mut().and_then(|fleet| fleet.agreed_way.as_mut()) {
                *way = Way::Unknown;
            }
            self.late = true;
            (self.bound, self.full) = (None, None);
        }
        if self.config.limits != config.limits {
            self.full = None;
        }
        self.reached = reached;
        if self.config.name != config.name {
            self.called_otherwise();
        }
        self.config = config;
    }

    /// Takes over what the operator wants of its `twin`, which is the same backend in the other part of its service.
    pub(crate) fn follow(&mut self, twin: &Self) {
        self.admin = twin.admin;
        self.forced = twin.forced;
        self.agent.clone_from(&twin.agent);
        self.bound = twin.bound;
        self.full = twin.full;
        self.leaving = twin.leaving;
        if twin.admin == Admin::Drain {
            self.drain = Drain { timeout: twin.drain.timeout, until: twin.drain.until, empty_sweeps: 0 };
        }
    }

    /// It, or its service, has another name: its check is told of with that, and counts on.
    pub(super) fn called_otherwise(&mut self) {
        self.checked_anew = true;
    }

    /// Sets what the operator wants; a drain takes `timeout` instead of the service's.
    pub(crate) fn set_admin(&mut self, admin: Admin, timeout: Option<Duration>) {
        self.admin = admin;
        self.drain = Drain { timeout, ..Drain::default() };
        self.leaving &= admin == Admin::Drain;
    }

    /// Has it removed once it is drained.
    pub(crate) fn leave(&mut self) {
        if self.admin != Admin::Drain {
            self.set_admin(Admin::Drain, None);
        }
        self.leaving = true;
    }

    /// Is not removed after all, and is again as the operator wants it, unless that has changed since.
    pub(crate) fn stay(&mut self, admin: Admin) {
        if self.leaving && admin != Admin::Drain {
            self.set_admin(admin, None);
        }
        self.leaving = false;
    }

    /// Whether it is to be removed and has nobody to keep any more.
    pub(crate) fn has_left(&self) -> bool {
        self.leaving && !self.may_keep_known()
    }

    /// Whether known clients stay with it, were there another one to go to.
    pub(crate) fn may_keep_known(&self) -> bool {
        self.assessment.as_ref().is_some_and(|assessment| assessment.standing.keeps_known)
    }

    /// Why its known clients are moved; `None` while they stay.
    pub(crate) fn cause_of_moves(&self) -> Option<MoveCause> {
        let standing = self.assessment.as_ref()?.standing;
        (!standing.keeps_known).then_some(standing.cause)
    }

    /// Whether it is to be removed once drained.
    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether a complete sweep that has found so many known clients changes anything.
    pub(crate) const fn learns_from_sweep(&self, known: u64) -> bool {
        self.known != known || self.drain.until.is_some() || self.drain.empty_sweeps > 0
    }

    /// Takes note of a complete sweep. True if it ends a drain.
    pub(crate) fn swept(&mut self, known: u64) -> bool {
        self.known = known;
        !self.waits_for_connections && self.found(known)
    }

    /// Whether a count of its connections changes anything of it. `waits`: drains wait for those.
    pub(crate) fn learns_from_flows(&self, flows: u64, waits: bool) -> bool {
        self.flows != Some(flows)
            || self.waits_for_connections != waits
            || (waits && (self.drain.until.is_some() || self.drain.empty_sweeps > 0))
    }

    /// Takes note of how many connections it has. True if that ends a drain, which waits for those alone.
    pub(crate) fn flows(&mut self, flows: u64) -> bool {
        self.flows = Some(flows);
        self.waits_for_connections = true;
        self.found(flows)
    }

    /// Returns the number of its connections when they were last counted. `None`: they are not.
    #[must_use]
    pub const fn connections(&self) -> Option<u64> {
        self.flows
    }

    /// Takes note of how many there are of what a drain waits for. True if that ends it.
    fn found(&mut self, known: u64) -> bool {
        if self.drain.until.is_some() && self.drain.empty_sweeps >= Drain::ENOUGH_SWEEPS {
            // It is over, whoever comes then: somebody may where nobody takes clients and the table is open.
            return false;
        }
        if self.drain.until.is_none() || known > 0 {
            self.drain.empty_sweeps = 0;
            return false;
        }
        self.drain.empty_sweeps += 1;
        self.drain.empty_sweeps == Drain::ENOUGH_SWEEPS
    }

    /// Takes note of a complete sweep where somebody else decides what follows from it.
    pub(crate) const fn note_known(&mut self, known: u64) {
        self.known = known;
    }

    /// The same of connections.
    pub(crate) const fn note_flows(&mut self, flows: u64) {
        self.waits_for_connections = false;
        self.flows = Some(flows);
    }

    /// When a drain under way ends at the latest.
    #[must_use]
    pub fn drain_deadline(&self) -> Option<Instant> {
        // One that is down and keeps them nevertheless does so beyond its deadline, because of an outage.
        let drains = self.assessment.as_ref().is_some_and(|assessment| {
            let keeps = assessment.standing.keeps_known && assessment.standing.state != BackendState::Down;
            keeps && !assessment.beyond
        });
        self.drain.until.filter(|_| drains)
    }

    /// When something about it is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.drain_deadline()
            .into_iter()
            .chain(self.slow_start.as_ref().and_then(|slow_start| slow_start.next_step()))
            .min()
    }

    /// Whether it begins to take new clients where it did not before, `assessment` being the new one. At the
    /// balancer's own start nobody begins, all are there at once.
    pub(super) fn begins(&self, assessment: &Assessment) -> bool {
        let before = self.assessment.as_ref().map(|before| before.standing);
        let absent = match before {
            Some(before) => !before.takes_new && (self.late || before.state != BackendState::Checking),
            None => self.late,
        };
        assessment.standing.takes_new && absent
    }

    /// Where nothing else explains its state, and it is full, starts slowly or has too much load: `slow start, step 3 of 10`.
    pub(super) fn explain(&self, assessment: &mut Assessment) {
        if let Some(full) = self.full.filter(|_| assessment.standing.takes_new && assessment.reason.is_empty()) {
            assessment.reason = format!("full: {full}");
        }
        let step = self.slow_start.as_ref().map(|slow_start| slow_start.step).filter(|&step| step < STEPS);
        if let Some(step) = step.filter(|_| assessment.reason.is_empty()) {
            assessment.reason = format!("slow start, step {step} of {STEPS}");
        }
        if let Some(bound) = self.bound.filter(|_| assessment.standing.takes_new && assessment.reason.is_empty()) {
            assessment.reason = format!("bounded load: {bound}");
        }
    }

    /// Whether it came to a service in use and the way to it is not known yet.
    /// Whether it is this machine itself, as its row was told.
    pub(crate) fn is_local(&self) -> bool {
        self.told.row.as_ref().and_then(|row| row.next_hop).is_some_and(|hop| hop.local)
    }

    pub(crate) fn waits_for_next_hop(&self, hops: &NextHops) -> bool {
        self.late
            && match self.agreed_way() {
                Some(way) => *way == Way::Unknown,
                None => matches!(hops.get(self.reached.ip()), Hop::Pending),
            }
    }

    /// Whether known clients stay with it.
    #[must_use]
    pub fn keeps_known(&self) -> bool {
        self.told.row.as_ref().is_some_and(|row| row.keeps_known)
    }

    /// Known clients at the last sweep.
    #[must_use]
    pub const fn known_clients(&self) -> u64 {
        self.known
    }

    /// Back to unknown: nobody has been checking.
    pub(crate) fn forget_verdict(&mut self) {
        *self.health_mut() = Health::default();
        self.last_check = None;
        self.checked_anew = true;
    }

    /// Whether the check that the shell was told of is the one that should run.
    pub(crate) fn is_checked_as(&self, wanted: Option<(SocketAddr, &CheckConfig)>) -> bool {
        match (&self.told.check, wanted) {
            (None, None) => true,
            (Some(told), Some((target, config))) => {
                !self.checked_anew && told.target == target && told.config == *config
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Begins the check `number`. What was counted towards the next verdict counts on, unless it was something else that
    /// was asked.
    pub(crate) fn check_as(&mut self, number: CheckNumber, (target, config): (SocketAddr, CheckConfig)) {
        let other = |told: &ToldCheck| told.target != target || told.config.kind != config.kind;
        if self.told.check.as_deref().is_some_and(other) {
            self.health_mut().count_anew();
        }
        self.checked_anew = false;
        self.told.check = Some(Box::new(ToldCheck { number, target, config }));
    }

    /// The check that runs.
    #[must_use]
    pub fn check_number(&self) -> Option<CheckNumber> {
        self.told.check.as_ref().map(|told| told.number)
    }

    pub(super) fn enter(&mut self, service: &str, assessment: Assessment, now: Instant) -> Option<Transition> {
        let after = assessment.standing.state;
        let reason = assessment.reason.clone();
        let keeps_known = assessment.standing.keeps_known;
        let old = self.assessment.replace(assessment)?.standing;
        let before = old.state;
        if before == after {
            return None;
        }
        if let Some(count) = self.transitions.get_mut(after as usize) {
            *count += 1;
        }
        let lasted = now.saturating_duration_since(std::mem::replace(&mut self.since, now));
        let name = BackendName { service: service.to_owned(), backend: self.config.name.clone() };
        let known = if old.keeps_known { self.known } else { 0 };
        Some(Transition { name, id: self.id.0, before, after, lasted, reason, known, keeps_known })
    }
}

/// Returns the results of the own checks: they are beside a backend's `health` where that is its fleet's.
fn own_health<'a>(health: &'a mut Health, fleet: Option<&'a mut InFleet>) -> &'a mut Health {
    fleet.and_then(|fleet| fleet.witness.as_mut()).unwrap_or(health)
}
