//! Changes the controller from one configuration to the next.

use std::{mem, sync::Arc, time::Instant};

use balancer_config::{
    config::{BackendConfig, ServiceConfig},
    listeners::Family,
    names::BackendName,
    renames::{self, under_new_names},
    shared::is_one,
    states::Admin,
    validate::{self, Valid},
    words::{counted, grouped},
};
use foldhash::{HashMap, HashSet};

use super::{
    Controller, Gone, Services,
    reconcile::Reconciled,
    rules::AllRules,
    run_time::{as_if_written, as_listed},
    settings::{Differences, noted},
    sizes::Sizes,
};
use crate::{
    io::{BackendId, Command, ListenerId, Refused, ServiceId},
    merge::merge,
    moves::Moves,
    report,
    rules::Rule,
    run_time::{RunTimeChange, What, summary},
    service::{Backend, Service},
};

/// The difference between two configurations.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) services: [usize; 3],
    pub(super) backends: [usize; 3],
    pub(super) rules: [usize; 3],
}

impl Difference {
    fn is_none(&self) -> bool {
        [self.services, self.backends, self.rules] == [[0; 3]; 3]
    }
}

impl Controller {
    /// Applies what has changed in the configuration file since the controller last applied the file; with `reset`,
    /// applies every difference between the file and the current state. Drop-ins stay as they are.
    pub(super) fn reload(
        &mut self,
        file: &Valid,
        settings: &Differences,
        reset: bool,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let all = file.with(self.file.of_drop_ins().cloned())?;
        self.apply_services(all, "configuration applied", settings, reset, now)
    }

