//! The owner of the core, which alone writes the maps: receives events and changes, and carries out commands.

mod agents;
mod beginning;
mod bounded;
mod denied;
mod discovered;
mod flows;
mod forgetting;
mod join;
mod learning;
mod look;
mod member;
mod proposal;
mod rescan;
mod retired;
mod show;
mod suspects;
mod trace;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use balancer_api::model::{Changed, ClientQuery, ClientView, RuleView};
use balancer_common::verdict::MOVE_COUNTERS;
use balancer_config::{config::Config, listeners::Family, names::BackendName};
use balancer_control::{
    applied::Applied,
    controller::{Controller, Precomputed, Services},
    io::{BackendId, Change, Command, Event, Moved, Refused, ServiceId, ServiceSpec},
    last_changes::LastChanges,
    locate::Why,
    report,
    service::{Backend, Service},
    state::{SavedCounters, SavedEpoch},
};
use balancer_dataplane::{Dataplane, FlowCounts, Swept};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::{
    agents::Heard,
    bounded::{Fullness, Watches},
    denied::Denied,
    discovered::Discovery,
    member::Member,
    rescan::{Report, Rescan},
    retired::{RecentlyRetired, Retired},
    suspects::Suspects,
};
pub use self::{
    beginning::Beginning,
    discovered::WantedLists,
    forgetting::Forgetting,
    learning::Searching,
    look::Counting,
    proposal::{Draft, Planning, Proposal, Proposing, not_worked_out},
};
use crate::{
    clocks,
    events::{Events, subject},
    neighbours::{Neighbours, Tunnels},
    prober::Prober,
    removed_backends::RemovedBackends,
    restorable::Restorable,
};

/// The interval for polling short operations.
const PAUSE: Duration = Duration::from_millis(1);

/// The core together with everything on which its commands act.
pub struct Owner<D> {
    controller: Controller,
    /// The commands to carry out at the start.
    first: Vec<Command>,
    dataplane: D,
    neighbours: Neighbours,
    prober: Prober,
    events: Events,
    /// The duration of each service's last table change, from the event to the swap.
    builds: HashMap<ServiceId, Duration>,
    /// The service and the name of the backend behind each row of counters.
    owners: HashMap<BackendId, (ServiceId, String)>,
    removed_backends: RemovedBackends,
    recently_retired: RecentlyRetired,
    /// The moves that other members of the fleet count, by cause.
    repeated_moves: HashMap<ServiceId, [u64; MOVE_COUNTERS]>,
    last_changes: LastChanges,
    /// The start of the clocks of client memory.
    started: Instant,
    /// Whether something has happened since this was last asked.
    changed: bool,
    applied: Applied,
    /// The work that the last change has left in the client table.
    rescan: Option<Rescan>,
    /// The number of known clients that changes have forgotten, as far as it was not reported yet.
    forgotten: u64,
    /// The results of changes that forgot clients in parts, as far as the caller has not collected them yet.
    told: VecDeque<Changed>,
    /// Whether the data path could not be brought to the wanted state, so that this must be retried.
    out_of_step: bool,
    member: Member,
    denied: Denied,
    discovery: Discovery,
    heard: Heard,
    watches: Watches,
    fullness: Fullness,
    suspects: Suspects,
    flow_counts: FlowCounts,
    /// The number of times that connections were counted.
    flows_counted: u64,
    /// The epoch of the fleet that the owner follows.
    epoch: Option<SavedEpoch>,
    /// The number of complete sweeps.
    sweeps: u64,
    /// The time at which to continue the current part of the sweep.
    sweeps_at: Option<Instant>,
}

