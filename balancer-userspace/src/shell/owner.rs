//! The one owner of the controller's core and of every map write: events and changes in, commands carried out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use balancer_common::map_types::BackendStats;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::{
    api::model::{Changed, ClientQuery, ClientView, PlanView},
    core::{
        controller::Controller,
        io::{BackendId, BackendName, Change, Command, Event, Refused, Report, ReportLevel, ServiceId},
        plan::{Census, ServicePlan},
        service::Service,
    },
    shell::{
        changes::Changes,
        dataplane::{BackendCounters, Dataplane, KnownClients, batch},
        neighbours::Neighbours,
        prober::Prober,
        snapshot::{BackendSnapshot, GoneSnapshot, InterfaceSnapshot, ServiceSnapshot, ServiceStatistics, Snapshot},
    },
};

/// A plan for which the known clients have still to be counted.
pub struct Planning {
    plan: ServicePlan,
    clients: Option<KnownClients>,
}

impl Planning {
    /// Counts them: a look at the whole client table, in milliseconds.
    #[must_use]
    pub fn finish(self) -> PlanView {
        let mut census = Census::default();
        if let Some(clients) = self.clients {
            clients.for_each(|entry| self.plan.count(entry, &mut census));
        }
        self.plan.view(&census)
    }
}

/// A snapshot for which the backends' counters have still to be read.
pub struct Counting {
    snapshot: Snapshot,
    counters: Arc<BackendCounters>,
}

impl Counting {
    /// Reads them: system calls, and as much to copy as there are backends and CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn finish(mut self) -> anyhow::Result<Snapshot> {
        let rows = || self.snapshot.services.iter();
        let ids: Vec<BackendId> = rows().flat_map(ServiceSnapshot::ids).collect();
        let mut stats = self.counters.read(&ids)?.into_iter();
        for place in self.snapshot.services.iter_mut().flat_map(ServiceSnapshot::stats_mut) {
            *place = stats.next().unwrap_or_default();
        }
        Ok(self.snapshot)
    }
}

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
    changes: Changes,
    /// Where the clocks of client memory began.
    started: Instant,
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
            changes: Changes::default(),
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
        self.execute(commands, started)?;
        self.changes.begin(&self.controller);
        Ok(())
    }

    /// The data path.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
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
        self.changes.note(&commands, None, &self.controller);
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
        let (message, commands) = self.controller.change(change, now.into_std())?;
        let changes = self.changes.clone();
        self.changes.note(&commands, Some(&message), &self.controller);
        if let Err(error) = self.execute(commands, now) {
            self.controller = before;
            self.changes = changes;
            self.resync();
            return Err(Refused::Conflict(format!("the data path refused, nothing was changed: {error:#}")));
        }
        info!(uid, "{message}");
        Ok(Changed { message })
    }

    /// What a change would do to a service.
    ///
    /// # Errors
    /// When the change would be refused.
    pub fn plan(&self, change: Change, service: &str) -> Result<Planning, Refused> {
        let (_, plans) = self.controller.plan(change, Instant::now().into_std())?;
        let plan = plans.into_iter().find(|plan| plan.service == service);
        let plan = plan.ok_or_else(|| Refused::NotFound(format!("no service {service:?}")))?;
        Ok(Planning { plan, clients: self.dataplane.known_clients() })
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
                        batch::add(departed, &self.dataplane.backend_stats(id)?);
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

    /// Everything there is to see, but for the backends' counters.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn snapshot(&self) -> anyhow::Result<Counting> {
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
                    .map(|backend| BackendSnapshot {
                        id: backend.id(),
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
                        stats: BackendStats::default(),
                        checks: backend.checks(),
                        last_check: backend.last_check(),
                        transitions: backend.transitions(),
                    })
                    .collect();
                let (slots_moved_required, slots_moved_needless) = service.slots_moved();
                ServiceSnapshot {
                    id: service.id(),
                    client_prefix: service.client_prefix(),
                    last_change: self.changes.last(service.id()),
                    statistics: ServiceStatistics::default(),
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
                        .map(|gone| GoneSnapshot {
                            id: gone.row.id,
                            name: gone.name.clone(),
                            known_clients: gone.known,
                            stats: BackendStats::default(),
                        })
                        .collect(),
                    table_build: self.builds.get(&service.id()).copied().unwrap_or_default(),
                    backends,
                }
            })
            .collect();
        let snapshot =
            Snapshot { interfaces, services, drops: self.dataplane.drop_stats()?, memory: self.dataplane.memory()? };
        Ok(Counting { snapshot, counters: self.dataplane.backend_counters() })
    }
}

fn log(report: &Report) {
    match report.level {
        ReportLevel::Info => info!("{}", report.message),
        ReportLevel::Warn => warn!("{}", report.message),
    }
}
