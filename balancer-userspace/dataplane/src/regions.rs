//! Allocates lines in the map of slots. For packets in progress, the program may still read a table that was replaced,
//! so the allocator reuses the lines of this table only after a grace period.

use std::ops::Range;

use super::grace::Grace;

/// A first-fit allocator for ranges of lines.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    free: Vec<Range<u32>>,
    /// The discarded ranges with the grace periods after which the program no longer reads them, the earliest first.
    retired: Vec<(Grace, Range<u32>)>,
}

impl Regions {
    /// An allocator that has `lines` free lines.
    #[must_use]
    pub(super) fn new(lines: u32) -> Self {
        let all = 0..lines;
        Self { free: vec![all], retired: Vec::new() }
    }

    /// Allocates `lines` consecutive lines, and returns their range.
    pub(super) fn allocate(&mut self, lines: u32) -> Option<Range<u32>> {
        let index = self.free.iter().position(|range| range.end - range.start >= lines)?;
        let start = self.free[index].start;
        self.free[index].start += lines;
        if self.free[index].is_empty() {
            self.free.remove(index);
        }
        Some(start..start + lines)
    }

    /// Discards a range of lines, which the program may read until the grace period is over.
    pub(super) fn retire(&mut self, range: Range<u32>, grace: Grace) {
        self.retired.push((grace, range));
    }

    /// Returns the grace period after which every discarded range is free; `None`: there is no discarded range.
    #[must_use]
    pub(super) fn last_retired(&self) -> Option<Grace> {
        self.retired.iter().map(|&(grace, _)| grace).max()
    }

    /// Frees the discarded ranges whose grace period `is_over`.
    pub(super) fn release(&mut self, is_over: impl Fn(Grace) -> bool) {
        let released = self.retired.extract_if(.., |(grace, _)| is_over(*grace));
        self.free.extend(released.map(|(_, range)| range));
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
    fn when_lines_are_retired_then_they_wait_for_their_grace_periods() {
        let mut regions = Regions::new(10);
        let (first, second) = (regions.allocate(4).unwrap(), regions.allocate(6).unwrap());
        assert_eq!(regions.last_retired(), None);
        regions.retire(first, Grace::numbered(1));
        regions.retire(second, Grace::numbered(2));
        assert_eq!(regions.last_retired(), Some(Grace::numbered(2)));
        regions.release(|_| false);
        assert_eq!(regions.allocate(1), None);
        regions.release(|grace| grace <= Grace::numbered(1));
        assert_eq!(regions.last_retired(), Some(Grace::numbered(2)));
        assert_eq!(regions.allocate(5), None);
        regions.release(|_| true);
        assert_eq!(regions.allocate(10), Some(0..10));
        assert_eq!(regions.allocate(1), None);
        assert_eq!(regions.last_retired(), None);
    }

    proptest! {
        #[test]
        fn when_ranges_are_allocated_then_they_never_overlap_and_all_lines_come_back(sizes in prop::collection::vec(1u32..40, 1..60)) {
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
                        held.drain(..).for_each(|range| regions.retire(range, Grace::numbered(1)));
                        regions.release(|_| true);
                    }
                }
            }
            held.into_iter().for_each(|range| regions.retire(range, Grace::numbered(2)));
            regions.release(|_| true);
            prop_assert_eq!(regions.allocate(400), Some(0..400));
        }
    }
}
