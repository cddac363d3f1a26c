//! The full state as commands, for a shell in which a command has failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Controller,
    stage::{Stage, Staged},
};
use crate::{
    applied::Applied,
    io::{BackendId, BackendSpec, CheckSpec, Command},
    service::{Backend, Service},
};

impl Controller {
    /// Returns commands that take a shell from the state `applied` to the state that was passed to the shell; each step
    /// in their order is safe. The commands write rows, tables, the directory and rules again in any case.
    #[must_use]
    pub fn resync(&mut self, applied: &Applied) -> Vec<Command> {
        let rows: Vec<Arc<BackendSpec>> = self.told_rows().collect();
        let wanted: BTreeSet<BackendId> = rows.iter().map(|row| row.id).collect();
        let watched: BTreeSet<_> = self.hops.all().map(|(address, _)| address).collect();
        let checks = self.told_checks();

        let mut commands = Staged::default();
        for &address in watched.difference(&applied.watched) {
            commands.add(Stage::Watch, Command::WatchNextHop(address));
        }
        rows.into_iter().for_each(|row| commands.add(Stage::Rows, Command::WriteBackend(row)));
        for service in &self.services {
            let published = applied.services.iter().any(|spec| spec.id == service.id());
            commands.swap(service, published);
            if published || !service.told_rules.is_empty() {
                commands.set_rules(service.id(), Arc::clone(&service.told_rules));
            }
        }
        if let Some(directory) = &self.published {
            commands.publish(&applied.services, directory.to_vec());
        }
        for &id in applied.checks.keys().filter(|id| !checks.contains_key(id)) {
            commands.add(Stage::Removed, Command::StopChecks(id));
        }
        for &id in applied.rows.difference(&wanted) {
            // The data path may have recorded clients under this backend id.
            self.ids.postpone(id);
            commands.add(Stage::Removed, Command::RetireBackend(id));
        }
        for &address in applied.watched.difference(&watched) {
            commands.add(Stage::Unwatch, Command::UnwatchNextHop(address));
        }
        for check in checks.into_values().filter(|check| applied.checks.get(&check.backend) != Some(&check.number)) {
            commands.add(Stage::Checks, Command::StartChecks(Box::new(check)));
        }
        commands.in_order()
    }

    /// The rows by which the data path forwards packets, including rows of removed backends that still have clients.
    /// The flag says whether the backend still exists.
    pub fn rows(&self) -> impl Iterator<Item = (Arc<BackendSpec>, bool)> {
        self.told_rows().map(|row| {
            let present = self.owners.contains_key(&row.id);
            (row, present)
        })
    }

    fn told_rows(&self) -> impl Iterator<Item = Arc<BackendSpec>> {
        let present = self.services.iter().flat_map(Service::backends).filter_map(|backend| backend.told.row.clone());
        present.chain(self.gone.iter().map(|gone| Arc::clone(&gone.row)))
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
