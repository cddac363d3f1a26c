//! Maps with two halves: the kernel program reads the active half, and the controller writes the inactive half.

use aya::maps::MapData;
use balancer_common::map_types::ServiceKey;

use super::{mapped::MappedArray, placement};

/// A map with two halves.
pub(super) struct Halves<T> {
    pub(super) rows: MappedArray<T>,
    half: u32,
    pub(super) second_active: bool,
}

impl<T: bytemuck::Pod> Halves<T> {
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        let rows = MappedArray::new(map)?;
        let half = u32::try_from(rows.len() / 2)?;
        Ok(Self { rows, half, second_active: false })
    }

    /// The first row of the inactive half of the map.
    pub(super) fn inactive_base(&self) -> u32 {
        if self.second_active { 0 } else { self.half }
    }

    /// Writes `rows` consecutively into the inactive half, which the program does not read, and returns the position of
    /// the first row.
    pub(super) fn fill_densely(&mut self, rows: &[T], what: &str) -> anyhow::Result<u32> {
        let base = self.inactive_base();
        anyhow::ensure!(
            rows.len() <= self.half as usize,
            "no room for {} {what} in {} rows; a restart makes room",
            rows.len(),
            self.half
        );
        for (row, value) in (base..).zip(rows) {
            self.rows.store(row as usize, *value);
        }
        Ok(base)
    }

    /// Writes `rows` into the inactive half, which the program does not read, and returns the positions of the rows.
    pub(super) fn fill(&mut self, rows: &[T], keys: &[ServiceKey]) -> anyhow::Result<placement::Placement> {
        let base = self.inactive_base();
        let placement = placement::place(keys, base, self.half)?;
        for row in base..base + self.half {
            self.rows.store(row as usize, T::zeroed());
        }
        for (row, value) in placement.rows.iter().zip(rows) {
            self.rows.store(*row as usize, *value);
        }
        Ok(placement)
    }
}
