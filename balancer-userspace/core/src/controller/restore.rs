//! The controller to and from what outlives the process.

use std::collections::{HashMap, HashSet};

use balancer_common::{client::HashKey, map_types::MAX_BACKENDS};
use balancer_model::{
    config::{Config, ServiceConfig},
    validate,
};

use super::{Controller, Gone};
use crate::{
    ids::Ids,
    keys,
    next_hops::NextHops,
    service::Service,
    state::{Clocks, SavedGone, SavedState, VERSION},
};

impl Controller {
    /// What a later [`restore`](Self::restore) needs.
    #[must_use]
    pub fn export(&self, clocks: Clocks) -> SavedState {
        SavedState {
            version: VERSION,
            instance: self.instance,
            generation: self.generation,
            hash_key: self.keeps_key.then_some(self.key),
            key_fingerprint: keys::fingerprint(self.key),
            file: self.file.clone(),
            services: self.services.iter().map(|service| service.export(clocks)).collect(),
            gone: self
                .gone
                .iter()
                .map(|gone| SavedGone { name: gone.name.clone(), row: gone.row.clone(), known: gone.known })
                .collect(),
            free_ids: self.ids.runs(),
            next_hops: self.hops.all().map(|(address, hop)| (address, hop.clone())).collect(),
            departed: std::collections::BTreeMap::new(),
            repeated_moves: std::collections::BTreeMap::new(),
            epoch: None,
            clock: None,
            withdrawn: false,
        }
    }

    /// The controller that `state` was exported from, with the same ids and tables; [`start`](Self::start) then takes
    /// over what `config` says otherwise than the file did before. `key` is the configuration's or the state's.
    ///
    /// # Errors
    /// What in the state contradicts itself, in one line.
    pub fn restore(config: Config, key: HashKey, state: SavedState, clocks: Clocks) -> Result<Self, String> {
        let mut this = Self::new(config, key);
        this.restored = true;
        this.instance = state.instance;
        this.take_in(state, clocks)?;
        Ok(this)
    }

    /// Takes over services, ids, removed backends, and what is known of next hops.
    pub(super) fn take_in(&mut self, state: SavedState, clocks: Clocks) -> Result<(), String> {
        consistent(&state)?;
        self.generation = state.generation;
        self.file = state.file;
        self.hops = NextHops::restored(state.next_hops);
        self.gone = state
            .gone
            .into_iter()
            .map(|gone| Gone { name: gone.name, row: gone.row, known: gone.known, empty_sweeps: 0 })
            .collect();
        let restored = |service| Service::restored(service, self.key, &self.hops, clocks);
        self.services = state.services.into_iter().map(restored).collect();
        self.owners = self
            .services
            .iter()
            .flat_map(|service| service.backends().iter().map(|backend| (backend.id(), service.id())))
            .collect();
        let used = self.owners.keys().copied().chain(self.gone.iter().map(|gone| gone.row.id));
        self.ids = Ids::restored(&state.free_ids, &used.map(|id| id.0).collect::<HashSet<_>>());
        Ok(())
    }

    /// The services as they are configured now.
    pub(crate) fn configs(&self) -> Vec<ServiceConfig> {
        let mut configs: Vec<ServiceConfig> = Vec::with_capacity(self.services.len());
        for service in &self.services {
            let config = service.config();
            let Some(first) = configs.last_mut().filter(|first| first.name == config.name) else {
                configs.push(config);
                continue;
            };
            // One that has left one part of its service stays until it has left the other.
            let known: HashSet<String> = first.backends.iter().map(|backend| backend.name.clone()).collect();
            first.backends.extend(config.backends.into_iter().filter(|backend| !known.contains(&backend.name)));
        }
        configs
    }
}

/// Checks what the controller relies on and a file made by somebody else may lack.
fn consistent(state: &SavedState) -> Result<(), String> {
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
        if !(1..MAX_BACKENDS as u16).contains(&id.0) || !backends.insert(id) {
            return Err(format!("backend {name} has the id {}, which is out of range or another's", id.0));
        }
    }
    validate::services(&configs).map_err(|problem| problem.to_string())?;
    validate::services(&state.file).map_err(|problem| problem.to_string())
}
