//! The controller, which turns events and changes into commands.
//!
//! Every configuration takes the same path (`configure.rs`): the first configuration, a changed configuration, or a
//! configuration with a single added backend. The controller compares the wanted state with the state that it has
//! passed to the shell (`reconcile.rs`), and expresses the difference as commands.

mod agents;
mod bounded;
mod changes;
mod concerned;
mod configure;
mod discover;
mod drop_ins;
mod features;
mod follow;
mod full;
mod listeners;
mod near;
mod precomputed;
mod quic;
mod reconcile;
mod restore;
mod resync;
mod room;
mod rules;
mod run_time;
mod services;
mod settings;
mod share;
mod sizes;
mod stage;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use balancer_common::{client::HashKey, map_types::Forwarding};
use balancer_config::{
    config::{AssignVip, BackendConfig, Config, ServiceConfig},
    listeners::Family,
    names::BackendName,
    snat::DrainUntil,
    validate::Valid,
    words::grouped,
};

use crate::{
    agreed::Role,
    ids::Ids,
    io::{
        BackendId, BackendSpec, CheckNumber, Command, Event, PortsInUse, Refused, Report, ReportLevel, ServiceId,
        ServiceSpec,
    },
    next_hops::NextHops,
    report,
    room::{Need, Rooms},
    service::{Backend, Ended, Service},
    state::DropIns,
};

use self::{concerned::Concerned, sizes::Sizes};
pub use self::{
    near::NearBackend,
    precomputed::Precomputed,
    services::{Iter, Services},
};

/// The controller, which decides how the data path steers packets. The [module](self) describes its work.
#[derive(Clone, Debug)]
pub struct Controller {
    key: HashKey,
    /// Whether the controller must save the hash key itself, because the configuration has no hash key.
    keeps_key: bool,
    /// A number that identifies the kernel maps in use.
    instance: u64,
    /// The number of changes that users have made.
    generation: u64,
    settings: settings::Settings,
    rooms: Rooms,
    /// The room that the last change of the services needs.
    need: Need,
    /// The services in the configuration file when the controller last applied the file, and the services of drop-ins.
    file: Valid,
    /// The texts of the drop-ins, by name.
    drop_ins: Arc<DropIns>,
    /// The services in the configuration file at the start of the controller; empty after `start` has applied them.
    first: Valid,
    /// Whether the controller continues from an earlier state.
    restored: bool,
    services: Services,
    owners: HashMap<BackendId, ServiceId>,
    ids: Ids,
    hops: NextHops,
    /// The directory of services that the controller last published.
    published: Option<Arc<Vec<ServiceSpec>>>,
    /// Removed backends that may still have known clients.
    gone: Vec<Gone>,
    /// The number of the check that the controller started last.
    last_check: CheckNumber,
    role: Role,
    precomputed: Precomputed,
}

/// A removed backend whose row and id the controller must keep because the backend may still have known clients.
#[derive(Clone, Debug)]
pub struct Gone {
    /// The backend's name in its former service.
    pub name: String,
    /// The backend's row, which tells the data path to keep no clients.
    pub row: Arc<BackendSpec>,
    /// The number of the backend's known clients at the last sweep.
    pub known: u64,
    empty_sweeps: u32,
}

/// The services and ids for which the kernel maps must have room.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Largest {
    /// The services, each at the largest size that the service has at any time.
    pub services: Vec<Arc<ServiceConfig>>,
    /// The number of backend ids that are in use at the same time.
    pub ids: usize,
    /// The highest backend id that is already in use.
    pub highest_id: u16,
    /// The highest service id that is already in use.
    pub highest_service: u16,
}

impl Largest {
    /// Extends these needs so that they also cover the needs of an alternative.
    pub fn extend(&mut self, other: Self) {
        self.services.extend(other.services);
        self.ids = self.ids.max(other.ids);
        self.highest_id = self.highest_id.max(other.highest_id);
        self.highest_service = self.highest_service.max(other.highest_service);
    }
}

impl From<Vec<Arc<ServiceConfig>>> for Largest {
    fn from(services: Vec<Arc<ServiceConfig>>) -> Self {
        Self { ids: ids_of(&services), highest_id: 0, highest_service: 0, services }
    }
}

