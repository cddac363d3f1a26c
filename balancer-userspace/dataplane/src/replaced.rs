//! Pinned maps with a row for each backend or service, where there are more or fewer rows than an earlier controller had.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use aya::maps::MapData;
use balancer_common::{
    kept::{BackendHistory, ServiceHistory},
    map_types::BackendStats,
};
use bytemuck::Pod;
use tracing::info;

use super::{capacity::Capacity, cpu_rows::CpuRows, mapped::MappedArray, pins::Pins};

const BACKENDS: &str = "BACKEND_HISTORY";
const SERVICES: &str = "SERVICE_HISTORY";
const COUNTERS: &str = "BACKEND_STATS";

/// Maps that are made anew, with what was counted. Until all of that is in them, the pins of those from before stay.
pub(super) struct Replaced(Vec<One>);

struct One {
    name: &'static str,
    /// Where it is pinned.
    pin: PathBuf,
    /// Where the map that is to replace it is pinned at first.
    new: PathBuf,
    /// How many rows it had, and is to have.
    rows: (u32, u32),
}

impl Replaced {
    /// Those of the pinned maps that have not as many rows as `capacity` says, or have counters of another number of CPUs'
    /// `blocks`.
    pub(super) fn before_load(pins: &Pins, capacity: &Capacity, blocks: u32) -> anyhow::Result<Self> {
        let mut replaced = Vec::new();
        let (backends, services) = (capacity.backends, capacity.service_histories());
        for (name, rows, each) in [(BACKENDS, backends, 1), (SERVICES, services, 1), (COUNTERS, backends, blocks)] {
            let temporary = format!("NEW-{name}");
            // Of a controller that was killed on its way.
            pins.make_anew(&temporary)?;
            let (pin, new) = (pins.map(name), pins.map(&temporary));
            if !pin.exists() {
                continue;
            }
            let before = open(&pin)?.info().context("reading the map's description")?.max_entries();
            if before != each * rows {
                replaced.push(One { name, pin, new, rows: (before / each, rows) });
            }
        }
        Ok(Self(replaced))
    }

    /// Where a map is to be pinned, if it replaces another.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.iter().find(|one| one.name == name).map(|one| one.new.clone())
    }

    /// Copies what there is room for, and has the new maps take the places of those from before.
    pub(super) fn carry_over(self) -> anyhow::Result<()> {
        for One { name, pin, new, rows: (rows, room) } in self.0 {
            let (from, to) = (open(&pin)?, open(&new)?);
            match name {
                BACKENDS => copy_rows::<BackendHistory>(from, to),
                SERVICES => copy_rows::<ServiceHistory>(from, to),
                _ => copy_counters((from, rows), (to, room)),
            }
            .with_context(|| format!("carrying over the map {name}"))?;
            fs::rename(&new, &pin).with_context(|| format!("pinning the map {name}"))?;
            info!(
                "{name} has {room} rows instead of {rows}: what was counted is carried over, but for what is counted until \
                 the program is replaced"
            );
        }
        Ok(())
    }
}

fn open(pin: &PathBuf) -> anyhow::Result<MapData> {
    MapData::from_pin(pin).with_context(|| format!("opening the pinned map {}", pin.display()))
}

fn copy_rows<Row: Pod>(from: MapData, to: MapData) -> anyhow::Result<()> {
    let (from, mut to) = (MappedArray::<Row>::new(from)?, MappedArray::<Row>::new(to)?);
    for row in 0..from.len().min(to.len()) {
        to.store(row, from.load(row));
    }
    Ok(())
}

/// Between maps with so many rows for each CPU.
fn copy_counters((from, had): (MapData, u32), (to, has): (MapData, u32)) -> anyhow::Result<()> {
    CpuRows::<BackendStats>::of(to, has)?.copy_from(&CpuRows::of(from, had)?);
    Ok(())
}
