//! Everything that should be, for a shell in which a command has failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Controller, settle::grows};
use crate::core::{
    held::Held,
    io::{BackendId, BackendSpec, CheckSpec, Command},
    service::{Backend, Service},
};

impl Controller {
    /// What brings a shell that holds `held` to what it was told, in an order that is safe at every step (as in
    /// `settle.rs`). Rows, tables, the directory and rules are written again whatever is there.
    #[must_use]
    pub fn resync(&mut self, held: &Held) -> Vec<Command> {
        let rows: Vec<BackendSpec> = self.told_rows().collect();
        let wanted: BTreeSet<BackendId> = rows.iter().map(|row| row.id).collect();
        let watched: BTreeSet<_> = self.hops.all().map(|(address, _)| address).collect();
        let checks = self.told_checks();

        let mut commands = Vec::new();
        commands.extend(watched.difference(&held.watched).copied().map(Command::WatchNextHop));
        commands.extend(rows.into_iter().map(Command::WriteBackend));
        let set_rules =
            |service: &Service| Command::SetRules { service: service.id(), rules: Arc::clone(&service.told_rules) };
        let published = |service: &Service| held.services.iter().any(|spec| spec.id == service.id());
        let (without, with): (Vec<&Service>, Vec<&Service>) =
            self.services.iter().partition(|service| service.told_rules.is_empty());
        commands.extend(without.into_iter().filter(|service| published(service)).map(set_rules));
        let (present, first): (Vec<&Service>, Vec<&Service>) =
            self.services.iter().partition(|service| published(service));
        let swap = |service: &Service| {
            let (table, home) = service.tables();
            Command::SwapTable { service: service.id(), table, home }
        };
        commands.extend(first.into_iter().map(swap));
        let directory = self.published.clone();
        let grows = directory.as_ref().is_some_and(|specs| grows(&held.services, specs));
        let directory = directory.map(Command::PublishServices);
        commands.extend(directory.clone().filter(|_| grows));
        commands.extend(present.into_iter().map(swap));
        commands.extend(directory.filter(|_| !grows));
        commands.extend(with.into_iter().map(set_rules));

        let ended = held.checks.keys().filter(|id| !checks.contains_key(id)).copied();
        commands.extend(ended.map(Command::StopChecks));
        for &id in held.rows.difference(&wanted) {
            // Clients may have come to know it.
            self.ids.postpone(id);
            commands.push(Command::RetireBackend(id));
        }
        commands.extend(held.watched.difference(&watched).copied().map(Command::UnwatchNextHop));
        let started = checks.into_values().filter(|check| held.checks.get(&check.backend) != Some(&check.number));
        commands.extend(started.map(Box::new).map(Command::StartChecks));
        commands
    }

    fn told_rows(&self) -> impl Iterator<Item = BackendSpec> {
        let present = self.services.iter().flat_map(Service::backends).filter_map(|backend| backend.told.row.clone());
        present.chain(self.gone.iter().map(|gone| gone.row.clone()))
    }

    fn told_checks(&self) -> BTreeMap<BackendId, CheckSpec> {
        let told = |service: &Service, backend: &Backend| {
            let told = backend.told.check.as_ref()?;
            Some((backend.id(), service.check_spec(backend, told)))
        };
        let of = |service| Service::backends(service).iter().filter_map(move |backend| told(service, backend));
        self.services.iter().flat_map(of).collect()
    }
}
