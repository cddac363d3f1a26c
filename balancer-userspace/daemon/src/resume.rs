//! Going on where the last controller ended.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use balancer_common::client::HashKey;
use balancer_core::{
    controller::Controller,
    keys,
    state::{Clocks, SavedCounters, SavedState},
};
use balancer_dataplane::Pins;
use balancer_model::config::Config;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    owner::wall,
    state_file::{Loaded, StateFile},
};

/// A controller that has not started, and where its state is kept.
pub(super) struct Resumed {
    pub(super) controller: Controller,
    /// What backends that are gone have counted.
    pub(super) departed: BTreeMap<u16, BTreeMap<String, SavedCounters>>,
    pub(super) file: StateFile,
}

/// Makes the controller of the state file, or a new one where there is none. `as_written` is the configuration without
/// what the command line said.
///
/// The maps in `pins` belong to one state; their counters are later than those of the file.
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
            info!("going on from the state in {path}, generation {}", state.generation);
            Some(state)
        }
        Loaded::Previous(state, warning) => {
            warn!("{warning}");
            Some(state)
        }
    };
    if let Some(notes) = notes
        && state.as_ref().is_none_or(|state| state.instance != notes.instance)
    {
        bail!(
            "a balancer left its maps running, and {path} is not the state that belongs to them: put that back, or give up \
             what they remember with `balancer detach` and start again"
        );
    }
    let Some(mut state) = state else {
        let key = config.hash_key.map_or_else(random_key, Ok)?;
        let mut controller = Controller::new(as_written, key);
        controller.set_instance(random()?);
        return Ok(Resumed { controller, departed: BTreeMap::new(), file });
    };
    if let (Some(pins), Some(_)) = (pins, notes) {
        pins.histories()?.bring_up_to_date(&mut state);
    }
    let SavedState { hash_key, key_fingerprint, departed, .. } = (*state).clone();
    let key = config.hash_key.or(hash_key).map_or_else(random_key, Ok)?;
    let clocks = Clocks { now: Instant::now().into_std(), wall: wall() };
    let mut controller = Controller::restore(as_written, key, *state, clocks).map_err(|why| {
        anyhow!(
            "the state file {path} contradicts itself ({why}): put a good one in its place, or move it away to start with \
             the configuration file alone, without what was changed at run time"
        )
    })?;
    if keys::fingerprint(key) != key_fingerprint {
        if notes.is_some() {
            bail!(
                "the hash key is another one than that of the maps that a balancer left running: put the old one back, or \
                 give up what they remember with `balancer detach` and start again"
            );
        }
        warn!("the hash key is another one than before: clients are steered elsewhere, and nobody is known");
        // What the kernel remembers is under the old key.
        controller.set_instance(random()?);
    }
    Ok(Resumed { controller, departed, file })
}

fn random_key() -> anyhow::Result<HashKey> {
    Ok(HashKey { k0: random()?, k1: random()? })
}

fn random() -> anyhow::Result<u64> {
    getrandom::u64().context("no random numbers")
}
