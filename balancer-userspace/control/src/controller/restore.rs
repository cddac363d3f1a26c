//! Saving the controller's state and restoring it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use balancer_common::{client::HashKey, map_types::LAST_BACKEND};
use balancer_config::{
    config::{Config, ServiceConfig},
    shared::{alike, by_name, is_one, shared},
    validate::Valid,
};
use serde::Serialize;

use super::{Controller, Gone, Services, configure::are_configured_as};
use crate::{
    ids::Ids,
    io::BackendSpec,
    keys,
    next_hops::NextHops,
    service::Service,
    state::{Clocks, DropIns, ListChanges, Listed, SavedChanges, SavedGone, SavedState, VERSION},
};

/// The highest counter that is valid in a state, which leaves the controller room to count further.
const MOST_COUNTED: u64 = u64::MAX / 2;

impl Controller {
    /// Returns the state that a later [`restore`](Self::restore) needs.
    #[must_use]
    pub fn export(&self, clocks: Clocks) -> SavedState {
        let services = self.services.iter().map(|service| service.export(clocks)).collect();
        let next_hops = self.hops.all().map(|(address, hop)| (address, hop.clone())).collect();
        self.export_lists(self.file.copies(), services, next_hops)
    }

    /// Exports the state for writing, without copying its large lists.
    #[must_use]
    pub fn export_listed(
        &self,
        clocks: Clocks,
    ) -> SavedState<impl Serialize + '_, impl Serialize + '_, impl Serialize + '_> {
        let file = || self.file.iter().map(AsRef::<ServiceConfig>::as_ref);
        let services = move || self.services.iter().map(move |service| service.export(clocks));
        self.export_lists(Listed(file), Listed(services), Listed(|| self.hops.all()))
    }

    fn export_lists<File, Services, NextHops>(
        &self,
        file: File,
        services: Services,
        next_hops: NextHops,
    ) -> SavedState<File, Services, NextHops> {
        SavedState {
            version: VERSION,
            instance: self.instance,
            generation: self.generation,
            hash_key: self.keeps_key.then_some(self.key),
            key_fingerprint: keys::fingerprint(self.key),
            file,
            drop_ins: DropIns::clone(&self.drop_ins),
            services,
            gone: self.export_gone(),
            free_ids: self.ids.runs(),
            next_hops,
            removed_backends: std::collections::BTreeMap::new(),
            repeated_moves: std::collections::BTreeMap::new(),
            epoch: None,
            clock: None,
            withdrawn: false,
        }
    }

    /// Returns the changes since the state of `before`, an earlier copy of this controller.
    #[must_use]
    pub fn changes_since(&self, before: &Self, clocks: Clocks) -> SavedChanges {
        let changed = self.services.changed_since(&before.services).map(|service| service.export(clocks)).collect();
        let ids = |services: &Services| services.iter().map(Service::id).collect();
        let rows =
            |gone: &[Gone]| gone.iter().map(|gone| (gone.name.clone(), Arc::clone(&gone.row))).collect::<Vec<_>>();
        SavedChanges {
            generation: (self.generation != before.generation).then_some(self.generation),
            file: changed_file(&before.file, &self.file),
            drop_ins: (self.drop_ins != before.drop_ins).then(|| DropIns::clone(&self.drop_ins)),
            services: ListChanges::new(ids(&before.services), ids(&self.services), changed),
            gone: (rows(&self.gone) != rows(&before.gone)).then(|| self.export_gone()),
            free_ids: (self.ids != before.ids).then(|| self.ids.runs()),
            next_hops: self.hops.changed_since(&before.hops),
            ..SavedChanges::default()
        }
    }

    /// Whether the whole state, including every counter, equals that of `before`, an earlier copy of this controller.
    #[must_use]
    pub fn is_untouched_since(&self, before: &Self) -> bool {
        let known = |gone: &[Gone]| gone.iter().map(|gone| gone.known).collect::<Vec<_>>();
        self.services.is_untouched_since(&before.services) && known(&self.gone) == known(&before.gone)
    }

    fn export_gone(&self) -> Vec<SavedGone> {
        let saved =
            |gone: &Gone| SavedGone { name: gone.name.clone(), row: BackendSpec::clone(&gone.row), known: gone.known };
        self.gone.iter().map(saved).collect()
    }

    /// Restores the controller that exported `state`, with the same ids and tables; a later call of
    /// [`start`](Self::start) applies what has changed in `config`. `key` is the hash key from the configuration or
    /// from the state.
    ///
    /// # Errors
    /// Returns one line about a contradiction in the given state.
    pub fn restore(config: Config, key: HashKey, state: SavedState, clocks: Clocks) -> Result<Self, String> {
        let mut this = Self::new(config, key);
        this.restored = true;
        this.instance = state.instance;
        this.take_in(state, clocks)?;
        this.settings.make_room_for(&this.file);
        Ok(this)
    }

    /// Restores services, ids, removed backends and next hops.
    pub(super) fn take_in(&mut self, state: SavedState, clocks: Clocks) -> Result<(), String> {
        let file = consistent(&state)?;
        self.generation = state.generation;
        self.file = file;
        self.drop_ins = Arc::new(state.drop_ins);
        self.hops = NextHops::restored(state.next_hops);
        self.gone = state
            .gone
            .into_iter()
            .map(|gone| Gone { name: gone.name, row: Arc::new(gone.row), known: gone.known, empty_sweeps: 0 })
            .collect();
        let restored = |service| Service::restored(service, self.key, &self.hops, clocks);
        self.services = state.services.into_iter().map(restored).collect();
        let file = by_name(&self.file);
        for service in self.services.those_mut(|_| true) {
            if let Some(config) = file.get(service.name()).filter(|config| service.is_configured_as(config)) {
                service.note_configured(config);
            }
        }
        self.owners = self
            .services
            .iter()
            .flat_map(|service| service.backends().iter().map(|backend| (backend.id(), service.id())))
            .collect();
        let used = self.owners.keys().copied().chain(self.gone.iter().map(|gone| gone.row.id));
        self.ids = Ids::restored(&state.free_ids, &used.map(|id| id.0).collect::<HashSet<_>>());
        Ok(())
    }

    /// The current configuration of all services; the result shares unchanged configurations and does not copy them.
    pub(crate) fn present(&self) -> Vec<Arc<ServiceConfig>> {
        let file = by_name(&self.file);
        let parts: Vec<&Service> = self.services.iter().collect();
        let present = parts.chunk_by(|one, other| one.name() == other.name()).filter_map(|parts| {
            let first = parts.first()?;
            let likely = first.configured_as().into_iter().chain(file.get(first.name()).copied());
            let same = likely.filter(|config| are_configured_as(parts, config)).map(Arc::clone).next();
            same.or_else(|| joined(parts).map(Arc::new))
        });
        present.collect()
    }

    /// The current configuration of the `wanted` services.
    pub(super) fn configs_of(&self, wanted: impl Fn(&str) -> bool) -> Vec<ServiceConfig> {
        let parts: Vec<&Service> = self.services.iter().filter(|service| wanted(service.name())).collect();
        parts.chunk_by(|one, other| one.name() == other.name()).filter_map(joined).collect()
    }
}

