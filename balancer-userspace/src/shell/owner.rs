//! The one owner of the controller's core and of every map write: events and changes in, commands carried out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use anyhow::Context as _;
use balancer_common::map_types::BackendStats;
use tokio::time::Instant;
use tracing::error;

use crate::{
    api::model::{Changed, ClientQuery, ClientView},
    core::{
        controller::Controller,
        io::{BackendId, BackendName, Change, Command, Event, Moved, Refused, ServiceId},
        service::{Backend, Service},
    },
    shell::{
        dataplane::Dataplane,
        events::{Events, subject},
        neighbours::Neighbours,
        prober::Prober,
        snapshot::{BackendSnapshot, InterfaceSnapshot, ServiceSnapshot, Snapshot},
    },
    words::counted,
};

/// The core with everything that its commands act on.
pub struct Owner<D> {
    controller: Controller,
    dataplane: D,
    neighbours: Neighbours,
    prober: Prober,
    events: Events,
    /// How long the last table of each service took, from event to swap.
    builds: HashMap<ServiceId, Duration>,
    /// Which service each backend's counters belong to, and the backend's name.
    owners: HashMap<BackendId, (ServiceId, String)>,
    /// What the backends that are gone have counted, by name.
    departed: HashMap<ServiceId, BTreeMap<String, BackendStats>>,
    /// Where the clocks of client memory began.
    started: Instant,
}

impl<D: Dataplane> Owner<D> {
    /// Takes over a controller that has not started.
    pub fn new(controller: Controller, dataplane: D, neighbours: Neighbours, prober: Prober, events: Events) -> Self {
        Self {
            controller,
            dataplane,
            neighbours,
            prober,
            events,
            builds: HashMap::new(),
            owners: HashMap::new(),
            departed: HashMap::new(),
            started: Instant::now(),
        }
    }

