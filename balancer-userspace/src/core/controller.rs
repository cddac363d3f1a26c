//! The controller: events and changes in, commands out.
//!
//! Every configuration, the first one, a changed one and a single added backend, goes the same way: what should be is
//! compared with what the shell was told, and the difference becomes commands in an order that is safe at every step:
//!
//! 1. next hops to watch, rows of backends,
//! 2. tables of services that are not published yet,
//! 3. the directory of services, if something came to it: the way back of replies is there before the way to it,
//! 4. tables of the other services,
//! 5. the directory of services, if something only left it,
//! 6. checks and rows of removed backends, next hops that nobody needs,
//! 7. health checks of the others, reports.

use std::{
    collections::{HashMap, HashSet},
    mem,
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::{client::HashKey, verdict::MoveCause};

use crate::{
    config::model::{BackendConfig, Config, ServiceConfig},
    core::{
        ids::Ids,
        io::{
            Admin, BackendId, BackendName, BackendSpec, Change, CheckOutcome, Command, Event, NextHop, Refused, Report,
            ReportLevel, ServiceId, ServiceSpec,
        },
        next_hops::NextHops,
        report,
        service::{Backend, Service},
        table::{Footing, Moves},
        validate,
    },
    words::{counted, grouped},
};

/// Weight of a backend that is added without one.
const DEFAULT_WEIGHT: u16 = 100;

/// Decides what the data path does. See the [module](self).
#[derive(Clone, Debug)]
pub struct Controller {
    key: HashKey,
    /// Until [`Controller::start`].
    first: Vec<ServiceConfig>,
    services: Vec<Service>,
    owners: HashMap<BackendId, ServiceId>,
    ids: Ids,
    hops: NextHops,
    /// The directory of services as last published.
    published: Option<Vec<ServiceSpec>>,
    /// Removed backends that clients may still be known at.
    gone: Vec<Gone>,
}

/// A removed backend whose row and id are still needed: its known clients have not all come back.
#[derive(Clone, Debug)]
pub struct Gone {
    /// Its name in the service it was in.
    pub name: String,
    /// Its row, which keeps nobody.
    pub row: BackendSpec,
    /// Known clients at the last sweep.
    pub known: u64,
    empty_sweeps: u32,
}

impl Gone {
    /// The sweep that is under way when it is removed may have passed a client by; the second cannot.
    const ENOUGH_SWEEPS: u32 = 2;
}

/// What became different.
struct Settled {
    commands: Vec<Command>,
    /// What moved, by service.
    moves: HashMap<ServiceId, Moves>,
}

/// How one configuration differs from the one before.
#[derive(Default)]
struct Difference {
    services: [usize; 3],
    backends: [usize; 3],
}

impl Controller {
    /// A controller of the services of `config`, which is valid, under the fleet's key `key`. Nothing is served before
    /// [`start`](Self::start).
    #[must_use]
    pub fn new(config: Config, key: HashKey) -> Self {
        Self {
            key,
            first: config.services,
            services: Vec::new(),
            owners: HashMap::new(),
            ids: Ids::new(),
            hops: NextHops::default(),
            published: None,
            gone: Vec::new(),
        }
    }

    /// Removed backends that clients may still be known at.
    #[must_use]
    pub fn gone(&self) -> &[Gone] {
        &self.gone
    }

    /// Starts to serve. Comes once, before anything else.
    pub fn start(&mut self, now: Instant) -> Vec<Command> {
        let services = mem::take(&mut self.first);
        match self.configure(services, None, now) {
            Ok((_, settled)) => settled.commands,
            Err(refused) => {
                let message = format!("nothing is served: {refused}");
                vec![Command::Report(Report { level: ReportLevel::Warn, about: None, message })]
            }
        }
    }

    /// Takes note of an event.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Command> {
        match event {
            Event::Checked { backend, outcome, took } => self.checked(backend, &outcome, took, now),
            Event::NextHop { address, next_hop } => self.next_hop(address, next_hop, now),
            Event::Swept { known } => self.swept(&known, now),
            Event::Tick => self.overdue(now),
        }
    }

    /// Makes a change, whole or not at all. Gives one line that says what was done, and the commands; what the change
    /// brings about beyond the backend it names is among them as reports.
    ///
    /// # Errors
    /// [`Refused`] says why nothing was changed.
    pub fn change(&mut self, change: Change, now: Instant) -> Result<(String, Vec<Command>), Refused> {
        match change {
            Change::Add { name, address, port, weight, backup } => {
                let (mut services, index) = self.edit(&name.service)?;
                let Some(service) = services.get_mut(index) else { return Err(self.no_service(&name.service)) };
                if service.backends.iter().any(|backend| backend.name == name.backend) {
                    return Err(Refused::Conflict(format!(
                        "backend {name} exists already: choose another name, or remove it first"
                    )));
                }
                let address = (address, port.unwrap_or(service.address.port())).into();
                let weight = weight.unwrap_or(DEFAULT_WEIGHT);
                service.backends.push(BackendConfig {
                    name: name.backend.clone(),
                    address,
                    weight,
                    backup,
                    check: None,
                });
                self.reconfigure(services, &name, "added", now)
            }
            Change::Remove { name, force } => {
                let backend = self.backend(&name)?;
                if backend.may_keep_known() && !force {
                    let known = backend.known_clients();
                    return Ok(self.leave(&name, known, now));
                }
                let (mut services, index) = self.edit(&name.service)?;
                if let Some(service) = services.get_mut(index) {
                    service.backends.retain(|backend| backend.name != name.backend);
                }
                self.reconfigure(services, &name, "removed", now)
            }
            Change::SetWeight { name, weight } => {
                let (mut services, index) = self.edit(&name.service)?;
                let old = self.backend(&name)?.weight();
                if old == weight {
                    return Ok((format!("backend {name} has weight {weight} already: nothing changed"), Vec::new()));
                }
                let service = services.get_mut(index);
                for backend in service.into_iter().flat_map(|service| &mut service.backends) {
                    if backend.name == name.backend {
                        backend.weight = weight;
                    }
                }
                self.reconfigure(services, &name, &format!("weight {old} → {weight}"), now)
            }
            Change::SetAdmin { name, admin, timeout } => self.set_admin(&name, admin, timeout, now),
            Change::Reload(config) => self.reload(config.services, now),
        }
    }

    /// Whether a backend that was added still waits for its next hop, and takes no clients before.
    #[must_use]
    pub fn waits_for_next_hop(&self, name: &BackendName) -> bool {
        self.backend(name).is_ok_and(|backend| backend.waits_for_next_hop(&self.hops))
    }

    /// What adding a backend has come to, where `before` slots of its service had moved by then (required, needless).
    #[must_use]
    pub fn added(&self, name: &BackendName, before: (u64, u64)) -> String {
        let (Ok(service), Ok(backend)) = (self.service(&name.service), self.backend(name)) else {
            return format!("backend {name} added");
        };
        let (required, needless) = service.slots_moved();
        let needless = needless - before.1;
        let moved = required - before.0 + needless;
        let size = grouped(service.table_size());
        let reason = match backend.reason() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        format!(
            "backend {name} added{reason}: {} of {size} slots moved, {} needless",
            grouped(moved),
            grouped(needless)
        )
    }

    /// Everything that the data path should hold, for one that may have lost some of it.
    #[must_use]
    pub fn resync(&self) -> Vec<Command> {
        let rows = self.services.iter().flat_map(Service::backends).filter_map(|backend| backend.told.row.clone());
        let rows = rows.chain(self.gone.iter().map(|gone| gone.row.clone()));
        let swaps = self.services.iter().map(|service| {
            let (table, home) = service.tables();
            Command::SwapTable { service: service.id(), table, home }
        });
        let directory = self.published.clone().map(Command::PublishServices);
        rows.map(Command::WriteBackend).chain(swaps).chain(directory).collect()
    }

    /// When to send [`Event::Tick`] at the latest: the end of the next drain.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.services.iter().flat_map(Service::backends).filter_map(Backend::drain_deadline).min()
    }

    /// The services, in configuration order.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The service called `name`.
    ///
    /// # Errors
    /// [`Refused::NotFound`] with the most similar name.
    pub fn service(&self, name: &str) -> Result<&Service, Refused> {
        self.services.iter().find(|service| service.name() == name).ok_or_else(|| self.no_service(name))
    }

    /// The backend called `name`.
    ///
    /// # Errors
    /// [`Refused::NotFound`] with the most similar name.
    pub fn backend(&self, name: &BackendName) -> Result<&Backend, Refused> {
        let backends = self.service(&name.service)?.backends();
        backends.iter().find(|backend| backend.name() == name.backend).ok_or_else(|| {
            let known = backends.iter().map(Backend::name);
            validate::not_found(&format!("backend in service {}:", name.service), &name.backend, known)
        })
    }

    /// The name of the backend with this id in its service, one removed whose clients have not all come back included.
    #[must_use]
    pub fn name_of(&self, id: BackendId) -> Option<&str> {
        let backends = self.services.iter().flat_map(Service::backends);
        let present = backends.map(|backend| (backend.id(), backend.name()));
        let gone = self.gone.iter().map(|gone| (gone.row.id, gone.name.as_str()));
        present.chain(gone).find(|&(other, _)| other == id).map(|(_, name)| name)
    }

    #[cfg(test)]
    pub(crate) fn free_ids(&self) -> usize {
        self.ids.free()
    }

    fn no_service(&self, name: &str) -> Refused {
        validate::not_found("service", name, self.services.iter().map(Service::name))
    }

    fn checked(&mut self, backend: BackendId, outcome: &CheckOutcome, took: Duration, now: Instant) -> Vec<Command> {
        let Some(&id) = self.owners.get(&backend) else { return Vec::new() };
        let Some(service) = self.services.iter_mut().find(|service| service.id() == id) else { return Vec::new() };
        let Some(index) = service.backends().iter().position(|candidate| candidate.id() == backend) else {
            return Vec::new();
        };
        if !service.record(index, outcome, took, &self.hops, now) {
            return Vec::new();
        }
        self.settle(|service| service.id() == id, Vec::new(), None, now).commands
    }

    fn next_hop(&mut self, address: IpAddr, next_hop: Result<NextHop, String>, now: Instant) -> Vec<Command> {
        if !self.hops.set(address, next_hop) {
            return Vec::new();
        }
        let concerned = |service: &Service| service.backends().iter().any(|backend| backend.address().ip() == address);
        self.settle(concerned, Vec::new(), None, now).commands
    }

    /// Ends drains whose deadline has passed.
    fn overdue(&mut self, now: Instant) -> Vec<Command> {
        let due = |service: &Service| {
            service.backends().iter().any(|backend| backend.drain_deadline().is_some_and(|deadline| deadline <= now))
        };
        let mut commands = self.settle(due, Vec::new(), None, now).commands;
        commands.extend(self.remove_those_that_left(now));
        commands
    }

    /// Takes note of how many clients each backend has: who has none left is drained, and the row of a removed backend
    /// that has none left is given up.
    fn swept(&mut self, known: &[(BackendId, u64)], now: Instant) -> Vec<Command> {
        let known: HashMap<BackendId, u64> = known.iter().copied().collect();
        let of = |id: BackendId| known.get(&id).copied().unwrap_or(0);
        let mut concerned = HashSet::new();
        for service in &mut self.services {
            let id = service.id();
            for backend in service.backends_mut() {
                if backend.swept(of(backend.id())) {
                    concerned.insert(id);
                }
            }
        }
        let mut commands = self.settle(|service| concerned.contains(&service.id()), Vec::new(), None, now).commands;
        commands.extend(self.remove_those_that_left(now));
        let ids = &mut self.ids;
        self.gone.retain_mut(|gone| {
            gone.known = of(gone.row.id);
            gone.empty_sweeps = if gone.known == 0 { gone.empty_sweeps + 1 } else { 0 };
            let stays = gone.empty_sweeps < Gone::ENOUGH_SWEEPS;
            if !stays {
                commands.push(Command::RetireBackend(gone.row.id));
                ids.give_back(gone.row.id);
            }
            stays
        });
        commands
    }

    /// Begins to drain a backend that is to be removed.
    fn leave(&mut self, name: &BackendName, known: u64, now: Instant) -> (String, Vec<Command>) {
        for service in self.services.iter_mut().filter(|service| service.name() == name.service) {
            for backend in service.backends_mut().iter_mut().filter(|backend| backend.name() == name.backend) {
                backend.leave();
            }
        }
        let settled = self.settle(|service| service.name() == name.service, Vec::new(), Some(name), now);
        let message = self.done(name, "drains before it is removed", &settled);
        let mut commands = settled.commands;
        commands.extend(self.remove_those_that_left(now));
        (format!("{message}; {} (--force does not wait for them)", counted(known as usize, "known client")), commands)
    }

    fn remove_those_that_left(&mut self, now: Instant) -> Vec<Command> {
        let left = |service: &Service| service.backends().iter().any(Backend::has_left);
        if !self.services.iter().any(left) {
            return Vec::new();
        }
        let mut names = Vec::new();
        let mut services: Vec<ServiceConfig> = self.services.iter().map(Service::config).collect();
        for (config, service) in services.iter_mut().zip(&self.services) {
            for backend in service.backends().iter().filter(|backend| backend.has_left()) {
                config.backends.retain(|other| other.name != backend.name());
                names.push(service.name_of(backend));
            }
        }
        match self.configure(services, None, now) {
            Ok((_, settled)) => {
                let removed = names.into_iter().map(|name| {
                    let message = format!("backend {name} removed, it is drained");
                    Command::Report(Report { level: ReportLevel::Info, about: Some(name), message })
                });
                settled.commands.into_iter().chain(removed).collect()
            }
            Err(refused) => {
                let message = format!("drained backends are not removed: {refused}");
                vec![Command::Report(Report { level: ReportLevel::Warn, about: None, message })]
            }
        }
    }

    fn set_admin(
        &mut self,
        name: &BackendName,
        admin: Admin,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let remembers = self.service(&name.service)?.remembers();
        let word = match admin {
            Admin::Ready => "ready",
            Admin::Drain if remembers => "draining",
            Admin::Drain => "drained",
            Admin::Maint => "in maintenance",
        };
        if self.backend(name)?.admin() == admin && timeout.is_none() {
            return Ok((format!("backend {name} is {word} already: nothing changed"), Vec::new()));
        }
        for service in self.services.iter_mut().filter(|service| service.name() == name.service) {
            for backend in service.backends_mut().iter_mut().filter(|backend| backend.name() == name.backend) {
                backend.set_admin(admin, timeout);
            }
        }
        let settled = self.settle(|service| service.name() == name.service, Vec::new(), Some(name), now);
        Ok((self.done(name, word, &settled), settled.commands))
    }

    /// A copy of the present configuration to make a change in, and the index of the service called `name`.
    fn edit(&self, name: &str) -> Result<(Vec<ServiceConfig>, usize), Refused> {
        let index = self.services.iter().position(|service| service.name() == name);
        let index = index.ok_or_else(|| self.no_service(name))?;
        Ok((self.services.iter().map(Service::config).collect(), index))
    }

    fn reconfigure(
        &mut self,
        services: Vec<ServiceConfig>,
        subject: &BackendName,
        what: &str,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let (_, settled) = self.configure(services, Some(subject), now)?;
        Ok((self.done(subject, what, &settled), settled.commands))
    }

    /// `backend web/web4 added: 13,107 of 65,537 slots moved, 215 needless`, and what is now unusual about the service.
    fn done(&self, name: &BackendName, what: &str, settled: &Settled) -> String {
        let mut message = format!("backend {name} {what}");
        if let Ok(service) = self.service(&name.service) {
            let none = Moves::default();
            let moves = settled.moves.get(&service.id()).unwrap_or(&none);
            message += &format!(": {}", report::moved(moves, service.table_size()));
            if service.footing() != Footing::Primaries {
                message += &format!("; service {} {}", service.name(), report::footing(service.footing()));
            }
        }
        message
    }

    fn reload(&mut self, services: Vec<ServiceConfig>, now: Instant) -> Result<(String, Vec<Command>), Refused> {
        let (mut difference, settled) = self.configure(services, None, now)?;
        let Settled { mut commands, moves } = settled;
        let mut all_moves: Vec<Moves> = moves.into_values().collect();
        let mut returns = 0;
        for backend in self.services.iter_mut().flat_map(Service::backends_mut).filter(|b| b.is_leaving()) {
            // The file says that it is to be there.
            backend.set_admin(Admin::Ready, None);
            returns += 1;
        }
        if returns > 0 {
            difference.backends[2] += returns;
            let settled = self.settle(|_| true, Vec::new(), None, now);
            commands.extend(settled.commands);
            all_moves.extend(settled.moves.into_values());
        }
        if difference.services == [0; 3] && difference.backends == [0; 3] {
            return Ok(("configuration applied: nothing changed".to_owned(), commands));
        }
        let mut message = "configuration applied".to_owned();
        for (what, counts) in [("service", difference.services), ("backend", difference.backends)] {
            for (count, done) in counts.into_iter().zip(["added", "removed", "changed"]) {
                if count > 0 {
                    message += &format!(", {} {done}", counted(count, what));
                }
            }
        }
        let slots: u64 = self.services.iter().map(|service| u64::from(service.table_size())).sum();
        let moved: u64 = all_moves.iter().map(|moves| u64::from(moves.total())).sum();
        let needless: u64 = all_moves.iter().map(|moves| u64::from(moves.needless())).sum();
        message += &format!(": {} of {} slots moved, {} needless", grouped(moved), grouped(slots), grouped(needless));
        Ok((message, commands))
    }

    /// Makes `configs` the services that there are, keeping what is known of those that stay.
    fn configure(
        &mut self,
        configs: Vec<ServiceConfig>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Result<(Difference, Settled), Refused> {
        validate::services(&configs)?;
        let difference = self.difference(&configs);
        let added = difference.backends[0];
        if added > self.ids.free() {
            return Err(Refused::Conflict(format!(
                "{} to add and {} of {} left: remove some first",
                counted(added, "backend"),
                grouped(self.ids.free() as u64),
                grouped(Ids::TOTAL as u64)
            )));
        }
        if difference.services[0] + self.services.len() > usize::from(u16::MAX) {
            return Err(Refused::Conflict(format!("{} are too many", counted(configs.len(), "service"))));
        }
        // The id of a service that is gone, with clients still known at its backends, is not another's yet.
        let gone = self.gone.iter().map(|gone| gone.row.service);
        let used: HashSet<ServiceId> = self.services.iter().map(Service::id).chain(gone).collect();
        let mut service_ids = (0..=u16::MAX).map(ServiceId).filter(|id| !used.contains(id));
        let mut old_services: HashMap<String, Service> =
            mem::take(&mut self.services).into_iter().map(|service| (service.name().to_owned(), service)).collect();
        let mut removed = Vec::new();
        for mut config in configs {
            let backends = mem::take(&mut config.backends);
            let mut service = match old_services.remove(&config.name) {
                Some(mut service) => {
                    service.set_settings(config);
                    service
                }
                None => match service_ids.next() {
                    Some(id) => Service::new(id, config, self.key),
                    None => continue,
                },
            };
            let mut old: HashMap<String, Backend> =
                service.backends_mut().drain(..).map(|backend| (backend.name().to_owned(), backend)).collect();
            let in_use = !old.is_empty();
            for config in backends {
                let backend = match old.remove(&config.name) {
                    Some(mut backend) => {
                        backend.configure(config);
                        backend
                    }
                    None => match self.ids.take() {
                        Some(id) => Backend::new(id, config, in_use, now),
                        None => continue,
                    },
                };
                self.owners.insert(backend.id(), service.id());
                service.backends_mut().push(backend);
            }
            removed.extend(old.into_values());
            self.services.push(service);
        }
        removed.extend(old_services.into_values().flat_map(|mut service| mem::take(service.backends_mut())));
        removed.sort_unstable_by_key(Backend::id);
        Ok((difference, self.settle(|_| true, removed, subject, now)))
    }

    fn difference(&self, configs: &[ServiceConfig]) -> Difference {
        let mut difference = Difference::default();
        let [added, removed, changed] = &mut difference.services;
        let [backends_added, backends_removed, backends_changed] = &mut difference.backends;
        let mut old: HashMap<String, ServiceConfig> =
            self.services.iter().map(|service| (service.name().to_owned(), service.config())).collect();
        for config in configs {
            let Some(before) = old.remove(&config.name) else {
                *added += 1;
                *backends_added += config.backends.len();
                continue;
            };
            let settings = |config: &ServiceConfig| ServiceConfig { backends: Vec::new(), ..config.clone() };
            *changed += usize::from(settings(&before) != settings(config));
            let mut old: HashMap<&str, &BackendConfig> =
                before.backends.iter().map(|backend| (backend.name.as_str(), backend)).collect();
            for backend in &config.backends {
                match old.remove(backend.name.as_str()) {
                    None => *backends_added += 1,
                    Some(before) => *backends_changed += usize::from(before != backend),
                }
            }
            *backends_removed += old.len();
        }
        *removed = old.len();
        *backends_removed += old.values().map(|service| service.backends.len()).sum::<usize>();
        difference
    }

    /// Turns the difference between what should be and what the shell was told into commands, for the services that
    /// are `concerned`; `removed` are backends that are no longer in any service. The state of `subject` needs no report.
    fn settle(
        &mut self,
        concerned: impl Fn(&Service) -> bool,
        mut removed: Vec<Backend>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Settled {
        let Self { services, hops, owners, ids, published, gone, .. } = self;
        let remembering: HashSet<ServiceId> =
            services.iter().filter(|service| service.remembers()).map(Service::id).collect();
        let mut commands = Vec::new();
        let mut checks = Vec::new();
        let mut released = Vec::new();

        for service in services.iter_mut().filter(|service| concerned(service)) {
            for backend in service.backends_mut() {
                let address = backend.address().ip();
                if backend.told.watched != Some(address) {
                    if hops.watch(address) {
                        commands.push(Command::WatchNextHop(address));
                    }
                    released.extend(backend.told.watched.replace(address));
                }
            }
        }

        let (mut first_swaps, mut swaps) = (Vec::new(), Vec::new());
        let mut reports = Vec::new();
        let mut all_moves = HashMap::new();
        let is_published = |id: ServiceId| published.iter().flatten().any(|spec: &ServiceSpec| spec.id == id);
        for service in services.iter_mut().filter(|service| concerned(service)) {
            tell_checks(service, &mut checks);
            let refreshed = service.refresh(hops, now);
            tell_rows(service, hops, &mut commands);
            if refreshed.swap {
                let swaps = if is_published(service.id()) { &mut swaps } else { &mut first_swaps };
                let (table, home) = service.tables();
                swaps.push(Command::SwapTable { service: service.id(), table, home });
            }
            let told = refreshed.transitions.iter().filter(|transition| subject != Some(&transition.name));
            reports.extend(told.map(|transition| transition.report(&refreshed.moves, service.table_size())));
            reports.extend(refreshed.footing.map(|footing| report::footing_report(service.name(), footing)));
            all_moves.insert(service.id(), refreshed.moves);
        }

        let specs: Vec<ServiceSpec> = services.iter().map(Service::spec).collect();
        let publish = published.as_ref() != Some(&specs);
        let grows = publish && grows(published.as_deref().unwrap_or_default(), &specs);
        commands.extend(first_swaps);
        if grows {
            commands.push(Command::PublishServices(specs.clone()));
        }
        commands.extend(swaps);
        if publish && !grows {
            commands.push(Command::PublishServices(specs.clone()));
        }
        *published = Some(specs);

        for backend in &mut removed {
            let id = backend.id();
            if backend.told.check.take().is_some() {
                commands.push(Command::StopChecks(id));
            }
            let row = backend.told.row.take();
            released.extend(backend.told.watched.take());
            owners.remove(&id);
            match row.filter(|row| row.keeps_known || backend.known_clients() > 0 || remembering.contains(&row.service))
            {
                // Its known clients are told apart by its id until the last of them has moved or is forgotten.
                Some(row) => {
                    let cause = backend.cause_of_moves().unwrap_or(MoveCause::Removed);
                    let row = BackendSpec { next_hop: None, keeps_known: false, cause, ..row };
                    commands.push(Command::WriteBackend(row.clone()));
                    gone.push(Gone {
                        name: backend.name().to_owned(),
                        row,
                        known: backend.known_clients(),
                        empty_sweeps: 0,
                    });
                }
                None => {
                    commands.push(Command::RetireBackend(id));
                    ids.give_back(id);
                }
            }
        }
        for address in released {
            if hops.release(address) {
                commands.push(Command::UnwatchNextHop(address));
            }
        }
        commands.extend(checks);
        commands.extend(reports.into_iter().map(Command::Report));
        Settled { commands, moves: all_moves }
    }
}

/// The rows of a service's backends that differ from what the shell was told.
fn tell_rows(service: &mut Service, hops: &NextHops, commands: &mut Vec<Command>) {
    for index in 0..service.backends().len() {
        let Some(backend) = service.backends().get(index) else { continue };
        let row = service.row(backend, hops);
        let Some(backend) = service.backends_mut().get_mut(index) else { continue };
        if backend.told.row.as_ref() != Some(&row) {
            backend.told.row = Some(row.clone());
            commands.push(Command::WriteBackend(row));
        }
    }
}

/// The checks of a service's backends that differ from what the shell was told.
fn tell_checks(service: &mut Service, checks: &mut Vec<Command>) {
    for index in 0..service.backends().len() {
        let Some(backend) = service.backends().get(index) else { continue };
        let (id, name) = (backend.id(), service.name_of(backend));
        let check = service.check(backend);
        let Some(backend) = service.backends_mut().get_mut(index) else { continue };
        if backend.told.check == check {
            continue;
        }
        if backend.told.check.is_some() != check.is_some() {
            backend.forget_verdict();
        }
        checks.push(match check.clone() {
            Some((target, check)) => Command::StartChecks { backend: id, name, target, check },
            None => Command::StopChecks(id),
        });
        backend.told.check = check;
    }
}

/// Whether a service or a backend is in `new` that is not, or not at that address, in `old`.
fn grows(old: &[ServiceSpec], new: &[ServiceSpec]) -> bool {
    let old: HashMap<ServiceId, &ServiceSpec> = old.iter().map(|spec| (spec.id, spec)).collect();
    new.iter().any(|spec| {
        old.get(&spec.id).is_none_or(|old| {
            let known: HashSet<_> = old.backends.iter().collect();
            spec.backends.iter().any(|backend| !known.contains(backend))
        })
    })
}
