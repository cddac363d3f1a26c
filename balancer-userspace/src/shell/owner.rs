//! The one owner of the controller's core and of every map write: events and changes in, commands carried out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use balancer_common::map_types::BackendStats;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::{
    api::model::{Changed, ClientQuery, ClientView},
    core::{
        controller::Controller,
        io::{BackendId, BackendName, Change, Command, Event, Refused, Report, ReportLevel, ServiceId},
        plan::Plan,
        service::Service,
        state::{Clocks, Counters, State},
    },
    shell::{
        dataplane::Dataplane,
        departed,
        neighbours::Neighbours,
        prober::Prober,
        snapshot::{BackendSnapshot, InterfaceSnapshot, ServiceSnapshot, Snapshot},
    },
};

/// The core with everything that its commands act on.
pub struct Owner<D> {
    controller: Controller,
    dataplane: D,
    neighbours: Neighbours,
    prober: Prober,
    /// How long the last table of each service took, from event to swap.
    builds: HashMap<ServiceId, Duration>,
    /// Which service each backend's counters belong to, and the backend's name.
    owners: HashMap<BackendId, (ServiceId, String)>,
    /// What the backends that are gone have counted, by name.
    departed: HashMap<ServiceId, BTreeMap<String, BackendStats>>,
    /// Where the clocks of client memory began.
    started: Instant,
    /// Whether something has happened since somebody asked.
    changed: bool,
}

impl<D: Dataplane> Owner<D> {
    /// Takes over a controller that has not started.
    pub fn new(controller: Controller, dataplane: D, neighbours: Neighbours, prober: Prober) -> Self {
        Self {
            controller,
            dataplane,
            neighbours,
            prober,
            builds: HashMap::new(),
            owners: HashMap::new(),
            departed: HashMap::new(),
            started: Instant::now(),
            changed: false,
        }
    }

    /// Goes on counting for backends that are gone, where another process has ended.
    pub fn take_over_departed(&mut self, departed: BTreeMap<u16, BTreeMap<String, Counters>>) {
        for (service, backends) in departed {
            let backends = backends.into_iter().map(|(name, counters)| (name, departed::stats(&counters)));
            self.departed.insert(ServiceId(service), backends.collect());
        }
    }

    /// What a restart must keep.
    pub fn export(&self) -> State {
        self.export_of(&self.controller)
    }

    fn export_of(&self, controller: &Controller) -> State {
        let clocks = Clocks { now: Instant::now().into_std(), wall: wall() };
        let departed = self.departed.iter().map(|(service, backends)| {
            let backends = backends.iter().map(|(name, stats)| (name.clone(), departed::counters(stats)));
            (service.0, backends.collect())
        });
        State { departed: departed.collect(), ..controller.export(clocks) }
    }

    /// What a restart would have to keep after a change.
    ///
    /// # Errors
    /// When the change is refused.
    pub fn propose(&self, change: &Change, if_generation: Option<u64>) -> Result<State, Refused> {
        let generation = self.controller.generation();
        if if_generation.is_some_and(|wanted| wanted != generation) {
            return Err(Refused::Stale(generation));
        }
        let mut controller = self.controller.clone();
        controller.change(change.clone(), Instant::now().into_std())?;
        Ok(self.export_of(&controller))
    }

    /// What a change would move.
    ///
    /// # Errors
    /// When the change would be refused.
    pub fn plan(&self, change: Change) -> Result<Plan, Refused> {
        self.controller.plan(change, Instant::now().into_std())
    }

    /// Whether something has happened since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Brings the data path to where the controller's configuration wants it.
    ///
    /// # Errors
    /// When the data path refuses.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let commands = self.controller.start(started.into_std());
        self.execute(commands, started)
    }

    /// The data path.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// The neighbours watched.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// The addresses of all backends.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.controller.services().iter().flat_map(Service::backends).map(|backend| backend.address().ip())
    }

    /// When the controller next wants an [`Event::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.controller.next_deadline().map(Instant::from_std)
    }

    /// Lets the controller act on an event. A data path that refuses is brought back in step and reported.
    pub fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let commands = self.controller.handle(event, now.into_std());
        self.changed |= !commands.is_empty();
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
        self.changed = true;
        let before = self.controller.clone();
        let (message, commands) = self.controller.change(change, now.into_std())?;
        if let Err(error) = self.execute(commands, now) {
            self.controller = before;
            self.resync();
            return Err(Refused::Conflict(format!("the data path refused, nothing was changed: {error:#}")));
        }
        info!(uid, "{message}");
        Ok(Changed { message })
    }

    /// Slots moved since start in a service (required, needless); none in one that does not exist.
    pub fn slots_moved(&self, service: &str) -> (u64, u64) {
        self.controller.service(service).map(Service::slots_moved).unwrap_or_default()
    }

    /// Whether an added backend still waits for its next hop.
    pub fn waits_for_next_hop(&self, name: &BackendName) -> bool {
        self.controller.waits_for_next_hop(name)
    }

    /// What adding a backend has come to, where `before` slots of its service had moved by then.
    pub fn added(&self, name: &BackendName, before: (u64, u64)) -> Changed {
        Changed { message: self.controller.added(name, before) }
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
                Command::Report(report) => log(&report),
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
        Ok(Snapshot {
            interfaces,
            services,
            drops: self.dataplane.drop_stats()?,
            memory: self.dataplane.memory()?,
            generation: self.controller.generation(),
        })
    }
}

/// Not the core's clock: only to tell moments to the next process.
#[expect(clippy::disallowed_methods, reason = "moments in the state file must mean the same after a restart")]
pub(super) fn wall() -> SystemTime {
    SystemTime::now()
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

fn log(report: &Report) {
    match report.level {
        ReportLevel::Info => info!("{}", report.message),
        ReportLevel::Warn => warn!("{}", report.message),
    }
}