impl<D: Dataplane> Owner<D> {
    /// Takes over a controller, whose first commands wait for [`start`](Self::start).
    pub fn new(beginning: Beginning, dataplane: D, neighbours: Neighbours, prober: Prober, events: Events) -> Self {
        let Beginning { controller, commands, applied, .. } = beginning;
        Self {
            controller,
            first: commands,
            dataplane,
            neighbours,
            prober,
            events,
            builds: HashMap::new(),
            owners: HashMap::new(),
            removed_backends: RemovedBackends::default(),
            recently_retired: RecentlyRetired::default(),
            repeated_moves: HashMap::new(),
            last_changes: LastChanges::default(),
            started: Instant::now(),
            changed: false,
            applied,
            rescan: None,
            forgotten: 0,
            told: VecDeque::new(),
            out_of_step: false,
            member: Member::default(),
            denied: Denied::default(),
            discovery: Discovery::default(),
            heard: Heard::default(),
            watches: Watches::default(),
            fullness: Fullness::default(),
            suspects: Suspects::default(),
            flow_counts: FlowCounts::default(),
            flows_counted: 0,
            epoch: None,
            sweeps: 0,
            sweeps_at: None,
        }
    }

    /// Continues the counters that an ended process has left: those of removed backends, and of moves counted by other
    /// members.
    pub fn take_over_counters(
        &mut self,
        removed_backends: BTreeMap<u16, BTreeMap<String, SavedCounters>>,
        repeated_moves: BTreeMap<u16, Vec<u64>>,
    ) {
        self.removed_backends = RemovedBackends::restore(removed_backends, clocks::clocks());
        let moves = |kept: Vec<u64>| std::array::from_fn(|cause| kept.get(cause).copied().unwrap_or(0));
        self.repeated_moves =
            repeated_moves.into_iter().map(|(service, kept)| (ServiceId(service), moves(kept))).collect();
    }

    /// Records moves that another member counts as well.
    pub fn count_repeated(&mut self, moves: impl IntoIterator<Item = ((ServiceId, usize), u64)>) {
        for ((service, cause), count) in moves {
            if let Some(sum) = self.repeated_moves.entry(service).or_default().get_mut(cause) {
                *sum += count;
            }
        }
    }

    /// Returns a copy of everything that a restart must preserve.
    pub fn restorable(&self) -> Restorable {
        let clocks = clocks::clocks();
        Restorable {
            controller: self.controller.clone(),
            removed_backends: self.removed_backends.export(clocks),
            repeated_moves: self.repeated_moves.iter().map(|(service, moves)| (service.0, moves.to_vec())).collect(),
            withdrawn: self.is_withdrawn(),
            epoch: self.epoch,
            clocks,
            clock: clocks::saved(clocks),
        }
    }

