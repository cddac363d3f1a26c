//! Replaces pinned maps with a row for each backend, service or CPU, if the maps of an earlier controller have more or
//! fewer rows.

use std::{fmt, fs, path::PathBuf};

use anyhow::Context as _;
use aya::maps::MapData;
use balancer_common::{
    kept::{BackendHistory, ServiceHistory},
    map_types::{BackendStats, ListenerStats, RuleStats},
};
use bytemuck::Pod;
use tracing::info;

use super::{
    capacity::Capacity,
    counter_rows::{BACKENDS as BACKEND_COUNTERS, CounterMaps, CounterRows, Cpus, LISTENERS},
    cpu_rows::Blocks,
    mapped::MappedArray,
    pins::{Pins, open},
};

const BACKENDS: &str = "BACKEND_HISTORY";
const SERVICES: &str = "SERVICE_HISTORY";
const SHARED: &str = "SHARED_BACKENDS";

/// Maps that the controller makes anew. The pins of the old maps stay until the controller has copied all counts.
pub(super) struct Replaced(Vec<One>);

struct One {
    name: &'static str,
    /// The path of the old map's pin.
    pin: PathBuf,
    /// The path at which the controller first pins the new map.
    new: PathBuf,
    /// The sizes of the old map and of the new map.
    sizes: (Size, Size),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Rows(u32),
    OfCpus(CounterRows),
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "{rows} rows"),
            Self::OfCpus(CounterRows { blocks, rows }) => write!(f, "{rows} rows for each of {blocks} CPUs"),
        }
    }
}

impl Replaced {
    /// The pinned maps whose number of rows differs from the number that `capacity` requires, or that have counters for
    /// fewer CPUs than are online. The function also returns the layouts of the counter maps. A CPU that has counters
    /// of its own keeps them while the maps exist.
    pub(super) fn before_load(
        pins: Option<&Pins>,
        capacity: &Capacity,
        cpus: Cpus,
    ) -> anyhow::Result<(Self, CounterMaps)> {
        let wanted = CounterMaps::new(capacity, cpus.online);
        let Some(pins) = pins else { return Ok((Self(Vec::new()), wanted)) };
        let mut counters = Vec::new();
        for (name, _) in wanted.all() {
            let before = entries(pins, name)?.map(CounterRows::of);
            counters.extend(before.map(|before| (name, before)));
        }
        let blocks = counters.iter().map(|(_, before)| before.blocks).fold(cpus.online, u32::max);
        let wanted = CounterMaps::new(capacity, blocks);
        let mut replaced = Vec::new();
        let rows =
            [(BACKENDS, capacity.backends), (SHARED, capacity.backends), (SERVICES, capacity.service_histories())];
        for (name, rows) in rows {
            let before = entries(pins, name)?;
            replaced.extend(before.map(|before| (name, Size::Rows(before), Size::Rows(rows))));
        }
        for (name, before) in counters {
            let there = wanted.all().into_iter().find(|(of, _)| *of == name);
            replaced.extend(there.map(|(_, rows)| (name, Size::OfCpus(before), Size::OfCpus(rows))));
        }
        let mut all = Vec::new();
        for (name, before, rows) in replaced {
            let temporary = format!("NEW-{name}");
            // A controller that was killed during a replacement has left this pin.
            pins.make_anew(&temporary)?;
            if before != rows {
                all.push(One { name, pin: pins.map(name), new: pins.map(&temporary), sizes: (before, rows) });
            }
        }
        Ok((Self(all), wanted))
    }

    /// The path at which the controller must pin a map, if the map replaces another map.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.iter().find(|one| one.name == name).map(|one| one.new.clone())
    }

    /// Copies as many rows as the new maps can hold, and moves the pins of the new maps to the paths of the old maps.
    pub(super) fn carry_over(self) -> anyhow::Result<()> {
        for One { name, pin, new, sizes: (before, now) } in self.0 {
            let (from, to) = (open(&pin)?, open(&new)?);
            match (before, now) {
                (Size::OfCpus(before), Size::OfCpus(now)) => copy_counters(name, (from, before.rows), (to, now.rows)),
                _ => match name {
                    BACKENDS => copy_rows::<BackendHistory>(from, to),
                    SERVICES => copy_rows::<ServiceHistory>(from, to),
                    _ => copy_rows::<BackendStats>(from, to),
                },
            }
            .with_context(|| format!("carrying over the map {name}"))?;
            fs::rename(&new, &pin).with_context(|| format!("pinning the map {name}"))?;
            info!(
                "{name} has {now} instead of {before}: what was counted is carried over, but for what is counted until the \
                 program is replaced"
            );
        }
        Ok(())
    }
}

/// The number of entries of a pinned map; `None`: the map does not exist.
pub(super) fn entries(pins: &Pins, name: &str) -> anyhow::Result<Option<u32>> {
    let pin = pins.map(name);
    if !pin.exists() {
        return Ok(None);
    }
    Ok(Some(open(&pin)?.info().context("reading the map's description")?.max_entries()))
}

fn copy_rows<Row: Pod>(from: MapData, to: MapData) -> anyhow::Result<()> {
    let (from, mut to) = (MappedArray::<Row>::new(from)?, MappedArray::<Row>::new(to)?);
    for row in 0..from.len().min(to.len()) {
        to.store(row, from.load(row));
    }
    Ok(())
}

/// Copies counters between two maps with the given numbers of rows for each CPU.
fn copy_counters(name: &str, from: (MapData, u32), to: (MapData, u32)) -> anyhow::Result<()> {
    fn copy<T: Pod>((from, had): (MapData, u32), (to, has): (MapData, u32)) -> anyhow::Result<()> {
        Blocks::<T>::of(to, has)?.copy_from(&Blocks::of(from, had)?);
        Ok(())
    }
    match name {
        BACKEND_COUNTERS => copy::<BackendStats>(from, to),
        LISTENERS => copy::<ListenerStats>(from, to),
        _ => copy::<RuleStats>(from, to),
    }
}