    /// Applies the services of the configuration file and of all drop-ins. The message of the result begins with
    /// `title`.
    pub(super) fn apply_services(
        &mut self,
        file: Valid,
        title: &str,
        settings: &Differences,
        reset: bool,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let changes = if reset { self.changed_at_run_time() } else { Vec::new() };
        let file = file.sharing(&self.file);
        let configs = self.present();
        let present = under_new_names(configs.clone(), &file);
        let left = self.services.iter().flat_map(|service| service.leaving().map(move |of| (service, of)));
        let left: HashSet<(&str, &str)> = left.map(|(service, backend)| (service.name(), backend.name())).collect();
        let leaving: HashSet<(&str, &str)> = (configs.iter().zip(&present))
            .filter(|_| !left.is_empty())
            .flat_map(|(old, new)| old.backends.iter().zip(&new.backends).map(move |pair| (old, new, pair)))
            .filter(|(old, _, (backend, _))| left.contains(&(old.name.as_str(), backend.name.as_str())))
            .map(|(_, new, (_, backend))| (new.name.as_str(), backend.name.as_str()))
            .collect();
        let leaves = |service: &str, name: &str| leaving.contains(&(service, name));
        let said = under_new_names(self.file.to_vec(), &file);
        let base = if reset { as_if_written(&present, leaves, &file) } else { said.clone() };
        let mut merged = merge(&base, &present, leaves, &file);
        if reset {
            as_listed(&mut merged.services);
        }
        merged.differences.extend(configs.iter().zip(&present).flat_map(|(old, new)| told_of_renames(old, new)));
        let (rules, rules_differ) = self.merge_all_rules(&configs, &present, &said, &file, reset, now)?;
        merged.differences.extend(rules_differ);
        tell_of_reset(&changes, &mut merged.differences);
        let unchanged = |name: &&BackendName| {
            let now = self.backend(name).ok().map(Backend::config);
            let to_be = merged.services.iter().find(|service| service.name == name.service);
            now == to_be.and_then(|service| service.backends.iter().find(|backend| backend.name == name.backend))
        };
        if !is_one(&merged.services, &file) {
            validate::services(&merged.services, &file)?;
        }
        let sizes = Sizes::before(&self.services);
        let only_called_back = merged.called_back.iter().filter(unchanged).count();
        let (mut difference, reconciled) = self.take_over(merged.services, &rules, None, now)?;
        self.file = file;
        let Reconciled { mut commands, moves } = reconciled;
        let mut all_moves: Vec<Moves> = moves.into_values().collect();
        for backend in &merged.called_back {
            self.parts_mut(backend).for_each(|backend| backend.set_admin(Admin::Ready, None));
        }
        if !merged.called_back.is_empty() {
            difference.backends[2] += only_called_back;
            let called = |service: &Service| merged.called_back.iter().any(|name| name.service == service.name());
            let reconciled = self.reconcile(called, Vec::new(), None, now);
            commands.extend(reconciled.commands);
            all_moves.extend(reconciled.moves.into_values());
        }
        let touched = if reset { self.reset_states() } else { Default::default() };
        if !touched.is_empty() {
            let reconciled = self.reconcile(|service| touched.contains(&service.id()), Vec::new(), None, now);
            commands.extend(reconciled.commands);
            all_moves.extend(reconciled.moves.into_values());
        }
        commands.extend(self.leave_lost_lists(now));
        commands.extend(settings.reports());
        commands.extend(merged.differences.into_iter().map(noted));
        let undone = summary(&changes);
        let services = !difference.is_none() || undone.is_some();
        if !services && settings.changed.is_empty() {
            return Ok((report::NOTHING_CHANGED.to_owned(), commands));
        }
        let mut message = title.to_owned();
        if !settings.changed.is_empty() {
            message += &format!(", {} changed", settings.changed.join(", "));
        }
        if !services {
            return Ok((message, commands));
        }
        message.extend(undone.map(|undone| format!(", reset: {undone}")));
        for (what, counts) in
            [("service", difference.services), ("backend", difference.backends), ("rule", difference.rules)]
        {
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
        message += &sizes.all_resized(&self.services);
        Ok((message, commands))
    }

    /// Returns the id of a removed backend with the same name and address that still has known clients, and the number
    /// of these clients. The added backend takes over this id, so that its clients return without moving. The
    /// controller assumes that the backend's next hop is unchanged until the shell reports a new next hop.
    fn come_back(&mut self, service: &Service, wanted: &BackendConfig) -> Option<(BackendId, u64)> {
        let address = service.row_address_of(wanted);
        let is_same = |gone: &Gone| {
            gone.row.service == service.id()
                && gone.row.forwarding == service.forwarding()
                && gone.name == wanted.name
                && gone.row.address == address
        };
        // If several such backends exist, the function returns the backend that was removed last.
        let gone = self.gone.remove(self.gone.iter().rposition(is_same)?);
        if let Some(hop) = gone.row.next_hop {
            self.hops.expect(gone.row.address.ip(), hop);
        }
        Some((gone.row.id, gone.known))
    }

    /// Makes `configs` the current services, and keeps the state of services that remain.
    pub(super) fn configure(
        &mut self,
        configs: Vec<Arc<ServiceConfig>>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Result<(Difference, Reconciled), Refused> {
        validate::services(&configs, &self.file)?;
        self.take_over(configs, &AllRules::default(), subject, now)
    }

    /// Like [`configure`](Self::configure), for valid configurations, with new `rules` for some services.
    pub(super) fn take_over(
        &mut self,
        configs: Vec<Arc<ServiceConfig>>,
        rules: &AllRules,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Result<(Difference, Reconciled), Refused> {
        let same = self.configured_so(&configs);
        let is_same = |config: &ServiceConfig| same.contains(config.name.as_str());
        let places = configs.iter().flat_map(parts).map(|(config, family)| (config.name.as_str(), family));
        if same.len() == configs.len() && places.eq(self.services.iter().map(|of| (of.name(), of.family()))) {
            let (concerned, rules) = self.set_rules(rules);
            let reconciled = self.reconcile(|service| concerned.contains(&service.id()), Vec::new(), subject, now);
            return Ok((Difference { rules, ..Difference::default() }, reconciled));
        }
        let changed: Vec<&ServiceConfig> =
            configs.iter().map(AsRef::as_ref).filter(|config| !is_same(config)).collect();
        let present = self.configs_of(|name| !same.contains(name));
        let renamed = renames::renamed(&present.iter().collect::<Vec<_>>(), &changed);
        let mut difference = difference(present, &renamed, &changed);
        let added = self.rows_needed(&changed, &renamed);
        if added > self.ids.free() {
            return Err(Refused::Conflict(format!(
                "{} to add and {} of {} left{}",
                counted(added, "backend"),
                grouped(self.ids.free() as u64),
                grouped(self.ids.total() as u64),
                if self.ids.lack_rows() { "; a restart makes room" } else { ": remove some first" }
            )));
        }
        if 2 * difference.services[0] + self.services.len() > usize::from(u16::MAX) {
            return Err(Refused::Conflict(format!("{} are too many", counted(configs.len(), "service"))));
        }
        self.need = self.find_room(&configs, &renamed)?;
        // The id of a removed service is not reused while clients are known at the backends of this service.
        let gone = self.gone.iter().map(|gone| gone.row.service);
        let used: HashSet<ServiceId> = self.services.iter().map(Service::id).chain(gone).collect();
        let mut service_ids = (0..=u16::MAX).map(ServiceId).filter(|id| !used.contains(id));
        let listening: HashSet<ListenerId> = self.services.iter().flat_map(Service::listener_ids).collect();
        let mut listener_ids = (0..=u16::MAX).map(ListenerId).filter(|id| !listening.contains(id));
        let before = mem::take(&mut self.services);
        let mut old_services: HashMap<(&str, Family), &Arc<Service>> =
            before.shared().map(|service| ((service.name(), service.family()), service)).collect();
        let mut removed = Vec::new();
        let mut added = HashSet::default();
        let mut concerned = HashSet::default();
        for (config, family) in configs.iter().flat_map(parts) {
            let old = old_services.remove(&(renamed.get(&config.name).unwrap_or(&config.name).as_str(), family));
            if let Some(service) = old.filter(|_| is_same(config)) {
                self.services.push(Arc::clone(service));
                continue;
            }
            let mut settings = ServiceConfig::clone(config);
            let backends = mem::take(&mut settings.backends);
            let mut service = match old {
                Some(service) => {
                    let mut service = Service::clone(service);
                    service.set_settings(settings);
                    service.share_as_configured(now);
                    service
                }
                None => match service_ids.next() {
                    Some(id) => Service::new(id, family, settings, self.key),
                    None => continue,
                },
            };
            service.name_listeners(&mut listener_ids);
            let present: Vec<BackendConfig> =
                service.backends().iter().map(|backend| backend.config().clone()).collect();
            let renamed = renames::renamed(&present, &config.backends);
            renamed.iter().for_each(|(new, old)| service.rules_mut().rename(old, new));
            let mut old: HashMap<String, Backend> =
                service.backends_mut().drain(..).map(|backend| (backend.name().to_owned(), backend)).collect();
            let in_use = !old.is_empty();
            for wanted in backends {
                let reached = service.reached(&wanted);
                let backend = match old.remove(renamed.get(&wanted.name).unwrap_or(&wanted.name)) {
                    Some(mut backend) => {
                        backend.configure(wanted, reached);
                        backend
                    }
                    None => match self.come_back(&service, &wanted).or_else(|| Some((self.ids.take()?, 0))) {
                        Some((id, known)) => {
                            added.insert(id);
                            let mut backend = Backend::new(id, wanted, reached, in_use, now);
                            backend.note_known(known);
                            backend
                        }
                        None => continue,
                    },
                };
                self.owners.insert(backend.id(), service.id());
                service.backends_mut().push(backend);
            }
            removed.extend(old.into_values());
            service.drop_words();
            service.note_configured(config);
            concerned.insert(service.id());
            self.services.push(Arc::new(service));
        }
        for service in old_services.values() {
            // The rules of a removed part wait in the other part of the service until the service serves clients of the
            // removed part's family again.
            let heir = self.services.those_mut(|other| other.name() == service.name()).next();
            if let Some(heir) = heir.filter(|_| !service.rules().is_empty()) {
                service.rules().iter().cloned().for_each(|rule| drop(heir.rules_mut().set(rule)));
                concerned.insert(heir.id());
            }
        }
        concerned.extend(self.sort_rules());
        let (with_other_rules, counts) = self.set_rules(rules);
        concerned.extend(with_other_rules);
        difference.rules = counts;
        self.follow_twins(&added);
        removed.extend(old_services.into_values().flat_map(|service| service.backends().iter().cloned()));
        removed.sort_unstable_by_key(Backend::id);
        Ok((difference, self.reconcile(|service| concerned.contains(&service.id()), removed, subject, now)))
    }

    /// The names of services whose current configuration already equals that in `configs`.
    fn configured_so<'a>(&self, configs: &'a [Arc<ServiceConfig>]) -> HashSet<&'a str> {
        let parts: Vec<&Service> = self.services.iter().collect();
        let parts = parts.chunk_by(|one, other| one.name() == other.name());
        let parts: HashMap<&str, &[&Service]> =
            parts.filter_map(|parts| Some((parts.first()?.name(), parts))).collect();
        let same = |config: &&Arc<ServiceConfig>| {
            parts.get(config.name.as_str()).is_some_and(|parts| are_configured_as(parts, config))
        };
        configs.iter().filter(same).map(|config| config.name.as_str()).collect()
    }

    /// Copies the operator's settings to backends that were `added` to one part of a service, from the same backends in
    /// the other part of this service.
    fn follow_twins(&mut self, added: &HashSet<BackendId>) {
        for index in 0..self.services.len() {
            let Some(service) = self.services.get(index).filter(|service| service.is_one_of_two()) else { continue };
            let other = self.legs(service.name()).find(|other| other.family() != service.family());
            let known = other.into_iter().flat_map(Service::backends).filter(|twin| !added.contains(&twin.id()));
            let known: Vec<Backend> = known.cloned().collect();
            if !service.backends().iter().any(|backend| added.contains(&backend.id())) {
                continue;
            }
            let Some(service) = self.services.get_mut(index) else { continue };
            for backend in service.backends_mut().iter_mut().filter(|backend| added.contains(&backend.id())) {
                if let Some(twin) = known.iter().find(|twin| twin.name() == backend.name()) {
                    backend.follow(twin);
                }
            }
        }
    }

    /// Moves every rule to the part of the service for the rule's address family, if the service has this part. Returns
    /// the services whose rules have changed.
    fn sort_rules(&mut self) -> Vec<ServiceId> {
        let mut touched = Vec::new();
        let place = |services: &Services, name: &str, family| {
            services.iter().position(|service| service.name() == name && service.family() == family)
        };
        for index in 0..self.services.len() {
            let Some(service) = self.services.get(index) else { continue };
            let foreign = service.rules().iter().filter(|rule| Family::of(rule.prefix.addr()) != service.family());
            let foreign: Vec<Rule> = foreign.cloned().collect();
            for rule in foreign {
                let Some(service) = self.services.get(index) else { continue };
                let Some(to) = place(&self.services, service.name(), Family::of(rule.prefix.addr())) else { continue };
                if let Some(service) = self.services.get_mut(index) {
                    service.rules_mut().remove(rule.prefix);
                    touched.push(service.id());
                }
                if let Some(service) = self.services.get_mut(to) {
                    service.rules_mut().set(rule);
                    touched.push(service.id());
                }
            }
        }
        touched
    }

    /// The number of additional backend rows that `configs` needs.
    fn rows_needed(&self, configs: &[&ServiceConfig], renamed: &HashMap<String, String>) -> usize {
        if configs.is_empty() {
            return 0;
        }
        let parts: HashMap<(&str, Family), &[Backend]> =
            (self.services.iter()).map(|service| ((service.name(), service.family()), service.backends())).collect();
        let rows = configs.iter().map(|config| {
            let before = renamed.get(&config.name).unwrap_or(&config.name);
            let needed = |family| {
                let old = parts.get(&(before.as_str(), family)).copied().unwrap_or_default();
                let known: HashSet<&str> = old.iter().map(Backend::name).collect();
                let present: Vec<BackendConfig> = old.iter().map(|backend| backend.config().clone()).collect();
                let renamed = renames::renamed(&present, &config.backends);
                let stays = |name: &String| known.contains(renamed.get(name).unwrap_or(name).as_str());
                config.backends.iter().filter(|backend| !stays(&backend.name)).count()
            };
            config.families().into_iter().map(needed).sum::<usize>()
        });
        rows.sum()
    }
}

/// The difference between the services in `configs` and the `present` services; `renamed` maps new names of services to
/// their former names.
fn difference(
    present: Vec<ServiceConfig>,
    renamed: &HashMap<String, String>,
    configs: &[&ServiceConfig],
) -> Difference {
    let mut difference = Difference::default();
    let [added, removed, changed] = &mut difference.services;
    let [backends_added, backends_removed, backends_changed] = &mut difference.backends;
    let mut old: HashMap<String, ServiceConfig> =
        present.into_iter().map(|config| (config.name.clone(), config)).collect();
    for config in configs {
        let Some(before) = old.remove(renamed.get(&config.name).unwrap_or(&config.name)) else {
            *added += 1;
            *backends_added += config.backends.len();
            continue;
        };
        *changed += usize::from(!before.has_settings_of(config));
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

/// Whether `config` is the configuration from which these parts come.
pub(super) fn are_configured_as(parts: &[&Service], config: &Arc<ServiceConfig>) -> bool {
    parts.len() == config.families().len() && parts.iter().all(|part| part.is_configured_as(config))
}

/// The parts of a configured service: one part for each address family of its clients.
fn parts(config: &Arc<ServiceConfig>) -> impl Iterator<Item = (&Arc<ServiceConfig>, Family)> {
    config.families().into_iter().map(move |family| (config, family))
}

/// Replaces the reports about consequences by reports about the changes that the controller has undone.
fn tell_of_reset(changes: &[RunTimeChange], differences: &mut Vec<String>) {
    let follows = |line: &String| {
        changes.iter().any(|change| {
            let of = |word: &str| line.strip_prefix(word).and_then(|rest| rest.strip_prefix(change.name.as_str()));
            match change.what {
                What::Backend => of("backend ").is_some_and(|rest| rest.starts_with(' ')),
                What::Rule => of("rule ").is_some_and(|rest| rest.starts_with(' ')),
                What::Service | What::Listener => false,
            }
        })
    };
    differences.retain(|line| !follows(line));
    differences.splice(0..0, changes.iter().map(|change| format!("reset: {change}")));
}

/// Returns a line for each renamed service and for each renamed backend of a service.
fn told_of_renames(old: &Arc<ServiceConfig>, new: &Arc<ServiceConfig>) -> Vec<String> {
    let mut lines = Vec::new();
    if Arc::ptr_eq(old, new) {
        return lines;
    }
    if old.name != new.name {
        lines.push(format!("service {} renamed {}", old.name, new.name));
    }
    for (old, new_backend) in old.backends.iter().zip(&new.backends).filter(|(old, new)| old.name != new.name) {
        lines.push(format!("backend {}/{} renamed {}", new.name, old.name, new_backend.name));
    }
    lines
}