/// The number of backend ids that services need.
fn ids_of(services: &[Arc<ServiceConfig>]) -> usize {
    services.iter().map(|service| service.backend_ids()).sum()
}

impl Gone {
    /// The number of consecutive sweeps that must find no client of a removed backend before its id is free. A sweep
    /// that is in progress when the backend is removed may miss a client; the second sweep cannot miss one. Before the
    /// third sweep begins, the program has counted and sent the packets that moved the last clients during the second
    /// sweep.
    pub const ENOUGH_SWEEPS: u32 = 3;
}

impl Controller {
    /// Makes a controller for the services of `config`, which must be valid, under the fleet's key `key`. The
    /// controller serves no clients before [`start`](Self::start).
    #[must_use]
    pub fn new(config: Config, key: HashKey) -> Self {
        Self {
            key,
            keeps_key: config.hash_key.is_none(),
            instance: 0,
            generation: 0,
            settings: settings::Settings::of(&config),
            rooms: Rooms::default(),
            need: Need::default(),
            file: Valid::default(),
            drop_ins: Arc::default(),
            first: config.services,
            restored: false,
            services: Services::default(),
            owners: HashMap::new(),
            ids: Ids::new(),
            hops: NextHops::default(),
            published: None,
            gone: Vec::new(),
            last_check: CheckNumber::default(),
            role: Role::default(),
            precomputed: Precomputed::default(),
        }
    }

    /// Removed backends that may still have known clients.
    #[must_use]
    pub fn gone(&self) -> &[Gone] {
        &self.gone
    }

    /// Returns the services and ids for which [`start`](Self::start) needs room, or more than these. The controller
    /// announces the old services first, and these services still exist while the controller adds their replacements.
    #[must_use]
    pub fn largest(&self) -> Largest {
        let services = self.largest_services();
        let gone = self.gone.iter().map(|gone| gone.row.id);
        Largest {
            ids: ids_of(&services) + self.gone.len(),
            highest_id: self.owners.keys().copied().chain(gone).max().map_or(0, |id| id.0),
            highest_service: self.services.iter().map(|service| service.id().0).max().unwrap_or(0),
            services,
        }
    }

    /// Limits backend ids to the number of rows in the maps of backends, which is a power of two. A member of a fleet
    /// uses the ids that the deciding controller chooses.
    pub fn set_backend_rows(&mut self, rows: u32) {
        if !self.role.follows() {
            self.ids.set_rows(rows);
        }
    }

    fn largest_services(&self) -> Vec<Arc<ServiceConfig>> {
        let mut services = self.first.to_vec();
        let places: HashMap<&str, usize> = self.first.iter().map(|service| service.name.as_str()).zip(0..).collect();
        for now in self.present() {
            let Some(service) = places.get(now.name.as_str()).and_then(|&place| services.get_mut(place)) else {
                services.push(now);
                continue;
            };
            if *service == now {
                continue;
            }
            if service.forwarding != now.forwarding {
                // A service whose mode changes needs other maps.
                services.push(now);
                continue;
            }
            let service = Arc::make_mut(service);
            if service.table_size != now.table_size {
                service.table_size = service.slots().max(now.slots()).into();
            }
            let more = now.listen.iter().filter(|listener| !service.listen.contains(listener));
            let more: Vec<_> = more.copied().collect();
            service.listen.extend(more);
            let place = |backend: &BackendConfig| (backend.name.clone(), backend.address, backend.address6);
            let there: HashSet<_> = service.backends.iter().map(place).collect();
            let more = now.backends.iter().filter(|backend| !there.contains(&place(backend)));
            service.backends.extend(more.cloned());
        }
        services
    }

