//! Many rows of counters for each CPU, in a shared array in which each CPU has a block of rows, CPU 0 the first.

use std::{fs, ops::Range, sync::atomic::Ordering};

use anyhow::Context as _;
use aya::{Ebpf, maps::MapData};
use bytemuck::Pod;

use super::{mapped::MappedArray, object::take};

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Rows of `T`, which are words of 64 bits.
#[derive(Debug)]
pub(super) struct CpuRows<T> {
    array: MappedArray<T>,
    rows: usize,
}

impl<T: Pod> CpuRows<T> {
    /// The map `name`, which has `rows` for each CPU.
    ///
    /// # Errors
    /// When there is none, or it cannot be mapped.
    pub(super) fn take(ebpf: &mut Ebpf, name: &str, rows: u32) -> anyhow::Result<Self> {
        Self::of(take(ebpf, name)?, rows).with_context(|| format!("the map {name}"))
    }

    /// # Errors
    /// When it cannot be mapped.
    pub(super) fn of(map: MapData, rows: u32) -> anyhow::Result<Self> {
        const { assert!(align_of::<T>() == align_of::<u64>()) };
        Ok(Self { array: MappedArray::new(map)?, rows: rows as usize })
    }

    /// The value of each CPU in a row; of a row that is not there nothing.
    pub(super) fn read(&self, row: u32) -> impl Iterator<Item = T> {
        self.places(row).map(|words| {
            let mut value = T::zeroed();
            let words = self.array.words().get(words).unwrap_or_default();
            for (into, word) in
                bytemuck::cast_slice_mut::<T, u64>(std::slice::from_mut(&mut value)).iter_mut().zip(words)
            {
                *into = word.load(Ordering::Relaxed);
            }
            value
        })
    }

    /// Has the row count from zero. What a packet counts there at that moment may be lost, or stay.
    pub(super) fn clear(&self, row: u32) {
        for words in self.places(row) {
            let words = self.array.words().get(words).unwrap_or_default();
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Takes over the counters of another one, as many rows as both have.
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

    /// Where the words of a row are, for each CPU.
    fn places(&self, row: u32) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (row, rows, length) = (row as usize, self.rows, size_of::<T>() / size_of::<u64>());
        let blocks = if row < rows { self.array.len() / rows } else { 0 };
        (0..blocks).map(move |cpu| {
            let first = (cpu * rows + row) * length;
            first..first + length
        })
    }
}

/// How many blocks there are: one more than the greatest number of a CPU that this machine can have.
///
/// # Errors
/// When the kernel does not say, or not as expected.
pub(super) fn blocks() -> anyhow::Result<u32> {
    let text = fs::read_to_string(POSSIBLE).with_context(|| format!("reading {POSSIBLE}"))?;
    blocks_of(&text).with_context(|| format!("{POSSIBLE} says {text:?}, which is no list of CPUs"))
}

/// Of a list such as `0-3,8`.
fn blocks_of(possible: &str) -> Option<u32> {
    possible.trim().rsplit([',', '-']).next()?.parse::<u32>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: usize) -> [CpuRows<[u64; 2]>; 2] {
        MappedArray::twice(3 * rows).unwrap().map(|array| CpuRows { array, rows })
    }

    #[test]
    fn every_cpu_has_a_row_of_its_own() {
        let [ours, kernels] = rows(4);
        for (index, word) in kernels.array.words().iter().enumerate() {
            word.store(index as u64, Ordering::Relaxed);
        }
        // Two words a row, eight a block.
        assert_eq!(ours.read(1).collect::<Vec<_>>(), [[2, 3], [10, 11], [18, 19]]);
        ours.clear(1);
        assert_eq!(kernels.read(1).collect::<Vec<_>>(), [[0, 0]; 3]);
        assert_eq!(kernels.read(2).collect::<Vec<_>>(), [[4, 5], [12, 13], [20, 21]]);
        assert_eq!(ours.read(4).count(), 0, "not the next CPU's first");
        ours.clear(4);
        assert_eq!(kernels.read(0).last(), Some([16, 17]));
    }

    #[test]
    fn more_and_fewer_rows_are_taken_over() {
        let [few, _] = rows(2);
        for (index, word) in few.array.words().iter().enumerate() {
            word.store(1 + index as u64, Ordering::Relaxed);
        }
        let [more, _] = rows(3);
        more.copy_from(&few);
        let all = |of: &CpuRows<[u64; 2]>| (0..4).map(|row| of.read(row).collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!(
            all(&more),
            [vec![[1, 2], [5, 6], [9, 10]], vec![[3, 4], [7, 8], [11, 12]], vec![[0, 0]; 3], vec![]]
        );
        let [fewer, _] = rows(1);
        fewer.copy_from(&more);
        assert_eq!(all(&fewer)[0], [[1, 2], [5, 6], [9, 10]]);
    }

    #[test]
    fn cpus_are_counted_by_the_greatest() {
        for (text, blocks) in
            [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-3,8-11", Some(12)), ("0,2", Some(3)), ("", None), ("0-x", None)]
        {
            assert_eq!(blocks_of(text), blocks, "{text:?}");
        }
    }
}
