//! From one configuration to the next.

use std::{
    collections::{HashMap, HashSet},
    mem,
    time::Instant,
};

use balancer_model::{
    config::{BackendConfig, ServiceConfig},
    names::BackendName,
    renames::{self, under_new_names},
    states::Admin,
    validate,
    words::{counted, grouped},
};

use super::{Controller, settings::Differences, settle::Settled};
use crate::{
    ids::Ids,
    io::{Command, Refused, Report, ReportLevel, ServiceId},
    merge::merge,
    service::{Backend, Service},
    table::Moves,
};

/// How one configuration differs from the one before.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) services: [usize; 3],
    pub(super) backends: [usize; 3],
}

impl Controller {
    /// Takes over what the configuration file says now, where it says otherwise than before.
    pub(super) fn reload(
        &mut self,
        file: Vec<ServiceConfig>,
        settings: &Differences,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        validate::services(&file)?;
        let present = under_new_names(self.configs(), &file);
        let leaving: HashSet<(&str, &str)> = (self.services.iter().zip(&present))
            .flat_map(|(service, named)| service.backends().iter().zip(&named.backends).map(move |pair| (named, pair)))
            .filter(|(_, (backend, _))| backend.is_leaving())
            .map(|(service, (_, backend))| (service.name.as_str(), backend.name.as_str()))
            .collect();
        let base = under_new_names(self.file.clone(), &file);
        let mut merged = merge(&base, &present, |service, name| leaving.contains(&(service, name)), file.clone());
        merged.differences.extend(self.configs().iter().zip(&present).flat_map(|(old, new)| told_of_renames(old, new)));
        let unchanged = |name: &&BackendName| {
            let now = self.backend(name).ok().map(Backend::config);
            let to_be = merged.services.iter().find(|service| service.name == name.service);
            now == to_be.and_then(|service| service.backends.iter().find(|backend| backend.name == name.backend))
        };
        let only_called_back = merged.called_back.iter().filter(unchanged).count();
        let (mut difference, settled) = self.configure(merged.services, None, now)?;
        self.file = file;
        let Settled { mut commands, moves } = settled;
        let mut all_moves: Vec<Moves> = moves.into_values().collect();
        for backend in &merged.called_back {
            for service in self.services.iter_mut().filter(|service| service.name() == backend.service) {
                let called_back = service.backends_mut().iter_mut().filter(|other| other.name() == backend.backend);
                called_back.for_each(|backend| backend.set_admin(Admin::Ready, None));
            }
        }
        if !merged.called_back.is_empty() {
            difference.backends[2] += only_called_back;
            let settled = self.settle(|_| true, Vec::new(), None, now);
            commands.extend(settled.commands);
            all_moves.extend(settled.moves.into_values());
        }
        commands.extend(
            settings
                .lines
                .iter()
                .cloned()
                .chain(merged.differences)
                .map(|message| Command::Report(Report { level: ReportLevel::Info, about: None, message, moves: None })),
        );
        let services = difference.services != [0; 3] || difference.backends != [0; 3];
        if !services && settings.changed.is_empty() {
            return Ok(("configuration applied: nothing changed".to_owned(), commands));
        }
        let mut message = "configuration applied".to_owned();
        if !settings.changed.is_empty() {
            message += &format!(", {} changed", settings.changed.join(", "));
        }
        if !services {
            return Ok((message, commands));
        }
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
    pub(super) fn configure(
        &mut self,
        configs: Vec<ServiceConfig>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Result<(Difference, Settled), Refused> {
        validate::services(&configs)?;
        let difference = self.difference(&configs);
        let renamed = renames::renamed(&self.configs(), &configs);
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
            let mut service = match old_services.remove(renamed.get(&config.name).unwrap_or(&config.name)) {
                Some(mut service) => {
                    service.set_settings(config);
                    service
                }
                None => match service_ids.next() {
                    Some(id) => Service::new(id, config, self.key),
                    None => continue,
                },
            };
            let present: Vec<BackendConfig> =
                service.backends().iter().map(|backend| backend.config().clone()).collect();
            let renamed = renames::renamed(&present, &backends);
            renamed.iter().for_each(|(new, old)| service.rules_mut().rename(old, new));
            let mut old: HashMap<String, Backend> =
                service.backends_mut().drain(..).map(|backend| (backend.name().to_owned(), backend)).collect();
            let in_use = !old.is_empty();
            for config in backends {
                let backend = match old.remove(renamed.get(&config.name).unwrap_or(&config.name)) {
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

    pub(super) fn difference(&self, configs: &[ServiceConfig]) -> Difference {
        let mut difference = Difference::default();
        let [added, removed, changed] = &mut difference.services;
        let [backends_added, backends_removed, backends_changed] = &mut difference.backends;
        let mut old: HashMap<String, ServiceConfig> =
            self.services.iter().map(|service| (service.name().to_owned(), service.config())).collect();
        let renamed = renames::renamed(&self.configs(), configs);
        for config in configs {
            let Some(before) = old.remove(renamed.get(&config.name).unwrap_or(&config.name)) else {
                *added += 1;
                *backends_added += config.backends.len();
                continue;
            };
            let settings = |config: &ServiceConfig| ServiceConfig { backends: Vec::new(), ..config.clone() };
            *changed += usize::from(settings(&before) != settings(config));
            let renamed = renames::renamed(&before.backends, &config.backends);
            let mut old: HashMap<&str, &BackendConfig> =
                before.backends.iter().map(|backend| (backend.name.as_str(), backend)).collect();
            for backend in &config.backends {
                match old.remove(renamed.get(&backend.name).unwrap_or(&backend.name).as_str()) {
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
}

/// What is called otherwise now.
fn told_of_renames(old: &ServiceConfig, new: &ServiceConfig) -> Vec<String> {
    let mut lines = Vec::new();
    if old.name != new.name {
        lines.push(format!("service {} is called {} now", old.name, new.name));
    }
    for (old, new_backend) in old.backends.iter().zip(&new.backends).filter(|(old, new)| old.name != new.name) {
        lines.push(format!("backend {}/{} is called {} now", new.name, old.name, new_backend.name));
    }
    lines
}
