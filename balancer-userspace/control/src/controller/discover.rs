//! Lists of targets: adds backends, drains them or makes them ready again as the targets of a list change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use balancer_config::{
    config::{BackendConfig, ServiceConfig},
    discover::{Discovered, Source, Target},
    names::BackendName,
    questions::{self, Questions},
    states::Admin,
    validate,
    words::counted,
};

use super::{Controller, Largest, ids_of};
use crate::{
    absent::Named,
    discover::{self, Displaced, Pool, Renamed, Version},
    io::{Command, Refused, Report, ReportLevel},
    moves::Moves,
    service::{Backend, Service},
};

/// The number of impossible targets after which the controller looks for no more of them.
const MOST_IMPOSSIBLE: usize = 1000;

impl Largest {
    /// Makes the configuration large enough for the targets of a list, each of which becomes a backend of the service.
    pub fn expect_targets(&mut self, service: &str, source: &Source, targets: &[Target]) {
        let Some(of) = self.services.iter_mut().find(|of| of.name == service) else { return };
        let new = discover::newcomers(of, source, targets);
        let before = ids_of(std::slice::from_ref(of));
        Arc::make_mut(of).backends.extend(new);
        self.ids += ids_of(std::slice::from_ref(of)) - before;
    }
}

impl Controller {
    /// Returns the pool that results from the targets of a list, and whether the pool differs from the present one. The
    /// backends in `waiting` stay although the list lacks their targets.
    ///
    /// # Errors
    /// Returns one line that says why the controller cannot apply the list.
    pub fn discovery(
        &self,
        service: &str,
        source: &Source,
        targets: &[Target],
        waiting: &BTreeSet<String>,
    ) -> Result<(Pool, bool), Refused> {
        let (services, index) = self.edit(service)?;
        let Some(config) = services.get(index) else { return Ok((Pool::default(), false)) };
        let Some(pool) = self.pool(&services, index, source, targets, waiting)? else {
            return Ok((Pool::default(), false));
        };
        let differs = pool.backends != config.backends;
        Ok((pool, differs))
    }

    /// Returns the backends of a list by whether these targets name them; `None`: the list is not applicable.
    #[must_use]
    pub fn named(&self, service: &str, source: &Source, targets: &[Target]) -> Option<Named> {
        let none = BTreeSet::new();
        let version = Version { targets, waiting: &none, impossible: &BTreeMap::new() };
        let (services, index) = self.edit(service).ok()?;
        let of = services.get(index)?;
        let list = of.discover.iter().find(|list| list.source == *source)?;
        let pool = discover::pool(of, list, version, |_| Admin::Ready).ok()?;
        let is_listed =
            |of: &&BackendConfig| of.discovered.as_ref().is_some_and(|of| of.source == *source && of.gone.is_none());
        let listed = pool.backends.iter().filter(is_listed).map(|backend| backend.name.clone()).collect();
        Some(Named { listed, missing: pool.gone.into_iter().collect() })
    }

    /// The DNS queries whose answers contain backends of services.
    #[must_use]
    pub fn questions(&self) -> Questions {
        let mut lists = self.services.iter().flat_map(Service::discover);
        if lists.any(|list| list.source.dns().is_some()) {
            questions::questions(&self.present())
        } else {
            Questions::new()
        }
    }

    /// Returns the reason why targets lack addresses that a service needs.
    #[must_use]
    pub fn unresolved(&self, service: &str, source: &Source, targets: &[Target]) -> Option<String> {
        let (services, index) = self.edit(service).ok()?;
        let config = services.get(index)?;
        let list = config.discover.iter().find(|list| list.source == *source)?;
        discover::unresolved(config, list, targets).map(|text| format!("{source}: {text}"))
    }

    /// The pool that results from a list. A target that makes the services invalid is left out, so that it costs the
    /// other targets nothing.
    fn pool(
        &self,
        services: &[Arc<ServiceConfig>],
        index: usize,
        source: &Source,
        targets: &[Target],
        waiting: &BTreeSet<String>,
    ) -> Result<Option<Pool>, Refused> {
        let Some(service) = services.get(index) else { return Ok(None) };
        let Some(list) = service.discover.iter().find(|list| list.source == *source) else { return Ok(None) };
        let admin = |backend: &str| {
            let name = BackendName { service: service.name.clone(), backend: backend.to_owned() };
            self.backend(&name).map_or(Admin::Ready, Backend::admin)
        };
        let told = |text| Refused::Conflict(format!("{source} {text}"));
        let mut impossible = BTreeMap::new();
        loop {
            let version = Version { targets, waiting, impossible: &impossible };
            let pool = discover::pool(service, list, version, admin).map_err(told)?;
            if pool.added.is_empty() && pool.changed.is_empty() {
                return Ok(Some(pool));
            }
            let mut after = services.to_vec();
            if let Some(of) = after.get_mut(index) {
                Arc::make_mut(of).backends.clone_from(&pool.backends);
            }
            let found = discover::to_blame(&pool, index, &validate::problems(&after, &self.file));
            let known = impossible.len();
            impossible.extend(found);
            if impossible.len() == known || known > MOST_IMPOSSIBLE {
                return Ok(Some(pool));
            }
        }
    }

    /// Whether the service still has the list that the backend comes from.
    pub(super) fn is_discovered(&self, service: &str, backend: &Discovered) -> bool {
        let lists = self.legs(service).flat_map(Service::discover);
        { lists }.any(|list| list.source == backend.source)
    }

