//! Controllers of a fleet: the controller of one member *decides* by the results on which all members have agreed, and
//! the controllers of all members *follow* the state of the deciding controller.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::Instant,
};

use balancer_common::{client::HashKey, map_types::Forwarding};
use balancer_config::{
    config::{Config, ServiceConfig},
    shared::shared,
    validate::Valid,
};

use super::{Controller, settings::Differences};
use crate::{
    agreed::{Decided, Judgement, Opinion, Role},
    io::{BackendId, Command, Event, Refused},
    keys,
    service::{Backend, Ended, Service},
    state::{Clocks, SavedState},
};

impl Controller {
    /// Makes a following controller. The controller has no services before the first [`follow`](Self::follow).
    #[must_use]
    pub fn follower(config: Config, key: HashKey, now: Instant) -> Self {
        let role = Role::Follows { as_of: now, alone: false };
        let mut this = Self { role, ..Self::new(config, key) };
        this.first = Valid::default();
        this
    }

    /// Turns a restored controller into a following controller.
    #[must_use]
    pub fn into_follower(mut self, now: Instant) -> Self {
        self.role = Role::Follows { as_of: now, alone: true };
        self.first = Valid::default();
        self.services.those_mut(|_| true).for_each(|service| service.is_agreed_on(true));
        self
    }

    /// Returns commands that announce everything as it was before a restart. For a restored controller, this is the
    /// first call, in place of [`start`](Self::start).
    pub fn start_following(&mut self, now: Instant) -> Vec<Command> {
        let mut commands: Vec<Command> =
            self.gone.iter().map(|gone| Command::WriteBackend(Arc::clone(&gone.row))).collect();
        commands.extend(self.reconcile(|_| true, Vec::new(), None, now).commands);
        commands
    }

    /// Makes a deciding controller from a configuration, for the first member of a fleet.
    #[must_use]
    pub fn decider(config: Config, key: HashKey, now: Instant) -> Self {
        let mut this = Self { role: Role::Decides, ..Self::new(config, key) };
        let services = mem::take(&mut this.first);
        let _ = this.start_anew(services, now);
        this.decide(now);
        this
    }

    /// Makes a deciding controller that succeeds another deciding controller.
    ///
    /// # Errors
    /// Returns one line about a contradiction in the given state.
    pub fn decider_from(config: Config, key: HashKey, state: SavedState, clocks: Clocks) -> Result<Self, String> {
        let config = Config { services: Valid::default(), ..config };
        let mut this = Self { role: Role::Decides, ..Self::restore(config, key, state, clocks)? };
        let _ = this.reconcile(|_| true, Vec::new(), None, clocks.now);
        this.decide(clocks.now);
        Ok(this)
    }

    /// Marks new backends, so that the fleet's agreed results decide about these backends.
    fn decide(&mut self, now: Instant) {
        self.services.those_mut(|_| true).for_each(|service| service.is_agreed_on(false));
        let _ = self.reconcile(|_| true, Vec::new(), None, now);
    }

    /// Makes a change as the deciding controller: see [`change`](Self::change).
    ///
    /// # Errors
    /// [`Refused`] says why the controller has changed nothing.
    pub fn decide_change(&mut self, change: crate::io::Change, now: Instant) -> Decided {
        let decided = self.change(change, now)?;
        self.decide(now);
        Ok(decided)
    }

    /// Applies the services in a member's configuration file: see [`crate::merge`].
    ///
    /// # Errors
    /// [`Refused`] says why the controller has changed nothing.
    pub fn decide_services(&mut self, file: Vec<ServiceConfig>, reset: bool, now: Instant) -> Decided {
        let decided = self.reload(&Valid::new(shared(file))?, &Differences::default(), reset, now)?;
        self.generation += 1;
        self.decide(now);
        Ok(decided)
    }

    /// Applies the verdicts on which the members have agreed.
    pub fn judge(&mut self, judgements: &[Judgement], now: Instant) -> Vec<Command> {
        let mut concerned = HashSet::new();
        for judgement in judgements {
            let Some(&id) = self.owners.get(&judgement.backend) else { continue };
            let Some(service) = self.services.with_id_mut(id) else { continue };
            if service.judge(judgement) {
                concerned.insert(id);
            }
        }
        self.reconcile(|service| concerned.contains(&service.id()), Vec::new(), None, now).commands
    }

    /// Returns the state that other balancers follow, without the values that each member determines itself. Two such
    /// states are comparable if they belong to the same moment.
    #[must_use]
    pub fn agreed_state(&self, clocks: Clocks) -> SavedState {
        let mut state = SavedState { hash_key: None, next_hops: Vec::new(), instance: 0, ..self.export(clocks) };
        state.gone.iter_mut().for_each(|gone| gone.row.next_hop = None);
        state.forget_counts();
        state
    }

    /// Performs all actions that are due, so that all readers of [`agreed_state`](Self::agreed_state) see the state as
    /// of now.
    pub fn decide_what_is_due(&mut self, now: Instant) -> Vec<Command> {
        let mut commands = self.handle_all([Event::Tick], now);
        commands.extend(self.reconcile(|_| true, Vec::new(), None, now).commands);
        commands
    }