    /// Whether something has happened since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Brings the data path to the configured state.
    ///
    /// # Errors
    /// If the data path refuses.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let commands = std::mem::take(&mut self.first);
        let (mut backends, mut listeners, mut ruled) = (Vec::new(), Vec::new(), Vec::new());
        for command in &commands {
            if let Command::WriteBackend(backend) = command {
                backends.push((backend.id, backend.service));
            } else if let Command::SetRules { service, .. } = command {
                ruled.push(*service);
            } else if let Command::PublishServices(services) = command {
                // The first directory is the one from before the restart, and its listeners are needed.
                if listeners.is_empty() {
                    let all = services.iter().flat_map(|spec| &spec.listeners);
                    listeners.extend(all.filter(|listener| listener.counted).map(|listener| listener.id));
                }
            }
        }
        if !self.controller.goes_on() {
            // The ids have new meanings.
            (backends, listeners, ruled) = (Vec::new(), Vec::new(), Vec::new());
            self.removed_backends = RemovedBackends::default();
            self.recently_retired = RecentlyRetired::default();
            self.repeated_moves.clear();
        }
        self.dataplane.adopt(&backends, &listeners, &ruled)?;
        self.execute(commands, started)?;
        self.rescan_all();
        self.last_changes.begin(&self.controller);
        let forgotten = std::mem::take(&mut self.forgotten);
        if forgotten > 0 {
            self.events.note(&format!("the configuration has changed{}", report::clients_forgotten(forgotten)));
        }
        Ok(())
    }

    /// The number of services.
    pub fn services(&self) -> usize {
        self.controller.services().len()
    }

    /// The data path.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// Returns the configuration, for its settings other than services.
    pub fn settings(&self) -> &Config {
        self.controller.settings()
    }

    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// The watched neighbours.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// The addresses of all backends.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.controller.services().iter().flat_map(Service::backends).map(|backend| backend.address().ip())
    }

    /// The time of the controller's next [`Event::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.controller.next_deadline().map(Instant::from_std)
    }

    /// Passes an event to the controller. If the data path refuses a command, it is resynchronized and a report is
    /// made.
    pub fn handle(&mut self, event: Event) {
        self.handle_all([event]);
    }

    /// Passes all pending events at once, so that each service's table is replaced at most once.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>) {
        let now = Instant::now();
        let Self { controller, dataplane, suspects, .. } = self;
        let mut failing = Vec::new();
        let events = events.into_iter().inspect(|event| match suspects.answer(event, now) {
            Some(suspects::Answer::Works(id)) => dataplane.works(id),
            Some(suspects::Answer::Fails(id, signal, why)) => failing.push((id, signal, why)),
            None => {}
        });
        let commands = controller.handle_all(events, now.into_std());
        for (id, signal, why) in failing {
            if let Some(name) = self.controller.full_name_of(id) {
                self.events.report(&suspects::report(name, signal, &why));
            }
        }
        self.changed |= !commands.is_empty();
        self.last_changes.note(&commands, None, &self.controller, now.into_std());
        if let Err(error) = self.execute(commands, now) {
            error!("{error:#}; writing the whole state again");
            self.resync();
        }
    }

    /// The core.
    pub(crate) const fn controller(&self) -> &Controller {
        &self.controller
    }

    pub(crate) const fn controller_mut(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// The number of complete sweeps of the client table.
    pub(crate) const fn sweeps(&self) -> u64 {
        self.sweeps
    }

    /// Sets the epoch of the fleet that the owner follows.
    pub(crate) const fn set_epoch(&mut self, epoch: SavedEpoch) {
        self.epoch = Some(epoch);
    }

    /// Sets whether the fleet's engine is unreachable, so that this member's own findings count.
    pub(crate) fn set_alone(&mut self, alone: bool) {
        let now = Instant::now();
        let commands = self.controller.set_alone(alone, now.into_std());
        self.changed |= !commands.is_empty();
        self.last_changes.note(&commands, None, &self.controller, now.into_std());
        if let Err(error) = self.execute(commands, now) {
            error!("{error:#}; writing the whole state again");
            self.resync();
        }
    }

    /// Carries out the consequences of the fleet's state. The fleet itself reports them.
    ///
    /// # Errors
    /// If the data path refuses a command; in that case the controller is restored to `before`.
    pub(crate) fn do_as_told(&mut self, commands: Vec<Command>, before: Controller) -> Result<(), String> {
        let now = Instant::now();
        self.changed = true;
        let commands: Vec<Command> =
            commands.into_iter().filter(|command| !matches!(command, Command::Report(_))).collect();
        let last_changes = self.last_changes.clone();
        self.last_changes.note(&commands, None, &self.controller, now.into_std());
        if let Err(error) = self.execute(commands, now) {
            self.controller.undo(before);
            self.last_changes = last_changes;
            self.resync();
            return Err(format!("the data path refused: {error:#}"));
        }
        self.name_owners(before.services());
        Ok(())
    }

    /// Makes a change completely or not at all, using the precomputed tables. `None`: the result is available from
    /// [`take_told`](Self::take_told) once clients are forgotten.
    ///
    /// # Errors
    /// If the controller or the data path refuses the change; in that case nothing has changed.
    pub fn change(
        &mut self,
        change: Change,
        uid: Option<u32>,
        precomputed: Precomputed,
    ) -> Result<Option<Changed>, Refused> {
        self.controller.expect(precomputed);
        let changed = self.make(change, uid);
        self.controller.expect(Precomputed::default());
        changed
    }

    fn make(&mut self, change: Change, uid: Option<u32>) -> Result<Option<Changed>, Refused> {
        let now = Instant::now();
        self.changed = true;
        let before = self.controller.clone();
        let slots_before = self.all_slots_moved();
        let about = subject(&change);
        let (added, reloaded) =
            (matches!(change, Change::Add { .. }), matches!(change, Change::Reload(_) | Change::Reset(_)));
        let kept_before = about.as_ref().map_or(0, |name| self.keeps(name));
        let (message, commands) = self.controller.change(change, now.into_std())?;
        let last_changes = self.last_changes.clone();
        let publishes = publishes(&commands);
        self.last_changes.note(&commands, Some(&message), &self.controller, now.into_std());
        if let Err(error) = self.execute(commands, now) {
            self.controller.undo(before);
            self.last_changes = last_changes;
            self.resync();
            return Err(Refused::Conflict(format!("the data path refused, nothing was changed: {error:#}")));
        }
        let leaving = if about.as_ref().is_some_and(|name| self.keeps(name) > 0) { 0 } else { kept_before };
        if reloaded {
            self.name_owners(before.services());
        }
        let moves =
            Moved { known_clients: (leaving > 0).then_some(leaving), ..moved(slots_before, self.all_slots_moved()) };
        // A backend that waits for its next hop is reported once the outcome is known.
        let is_event = !(added && about.as_ref().is_some_and(|name| self.waits_for_next_hop(name)));
        let report = Report { message, about, uid, moves, is_event };
        match &mut self.rescan {
            Some(rescan) if publishes => rescan.report = Some(report),
            Some(_) | None => return Ok(Some(self.tell(report))),
        }
        Ok(None)
    }

    /// The number of known clients that stay with a backend; 0 if no such backend exists.
    fn keeps(&self, name: &BackendName) -> u64 {
        self.controller.parts(name).filter(|backend| backend.keeps_known()).map(Backend::known_clients).sum()
    }

    /// The numbers of slots moved in a service since the start (required, needless); zero if no such service exists.
    pub fn slots_moved(&self, service: &str) -> (u64, u64) {
        sum(self.controller.legs(service).map(Service::slots_moved))
    }

    /// Whether an added backend still waits for its next hop.
    pub fn waits_for_next_hop(&self, name: &BackendName) -> bool {
        self.controller.waits_for_next_hop(name)
    }

    /// Reports and returns the result of adding a backend for the user `uid`; `before` has the numbers of slots of its
    /// service that had moved before.
    pub fn added(&self, name: &BackendName, before: (u64, u64), uid: Option<u32>) -> Changed {
        let message = self.controller.added(name, before);
        self.events.change(Some(name), &message, uid, Some(moved(before, self.slots_moved(&name.service))));
        Changed { message }
    }

    /// Sums [`Owner::slots_moved`] over all services. When a service is removed, the sum loses its part.
    fn all_slots_moved(&self) -> (u64, u64) {
        sum(self.controller.services().iter().map(Service::slots_moved))
    }

    /// Finds the backend to which a client is steered.
    ///
    /// # Errors
    /// If the requested service does not exist.
    pub fn locate(&self, query: &ClientQuery) -> Result<Vec<ClientView>, Refused> {
        let mut located = self.controller.locate(query.address, query.service.as_deref())?;
        let address = query.address.to_canonical();
        for client in &mut located {
            let Some(service) = self.controller.leg(&client.service, Family::of(address)) else { continue };
            self.deny_located(service, address, client);
            let Some(known) = self.dataplane.client(service.id(), address) else { continue };
            client.last_seen = Some(known.last_seen);
            if client.rule.is_some() {
                continue;
            }
            let keeps =
                service.backends().iter().find(|backend| backend.id() == known.backend && backend.keeps_known());
            if let Some(backend) = keeps {
                client.backend = Some(backend.name().to_owned());
                client.why = Why::Known;
            }
        }
        Ok(located.into_iter().map(Into::into).collect())
    }

    /// The rules for client prefixes, of one service or of all.
    ///
    /// # Errors
    /// If the requested service does not exist, or a counter cannot be read.
    pub fn rules(&self, service: Option<&str>) -> Result<Vec<RuleView>, Refused> {
        let now = Instant::now().into_std();
        if let Some(name) = service {
            self.controller.service(name)?;
        }
        let services = self.controller.services().iter().filter(|of| service.is_none_or(|name| of.name() == name));
        let rules = services.flat_map(|service| service.rules().iter().map(move |rule| (service, rule)));
        rules
            .map(|(service, rule)| {
                let stats = self.dataplane.rule_stats(service.id(), rule.prefix);
                let stats = stats.map_err(|error| Refused::Conflict(format!("{error:#}")))?;
                let inactive = service.inactive(rule);
                Ok(RuleView {
                    service: service.name().to_owned(),
                    prefix: rule.prefix.to_string(),
                    action: rule.action.clone(),
                    in_file: service.is_in_file(rule),
                    active: inactive.is_none(),
                    reason: inactive.unwrap_or_default(),
                    expires_in_seconds: rule.ends.map(|ends| ends.saturating_duration_since(now).as_secs()),
                    packets: stats.packets,
                    fallbacks: stats.fallbacks,
                })
            })
            .collect()
    }

    /// Advances the clocks of client memory and continues the sweep of the client table.
    pub fn sweep(&mut self) {
        let swept = self.dataplane.sweep(self.started.elapsed());
        self.sweeps_at = matches!(swept, Swept::GoesOn).then(|| Instant::now() + PAUSE);
        if let Swept::Ends(known) = swept {
            self.sweeps += 1;
            self.handle(Event::Swept { known });
        }
    }

    /// The time at which to continue the current part of the sweep, if there is one.
    pub const fn sweeps_at(&self) -> Option<Instant> {
        self.sweeps_at
    }

    /// Resynchronizes a data path that is out of step, and sums up the counters of backends that were removed long ago.
    pub fn keep_up(&mut self) {
        self.dataplane.watch_handshakes(self.started.elapsed());
        if self.out_of_step {
            self.resync();
        }
        let retired = self.recently_retired.take_final(Instant::now().into_std());
        self.count_the_last_packets(retired);
        self.sum_up_removed_backends();
    }

    /// Adds the packets that were counted for backends after their retirement.
    fn count_the_last_packets(&mut self, all: impl IntoIterator<Item = Retired>) {
        for Retired { id, service, name, counted, at } in all {
            match self.dataplane.backend_stats(id) {
                Ok(stats) if stats != counted => self.removed_backends.add(service, name, &stats.since(&counted), at),
                Ok(_) => {}
                Err(why) => warn!("the last packets of {name} are not counted: {why:#}"),
            }
        }
    }

    fn sum_up_removed_backends(&mut self) {
        let Self { controller, removed_backends, .. } = self;
        removed_backends.sum_up(Instant::now().into_std(), |id| {
            let service = controller.services().iter().filter(|service| service.id() == id);
            let present = service.flat_map(Service::backends).map(Backend::name);
            let gone = controller.gone().iter().filter(|gone| gone.row.service == id).map(|gone| gone.name.as_str());
            present.chain(gone).map(str::to_owned).collect()
        });
    }

    fn resync(&mut self) {
        let now = Instant::now();
        let commands = self.controller.resync(&self.applied);
        let before = std::mem::replace(&mut self.out_of_step, false);
        match self.execute(commands, now) {
            Ok(()) if before => info!("the data path is in step again"),
            Ok(()) => {}
            Err(error) => {
                if !before {
                    error!("the data path is out of step, it is tried again until it is not: {error:#}");
                }
                self.out_of_step = true;
            }
        }
    }

    fn execute(&mut self, commands: Vec<Command>, since: Instant) -> anyhow::Result<()> {
        // The list collects every replaced directory.
        let mut before: Vec<ServiceSpec> = Vec::new();
        let published = publishes(&commands);
        if published {
            self.rescan_all();
        }
        // The counts of forgotten clients must not be reported.
        self.forgotten = 0;
        for command in commands {
            self.carry_out(&command, since)?;
            if matches!(command, Command::PublishServices(_)) {
                before.append(&mut self.applied.services);
            }
            self.applied.note(&command);
        }
        if !published {
            return Ok(());
        }
        // The step must not come earlier, because failed changes are undone.
        self.dataplane.complete();
        self.rescan = Some(Rescan { before, report: None, at: Instant::now() });
        self.rescan();
        Ok(())
    }

    /// Updates the names of backends' counters in services that have changed since `before`.
    fn name_owners(&mut self, before: &Services) {
        for service in self.controller.services().touched_since(before) {
            for backend in service.backends() {
                let owner = self.owners.get_mut(&backend.id()).map(|(_, name)| name);
                if let Some(name) = owner.filter(|name| name.as_str() != backend.name()) {
                    backend.name().clone_into(name);
                }
            }
        }
    }

    fn carry_out(&mut self, command: &Command, since: Instant) -> anyhow::Result<()> {
        match command {
            Command::WriteBackend(backend) => {
                let had_its_id = self.recently_retired.take_id(backend.id);
                self.count_the_last_packets(had_its_id);
                self.dataplane.write_backend(backend).with_context(|| format!("backend {}", backend.address))?;
                self.prober.set_way(Arc::clone(backend));
                if let Some(name) = self.controller.name_of(backend.id) {
                    self.owners.insert(backend.id, (backend.service, name.to_owned()));
                }
            }
            Command::RetireBackend(id) => {
                let stats = self.dataplane.backend_stats(*id)?;
                self.dataplane.retire_backend(*id).context("retiring a backend")?;
                self.prober.forget_way(*id);
                self.suspects.forget(*id);
                if let Some((service, name)) = self.owners.remove(id) {
                    let at = Instant::now().into_std();
                    self.removed_backends.add(service, name.clone(), &stats, at);
                    self.recently_retired.add(Retired { id: *id, service, name, counted: stats, at });
                }
            }
            Command::SwapTable { service, table, home } => {
                let (table, home) = (Arc::clone(table), home.clone());
                self.dataplane.swap_table(*service, table, home).context("swapping a lookup table")?;
                self.builds.insert(*service, since.elapsed());
            }
            Command::PublishServices(services) => {
                self.dataplane.publish_services(services).context("publishing the services")?;
                self.neighbours.set_tunnels(Tunnels::of(services));
                self.prober.set_vips(
                    services.iter().flat_map(|service| &service.listeners).map(|spec| spec.listener.address).collect(),
                );
            }
            Command::SetRules { service, rules } => {
                self.dataplane.set_rules(*service, rules).context("setting the rules of a service")?;
            }
            Command::WatchNextHop(address) => self.neighbours.watch(*address),
            Command::UnwatchNextHop(address) => self.neighbours.unwatch(*address),
            Command::StartChecks(check) => self.prober.start((**check).clone()),
            Command::StopChecks(backend) => self.prober.stop(*backend),
            Command::Report(report) => self.events.report(report),
        }
        Ok(())
    }
}

/// Whether the commands replace the directory of services.
fn publishes(commands: &[Command]) -> bool {
    commands.iter().any(|command| matches!(command, Command::PublishServices(_)))
}

/// The sum of the numbers of moved slots (required, needless).
fn sum(moved: impl Iterator<Item = (u64, u64)>) -> (u64, u64) {
    moved.fold((0, 0), |sum, moved| (sum.0 + moved.0, sum.1 + moved.1))
}

/// Returns the moves between two readings of the numbers (required, needless).
const fn moved(before: (u64, u64), after: (u64, u64)) -> Moved {
    let (required, needless) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Moved { slots: required + needless, needless, known_clients: None }
}