    /// Applies a list of targets to a service.
    pub(super) fn discover(
        &mut self,
        service: &str,
        source: &Source,
        targets: &[Target],
        waiting: &BTreeSet<String>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let (mut services, index) = self.edit(service)?;
        let pool = self.pool(&services, index, source, targets, waiting)?;
        let Some(config) = services.get_mut(index) else { return Err(self.no_service(service)) };
        let Some(pool) = pool.filter(|pool| pool.backends != config.backends) else {
            return Ok((format!("service {service} discovers what it has: nothing changed"), Vec::new()));
        };
        let Pool { backends, gone, back, .. } = &pool;
        let reports = self.of_other_names(config, source, &pool);
        Arc::make_mut(config).backends.clone_from(backends);
        let about = |backend: &str| BackendName { service: service.to_owned(), backend: backend.to_owned() };
        let (_, mut reconciled) = self.configure(services, Some(&about("")), now)?;
        for name in gone {
            self.parts_mut(&about(name)).for_each(Backend::leave);
        }
        for (name, admin) in back {
            self.parts_mut(&about(name)).for_each(|backend| backend.stay(*admin));
        }
        let mut all_moves: Vec<Moves> = reconciled.moves.drain().map(|(_, moves)| moves).collect();
        let mut commands = reconciled.commands;
        if !gone.is_empty() || !back.is_empty() {
            let reconciled = self.reconcile(|of| of.name() == service, Vec::new(), Some(&about("")), now);
            commands.extend(reconciled.commands);
            all_moves.extend(reconciled.moves.into_values());
        }
        let told = |name: &str, what: &str| {
            let message = format!("backend {service}/{name} {what} {}", source);
            Command::Report(Report { level: ReportLevel::Info, about: Some(about(name)), message, moves: None })
        };
        commands.extend(reports);
        commands.extend(pool.added.iter().map(|name| told(name, "added, it is a target of")));
        commands.extend(gone.iter().map(|name| told(name, "drains before it is removed, it is no longer a target of")));
        commands.extend(back.iter().map(|(name, _)| told(name, "stays, it is a target again of")));
        commands.extend(self.remove_those_that_left(now));
        let moved: u64 = all_moves.iter().map(|moves| u64::from(moves.total())).sum();
        let needless: u64 = all_moves.iter().map(|moves| u64::from(moves.needless())).sum();
        let summary = Some(pool.summary()).filter(|text| !text.is_empty()).unwrap_or_else(|| "another list".to_owned());
        Ok((format!("service {service} discovers: {summary}; {moved} slots moved, {needless} needless"), commands))
    }

    /// Reports about the backends whose addresses have other names in a list, with the numbers of their known clients.
    fn of_other_names(&self, service: &ServiceConfig, source: &Source, pool: &Pool) -> Vec<Command> {
        let about = |backend: &str| BackendName { service: service.name.clone(), backend: backend.to_owned() };
        let address = |name: &str| {
            let backend = service.backends.iter().find(|backend| backend.name == name);
            backend.map_or_else(String::new, |backend| service.shown_address(backend))
        };
        let clients = |name: &str, verb: &str| match self.swept_clients(&about(name)) {
            Some(1) => format!("1 known client {verb}s"),
            Some(known) => format!("{} {verb}", counted(known as usize, "known client")),
            None => format!("its known clients {verb}"),
        };
        let told = |name: &str, message: String| {
            Command::Report(Report { level: ReportLevel::Info, about: Some(about(name)), message, moves: None })
        };
        let renamed = pool.renamed.iter().map(|Renamed { from, to }| {
            let (at, stay) = (address(from), clients(from, "stay"));
            let name = about(from);
            told(to, format!("backend {name} renamed {to}, because {source} calls the target at {at} so; {stay}"))
        });
        let displaced = pool.displaced.iter().map(|Displaced { name, by }| {
            let (at, go) = (address(name), clients(name, "move"));
            let backend = about(name);
            told(name, format!("backend {backend} removed, because {source} gives its address {at} to {by}; {go}"))
        });
        renamed.chain(displaced).collect()
    }

    /// Starts to drain the backends from lists that are no longer part of their services.
    pub(super) fn leave_lost_lists(&mut self, now: Instant) -> Vec<Command> {
        let mut lost = Vec::new();
        for service in self.services.iter().filter(|service| service.discover().is_empty()) {
            let discovered = service.backends().iter().filter(|backend| backend.config().discovered.is_some());
            lost.extend(discovered.filter(|backend| !backend.is_leaving()).map(|backend| service.name_of(backend)));
        }
        if lost.is_empty() {
            return Vec::new();
        }
        for name in &lost {
            self.parts_mut(name).for_each(Backend::leave);
        }
        let is_lost = |service: &str| lost.iter().any(|name| name.service == service);
        let mut commands = self.reconcile(|service| is_lost(service.name()), Vec::new(), None, now).commands;
        commands.extend(lost.into_iter().map(|name| {
            let message = format!(
                "backend {name} drains before it is removed, because its service discovers no \
                                   backends any more"
            );
            Command::Report(Report { level: ReportLevel::Info, about: Some(name), message, moves: None })
        }));
        commands.extend(self.remove_those_that_left(now));
        commands
    }
}
