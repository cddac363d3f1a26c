//! The differences between a state and an earlier state that was written before.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{DropIns, SavedClock, SavedCountersByService, SavedEpoch, SavedGone, SavedService, SavedState};
use crate::{io::ServiceId, next_hops::Hop};
use balancer_config::config::ServiceConfig;

/// Changes that turn an earlier state into a later state; if a field is absent, its value is unchanged. A change of
/// nothing but counters of checks and sweeps is left out, so these counters are as old as the last complete state or as
/// the last other change of their service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedChanges {
    /// The new value of [`SavedState::generation`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The new value of [`SavedState::file`].
    #[serde(default, skip_serializing_if = "ListChanges::is_empty")]
    pub file: ListChanges<String, ServiceConfig>,
    /// The new value of [`SavedState::drop_ins`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_ins: Option<DropIns>,
    /// The changes of [`SavedState::services`].
    #[serde(default, skip_serializing_if = "ListChanges::is_empty")]
    pub services: ListChanges<ServiceId, SavedService>,
    /// The changes of [`SavedState::gone`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Vec<SavedGone>>,
    /// The new value of [`SavedState::free_ids`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_ids: Option<Vec<(u16, u16)>>,
    /// The changes of [`SavedState::next_hops`]; `None`: the address is no longer watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_hops: Vec<(IpAddr, Option<Hop>)>,
    /// The changes of [`SavedState::removed_backends`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_backends: Option<SavedCountersByService>,
    /// The changes of [`SavedState::repeated_moves`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated_moves: Option<std::collections::BTreeMap<u16, Vec<u64>>>,
    /// The new value of [`SavedState::withdrawn`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<bool>,
    /// The new value of [`SavedState::epoch`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<SavedEpoch>,
    /// The new value of [`SavedState::clock`]; the clock has advanced steadily since the earlier state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<SavedClock>,
}

/// The differences between two versions of a list whose items have keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListChanges<K, T> {
    /// The keys in their new order, if the set of keys or their order has changed.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub order: Option<Vec<K>>,
    /// The items that are new or have changed.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<T>,
}

impl<K, T> Default for ListChanges<K, T> {
    fn default() -> Self {
        Self { order: None, changed: Vec::new() }
    }
}

impl<K, T> ListChanges<K, T> {
    fn is_empty(&self) -> bool {
        self.order.is_none() && self.changed.is_empty()
    }
}

impl<K: Eq + Hash, T> ListChanges<K, T> {
    /// Compares the keys `before` and `now`; `changed` contains the items that are new or different.
    pub(crate) fn new(before: Vec<K>, now: Vec<K>, changed: Vec<T>) -> Self {
        Self { order: (before != now).then_some(now), changed }
    }

    fn apply(self, list: &mut Vec<T>, key: impl Fn(&T) -> K) {
        let mut changed: HashMap<K, T> = self.changed.into_iter().map(|thing| (key(&thing), thing)).collect();
        let Some(order) = self.order else {
            for thing in list {
                if let Some(now) = changed.remove(&key(thing)) {
                    *thing = now;
                }
            }
            return;
        };
        let mut before: HashMap<K, T> = std::mem::take(list).into_iter().map(|thing| (key(&thing), thing)).collect();
        list.extend(order.iter().filter_map(|key| changed.remove(key).or_else(|| before.remove(key))));
    }
}

impl SavedChanges {
    /// Whether a restart without these changes would find the same state.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self { clock: self.clock.clone(), ..Self::default() }
    }
}

impl SavedState {
    /// Applies the changes, which turn this state into the later state.
    pub fn apply(&mut self, changes: SavedChanges) {
        let SavedChanges {
            generation,
            file,
            drop_ins,
            services,
            gone,
            free_ids,
            next_hops,
            removed_backends,
            repeated_moves,
            withdrawn,
            epoch,
            clock,
        } = changes;
        self.generation = generation.unwrap_or(self.generation);
        file.apply(&mut self.file, |service| service.name.clone());
        put(&mut self.drop_ins, drop_ins);
        services.apply(&mut self.services, |service| service.id);
        put(&mut self.gone, gone);
        put(&mut self.free_ids, free_ids);
        if !next_hops.is_empty() {
            let changed: HashMap<IpAddr, Option<Hop>> = next_hops.into_iter().collect();
            self.next_hops.retain(|(address, _)| !changed.contains_key(address));
            self.next_hops.extend(changed.into_iter().filter_map(|(address, hop)| Some((address, hop?))));
            self.next_hops.sort_unstable_by_key(|&(address, _)| address);
        }
        put(&mut self.removed_backends, removed_backends);
        put(&mut self.repeated_moves, repeated_moves);
        put(&mut self.withdrawn, withdrawn);
        self.epoch = epoch.or(self.epoch);
        self.clock = clock.or(self.clock.take());
    }
}

fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}
