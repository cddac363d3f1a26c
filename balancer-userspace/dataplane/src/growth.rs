//! Maps with more rows, which replace full maps while the program runs.
//!
//! The kernel cannot grow a map. For a change that does not fit into the maps, the controller therefore loads the program
//! once more, with larger maps in place of the full ones and with the same maps otherwise. The larger maps begin with the
//! rows of the full ones, at the same indices. From then on until the new program has replaced the present one on every
//! interface, the controller writes to both, so that a packet finds the same data whichever program processes it. Only
//! afterwards does the controller make the change.

use std::{collections::HashMap, fmt};

use anyhow::Context as _;
use aya::maps::MapData;
use balancer_config::words::grouped;
use bytemuck::Pod;

use super::{
    capacity::Capacity,
    counter_rows::{CounterMaps, Cpus},
    map_sizes::{self, MapSize},
    mapped::MappedArray,
};

/// The maps that a change needs in place of smaller ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The sizes afterwards.
    pub(super) capacity: Capacity,
    /// The larger maps.
    pub(super) maps: Vec<MapSize>,
    /// The number of bytes by which all maps together grow.
    pub(super) bytes: u64,
}

/// The larger maps, which no program that processes packets uses yet.
#[derive(Debug)]
pub struct Larger {
    pub(super) growth: Growth,
    maps: HashMap<&'static str, MapData>,
}

impl Growth {
    pub(super) fn new(before: &Capacity, capacity: Capacity) -> Self {
        // The sizes of the maps that grow do not depend on the numbers of CPUs and interfaces.
        let sizes = |capacity: &Capacity| {
            map_sizes::sizes(capacity, &CounterMaps::new(capacity, 1), Cpus { possible: 1, online: 1 }, 1)
        };
        let (before, after) = (sizes(before), sizes(&capacity));
        let bytes = map_sizes::total(&after).saturating_sub(map_sizes::total(&before));
        let larger = before.into_iter().zip(after).filter(|(before, after)| before != after);
        Self { capacity, maps: larger.map(|(_, after)| after).collect(), bytes }
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let room = self.capacity.room();
        write!(
            f,
            "{} services, {} listener rows, {} return rows and {} slots",
            grouped(room.services),
            grouped(room.listeners),
            grouped(room.returns),
            grouped(self.capacity.slots),
        )
    }
}

impl Larger {
    pub(super) const fn new(growth: Growth, maps: HashMap<&'static str, MapData>) -> Self {
        Self { growth, maps }
    }

    /// Takes one of the maps; `None`: this map does not grow.
    ///
    /// # Errors
    /// Fails if the kernel refuses to map the map into memory.
    pub(super) fn take<T: Pod>(&mut self, name: &str) -> anyhow::Result<Option<MappedArray<T>>> {
        let map = self.maps.remove(name).map(MappedArray::new).transpose();
        map.with_context(|| format!("the larger map {name}"))
    }
}