    /// Whether the change from `before` to this state takes slots from backends that still keep their known clients.
    #[must_use]
    pub fn gives(&self, before: &Self) -> bool {
        self.services.iter().any(|service| before.services.with_id(service.id()).is_some_and(|old| service.gives(old)))
    }

    /// Follows, from now on, a state that another controller decided at `clocks.wall`. A contradictory state, or a
    /// state of another fleet, changes nothing.
    ///
    /// # Errors
    /// Returns one line about the contradiction in the state.
    pub fn follow(&mut self, state: SavedState, clocks: Clocks) -> Result<Vec<Command>, String> {
        if state.key_fingerprint != keys::fingerprint(self.key) {
            return Err("it was made under another hash key".to_owned());
        }
        let mut next = self.clone();
        next.take_in(state, clocks)?;
        next.hops = mem::take(&mut self.hops);
        let alone = matches!(self.role, Role::Follows { alone: true, .. });
        next.role = Role::Follows { as_of: clocks.now, alone };
        let before = mem::replace(self, next);
        let mut dropped = self.succeed(before);
        let reconciled = self.reconcile(|_| true, Vec::new(), None, clocks.now);
        let mut commands = mem::take(&mut dropped.first);
        commands.extend(reconciled.commands);
        commands.extend(dropped.last);
        Ok(commands)
    }

    /// Continues from the previous controller, and matches services and backends by their ids. Returns the commands
    /// that remove the services and backends that no longer exist.
    fn succeed(&mut self, before: Self) -> Dropped {
        let mut dropped = Dropped::default();
        let told: HashMap<BackendId, _> = before.gone.iter().map(|gone| (gone.row.id, &gone.row)).collect();
        self.keep_next_hops(&before);
        let rows = self.gone.iter().filter(|gone| told.get(&gone.row.id) != Some(&&gone.row));
        dropped.last.extend(rows.map(|gone| Command::WriteBackend(Arc::clone(&gone.row))));
        let needed: HashSet<BackendId> =
            self.owners.keys().copied().chain(self.gone.iter().map(|gone| gone.row.id)).collect();
        let freed = before.gone.iter().map(|gone| gone.row.id).filter(|id| !needed.contains(id));
        dropped.last.extend(freed.map(Command::RetireBackend));
        for old in before.services {
            for backend in old.backends() {
                // If the same id now belongs to a backend of another service, this balancer knows no clients of the old
                // backend.
                let stays = self.owners.get(&backend.id()) == Some(&old.id());
                self.leave_behind(backend, stays, needed.contains(&backend.id()), &mut dropped);
            }
            if let Some(service) = self.services.with_id_mut(old.id()) {
                service.succeed(Arc::unwrap_or_clone(old));
            }
        }
        self.services.those_mut(|_| true).for_each(|service| service.is_agreed_on(true));
        dropped
    }

    /// Gives removed backends the next hops that this balancer knew, and lets returning backends start with their
    /// earlier next hops.
    fn keep_next_hops(&mut self, before: &Self) {
        let present =
            before.services.iter().flat_map(Service::backends).filter_map(|backend| backend.told.row.as_ref());
        let hops: HashMap<BackendId, _> = present
            .chain(before.gone.iter().map(|gone| &gone.row))
            .map(|row| (row.id, (row.address, row.next_hop)))
            .collect();
        for gone in &mut self.gone {
            let hop = hops.get(&gone.row.id).filter(|(address, _)| *address == gone.row.address);
            Arc::make_mut(&mut gone.row).next_hop = hop.and_then(|(_, hop)| *hop);
        }
        let back = before.gone.iter().filter(|gone| self.owners.contains_key(&gone.row.id));
        for (address, hop) in back.filter_map(|gone| Some((gone.row.address.ip(), gone.row.next_hop?))) {
            self.hops.expect(address, hop);
        }
    }

    fn leave_behind(&mut self, backend: &Backend, stays: bool, needed: bool, dropped: &mut Dropped) {
        if stays {
            return;
        }
        if backend.told.check.is_some() {
            dropped.first.push(Command::StopChecks(backend.id()));
        }
        if let Some(address) = backend.told.watched
            && self.hops.release(address)
        {
            dropped.last.push(Command::UnwatchNextHop(address));
        }
        if !needed {
            dropped.last.push(Command::RetireBackend(backend.id()));
        }
    }

    /// Sets whether the engine is unreachable, so that hard failures that this balancer sees take effect immediately.
    pub fn set_alone(&mut self, alone: bool, now: Instant) -> Vec<Command> {
        if let Role::Follows { alone: before, .. } = &mut self.role {
            *before = alone;
        }
        self.overrule(now)
    }