    /// Brings the data path to where the controller's configuration wants it.
    ///
    /// # Errors
    /// When the data path refuses.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let commands = self.controller.start(started.into_std());
        let backends: Vec<_> = commands
            .iter()
            .filter_map(|command| {
                if let Command::WriteBackend(backend) = command { Some((backend.id, backend.service)) } else { None }
            })
            .collect();
        self.dataplane.adopt(&backends);
        self.execute(commands, started)
    }

    /// The data path.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// The history.
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// The neighbours watched.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// When the controller next wants an [`Event::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.controller.next_deadline().map(Instant::from_std)
    }

    /// Lets the controller act on an event. A data path that refuses is brought back in step and reported.
    pub fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let commands = self.controller.handle(event, now.into_std());
        if let Err(error) = self.execute(commands, now) {
            error!("{error:#}; writing the whole state again");
            self.resync();
        }
    }

    /// Makes a change whole or not at all.
    ///
    /// # Errors
    /// When it is refused, by the controller or by the data path; nothing has changed then.
    pub fn change(&mut self, change: Change, uid: Option<u32>) -> Result<Changed, Refused> {
        let now = Instant::now();
        let before = self.controller.clone();
        let slots_before = self.all_slots_moved();
        let about = subject(&change).cloned();
        let added = matches!(change, Change::Add { .. });
        let kept_before = about.as_ref().map_or(0, |name| self.keeps(name));
        let (mut message, commands) = self.controller.change(change, now.into_std())?;
        if let Err(error) = self.execute(commands, now) {
            self.controller = before;
            self.resync();
            return Err(Refused::Conflict(format!("the data path refused, nothing was changed: {error:#}")));
        }
        let leaving = if about.as_ref().is_some_and(|name| self.keeps(name) > 0) { 0 } else { kept_before };
        if leaving > 0 {
            message += &format!(", {} moved", counted(leaving as usize, "known client"));
        }
        let moves =
            Moved { known_clients: (leaving > 0).then_some(leaving), ..moved(slots_before, self.all_slots_moved()) };
        // One that waits for its next hop is told of once it is known what comes of it.
        if !(added && about.as_ref().is_some_and(|name| self.waits_for_next_hop(name))) {
            self.events.change(about.as_ref(), &message, uid, Some(moves));
        }
        Ok(Changed { message })
    }

    /// How many known clients stay with a backend; none where there is no such backend.
    fn keeps(&self, name: &BackendName) -> u64 {
        self.controller.backend(name).ok().filter(|backend| backend.keeps_known()).map_or(0, Backend::known_clients)
    }

    /// Slots moved since start in a service (required, needless); none in one that does not exist.
    pub fn slots_moved(&self, service: &str) -> (u64, u64) {
        self.controller.service(service).map(Service::slots_moved).unwrap_or_default()
    }

    /// Whether an added backend still waits for its next hop.
    pub fn waits_for_next_hop(&self, name: &BackendName) -> bool {
        self.controller.waits_for_next_hop(name)
    }

    /// What adding a backend for the user `uid` has come to, where `before` slots of its service had moved by then.
    pub fn added(&self, name: &BackendName, before: (u64, u64), uid: Option<u32>) -> Changed {
        let message = self.controller.added(name, before);
        self.events.change(Some(name), &message, uid, Some(moved(before, self.slots_moved(&name.service))));
        Changed { message }
    }

    /// As [`Owner::slots_moved`], of all services. One that goes takes its own along.
    fn all_slots_moved(&self) -> (u64, u64) {
        let moved = self.controller.services().iter().map(Service::slots_moved);
        moved.fold((0, 0), |sum, moved| (sum.0 + moved.0, sum.1 + moved.1))
    }

    /// Which backend a client is steered to.
    ///
    /// # Errors
    /// When the service asked for does not exist.
    pub fn locate(&self, query: &ClientQuery) -> Result<Vec<ClientView>, Refused> {
        let mut views = self.controller.locate(query)?;
        for view in &mut views {
            let Ok(service) = self.controller.service(&view.service) else { continue };
            let Some(known) = self.dataplane.client(service.id(), query.address) else { continue };
            view.known = true;
            view.last_seen_seconds_ago = Some(known.last_seen.as_secs());
            let keeps =
                service.backends().iter().find(|backend| backend.id() == known.backend && backend.keeps_known());
            if let Some(backend) = keeps {
                view.backend = Some(backend.name().to_owned());
                view.why = "known".to_owned();
            }
        }
        Ok(views)
    }

    /// Advances the clocks of client memory and looks at the next part of the client table.
    pub fn sweep(&mut self) {
        if let Some(known) = self.dataplane.sweep(self.started.elapsed()) {
            self.handle(Event::Swept { known });
        }
    }

    fn resync(&mut self) {
        let now = Instant::now();
        let commands = self.controller.resync();
        if let Err(error) = self.execute(commands, now) {
            error!("the data path is out of step: {error:#}");
        }
    }

    fn execute(&mut self, commands: Vec<Command>, since: Instant) -> anyhow::Result<()> {
        for command in commands {
            match command {
                Command::WriteBackend(backend) => {
                    self.dataplane.write_backend(&backend).with_context(|| format!("backend {}", backend.address))?;
                    if let Some(name) = self.controller.name_of(backend.id) {
                        self.owners.insert(backend.id, (backend.service, name.to_owned()));
                    }
                }
                Command::RetireBackend(id) => {
                    if let Some((service, name)) = self.owners.remove(&id) {
                        let departed = self.departed.entry(service).or_default().entry(name).or_default();
                        add(departed, &self.dataplane.backend_stats(id)?);
                    }
                    self.dataplane.retire_backend(id).context("retiring a backend")?;
                }
                Command::SwapTable { service, table, home } => {
                    self.dataplane.swap_table(service, table, home).context("swapping a lookup table")?;
                    self.builds.insert(service, since.elapsed());
                }
                Command::PublishServices(services) => {
                    self.dataplane.publish_services(&services).context("publishing the services")?;
                    let listed: HashSet<ServiceId> = services.iter().map(|service| service.id).collect();
                    self.owners.retain(|_, (service, _)| listed.contains(service));
                    self.departed.retain(|service, _| listed.contains(service));
                }
                Command::WatchNextHop(address) => self.neighbours.watch(address),
                Command::UnwatchNextHop(address) => self.neighbours.unwatch(address),
                Command::StartChecks { backend, name, target, check } => {
                    self.prober.start(backend, name, target, check);
                }
                Command::StopChecks(backend) => self.prober.stop(backend),
                Command::Report(report) => self.events.report(&report),
            }
        }
        Ok(())
    }

    /// Everything there is to see.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let now = Instant::now().into_std();
        let interfaces = self
            .dataplane
            .attached()
            .iter()
            .map(|interface| {
                Ok(InterfaceSnapshot {
                    name: interface.name.clone(),
                    ifindex: interface.ifindex,
                    xdp_mode: interface.mode(),
                    stats: self.dataplane.interface_stats(interface.ifindex)?,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let services = self
            .controller
            .services()
            .iter()
            .map(|service| {
                let backends = service
                    .backends()
                    .iter()
                    .map(|backend| {
                        Ok(BackendSnapshot {
                            name: backend.name().to_owned(),
                            address: backend.address(),
                            weight: backend.weight(),
                            backup: backend.is_backup(),
                            admin: backend.admin(),
                            health: backend.health_word(),
                            state: backend.state().word(),
                            reason: backend.reason().to_owned(),
                            slots: backend.slots(),
                            known_clients: backend.known_clients(),
                            drain_deadline: backend.drain_deadline().map(|at| at.saturating_duration_since(now)),
                            eligible: backend.takes_new_clients(),
                            stats: self.dataplane.backend_stats(backend.id())?,
                            checks: backend.checks(),
                            last_check: backend.last_check(),
                            transitions: backend.transitions(),
                        })
                    })
                    .collect::<anyhow::Result<_>>()?;
                let (slots_moved_required, slots_moved_needless) = service.slots_moved();
                Ok(ServiceSnapshot {
                    name: service.name().to_owned(),
                    address: service.address(),
                    protocol: service.protocol(),
                    forwarding: service.forwarding(),
                    table_size: service.table_size(),
                    table_generation: service.table_generation(),
                    slots_moved_required,
                    slots_moved_needless,
                    remembers: service.remembers(),
                    departed: self
                        .departed
                        .get(&service.id())
                        .into_iter()
                        .flatten()
                        .map(|(name, stats)| (name.clone(), *stats))
                        .collect(),
                    gone: self
                        .controller
                        .gone()
                        .iter()
                        .filter(|gone| gone.row.service == service.id())
                        .map(|gone| Ok((gone.name.clone(), gone.known, self.dataplane.backend_stats(gone.row.id)?)))
                        .collect::<anyhow::Result<_>>()?,
                    table_build: self.builds.get(&service.id()).copied().unwrap_or_default(),
                    backends,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Snapshot { interfaces, services, drops: self.dataplane.drop_stats()?, memory: self.dataplane.memory()? })
    }
}

fn add(sum: &mut BackendStats, stats: &BackendStats) {
    sum.packets += stats.packets;
    sum.bytes += stats.bytes;
    sum.connections += stats.connections;
    let counters = stats.decisions.iter().chain(&stats.moves);
    for (sum, value) in sum.decisions.iter_mut().chain(&mut sum.moves).zip(counters) {
        *sum += value;
    }
}

/// What moved between two readings of (required, needless).
const fn moved(before: (u64, u64), after: (u64, u64)) -> Moved {
    let (required, needless) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Moved { slots: required + needless, needless, known_clients: None }
}
