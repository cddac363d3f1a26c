//! Backends of a service at run time.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::verdict::MoveCause;
use balancer_config::{
    agent::Said,
    bounded::Bound,
    config::{BackendConfig, CheckConfig},
    limits::{Enough, Full},
    names::BackendName,
    states::{Admin, BackendState, Forced},
};

use crate::{
    agreed::Way,
    health::Health,
    io::{BackendId, BackendSpec, CheckNumber, CheckOutcome, PortsInUse},
    next_hops::{Hop, NextHops},
    report::Transition,
    standing::{HealthFact, Standing},
    table::STEPS,
};

/// A backend of a service, at run time.
#[derive(Clone, Debug)]
pub struct Backend {
    pub(super) id: BackendId,
    pub(super) config: BackendConfig,
    /// The address under which the balancer reaches the backend; port 0: the backend has the ports of the service's
    /// listeners.
    pub(super) reached: SocketAddr,
    pub(super) admin: Admin,
    pub(super) health: Health,
    pub(super) assessment: Option<Assessment>,
    /// The time at which the backend's current state began.
    pub(super) since: Instant,
    pub(super) slots: u32,
    pub(super) steered: bool,
    /// The number of the backend's known clients at the last sweep.
    pub(super) known: u64,
    /// The number of the backend's connections at the last count; `None`: the balancer does not count connections.
    pub(super) flows: Option<u64>,
    /// The ports that the backend's connections held at the last count; `None`: they held none.
    pub(super) ports: Option<PortsInUse>,
    /// Whether a drain of the backend waits for the end of connections rather than for clients.
    pub(super) waits_for_connections: bool,
    pub(super) drain: Drain,
    pub(super) slow_start: Option<Box<SlowStart>>,
    /// Whether the controller removes the backend after the drain.
    pub(super) leaving: bool,
    /// Whether the backend (or its address) was added while the service was in use, so that it gets no new clients
    /// before its next hop is known.
    pub(super) late: bool,
    pub(super) checks: [u64; 3],
    pub(super) last_check: Option<LastCheck>,
    /// The time at which the verdict of the checks last changed.
    pub(super) verdict_since: Instant,
    /// The verdict that the operator has set for the backend.
    pub(super) forced: Option<Forced>,
    /// The agent's report, if it reduces something; `None`: no report reduces anything.
    pub(super) agent: Option<Box<Said>>,
    /// The fraction of its slots that the backend keeps because of its load; `None`: all slots.
    pub(super) bound: Option<Bound>,
    /// The limit that keeps the backend from taking new clients; `None`: the backend is not full.
    pub(super) full: Option<Full>,
    /// How often this balancer found the backend full, by the number of [`Enough`].
    pub(super) filled: [u64; Enough::ALL.len()],
    pub(super) transitions: [u64; BackendState::ALL.len()],
    pub(crate) told: Told,
    /// Whether the prober must forget the earlier results of this backend.
    checked_anew: bool,
    /// The backend's state in a fleet; `None`: the balancer belongs to no fleet.
    pub(super) fleet: Option<Box<InFleet>>,
}

/// The additional state of a backend in a fleet.
#[derive(Clone, Debug, Default)]
pub(super) struct InFleet {
    /// The path to the backend on which the fleet has agreed; `None`: this balancer's own next hop decides.
    pub(super) agreed_way: Option<Way>,
    /// The results of this balancer's checks, if `health` contains the fleet's verdict.
    pub(super) witness: Option<Health>,
    /// The reason why the balancer treats the backend as failed, whatever the fleet agreed on before this member lost
    /// contact.
    pub(super) overruled: Option<String>,
    /// Whether the backend's latest checks failed at most members.
    pub(super) fails: bool,
}

/// The specifications of a backend that the controller last passed to the shell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) row: Option<Arc<BackendSpec>>,
    pub(crate) watched: Option<IpAddr>,
    pub(crate) check: Option<Box<ToldCheck>>,
}

/// The number and the specification of a running check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToldCheck {
    pub(crate) number: CheckNumber,
    pub(crate) target: SocketAddr,
    pub(crate) config: CheckConfig,
    pub(crate) restart_grace: Duration,
}