    fn overrule(&mut self, now: Instant) -> Vec<Command> {
        let Role::Follows { alone, .. } = self.role else { return Vec::new() };
        let Self { services, hops, .. } = self;
        let others = services.those_mut(|service| service.is_to_be_overruled(hops, alone));
        let mut concerned = HashSet::new();
        let mut reports = Vec::new();
        for service in others {
            let (news, report) = service.overrule(hops, alone, now);
            if news {
                concerned.insert(service.id());
            }
            reports.extend(report.map(Command::Report));
        }
        let reconciled = self.reconcile(|service| concerned.contains(&service.id()), Vec::new(), None, now);
        reconciled.commands.into_iter().chain(reports).collect()
    }

    /// The time at which [`Event::Tick`] is due for the decisions that this balancer makes itself while another
    /// balancer decides for the fleet.
    pub(super) fn deadline_alone(&self) -> Option<Instant> {
        self.services.iter().filter_map(Service::deadline_alone).min()
    }

    /// The backends whose latest check by this balancer failed, in services where so many backends fail that an outage
    /// is likely.
    #[must_use]
    pub fn failing_in_numbers(&self) -> Vec<BackendId> {
        self.services.iter().flat_map(|service| service.failing_in_numbers(&self.hops)).collect()
    }

    /// The backends whose latest check by this balancer failed, although the balancer does not consider them down yet.
    pub fn begin_to_fail(&self) -> impl Iterator<Item = BackendId> {
        let backends = self.services.iter().flat_map(Service::backends);
        backends.filter(|backend| backend.health().failing().is_some_and(|(failures, _)| failures > 0)).map(Backend::id)
    }

    /// Records the backends whose latest check failed at most members of the fleet.
    pub fn note_failing(&mut self, failing: &HashSet<BackendId>) {
        self.services
            .those_mut(|service| service.differs_in_failing(failing))
            .for_each(|service| service.note_failing(failing));
    }

    /// Handles events in a following controller: check results and next hops form this balancer's opinion, and next
    /// hops also determine the paths of packets.
    pub(super) fn witness_all(&mut self, events: impl IntoIterator<Item = Event>, now: Instant) -> Vec<Command> {
        let mut reached_otherwise = HashSet::new();
        for event in events {
            match event {
                Event::Checked { backend, check: number, outcome, took, asked } => {
                    let _ = self.checked(backend, Ended { number, outcome: &outcome, took, asked }, now);
                }
                Event::NextHop { address, next_hop } => {
                    if self.hops.set(address, next_hop) {
                        reached_otherwise.insert(address);
                    }
                }
                Event::Swept { known } => {
                    let known: HashMap<BackendId, u64> = known.into_iter().collect();
                    let of = |backend: &Backend| known.get(&backend.id()).copied().unwrap_or(0);
                    let news = |service: &Service| service.backends().iter().any(|at| at.known_clients() != of(at));
                    for backend in self.services.those_mut(news).flat_map(Service::backends_mut) {
                        backend.note_known(of(backend));
                    }
                    for gone in &mut self.gone {
                        gone.known = known.get(&gone.row.id).copied().unwrap_or(0);
                    }
                }
                Event::Flows { of, ports, .. } => {
                    let of = |backend: &Backend| {
                        (of.get(&backend.id()).copied().unwrap_or(0), ports.get(&backend.id()).copied())
                    };
                    let news = |service: &Service| {
                        service.forwarding() == Forwarding::Snat
                            && service.backends().iter().any(|backend| backend.learns_from_flows(of(backend), false))
                    };
                    for backend in self.services.those_mut(news).flat_map(Service::backends_mut) {
                        backend.note_flows(of(backend));
                    }
                }
                Event::Tick => {}
            }
        }
        let rows: HashSet<_> = self.services_reaching(&reached_otherwise).into_iter().collect();
        let mut commands = self.reconcile(|service| rows.contains(&service.id()), Vec::new(), None, now).commands;
        commands.extend(self.overrule(now));
        commands
    }

    /// Returns this balancer's opinion of every backend.
    pub fn opinions(&self) -> impl Iterator<Item = (&Service, &Backend, Opinion)> {
        let hops = &self.hops;
        self.services.iter().flat_map(move |service| {
            let opinion = move |backend| (service, backend, service.opinion(backend, hops));
            service.backends().iter().map(opinion)
        })
    }

    /// Returns a deciding copy of the controller, which can show the effect of a change.
    pub(crate) fn as_one_that_decides(&self) -> Self {
        let role = if self.role.follows() { Role::Decides } else { self.role.clone() };
        Self { role, ..self.clone() }
    }

    /// The hash key of the fleet.
    #[must_use]
    pub const fn key(&self) -> HashKey {
        self.key
    }

    #[must_use]
    pub const fn is_follower(&self) -> bool {
        self.role.follows()
    }

    /// Refuses a change if this controller follows another controller, because in that case the fleet decides.
    pub(super) fn refuse_as_follower(&self) -> Result<(), Refused> {
        if self.role.follows() {
            return Err(Refused::Conflict("this balancer is one of a fleet, which decides".to_owned()));
        }
        Ok(())
    }
}

/// Commands that remove backends and services that are missing from a new state.
#[derive(Default)]
struct Dropped {
    /// The commands that the shell must carry out before all others.
    first: Vec<Command>,
    /// The commands that the shell must carry out after all others.
    last: Vec<Command>,
}
