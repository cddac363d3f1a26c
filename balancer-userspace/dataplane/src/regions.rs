//! Allocates lines in the map of slots. For packets in progress, the program may still read a table that was replaced,
//! so the allocator reuses the lines of this table only after a grace period.
//!
//! Ranges that wait for their grace periods count as free in [`Regions::largest`] and in the reserve of
//! [`Regions::allocate_beside`], because the caller can wait for these periods.

use std::{mem, ops::Range};

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
        self.allocate_beside(lines, 0, None)
    }

    /// Allocates `lines` consecutive lines such that `reserve` consecutive lines are still free when the program no
    /// longer reads the discarded ranges and the range `returned`. `None`: no range leaves so many lines.
    pub(super) fn allocate_beside(
        &mut self,
        lines: u32,
        reserve: u32,
        returned: Option<&Range<u32>>,
    ) -> Option<Range<u32>> {
        let fits = |range: &&Range<u32>| range.end - range.start >= lines;
        let ends = |range: &Range<u32>| [range.start..range.start + lines, range.end - lines..range.end];
        let mut places = self.free.iter().filter(fits).flat_map(ends);
        let place = places.find(|place| self.largest_beside(Some(place), returned) >= reserve)?;
        self.take(&place);
        Some(place)
    }

    /// Allocates the free range `place`.
    fn take(&mut self, place: &Range<u32>) {
        self.free = without(mem::take(&mut self.free), place).collect();
    }

    /// The number of lines in the longest range that is free or that becomes free after its grace period.
    #[must_use]
    pub(super) fn largest(&self) -> u32 {
        self.largest_beside(None, None)
    }

    fn largest_beside(&self, taken: Option<&Range<u32>>, returned: Option<&Range<u32>>) -> u32 {
        let retired = self.retired.iter().map(|(_, range)| range.clone());
        let all = joined(self.free.iter().cloned().chain(retired).chain(returned.cloned()).collect());
        let left: Vec<Range<u32>> = match taken {
            Some(taken) => without(all, taken).collect(),
            None => all,
        };
        left.iter().map(|range| range.end - range.start).max().unwrap_or(0)
    }

    /// The free ranges in ascending order, without those that wait for their grace periods.
    #[must_use]
    pub(super) fn free(&self) -> &[Range<u32>] {
        &self.free
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

    /// Adds free lines, which follow the present ones.
    pub(super) fn add(&mut self, lines: Range<u32>) {
        if !lines.is_empty() {
            self.free.push(lines);
            self.free = joined(mem::take(&mut self.free));
        }
    }

    /// Frees the discarded ranges whose grace period `is_over`.
    pub(super) fn release(&mut self, is_over: impl Fn(Grace) -> bool) {
        let released = self.retired.extract_if(.., |(grace, _)| is_over(*grace));
        self.free.extend(released.map(|(_, range)| range));
        self.free = joined(mem::take(&mut self.free));
    }
}

/// The same lines in ascending order, with adjacent ranges joined.
fn joined(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let joins = last.end == next.start;
        if joins {
            last.end = next.end;
        }
        joins
    });
    ranges
}

/// The ranges without the lines of `taken`.
fn without(ranges: Vec<Range<u32>>, taken: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let parts = |range: Range<u32>| {
        let before = range.start..range.end.min(taken.start);
        let after = range.start.max(taken.end)..range.end;
        [before, after]
    };
    ranges.into_iter().flat_map(parts).filter(|part| !part.is_empty())
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

    #[test]
    fn when_lines_are_reserved_then_an_allocation_leaves_so_many_lines_together() {
        let mut regions = Regions::new(20);
        let old = regions.allocate(4).unwrap();
        assert_eq!(regions.allocate_beside(4, 12, None), Some(4..8));
        assert_eq!(regions.allocate_beside(4, 12, None), None, "12 of 12 lines are reserved");
        assert_eq!(regions.allocate_beside(4, 12, Some(&old)), None, "the lines that come back are elsewhere");
        assert_eq!(regions.allocate_beside(8, 4, Some(&old)), Some(8..16));
        regions.retire(4..8, Grace::numbered(1));
        assert_eq!(regions.largest(), 4);
        assert!(regions.free().iter().eq([&(16..20)]), "{:?}", regions.free());
        regions.retire(old, Grace::numbered(1));
        assert_eq!(regions.largest(), 8, "adjacent lines that become free count together");
        regions.retire(8..16, Grace::numbered(1));
        // The lines at the end of a free range leave more lines together than those at its start.
        regions.release(|_| true);
        assert_eq!(regions.allocate(20), Some(0..20));
        regions.retire(4..14, Grace::numbered(2));
        regions.release(|_| true);
        assert_eq!(regions.allocate_beside(4, 10, Some(&(0..4))), Some(10..14));
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
