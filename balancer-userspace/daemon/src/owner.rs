//! The owner of the core, which is the only task that writes the maps: it receives events and changes, and carries out
//! the core's commands.

mod agents;
mod beginning;
mod bounded;
mod denied;
mod discovered;
mod flows;
mod forgetting;
mod join;
mod kept_back;
mod learning;
mod look;
mod member;
mod proposal;
mod rescan;
mod retired;
mod served;
mod show;
mod step;
mod suspects;
mod trace;
mod unattached;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use balancer_api::model::{Changed, ClientQuery, ClientView, DropInText, DropInView, RuleView};
use balancer_checks::prober::Prober;
use balancer_common::verdict::MOVE_COUNTERS;
use balancer_config::{config::Config, listeners::Family, names::BackendName};
use balancer_control::{
    applied::Applied,
    controller::{Controller, Precomputed, Services},
    io::{BackendId, Change, Command, Event, Moved, Refused, ServiceId, ServiceSpec},
    last_changes::LastChanges,
    locate::Why,
    report,
    room::{Room, Rooms},
    service::{Backend, Service},
    state::{SavedCounters, SavedEpoch},
};
use balancer_dataplane::{Dataplane, FlowCounts, Swept};
use balancer_listeners::call::DropIn;
use balancer_netlink::neighbours::{Neighbours, Tunnels};
use balancer_runtime::{
    clocks,
    events::{Events, subject},
};
use balancer_state::restorable::Restorable;
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::{
    agents::Heard,
    bounded::{Fullness, Watches},
    denied::Denied,
    discovered::Discovery,
    kept_back::KeptBack,
    member::Member,
    rescan::{Report, Rescan},
    retired::{RecentlyRetired, Retired},
    served::Outcomes,
    step::Step,
    suspects::Suspects,
};
pub use self::{
    beginning::Beginning,
    forgetting::Forgetting,
    learning::Searching,
    look::Counting,
    proposal::{Draft, Planning, Proposal, Proposing, not_worked_out},
};
use crate::removed_backends::RemovedBackends;

/// The interval at which the owner polls a short operation.
const PAUSE: Duration = Duration::from_millis(1);

/// The core, together with the data path and all tasks that the core's commands affect.
pub struct Owner<D> {
    controller: Controller,
    /// The commands that the owner carries out at the start.
    first: Vec<Command>,
    dataplane: D,
    neighbours: Neighbours,
    prober: Prober,
    events: Events,
    /// The duration of the last table change of each service, from the event to the table swap.
    builds: HashMap<ServiceId, Duration>,
    /// The service and the backend's name for each row of backend counters.
    owners: HashMap<BackendId, (ServiceId, String)>,
    removed_backends: RemovedBackends,
    recently_retired: RecentlyRetired,
    /// The numbers of moves that other members of the fleet also count, by cause.
    repeated_moves: HashMap<ServiceId, [u64; MOVE_COUNTERS]>,
    last_changes: LastChanges,
    /// The start of the clocks that date client table entries.
    started: Instant,
    /// Whether any state has changed since the last call of [`take_changed`](Self::take_changed).
    changed: bool,
    applied: Applied,
    /// The client table work that remains from the last change.
    rescan: Option<Rescan>,
    /// The number of known clients that changes have forgotten, as far as the owner has not reported them.
    forgotten: u64,
    /// The results of changes that forgot their clients in several steps; the caller collects these results.
    told: VecDeque<Changed>,
    step: Step,
    member: Member,
    denied: Denied,
    discovery: Discovery,
    heard: Heard,
    watches: Watches,
    fullness: Fullness,
    outcomes: Outcomes,
    suspects: Suspects,
    kept_back: KeptBack,
    flow_counts: FlowCounts,
    draining: flows::Draining,
    /// The number of times that the connections have been counted.
    flows_counted: u64,
    /// The epoch of the fleet's state that the owner follows.
    epoch: Option<SavedEpoch>,
    /// The number of complete sweeps of the client table.
    sweeps: u64,
    /// The time at which the owner continues the current step of the sweep.
    sweeps_at: Option<Instant>,
}

