//! Maps with two halves: the kernel program reads the active half, and the controller writes the inactive half.

use aya::maps::MapData;
use balancer_common::map_types::ServiceKey;

use super::{
    mapped::MappedArray,
    mirrored::{Grows, Mirrored},
    placement,
};

/// A map with two halves.
pub(super) struct Halves<T> {
    pub(super) rows: Mirrored<T>,
    half: u32,
    second_active: bool,
    /// Whether the second half is the half that the controller has filled last.
    second_filled: bool,
}

impl<T: bytemuck::Pod> Halves<T> {
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        let rows = MappedArray::new(map)?;
        let half = u32::try_from(rows.len() / 2)?;
        Ok(Self { rows: Mirrored::new(rows), half, second_active: false, second_filled: false })
    }

    /// Records that the program now reads the half that was filled last.
    pub(super) const fn activate(&mut self) {
        self.second_active = self.second_filled;
    }

    /// Writes to a larger map as well from now on, each half of which is at least twice as long.
    pub(super) fn begin(&mut self, larger: MappedArray<T>) {
        self.rows.begin(larger);
    }

    /// The first row of the inactive half of the map.
    pub(super) fn inactive_base(&self) -> u32 {
        if self.second_active { 0 } else { self.half }
    }

    /// Writes `rows` consecutively into the inactive half, which the program does not read, and returns the position of
    /// the first row.
    pub(super) fn fill_densely(&mut self, rows: &[T], what: &str) -> anyhow::Result<u32> {
        let base = self.inactive_base();
        anyhow::ensure!(rows.len() <= self.half as usize, "no room for {} {what} in {} rows", rows.len(), self.half);
        self.second_filled = base != 0;
        for (row, value) in (base..).zip(rows) {
            self.rows.store(row as usize, *value);
        }
        Ok(base)
    }

    /// Writes `rows` into the inactive half, which the program does not read, and returns the positions of the rows.
    pub(super) fn fill(&mut self, rows: &[T], keys: &[ServiceKey]) -> anyhow::Result<placement::Placement> {
        let base = self.inactive_base();
        let placement = placement::place(keys, base, self.half)?;
        self.second_filled = base != 0;
        for row in base..base + self.half {
            self.rows.store(row as usize, T::zeroed());
        }
        for (row, value) in placement.rows.iter().zip(rows) {
            self.rows.store(*row as usize, *value);
        }
        Ok(placement)
    }
}

impl<T: bytemuck::Pod> Grows for Halves<T> {
    fn end(&mut self) {
        let before = self.rows.len();
        self.rows.end();
        if self.rows.len() > before {
            // The active rows stay where they are, which is in the first half of the larger map.
            self.half = u32::try_from(self.rows.len() / 2).unwrap_or(u32::MAX);
            self.second_active = false;
        }
    }

    fn give_up(&mut self) {
        self.rows.give_up();
    }
}

#[cfg(test)]
mod tests {
    use balancer_common::map_types::RangeRow;
    use proptest::prelude::*;

    use super::*;

    fn rows(value: u16, count: usize) -> Vec<RangeRow> {
        (0..count as u32).map(|service| RangeRow { first: value, service, ..bytemuck::Zeroable::zeroed() }).collect()
    }

    proptest! {
        #[test]
        fn when_larger_maps_replace_the_map_between_publications_then_the_active_rows_stay_readable(
            publications in prop::collection::vec((0usize..4, 0u8..4), 1..30)
        ) {
            let [map, mut program] = MappedArray::<RangeRow>::twice(8).unwrap();
            let mut halves =
                Halves { rows: Mirrored::new(map), half: 4, second_active: false, second_filled: false };
            let mut next = None;
            let mut size = 8;
            for (value, (count, growth)) in (1..).zip(publications) {
                if growth == 1 && next.is_none() && size < 1 << 12 {
                    size *= 2;
                    let [larger, seen] = MappedArray::twice(size).unwrap();
                    halves.begin(larger);
                    next = Some(seen);
                } else if growth == 2 && let Some(seen) = next.take() {
                    halves.end();
                    program = seen;
                } else if growth == 3 && next.take().is_some() {
                    halves.give_up();
                    size /= 2;
                }
                let wanted = rows(value, count);
                let first = halves.fill_densely(&wanted, "rows").unwrap() as usize;
                let active: Vec<_> = (first..first + count).map(|row| program.load(row)).collect();
                prop_assert_eq!(&active, &wanted);
                if let Some(next) = &next {
                    let active: Vec<_> = (first..first + count).map(|row| next.load(row)).collect();
                    prop_assert_eq!(&active, &wanted);
                }
                halves.activate();
                let other = halves.inactive_base() as usize;
                prop_assert!(count == 0 || !(other..other + halves.half as usize).contains(&first));
            }
        }
    }
}
