//! Maps with many rows of counters for each CPU. One array contains a block of rows for each CPU, beginning with CPU 0;
//! another array contains one row of each kind, for CPUs without a block and for rows beyond the end of a block.

use std::{ops::Range, sync::atomic::Ordering};

use anyhow::Context as _;
use aya::{Ebpf, maps::MapData};
use bytemuck::Pod;

use super::{mapped::MappedArray, object::take};

/// Rows of type `T`, which consists of 64-bit words.
#[derive(Debug)]
pub(super) struct CpuRows<T> {
    blocks: Blocks<T>,
    shared: MappedArray<T>,
}

#[derive(Debug)]
pub(super) struct Blocks<T> {
    array: MappedArray<T>,
    rows: usize,
}

impl<T: Pod> CpuRows<T> {
    /// Opens the map `name`, whose blocks have `rows` rows for each CPU, and the map `shared`.
    ///
    /// # Errors
    /// Fails if a map does not exist or cannot be mapped.
    pub(super) fn take(ebpf: &mut Ebpf, name: &str, rows: u32, shared: &str) -> anyhow::Result<Self> {
        let blocks = Blocks::of(take(ebpf, name)?, rows).with_context(|| format!("the map {name}"))?;
        let shared = MappedArray::new(take(ebpf, shared)?).with_context(|| format!("the map {shared}"))?;
        Ok(Self { blocks, shared })
    }

    /// The values of a row: one value for each CPU, and the value that CPUs share. If a row does not exist, the result
    /// contains no values.
    pub(super) fn read(&self, row: u32) -> impl Iterator<Item = T> {
        let blocks = self.blocks.places(row).map(|place| load(&self.blocks.array, place));
        blocks.chain(self.shared_place(row).map(|place| load(&self.shared, place)))
    }

    /// Resets the row with this number to zero on all CPUs. If the program counts a packet during the reset, the packet
    /// may be missing afterwards, or the old count may remain.
    pub(super) fn clear(&self, row: u32) {
        let clear = |array: &MappedArray<T>, place| {
            let words = array.words().get::<Range<usize>>(place).unwrap_or_default();
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        };
        self.blocks.places(row).for_each(|place| clear(&self.blocks.array, place));
        self.shared_place(row).into_iter().for_each(|place| clear(&self.shared, place));
    }

    fn shared_place(&self, row: u32) -> Option<Range<usize>> {
        let row = row as usize;
        (row < self.shared.len()).then(|| row * words_of::<T>()..(row + 1) * words_of::<T>())
    }
}

impl<T: Pod> Blocks<T> {
    /// # Errors
    /// Fails if the map cannot be mapped into memory.
    pub(super) fn of(map: MapData, rows: u32) -> anyhow::Result<Self> {
        const { assert!(align_of::<T>() == align_of::<u64>()) };
        Ok(Self { array: MappedArray::new(map)?, rows: rows as usize })
    }

    /// Copies the counters from another map, for those rows and CPUs that both maps have.
    pub(super) fn copy_from(&self, other: &Self) {
        for row in 0..self.rows.min(other.rows) as u32 {
            for (from, to) in other.places(row).zip(self.places(row)) {
                let (from, to) = (other.array.words().get(from), self.array.words().get(to));
                for (from, to) in from.into_iter().flatten().zip(to.into_iter().flatten()) {
                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        }
    }

    /// The positions of a row's words, for each CPU. A map is slightly longer than its blocks, so the end of the map
    /// looks like the first rows of another CPU's block.
    fn places(&self, row: u32) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (row, rows) = (row as usize, self.rows);
        let there = self.array.len();
        let blocks = if row < rows { there.div_ceil(rows) } else { 0 };
        (0..blocks).map(move |cpu| cpu * rows + row).filter(move |&place| place < there).map(|place| {
            let first = place * words_of::<T>();
            first..first + words_of::<T>()
        })
    }
}

const fn words_of<T>() -> usize {
    size_of::<T>() / size_of::<u64>()
}

fn load<T: Pod>(array: &MappedArray<T>, place: Range<usize>) -> T {
    let mut value = T::zeroed();
    let words = array.words().get(place).unwrap_or_default();
    for (into, word) in bytemuck::cast_slice_mut::<T, u64>(std::slice::from_mut(&mut value)).iter_mut().zip(words) {
        *into = word.load(Ordering::Relaxed);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a map with blocks for three CPUs, with a mapping for the controller and one for the kernel program.
    fn rows(rows: usize) -> [CpuRows<[u64; 2]>; 2] {
        let [ours, kernels] = MappedArray::twice(3 * rows + 1).unwrap();
        let [shared, common] = MappedArray::twice(8).unwrap();
        [(ours, shared), (kernels, common)].map(|(array, shared)| CpuRows { blocks: Blocks { array, rows }, shared })
    }

    fn number(array: &MappedArray<[u64; 2]>, first: u64) {
        for (word, number) in array.words().iter().zip(first..) {
            word.store(number, Ordering::Relaxed);
        }
    }

    #[test]
    fn when_cpus_count_then_each_has_its_own_row_and_all_share_one() {
        let [ours, kernels] = rows(4);
        number(&kernels.blocks.array, 0);
        number(&kernels.shared, 100);
        // Each row has two words, and each block has eight words.
        assert_eq!(ours.read(1).collect::<Vec<_>>(), [[2, 3], [10, 11], [18, 19], [102, 103]]);
        assert_eq!(ours.read(0).collect::<Vec<_>>(), [[0, 1], [8, 9], [16, 17], [24, 25], [100, 101]]);
        ours.clear(1);
        assert_eq!(kernels.read(1).collect::<Vec<_>>(), [[0, 0]; 4]);
        assert_eq!(kernels.read(2).collect::<Vec<_>>(), [[4, 5], [12, 13], [20, 21], [104, 105]]);
        assert_eq!(ours.read(4).collect::<Vec<_>>(), [[108, 109]], "not the next CPU's first");
        ours.clear(4);
        assert_eq!(kernels.read(0).last(), Some([100, 101]));
        assert_eq!((ours.read(4).last(), ours.read(8).count()), (Some([0, 0]), 0));
    }

    #[test]
    fn when_the_number_of_rows_changes_then_common_rows_are_copied() {
        let [few, _] = rows(2);
        number(&few.blocks.array, 1);
        let [more, _] = rows(3);
        more.blocks.copy_from(&few.blocks);
        let all =
            |of: &CpuRows<[u64; 2]>| (0..4).map(|row| of.read(row).take(3).collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!(
            all(&more),
            [vec![[1, 2], [5, 6], [9, 10]], vec![[3, 4], [7, 8], [11, 12]], vec![[0, 0]; 3], vec![[0, 0]]]
        );
        let [fewer, _] = rows(1);
        fewer.blocks.copy_from(&more.blocks);
        assert_eq!(all(&fewer)[0], [[1, 2], [5, 6], [9, 10]]);
    }
}
