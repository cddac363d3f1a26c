//! The controller: events and changes in, commands out.
//!
//! Every configuration, the first one, a changed one and a single added backend, goes the same way (`configure.rs`): what
//! should be is compared with what the shell was told (`settle.rs`), and the difference becomes commands.

mod changes;
mod configure;
mod settle;

use std::{
    collections::{HashMap, HashSet},
    mem,
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::client::HashKey;

use crate::{
    config::model::{Config, ServiceConfig},
    core::{
        ids::Ids,
        io::{
            BackendId, BackendName, BackendSpec, CheckOutcome, Command, Event, NextHop, Refused, Report, ReportLevel,
            ServiceId, ServiceSpec,
        },
        next_hops::NextHops,
        service::{Backend, Service},
        validate,
    },
    words::grouped,
};

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
                vec![Command::Report(Report { level: ReportLevel::Warn, about: None, message, moves: None })]
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
                    Command::Report(Report { level: ReportLevel::Info, about: Some(name), message, moves: None })
                });
                settled.commands.into_iter().chain(removed).collect()
            }
            Err(refused) => {
                let message = format!("drained backends are not removed: {refused}");
                vec![Command::Report(Report { level: ReportLevel::Warn, about: None, message, moves: None })]
            }
        }
    }
}
