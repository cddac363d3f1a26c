//! Which part of the map of slots belongs to whom. A table that was replaced may still be read by a packet on its way,
//! so its lines come back into use only after a grace period.

use std::ops::Range;

/// A first-fit allocator of line ranges.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    free: Vec<Range<u32>>,
    retired: Vec<Range<u32>>,
}

impl Regions {
    /// All of `lines` lines free.
    #[must_use]
    pub(super) fn new(lines: u32) -> Self {
        let all = 0..lines;
        Self { free: vec![all], retired: Vec::new() }
    }

    /// The first of `lines` consecutive free lines.
    pub(super) fn allocate(&mut self, lines: u32) -> Option<Range<u32>> {
        let index = self.free.iter().position(|range| range.end - range.start >= lines)?;
        let start = self.free[index].start;
        self.free[index].start += lines;
        if self.free[index].is_empty() {
            self.free.remove(index);
        }
        Some(start..start + lines)
    }

    /// Gives up a range that packets may still be reading.
    pub(super) fn retire(&mut self, range: Range<u32>) {
        self.retired.push(range);
    }

    /// Whether waiting for a grace period would free anything.
    #[must_use]
    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Frees what was retired: every packet that was on its way has left.
    pub(super) fn grace_period_over(&mut self) {
        self.free.append(&mut self.retired);
        self.free.sort_by_key(|range| range.start);
        self.free.dedup_by(|next, last| {
            let joins = last.end == next.start;
            if joins {
                last.end = next.end;
            }
            joins
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retired_lines_wait_for_the_grace_period() {
        let mut regions = Regions::new(10);
        let first = regions.allocate(6).unwrap();
        regions.retire(first);
        assert_eq!(regions.allocate(6), None);
        regions.grace_period_over();
        assert_eq!(regions.allocate(10), Some(0..10));
        assert_eq!(regions.allocate(1), None);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_lines_come_back(sizes in prop::collection::vec(1u32..40, 1..60)) {
            let mut regions = Regions::new(400);
            let mut held: Vec<Range<u32>> = Vec::new();
            for size in sizes {
                match regions.allocate(size) {
                    Some(range) => {
                        prop_assert_eq!(range.end - range.start, size);
                        prop_assert!(range.end <= 400);
                        prop_assert!(held.iter().all(|other| range.end <= other.start || other.end <= range.start));
                        held.push(range);
                    }
                    None => {
                        held.drain(..).for_each(|range| regions.retire(range));
                        regions.grace_period_over();
                    }
                }
            }
            held.into_iter().for_each(|range| regions.retire(range));
            regions.grace_period_over();
            prop_assert_eq!(regions.allocate(400), Some(0..400));
        }
    }
}
