//! Makes a controller that continues from the state of the previous controller.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use balancer_common::client::HashKey;
use balancer_config::config::{self, Config};
use balancer_control::{
    controller::{Controller, Largest},
    keys,
    state::{SavedCounters, SavedEpoch, SavedState},
};
use balancer_dataplane::{Histories, Pins};
use balancer_fleet::store_schema::Epoch;
use balancer_runtime::{
    clocks::{as_saved, clocks},
    supervisor::Supervisor,
};
use balancer_state::state_file::{Loaded, StateFile};
use tokio::time::Instant;
use tracing::{info, warn};

use super::fleet::Fleet;

/// A controller that has not started yet, and its state file.
pub(super) struct Resumed {
    pub(super) controller: Controller,
    /// The counters of removed backends.
    pub(super) removed_backends: BTreeMap<u16, BTreeMap<String, SavedCounters>>,
    /// The moves that other members of a fleet also count.
    pub(super) repeated_moves: BTreeMap<u16, Vec<u64>>,
    /// Whether the operator has withdrawn the VIPs.
    pub(super) withdrawn: bool,
    pub(super) file: StateFile,
    /// The largest numbers of services, backends and ids, for which the maps must have room.
    pub(super) largest: Largest,
    /// The epoch of the fleet's state that the previous controller followed.
    pub(super) epoch: Option<SavedEpoch>,
    /// The state from which the controller was made.
    state: Option<SavedState>,
}

impl Resumed {
    /// Joins a fleet, and makes the controller follow the fleet's decisions.
    pub(super) async fn join(
        &mut self,
        fleet: &config::Fleet,
        config: &Config,
        pins: Option<&Pins>,
        supervisor: &Supervisor,
    ) -> anyhow::Result<Fleet> {
        let key = self.controller.key();
        let epoch = self.epoch;
        let held = epoch.zip(self.state.clone()).map(|(SavedEpoch { lineage, number, at }, state)| {
            (Epoch { lineage, number }, SavedState { next_hops: Vec::new(), clock: None, ..state }, at)
        });
        let member = Fleet::join(fleet, config, key, held, supervisor).await?;
        let now = Instant::now().into_std();
        let settings = config.clone();
        let fleets = member.key().unwrap_or(key);
        let instance = self.controller.instance();
        if fleets != key && pins.and_then(Pins::left).is_some() {
            bail!(
                "the fleet's hash key differs from that of the maps that the previous balancer left: run `balancer \
                 detach`, which deletes the known clients in them, and start again"
            );
        }
        if self.epoch.is_some() && fleets == key {
            let controller = std::mem::replace(&mut self.controller, Controller::follower(settings, key, now));
            self.controller = controller.into_follower(now);
        } else {
            self.controller = Controller::follower(settings, fleets, now);
            self.controller.set_instance(instance);
            self.epoch = None;
        }
        if let Some(state) = member.first_state() {
            let both = Controller::restore(config.clone(), fleets, state.clone(), clocks());
            // If the state is contradictory, the controller refuses it later, when it should follow it.
            self.largest.extend(both.map(|both| both.largest()).unwrap_or_default());
        }
        Ok(member)
    }
}

/// Makes a controller from the state file, or, without a state file, a new controller. `as_written` is the
/// configuration without command line overrides.
///
/// The maps in `pins` belong to exactly one state, and the counters in the maps are newer than those in the state file.
pub(super) fn resume(config: &Config, as_written: Config, pins: Option<&Pins>) -> anyhow::Result<Resumed> {
    let notes = pins.and_then(Pins::left);
    let mut file = StateFile::open(&config.state_file)?;
    let path = file.path().display().to_string();
    let state = match file.load()? {
        Loaded::Nothing => {
            info!("no state file {path}: starting with the configuration file alone");
            None
        }
        Loaded::State(state) => {
            info!("using the state file {path}, generation {}", state.generation);
            Some(state)
        }
        Loaded::Older(state, warning) => {
            warn!("{warning}");
            Some(state)
        }
    };
    if let Some(notes) = notes
        && state.as_ref().is_none_or(|state| state.instance != notes.instance)
    {
        bail!(
            "the state file {path} does not belong to the maps that the previous balancer left: put the right state \
             file back, or run `balancer detach`, which deletes the known clients in the maps, and start again"
        );
    }
    let Some(mut state) = state else {
        let key = config.hash_key.map_or_else(random_key, Ok)?;
        let mut controller = Controller::new(as_written, key);
        controller.set_instance(random()?);
        let largest = controller.largest();
        let (removed_backends, repeated_moves) = (BTreeMap::new(), BTreeMap::new());
        let (withdrawn, epoch, state) = (false, None, None);
        return Ok(Resumed { controller, removed_backends, repeated_moves, withdrawn, file, largest, epoch, state });
    };
    match (pins, notes) {
        (Some(pins), Some(_)) => Histories::open(pins)?.bring_up_to_date(&mut state),
        _ => state.restart_counters(config.fleet.is_some()),
    }
    let saved = config.fleet.is_some().then(|| (*state).clone());
    let SavedState { hash_key, key_fingerprint, removed_backends, repeated_moves, withdrawn, epoch, .. } =
        (*state).clone();
    let key = config.hash_key.or(hash_key).map_or_else(random_key, Ok)?;
    let clocks = as_saved(&mut state);
    let mut controller = Controller::restore(as_written, key, *state, clocks).map_err(|why| {
        anyhow!(
            "the state file {path} contradicts itself ({why}): replace it by a good one, or move it away to start \
             with the configuration file alone, without the changes made at run time"
        )
    })?;
    if keys::fingerprint(key) != key_fingerprint {
        if notes.is_some() {
            bail!(
                "the hash key differs from that of the maps that the previous balancer left: put the old key back, or \
                 run `balancer detach`, which deletes the known clients in the maps, and start again"
            );
        }
        warn!("the hash key has changed: all clients are unknown, and most go to other backends");
        // The maps of the kernel contain hashes that were computed with the previous key.
        controller.set_instance(random()?);
    }
    let largest = controller.largest();
    Ok(Resumed { controller, removed_backends, repeated_moves, withdrawn, file, largest, epoch, state: saved })
}

fn random_key() -> anyhow::Result<HashKey> {
    Ok(HashKey { k0: random()?, k1: random()? })
}

fn random() -> anyhow::Result<u64> {
    getrandom::u64().context("no random numbers")
}