/// The result of a check, as the shell reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) number: CheckNumber,
    pub(crate) outcome: &'a CheckOutcome,
    pub(crate) took: Duration,
    /// Whether packets asked for the check.
    pub(crate) asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCheck {
    pub outcome: CheckOutcome,
    pub took: Duration,
    pub ended: Instant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drain {
    /// A timeout for this drain in place of the service's timeout.
    pub(super) timeout: Option<Duration>,
    /// The deadline of a drain in progress.
    pub(super) until: Option<Instant>,
    /// The number of consecutive sweeps during the drain that found no known client at the backend.
    pub(super) empty_sweeps: u32,
    /// For drains that wait for connections: the time of the first of the consecutive counts that found neither a
    /// connection nor a packet.
    pub(super) silent_since: Option<Instant>,
}

impl Drain {
    /// The number of consecutive sweeps without a known client that end a drain. A sweep that is in progress when the
    /// drain starts may have missed a client; the second sweep cannot miss one.
    pub(super) const ENOUGH_SWEEPS: u32 = 2;

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until) || self.empty_sweeps >= Self::ENOUGH_SWEEPS
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlowStart {
    pub(super) since: Instant,
    /// The total duration of the slow start.
    pub(super) lasts: Duration,
    /// The current step of the slow start in the live table, counted from 1.
    pub(super) step: u8,
}

impl SlowStart {
    /// The time at which a step begins: the first step begins immediately, and the last step begins at the end of the
    /// slow start.
    fn step_begins(self, step: u8) -> Instant {
        self.since + self.lasts * u32::from(step.saturating_sub(1)) / u32::from(STEPS - 1)
    }

    /// Performs the steps of the slow start that are due.
    pub(super) fn advance(self, now: Instant) -> Self {
        let step = (1..=STEPS).rev().find(|&step| self.step_begins(step) <= now).unwrap_or(1);
        Self { step, ..self }
    }

    fn next_step(self) -> Option<Instant> {
        (self.step < STEPS).then(|| self.step_begins(self.step + 1))
    }
}

/// The conclusions that follow from all facts about a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assessment {
    pub(super) health: HealthFact,
    pub(super) standing: Standing,
    pub(super) drains: bool,
    /// Whether the backend keeps its clients although its drain is over.
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
            ports: None,
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
            filled: [0; Enough::ALL.len()],
            transitions: [0; BackendState::ALL.len()],
            told: Told::default(),
            checked_anew: false,
            fleet: None,
        }
    }

    /// Returns the index of the backend's row in the kernel's maps.
    #[must_use]
    pub const fn id(&self) -> BackendId {
        self.id
    }

    /// Returns the backend's name, which is unique in the service.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns the backend's present configuration, including changes made at run time.
    #[must_use]
    pub const fn config(&self) -> &BackendConfig {
        &self.config
    }

    /// The address under which the balancer reaches the backend; port 0: the backend has the ports of the service's
    /// listeners.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.reached
    }

    /// The weight of the backend, 0–65535.
    #[must_use]
    pub const fn weight(&self) -> u16 {
        self.config.weight
    }

    #[must_use]
    pub const fn is_backup(&self) -> bool {
        self.config.backup
    }

    /// Returns the administrative state that the operator wants for the backend.
    #[must_use]
    pub const fn admin(&self) -> Admin {
        self.admin
    }

    /// The name of the verdict: `unknown`, `up` or `down`.
    #[must_use]
    pub fn health_word(&self) -> &'static str {
        self.assessment.as_ref().map_or(HealthFact::Unknown, |assessment| assessment.health).word()
    }

    /// Returns the state of the backend that users see.
    #[must_use]
    pub fn state(&self) -> BackendState {
        self.assessment.as_ref().map_or(BackendState::Checking, |assessment| assessment.standing.state)
    }

    /// The reason for the backend's state in a few words; empty if the state needs no explanation.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.assessment.as_ref().map_or("", |assessment| &assessment.reason)
    }

    /// Returns the number of the backend's slots in the live table.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether the balancer steers new clients to the backend now. An idle backup gets no new clients.
    #[must_use]
    pub const fn takes_new_clients(&self) -> bool {
        self.steered
    }

    /// Whether rules may pin clients to the backend; neither its weight nor its backup status matters.
    #[must_use]
    pub fn takes_pinned(&self) -> bool {
        self.may_take_new()
    }

    /// Whether the backend's state and health allow new clients.
    pub(crate) fn may_take_new(&self) -> bool {
        self.assessment.as_ref().is_some_and(|assessment| assessment.standing.takes_new)
    }

    /// The numbers of the backend's health checks that passed, failed softly, and failed hard.
    #[must_use]
    pub const fn checks(&self) -> [u64; 3] {
        self.checks
    }

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

    /// Returns the results of this balancer's own checks, if the fleet determines the verdict.
    pub(super) fn witness(&self) -> Option<&Health> {
        self.fleet.as_ref()?.witness.as_ref()
    }

    /// Returns the path to the backend on which the fleet has agreed.
    pub(super) fn agreed_way(&self) -> Option<&Way> {
        self.fleet.as_ref()?.agreed_way.as_ref()
    }

    /// The reason why the balancer treats the backend as failed, whatever the fleet has agreed on.
    pub(super) fn overruled(&self) -> Option<&str> {
        self.fleet.as_ref()?.overruled.as_deref()
    }

    /// Whether the backend's latest checks failed at most members of the fleet.
    pub(super) fn fails_for_the_fleet(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.fails)
    }

    /// Returns the backend's state in the fleet, and creates this state if it is missing.
    pub(super) fn in_fleet(&mut self) -> &mut InFleet {
        self.fleet.get_or_insert_default()
    }

    pub(super) fn overrule(&mut self, why: Option<String>) {
        if why.as_deref() != self.overruled() {
            self.in_fleet().overruled = why;
        }
    }

    /// The time at which the verdict of the backend's checks last changed.
    #[must_use]
    pub const fn verdict_since(&self) -> Instant {
        self.verdict_since
    }

    /// Returns the verdict that the operator has set for the backend.
    #[must_use]
    pub const fn forced(&self) -> Option<Forced> {
        self.forced
    }

    /// Overrides the verdict of the checks; the checks continue.
    pub(crate) const fn force(&mut self, forced: Option<Forced>) {
        self.forced = forced;
    }

    /// Records a finished check of the backend. `service_check` is the check in the service's configuration.
    pub(super) fn record(
        &mut self,
        Ended { outcome, took, asked, .. }: Ended<'_>,
        service_check: &CheckConfig,
        now: Instant,
    ) {
        let word = |health: &Health| std::mem::discriminant(health.verdict());
        let before = word(self.health());
        let check = self.config.check.as_deref().unwrap_or(service_check);
        let health = own_health(&mut self.health, self.fleet.as_deref_mut());
        health.record(outcome, check);
        if asked && matches!(outcome, CheckOutcome::Late(_)) {
            health.doubt();
        }
        if word(self.health()) != before {
            self.verdict_since = now;
        }
        self.last_check = Some(LastCheck { outcome: outcome.clone(), took, ended: now });
        let [passed, soft, hard] = &mut self.checks;
        match outcome {
            CheckOutcome::Passed => *passed += 1,
            CheckOutcome::Soft(_) => *soft += 1,
            CheckOutcome::Hard(_) | CheckOutcome::Shut(_) | CheckOutcome::Late(_) => *hard += 1,
            CheckOutcome::Hindered(_) => {}
        }
    }

    /// The number of times that the backend entered each of [`BackendState::ALL`], without its first state.
    #[must_use]
    pub const fn transitions(&self) -> [u64; BackendState::ALL.len()] {
        self.transitions
    }

    /// Applies another configuration to the backend. A backend whose address changes is a new server, about which
    /// nothing is known.
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

    /// Copies the operator's settings from the `twin` of the backend, which is the same backend in the other part of
    /// its service.
    pub(crate) fn follow(&mut self, twin: &Self) {
        self.admin = twin.admin;
        self.forced = twin.forced;
        self.agent.clone_from(&twin.agent);
        self.bound = twin.bound;
        self.full = twin.full;
        self.leaving = twin.leaving;
        if twin.admin == Admin::Drain {
            self.drain = Drain { timeout: twin.drain.timeout, until: twin.drain.until, ..Drain::default() };
        }
    }

    /// Announces the backend's check to the shell again under a new name of the backend or service; the results so far
    /// continue to count.
    pub(super) fn called_otherwise(&mut self) {
        self.checked_anew = true;
    }

    /// Sets the state that the operator wants; a drain has `timeout` in place of the service's timeout.
    pub(crate) fn set_admin(&mut self, admin: Admin, timeout: Option<Duration>) {
        self.admin = admin;
        self.drain = Drain { timeout, ..Drain::default() };
        self.leaving &= admin == Admin::Drain;
    }

    /// Marks the backend, so that the controller removes it after the drain.
    pub(crate) fn leave(&mut self) {
        if self.admin != Admin::Drain {
            self.set_admin(Admin::Drain, None);
        }
        self.leaving = true;
    }

    /// Cancels the removal of the backend, and restores the operator's state unless this state has changed since.
    pub(crate) fn stay(&mut self, admin: Admin) {
        if self.leaving && admin != Admin::Drain {
            self.set_admin(admin, None);
        }
        self.leaving = false;
    }

    /// Whether the backend is to be removed and has no clients to keep.
    pub(crate) fn has_left(&self) -> bool {
        self.leaving && !self.may_keep_known()
    }

    /// Whether known clients would stay with the backend if another backend could take them.
    pub(crate) fn may_keep_known(&self) -> bool {
        self.assessment.as_ref().is_some_and(|assessment| assessment.standing.keeps_known)
    }

    /// The cause of moves of the backend's known clients; `None`: the clients stay.
    pub(crate) fn cause_of_moves(&self) -> Option<MoveCause> {
        let standing = self.assessment.as_ref()?.standing;
        (!standing.keeps_known).then_some(standing.cause)
    }

    /// Whether the controller removes the backend after the drain.
    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether a complete sweep that found this many known clients would change anything.
    pub(crate) const fn learns_from_sweep(&self, known: u64) -> bool {
        self.known != known || self.drain.until.is_some() || self.drain.empty_sweeps > 0
    }

    /// Records a complete sweep that found this many known clients. Returns true if the sweep ends a drain.
    pub(crate) fn swept(&mut self, known: u64) -> bool {
        self.known = known;
        let may_end = !self.waits_for_connections || self.flows == Some(0);
        may_end && self.found(known)
    }

    /// Whether a count of the backend's connections would change anything; `waits` says whether drains wait for
    /// connections.
    pub(crate) fn learns_from_flows(&self, (flows, ports): (u64, Option<PortsInUse>), waits: bool) -> bool {
        self.flows != Some(flows)
            || self.ports != ports
            || self.waits_for_connections != waits
            || (waits && (self.drain.until.is_some() || self.drain.empty_sweeps > 0))
    }

    /// Records the backend's number of connections and the ports that they hold, and whether the backend has received
    /// packets since the previous count. Returns true if this ends a drain that waits for connections, because the
    /// backend has been silent for the time `grace`.
    pub(crate) fn flows(
        &mut self,
        (flows, ports): (u64, Option<PortsInUse>),
        is_active: bool,
        grace: Duration,
        now: Instant,
    ) -> bool {
        (self.flows, self.ports) = (Some(flows), ports);
        self.waits_for_connections = true;
        if self.drain.until.is_none() || self.drain.empty_sweeps >= Drain::ENOUGH_SWEEPS {
            return false;
        }
        if flows > 0 || is_active {
            (self.drain.silent_since, self.drain.empty_sweeps) = (None, 0);
            return false;
        }
        let since = *self.drain.silent_since.get_or_insert(now);
        let ends = now.saturating_duration_since(since) >= grace;
        if ends {
            self.drain.empty_sweeps = Drain::ENOUGH_SWEEPS;
        }
        ends
    }

    /// Returns the number of the backend's connections at the last count; `None` if the balancer does not count
    /// connections.
    #[must_use]
    pub const fn connections(&self) -> Option<u64> {
        self.flows
    }

    /// Returns the ports of the address pool that the backend's connections held at the last count; `None`: they held
    /// none.
    #[must_use]
    pub const fn ports_in_use(&self) -> Option<PortsInUse> {
        self.ports
    }

    /// Records the number of clients whose end a drain awaits. Returns true if this number ends the drain.
    fn found(&mut self, known: u64) -> bool {
        if self.drain.until.is_some() && self.drain.empty_sweeps >= Drain::ENOUGH_SWEEPS {
            // The drain stays over even if a new client comes, which may happen in an open table without other
            // backends.
            return false;
        }
        if self.drain.until.is_none() || known > 0 {
            self.drain.empty_sweeps = 0;
            return false;
        }
        self.drain.empty_sweeps += 1;
        self.drain.empty_sweeps == Drain::ENOUGH_SWEEPS
    }

    /// Records a complete sweep; another balancer decides about the consequences.
    pub(crate) const fn note_known(&mut self, known: u64) {
        self.known = known;
    }

    /// Records the number of connections and the ports that they hold; another balancer decides about the consequences.
    pub(crate) const fn note_flows(&mut self, (flows, ports): (u64, Option<PortsInUse>)) {
        self.waits_for_connections = false;
        self.flows = Some(flows);
        self.ports = ports;
    }

    #[must_use]
    pub fn drain_deadline(&self) -> Option<Instant> {
        // If a backend that is down keeps clients beyond its deadline, the reason is an outage.
        let drains = self.assessment.as_ref().is_some_and(|assessment| {
            let keeps = assessment.standing.keeps_known && assessment.standing.state != BackendState::Down;
            keeps && !assessment.beyond
        });
        self.drain.until.filter(|_| drains)
    }

    /// The next time at which something about the backend is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.drain_deadline()
            .into_iter()
            .chain(self.slow_start.as_ref().and_then(|slow_start| slow_start.next_step()))
            .min()
    }

    /// Whether the backend begins to take new clients with the new `assessment`. When the balancer starts, no backend
    /// begins to take new clients, because all backends appear at the same time.
    pub(super) fn begins(&self, assessment: &Assessment) -> bool {
        let before = self.assessment.as_ref().map(|before| before.standing);
        let absent = match before {
            Some(before) => !before.takes_new && (self.late || before.state != BackendState::Checking),
            None => self.late,
        };
        assessment.standing.takes_new && absent
    }

    /// Explains the backend's state if nothing else explains it and the backend is full, starts slowly or has too much
    /// load: `slow start, step 3 of 10`.
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

    /// Whether the backend is this machine itself, according to the row that the controller last passed to the shell.
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

    /// Whether known clients stay at the backend.
    #[must_use]
    pub fn keeps_known(&self) -> bool {
        self.told.row.as_ref().is_some_and(|row| row.keeps_known)
    }

    /// The number of the backend's known clients at the last sweep.
    #[must_use]
    pub const fn known_clients(&self) -> u64 {
        self.known
    }

    /// Resets the verdict to unknown, because no check of the backend was running.
    pub(crate) fn forget_verdict(&mut self) {
        *self.health_mut() = Health::default();
        self.last_check = None;
        self.checked_anew = true;
    }

    /// Whether the check that the controller last passed to the shell is the wanted check.
    pub(crate) fn is_checked_as(&self, wanted: Option<(SocketAddr, &CheckConfig, Duration)>) -> bool {
        match (&self.told.check, wanted) {
            (None, None) => true,
            (Some(told), Some((target, config, restart_grace))) => {
                !self.checked_anew
                    && told.target == target
                    && told.config == *config
                    && told.restart_grace == restart_grace
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Starts the check with this `number`. Checks counted towards another verdict continue to count unless the new
    /// check has another target or kind.
    pub(crate) fn check_as(
        &mut self,
        number: CheckNumber,
        (target, config, restart_grace): (SocketAddr, CheckConfig, Duration),
    ) {
        let other = |told: &ToldCheck| told.target != target || told.config.kind != config.kind;
        if self.told.check.as_deref().is_some_and(other) {
            self.health_mut().count_anew();
        }
        self.checked_anew = false;
        self.told.check = Some(Box::new(ToldCheck { number, target, config, restart_grace }));
    }

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

/// Returns the results of this balancer's own checks, which are stored separately if `health` contains the fleet's
/// verdict.
fn own_health<'a>(health: &'a mut Health, fleet: Option<&'a mut InFleet>) -> &'a mut Health {
    fleet.and_then(|fleet| fleet.witness.as_mut()).unwrap_or(health)
}