    /// Whether the controller continues from an earlier state, as [`start`](Self::start) decides.
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        self.restored
    }

    /// A number that identifies the kernel maps in use; the shell chooses it at random when it creates the maps.
    #[must_use]
    pub const fn instance(&self) -> u64 {
        self.instance
    }

    /// Tells the controller that it now works with other kernel maps.
    pub const fn set_instance(&mut self, instance: u64) {
        self.instance = instance;
    }

    /// The number of changes by users, including changes before a restart.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Starts to serve clients. For a new controller, this must be the first call. A restored controller announces its
    /// old state first, and then applies what has changed in the configuration file.
    pub fn start(&mut self, now: Instant) -> Vec<Command> {
        let services = mem::take(&mut self.first);
        if !self.restored {
            return self.start_anew(services, now);
        }
        let before = self.clone();
        let mut commands: Vec<Command> =
            self.gone.iter().map(|gone| Command::WriteBackend(Arc::clone(&gone.row))).collect();
        commands.extend(self.reconcile(|_| true, Vec::new(), None, now).commands);
        let (all, left_out) = self.with_drop_ins(services.clone());
        match self.apply_services(all.clone(), "configuration applied", &settings::Differences::default(), false, now) {
            Ok((message, more)) => {
                commands.extend(more);
                commands.extend(left_out.into_iter().map(warning));
                commands.push(Command::Report(Report { level: ReportLevel::Info, about: None, message, moves: None }));
            }
            Err(refused) => {
                *self = before.without_history();
                commands = self.start_anew(all, now);
                commands.extend(left_out.into_iter().map(warning));
                let drop_ins = if self.drop_ins.is_empty() { "" } else { " and the drop-ins" };
                commands.push(warning(format!(
                    "cannot merge the configuration file with the saved state ({refused}): starting with the \
                     file{drop_ins} alone; known clients and changes made at run time are lost"
                )));
            }
        }
        commands.extend(self.remove_those_that_left(now));
        commands
    }

    fn start_anew(&mut self, services: Valid, now: Instant) -> Vec<Command> {
        let rules = self.merge_all_rules(&[], &[], &[], &services, false, now);
        self.file = services.clone();
        match rules.and_then(|(rules, _)| self.take_over(services.to_vec(), &rules, None, now)) {
            Ok((_, reconciled)) => reconciled.commands,
            Err(refused) => vec![warning(format!("nothing is served: {refused}"))],
        }
    }

    fn without_history(self) -> Self {
        Self {
            restored: false,
            file: Valid::default(),
            services: Services::default(),
            owners: HashMap::new(),
            ids: self.ids.all_free(),
            hops: NextHops::default(),
            published: None,
            gone: Vec::new(),
            ..self
        }
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Command> {
        self.handle_all([event], now)
    }

    /// Handles events that arrived together: the table of each service changes at most once, however many events
    /// concern its backends.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Instant) -> Vec<Command> {
        if self.role.follows() {
            return self.witness_all(events, now);
        }
        let mut concerned = Concerned::default();
        let mut sweeps = Vec::new();
        let mut ticked = false;
        let mut reached_otherwise = HashSet::new();
        for event in events {
            match event {
                Event::Checked { backend, check: number, outcome, took, asked } => {
                    let ended = Ended { number, outcome: &outcome, took, asked };
                    if let Some((service, place)) = self.checked(backend, ended, now) {
                        concerned.add_checked(service, place);
                    }
                }
                Event::NextHop { address, next_hop } => {
                    if self.hops.set(address, next_hop) {
                        reached_otherwise.insert(address);
                    }
                }
                Event::Swept { known } => {
                    let known: HashMap<BackendId, u64> = known.into_iter().collect();
                    concerned.extend(self.swept(&known));
                    sweeps.push(known);
                }
                Event::Flows { of, ports, active } => concerned.extend(self.flows(&of, &ports, &active, now)),
                Event::Tick => {
                    let is_due = |service: &&Service| service.is_due(now);
                    concerned.extend(self.services.iter().filter(is_due).map(Service::id).collect::<Vec<_>>());
                    ticked = true;
                }
            }
        }
        concerned.extend(self.services_reaching(&reached_otherwise));
        let mut commands = Vec::new();
        if !concerned.is_empty() {
            commands = self.settle_looking(|service| concerned.look(service), Vec::new(), None, now).commands;
        }
        if ticked || !sweeps.is_empty() {
            commands.extend(self.remove_those_that_left(now));
        }
        if ticked {
            commands.extend(self.end_rules(now));
            commands.extend(self.settle_shares(now));
        }
        for known in &sweeps {
            self.retire_those_that_nobody_knows(known, &mut commands);
        }
        commands
    }

    /// Whether an added backend still waits for its next hop, so that it takes no clients yet.
    #[must_use]
    pub fn waits_for_next_hop(&self, name: &BackendName) -> bool {
        self.parts(name).any(|backend| backend.waits_for_next_hop(&self.hops))
    }

    /// Returns the message about an added backend. `before` contains the numbers of slots of the backend's service that
    /// had moved before the change (required, needless).
    #[must_use]
    pub fn added(&self, name: &BackendName, before: (u64, u64)) -> String {
        let Ok(backend) = self.backend(name) else { return format!("backend {name} added") };
        let moved = self.legs(&name.service).map(Service::slots_moved);
        let (required, needless) = moved.fold((0, 0), |sum, moved| (sum.0 + moved.0, sum.1 + moved.1));
        let needless = needless - before.1;
        let moved = required - before.0 + needless;
        let size = grouped(self.legs(&name.service).map(|service| u64::from(service.table_size())).sum::<u64>());
        let reason = match backend.reason() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        let service = self.legs(&name.service).next();
        let resized = service.map(|service| report::resized(service.slots_wanted_before(), service.slots_wanted()));
        format!(
            "backend {name} added{reason}: {} of {size} slots moved, {} needless{}",
            grouped(moved),
            grouped(needless),
            resized.unwrap_or_default()
        )
    }

    /// Returns to the state `before` a change, except that the check numbers used since then are not reused.
    pub fn undo(&mut self, before: Self) {
        let last_check = self.last_check;
        *self = Self { last_check, ..before };
    }

    /// The latest time at which the caller must send [`Event::Tick`]: the next end of a drain or of a rule, or the next
    /// step of a slow start.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.role.follows() {
            return self.deadline_alone();
        }
        self.services.iter().filter_map(Service::deadline).min()
    }

    /// The services in the order of the configuration.
    #[must_use]
    pub const fn services(&self) -> &Services {
        &self.services
    }

    /// Returns the settings of the configuration file with an empty list of services.
    #[must_use]
    pub const fn settings(&self) -> &Config {
        self.settings.config()
    }

    /// Sets the list of interfaces, which then overrides the configuration.
    pub fn name_interfaces(&mut self, named: Vec<String>) {
        self.settings.name_interfaces(named);
    }

    /// The interfaces to which the kernel program should be attached.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        self.settings.interfaces()
    }

    /// The VIPs that the balancer should assign to its machine, with their interfaces; a VIP without an interface is
    /// assigned to the first interface. In a fleet, or where routing daemons announce assigned addresses, another
    /// machine may take over the VIPs. In these cases, the result contains only VIPs of services that can take clients,
    /// and only while this balancer is `ready`.
    #[must_use]
    pub fn assigned_vips(&self, ready: bool) -> BTreeSet<(Option<String>, IpAddr)> {
        let in_fleet = self.settings().fleet.is_some();
        let assigned = self.services.iter().filter_map(|service| {
            let (on, always) = match service.assign_vip() {
                AssignVip::No => return None,
                AssignVip::First => (None, !in_fleet),
                AssignVip::On(interface) => (Some(interface.clone()), false),
            };
            let shown = always || ready && service.has_somebody();
            let own = service.listeners().filter(|(_, id)| id.is_some());
            shown.then(|| own.map(move |(listener, _)| (on.clone(), listener.address)))
        });
        assigned.flatten().collect()
    }

    /// Whether some service has the setting `assign_vip`.
    #[must_use]
    pub fn assigns_vips(&self) -> bool {
        self.services.iter().any(|service| *service.assign_vip() != AssignVip::No)
    }

    /// The port ranges that `snat` services use.
    #[must_use]
    pub fn snat_ports(&self) -> BTreeSet<(u16, u16)> {
        let snat = self.services.iter().filter(|service| service.forwarding() == Forwarding::Snat);
        snat.filter_map(Service::snat_ports).collect()
    }

    /// The interfaces that the setting `assign_vip` names.
    #[must_use]
    pub fn vip_interfaces(&self) -> BTreeSet<String> {
        let named = self.services.iter().filter_map(|service| match service.assign_vip() {
            AssignVip::On(interface) => Some(interface.clone()),
            AssignVip::No | AssignVip::First => None,
        });
        named.collect()
    }

    /// The service with the name `name`.
    ///
    /// # Errors
    /// Otherwise, the function returns [`Refused::NotFound`] with the most similar name.
    pub fn service(&self, name: &str) -> Result<&Service, Refused> {
        self.services.iter().find(|service| service.name() == name).ok_or_else(|| self.no_service(name))
    }

    /// The part of the service `name` that serves clients of `family`.
    #[must_use]
    pub fn leg(&self, name: &str, family: Family) -> Option<&Service> {
        self.services.iter().find(|service| service.name() == name && service.family() == family)
    }

    /// The parts of the service `name`, one for each address family of its listeners.
    pub fn legs(&self, name: &str) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(move |service| service.name() == name)
    }

    /// The backend with the name `name`.
    ///
    /// # Errors
    /// Otherwise, the function returns [`Refused::NotFound`] with the most similar name.
    pub fn backend(&self, name: &BackendName) -> Result<&Backend, Refused> {
        let backends = self.service(&name.service)?.backends();
        backends.iter().find(|backend| backend.name() == name.backend).ok_or_else(|| {
            let known = backends.iter().map(Backend::name);
            Refused::not_found(&format!("backend in service {}:", name.service), &name.backend, known)
        })
    }

    /// The name that the backend with this id has in its service; includes removed backends that may still have known
    /// clients.
    #[must_use]
    pub fn name_of(&self, id: BackendId) -> Option<&str> {
        let present = self.backend_with_id(id).map(Backend::name);
        present.or_else(|| self.gone.iter().find(|gone| gone.row.id == id).map(|gone| gone.name.as_str()))
    }

    /// The backend with this id, if it was not removed.
    pub fn backend_with_id(&self, id: BackendId) -> Option<&Backend> {
        self.with_service(id).map(|(_, backend)| backend)
    }

    /// Returns the name of a backend together with the name of its service; `None` if no backend has this id.
    pub fn full_name_of(&self, id: BackendId) -> Option<BackendName> {
        self.with_service(id).map(|(service, backend)| service.name_of(backend))
    }

    fn with_service(&self, id: BackendId) -> Option<(&Service, &Backend)> {
        let service = self.services.with_id(*self.owners.get(&id)?)?;
        Some((service, service.backends().get(service.position(id)?)?))
    }

    /// The entries of a backend, one in each part of its service.
    pub fn parts<'a>(&'a self, name: &'a BackendName) -> impl Iterator<Item = &'a Backend> {
        let backends = self.legs(&name.service).flat_map(Service::backends);
        backends.filter(|backend| backend.name() == name.backend)
    }

    /// The mutable entries of a backend, one in each part of its service.
    pub(super) fn parts_mut(&mut self, name: &BackendName) -> impl Iterator<Item = &mut Backend> {
        let legs = self.services.those_mut(|service| service.name() == name.service);
        legs.flat_map(Service::backends_mut).filter(|backend| backend.name() == name.backend)
    }

    /// Whether a backend waits for its next hop in this part of the service.
    #[cfg(test)]
    pub(crate) fn waits(&self, backend: &Backend) -> bool {
        backend.waits_for_next_hop(&self.hops)
    }

    #[cfg(test)]
    pub(crate) fn free_ids(&self) -> usize {
        self.ids.free()
    }

    fn no_service(&self, name: &str) -> Refused {
        Refused::not_found("service", name, self.services.iter().map(Service::name))
    }

    /// Records the result of a check. Returns the service and the backend's position in it if the table may change.
    fn checked(&mut self, backend: BackendId, ended: Ended<'_>, now: Instant) -> Option<(ServiceId, usize)> {
        let &id = self.owners.get(&backend)?;
        let service = self.services.with_id_mut(id)?;
        let place = service.position(backend)?;
        service.record(place, ended, &self.hops, now).then_some((id, place))
    }

    fn services_with(&self, wanted: impl Fn(&Backend) -> bool) -> Vec<ServiceId> {
        let has = |service: &&Service| service.backends().iter().any(&wanted);
        self.services.iter().filter(has).map(Service::id).collect()
    }

    /// The services that have a backend at one of these addresses.
    fn services_reaching(&self, addresses: &HashSet<IpAddr>) -> Vec<ServiceId> {
        if addresses.is_empty() {
            return Vec::new();
        }
        self.services_with(|backend| addresses.contains(&backend.address().ip()))
    }

    /// Records the number of known clients of each backend. Returns the services that have a backend whose drain is now
    /// complete.
    fn swept(&mut self, known: &HashMap<BackendId, u64>) -> Vec<ServiceId> {
        let mut concerned = Vec::new();
        let of = |backend: &Backend| known.get(&backend.id()).copied().unwrap_or(0);
        let news = |service: &Service| service.backends().iter().any(|backend| backend.learns_from_sweep(of(backend)));
        for service in self.services.those_mut(news) {
            let id = service.id();
            for backend in service.backends_mut() {
                if backend.swept(of(backend)) {
                    concerned.push(id);
                }
            }
        }
        concerned
    }

    /// Records the number of connections of each backend in `snat` services. Returns the services that have a backend
    /// whose drain is now complete.
    fn flows(
        &mut self,
        of: &BTreeMap<BackendId, u64>,
        ports: &BTreeMap<BackendId, PortsInUse>,
        active: &BTreeSet<BackendId>,
        now: Instant,
    ) -> Vec<ServiceId> {
        let mut concerned = Vec::new();
        let of = |backend: &Backend| (of.get(&backend.id()).copied().unwrap_or(0), ports.get(&backend.id()).copied());
        let waits = |service: &Service| service.drains_until() == DrainUntil::Connections;
        let news = |service: &Service| {
            service.forwarding() == Forwarding::Snat
                && service.backends().iter().any(|backend| backend.learns_from_flows(of(backend), waits(service)))
        };
        for service in self.services.those_mut(news) {
            let (id, waits, grace) = (service.id(), waits(service), service.drain_grace());
            for backend in service.backends_mut() {
                let flows = of(backend);
                if !waits {
                    backend.note_flows(flows);
                } else if backend.flows(flows, active.contains(&backend.id()), grace, now) {
                    concerned.push(id);
                }
            }
        }
        concerned
    }

    /// Releases the rows of removed backends for which enough sweeps have found no client.
    fn retire_those_that_nobody_knows(&mut self, known: &HashMap<BackendId, u64>, commands: &mut Vec<Command>) {
        let ids = &mut self.ids;
        self.gone.retain_mut(|gone| {
            gone.known = known.get(&gone.row.id).copied().unwrap_or(0);
            gone.empty_sweeps = if gone.known == 0 { gone.empty_sweeps + 1 } else { 0 };
            let stays = gone.empty_sweeps < Gone::ENOUGH_SWEEPS;
            if !stays {
                commands.push(Command::RetireBackend(gone.row.id));
                ids.give_back(gone.row.id);
            }
            stays
        });
    }

    fn remove_those_that_left(&mut self, now: Instant) -> Vec<Command> {
        let mut names: Vec<BackendName> = Vec::new();
        for service in &self.services {
            let left = service.backends().iter().filter(|backend| backend.has_left());
            for name in left.map(|backend| service.name_of(backend)) {
                if !names.contains(&name) && self.parts(&name).all(Backend::has_left) {
                    names.push(name);
                }
            }
        }
        if names.is_empty() {
            return Vec::new();
        }
        let mut services = self.present();
        let of = |config: &ServiceConfig, name: &BackendName| name.service == config.name;
        for config in services.iter_mut().filter(|config| names.iter().any(|name| of(config, name))) {
            let config = Arc::make_mut(config);
            let left = names.iter().filter(|name| of(config, name)).map(|name| name.backend.as_str());
            let left: HashSet<&str> = left.collect();
            config.backends.retain(|backend| !left.contains(backend.name.as_str()));
        }
        let before = Sizes::before(&self.services);
        match self.configure(services, None, now) {
            Ok((_, reconciled)) => {
                let removed = names.into_iter().map(|name| {
                    let resized = before.resized(&self.services, &name.service);
                    let message = format!("backend {name} removed, it is drained{resized}");
                    Command::Report(Report { level: ReportLevel::Info, about: Some(name), message, moves: None })
                });
                reconciled.commands.into_iter().chain(removed).collect()
            }
            Err(refused) => vec![warning(format!("drained backends are not removed: {refused}"))],
        }
    }
}

fn warning(message: String) -> Command {
    Command::Report(Report { level: ReportLevel::Warn, about: None, message, moves: None })
}