impl<D: Dataplane> Owner<D> {
    /// Makes an owner of a started controller, whose first commands wait for [`start`](Self::start).
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
            step: Step::default(),
            member: Member::default(),
            denied: Denied::default(),
            discovery: Discovery::default(),
            heard: Heard::default(),
            watches: Watches::default(),
            fullness: Fullness::default(),
            outcomes: Outcomes::default(),
            suspects: Suspects::default(),
            kept_back: KeptBack::default(),
            flow_counts: FlowCounts::default(),
            draining: flows::Draining::default(),
            flows_counted: 0,
            epoch: None,
            sweeps: 0,
            sweeps_at: None,
        }
    }

    /// Continues the counters that an ended process has left: those of removed backends, and those of moves that other
    /// members count.
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

    /// Records moves that another member of the fleet counts as well.
    pub fn count_repeated(&mut self, moves: impl IntoIterator<Item = ((ServiceId, usize), u64)>) {
        for ((service, cause), count) in moves {
            if let Some(sum) = self.repeated_moves.entry(service).or_default().get_mut(cause) {
                *sum += count;
            }
        }
    }

    /// Returns a copy of all state that a restart must preserve.
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

    /// Whether any state has changed since the last call of this function.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Brings the data path to the configured state.
    ///
    /// # Errors
    /// Fails if the data path refuses a command.
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
                // The first directory is from before the restart, and the owner needs the listeners in it.
                if listeners.is_empty() {
                    let all = services.iter().flat_map(|spec| &spec.listeners);
                    listeners.extend(all.filter(|listener| listener.counted).map(|listener| listener.id));
                }
            }
        }
        if !self.controller.goes_on() {
            // The ids in older directories now belong to other backends and listeners.
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

    /// The number of services in the core.
    pub fn services(&self) -> usize {
        self.controller.services().len()
    }

    /// The data path to which this owner writes.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// Returns the configuration, from which callers use the settings other than services.
    pub fn settings(&self) -> &Config {
        self.controller.settings()
    }

    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// The handle for watching next hops.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// The addresses of the backends of all services.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.controller.services().iter().flat_map(Service::backends).map(|backend| backend.address().ip())
    }

    /// The time of the controller's next [`Event::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.controller.next_deadline().map(Instant::from_std)
    }

    /// Passes an event to the controller. If the data path refuses a command, the owner resynchronizes the data path
    /// and reports the failure.
    pub fn handle(&mut self, event: Event) {
        self.handle_all([event]);
    }

    /// Passes all pending events to the controller together, so that each service's table is replaced at most once.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>) {
        let now = Instant::now();
        let events = self.keep_back(events);
        let Self { controller, dataplane, suspects, .. } = self;
        let mut failing = Vec::new();
        let events = events.into_iter().inspect(|event| match suspects.answer(event, now) {
            Some(suspects::Answer::Works(id)) => dataplane.works(id),
            Some(suspects::Answer::Recovers(id)) => dataplane.withhold_again(id),
            Some(suspects::Answer::Fails(id, signal, why)) => {
                // A stranger may have made the backend refuse connections on purpose, so that its resets pass.
                dataplane.withhold_again(id);
                failing.push((id, signal, why));
            }
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

    /// Makes the controller refuse changes for which a data path with this room has no room.
    pub fn set_room(&mut self, room: Room) {
        self.controller.set_rooms(Rooms::own(room));
    }

    /// The controller that this owner runs.
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

    /// Sets the epoch of the fleet's state that the owner follows.
    pub(crate) const fn set_epoch(&mut self, epoch: SavedEpoch) {
        self.epoch = Some(epoch);
    }

    /// Sets whether the fleet's engine is unreachable; while it is, this member's own check results take effect.
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

    /// Carries out the commands that follow from the fleet's state. The fleet itself reports the consequences of these
    /// commands.
    ///
    /// # Errors
    /// Fails if the data path refuses a command; the owner then restores the controller to the state `before`.
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

    /// Makes a change, completely or not at all, with the precomputed tables. Returns `None` if the clients to be
    /// forgotten are forgotten in several steps: [`take_told`](Self::take_told) then returns the result after the last
    /// step.
    ///
    /// # Errors
    /// Fails if the controller or the data path refuses the change; the state is then unchanged.
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
        let added = matches!(change, Change::Add { .. });
        let reloaded = matches!(change, Change::Reload(_) | Change::Reset(_) | Change::SetDropIn { .. });
        let kept_before = about.as_ref().map_or(0, |name| self.keeps(name));
        let (message, commands) = self.controller.change(change, now.into_std())?;
        let last_changes = self.last_changes.clone();
        let publishes = publishes(&commands);
        self.last_changes.note(&commands, Some(&message), &self.controller, now.into_std());
        let room = self.dataplane.make_room(&self.controller.need());
        if let Err(error) = room.and_then(|()| self.execute(commands, now)) {
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
        // If the added backend waits for its next hop, the owner reports the change later, when the outcome is known.
        let is_event = !(added && about.as_ref().is_some_and(|name| self.waits_for_next_hop(name)));
        let report = Report { message, about, uid, moves, is_event };
        match &mut self.rescan {
            Some(rescan) if publishes => rescan.report = Some(report),
            Some(_) | None => return Ok(Some(self.tell(report))),
        }
        Ok(None)
    }

    /// The drop-ins with their texts.
    pub fn drop_ins(&self) -> Vec<DropIn> {
        let view = |(name, text): (&String, &String)| {
            let services = self.controller.services_of_drop_in(name).map(str::to_owned).collect();
            (DropInView { name: name.clone(), services }, DropInText { text: text.clone() })
        };
        self.controller.drop_ins().iter().map(view).collect()
    }

    /// The number of clients that are known at a backend and stay there; 0 if the backend does not exist.
    fn keeps(&self, name: &BackendName) -> u64 {
        self.controller.parts(name).filter(|backend| backend.keeps_known()).map(Backend::known_clients).sum()
    }

    /// The numbers of slots (required, needless) that moved in a service since the start; zero if the service does not
    /// exist.
    pub fn slots_moved(&self, service: &str) -> (u64, u64) {
        sum(self.controller.legs(service).map(Service::slots_moved))
    }

    /// Whether an added backend still waits for its next hop.
    pub fn waits_for_next_hop(&self, name: &BackendName) -> bool {
        self.controller.waits_for_next_hop(name)
    }

    /// Reports the addition of a backend by the user `uid`, and returns the result; `before` contains the previous
    /// numbers of moved slots in the backend's service.
    pub fn added(&self, name: &BackendName, before: (u64, u64), uid: Option<u32>) -> Changed {
        let message = self.controller.added(name, before);
        self.events.change(Some(name), &message, uid, Some(moved(before, self.slots_moved(&name.service))));
        Changed::applied(message)
    }

    /// The sums of [`Owner::slots_moved`] over all services. If a service is removed, the sums lose the slots of that
    /// service.
    fn all_slots_moved(&self) -> (u64, u64) {
        sum(self.controller.services().iter().map(Service::slots_moved))
    }

    /// Finds the backend to which the program steers a client.
    ///
    /// # Errors
    /// Fails if the requested service does not exist.
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

    /// The rules of one service, or of all services.
    ///
    /// # Errors
    /// Fails if the requested service does not exist, or if a counter cannot be read.
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

    /// Advances the clocks that date client table entries, and continues the sweep of the client table.
    pub fn sweep(&mut self) {
        let swept = self.dataplane.sweep(self.started.elapsed());
        self.sweeps_at = matches!(swept, Swept::GoesOn).then(|| Instant::now() + PAUSE);
        if let Swept::Ends(known) = swept {
            self.sweeps += 1;
            self.handle(Event::Swept { known });
        }
    }

    /// The time at which the owner continues the current sweep, if a sweep is in progress.
    pub const fn sweeps_at(&self) -> Option<Instant> {
        self.sweeps_at
    }

    /// Resynchronizes the data path if it lacks the wanted state, and adds up the counters of backends that were
    /// removed long ago.
    pub fn keep_up(&mut self) {
        self.dataplane.watch_handshakes(self.started.elapsed());
        self.count_handshakes();
        if self.step.is_out() {
            self.resync();
        }
        self.changed |= self.step.begins_to_last(Instant::now());
        let retired = self.recently_retired.take_final(Instant::now().into_std());
        self.count_the_last_packets(retired);
        self.sum_up_removed_backends();
    }

    /// Adds up the packets that the program counted for backends after these were removed.
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
        // What a failed change has taken would be missing for the correction.
        self.dataplane.abandon();
        let commands = self.controller.resync(&self.applied);
        match self.execute(commands, now) {
            Ok(()) if self.step.is_in_again() => {
                self.changed = true;
                info!("the kernel's maps hold the last change again");
            }
            Ok(()) => {}
            Err(error) => {
                let why = format!("{error:#}");
                if self.step.is_not_in(why.clone(), now) {
                    self.changed = true;
                    error!("the kernel's maps do not hold the last change: {why}; the balancer keeps trying");
                }
            }
        }
    }

    fn execute(&mut self, commands: Vec<Command>, since: Instant) -> anyhow::Result<()> {
        // The list contains every directory that was replaced.
        let mut before: Vec<ServiceSpec> = Vec::new();
        let published = publishes(&commands);
        if published {
            self.rescan_all();
        }
        // The owner must not report the forgotten clients of a change that failed.
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
        // The data path completes the change only after all commands, because the owner undoes a change if a command
        // fails.
        self.dataplane.complete();
        self.rescan = Some(Rescan { before, report: None, at: Instant::now() });
        self.rescan();
        Ok(())
    }

    /// Updates the names for the counters of backends, in services that have changed since `before`.
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
                self.outcomes.forget(*id);
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

/// The sums of the numbers of moved slots (required, needless).
fn sum(moved: impl Iterator<Item = (u64, u64)>) -> (u64, u64) {
    moved.fold((0, 0), |sum, moved| (sum.0 + moved.0, sum.1 + moved.1))
}

/// Returns the increase between two readings of the numbers of moved slots (required, needless).
const fn moved(before: (u64, u64), after: (u64, u64)) -> Moved {
    let (required, needless) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Moved { slots: required + needless, needless, known_clients: None }
}