/// The configuration of the service to which these parts belong.
fn joined(parts: &[&Service]) -> Option<ServiceConfig> {
    let (first, others) = parts.split_first()?;
    let mut config = first.config();
    for part in others {
        // A backend that was removed from one part of its service stays in the configuration until it is removed from
        // the other part.
        let known: HashSet<String> = config.backends.iter().map(|backend| backend.name.clone()).collect();
        let left = part.backends().iter().filter(|backend| !known.contains(backend.name()));
        config.backends.extend(left.map(|backend| backend.config().clone()));
    }
    Some(config)
}

fn changed_file(before: &[Arc<ServiceConfig>], now: &[Arc<ServiceConfig>]) -> ListChanges<String, ServiceConfig> {
    if is_one(before, now) {
        return ListChanges::default();
    }
    let names = |services: &[Arc<ServiceConfig>]| services.iter().map(|of| of.name.clone()).collect();
    let old = by_name(before);
    let changed = now.iter().filter(|of| alike(&old, of).is_none()).map(|of| ServiceConfig::clone(of)).collect();
    ListChanges::new(names(before), names(now), changed)
}

/// Checks properties on which the controller relies, and which the state in a foreign file may lack. Returns the
/// services of the configuration file.
fn consistent(state: &SavedState) -> Result<Valid, String> {
    if let Some(count) = state.counts().find(|count| *count > MOST_COUNTED) {
        return Err(format!("the count {count} is impossible"));
    }
    let mut services = HashMap::new();
    let mut backends = HashSet::new();
    let mut parts = HashSet::new();
    let mut configs = Vec::new();
    for service in &state.services {
        if let Some(other) = services.insert(service.id, &service.settings.name) {
            return Err(format!("services {other} and {} have one id", service.settings.name));
        }
        let configured = service.backends.iter().map(|backend| backend.config.clone());
        let config = ServiceConfig { backends: configured.collect(), ..service.settings.clone() };
        let family = service.family.unwrap_or(config.first().family());
        if !parts.insert((service.settings.name.clone(), family)) {
            return Err(format!("service {} is there twice for {family}", service.settings.name));
        }
        if config.families().first() == Some(&family) {
            configs.push(config);
        }
    }
    let rows = state.gone.iter().map(|gone| (gone.row.id, &gone.name));
    let present = state.services.iter().flat_map(|service| &service.backends);
    for (id, name) in present.map(|backend| (backend.id, &backend.config.name)).chain(rows) {
        if !(1..=LAST_BACKEND).contains(&id.0) || !backends.insert(id) {
            return Err(format!("backend {name} has the id {}, which is out of range or another's", id.0));
        }
    }
    Valid::new(shared(configs)).map_err(|problem| problem.to_string())?;
    Valid::new(shared(state.file.clone())).map_err(|problem| problem.to_string())
}
