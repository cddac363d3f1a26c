//! Backend ids: the set of free ids, in the order in which the balancer reuses them.

use std::{
    collections::{HashSet, VecDeque},
    mem,
};

use balancer_common::map_types::{FEWEST_BACKEND_COUNTERS, LAST_BACKEND, MOST_BACKEND_ROWS};

use crate::io::BackendId;

/// Finds the position of a backend id in `all`. Backends that were added together have consecutive ids, so the function
/// first tries consecutive ids and then ids in ascending order.
pub(crate) fn place<T>(all: &[T], id: u16, id_of: impl Fn(&T) -> u16) -> Option<usize> {
    let after_first = usize::from(id.wrapping_sub(id_of(all.first()?)));
    if all.get(after_first).is_some_and(|one| id_of(one) == id) {
        return Some(after_first);
    }
    let among_rising = all.binary_search_by_key(&id, &id_of).ok();
    among_rising.or_else(|| all.iter().position(|one| id_of(one) == id))
}

/// The free backend ids. The balancer reuses a released id last, so that references to the id have as much time as
/// possible to disappear.
///
/// The ids are stored as runs (first, last), because nearly all ids are free most of the time, and a deciding
/// controller is often copied and compared. No run begins directly after the end of the run before it.
///
/// Ids are row numbers in maps, and each CPU has its own counters only for ids below a power of two. The balancer uses
/// all ids below this limit before higher ids.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ids {
    free: VecDeque<(u16, u16)>,
    /// The current limit of ids, a power of two.
    rows: u32,
    /// The highest limit of ids, up to which `rows` may grow.
    most: u32,
}

/// The highest id below the current limit.
fn last(rows: u32) -> u16 {
    u16::try_from(rows - 1).unwrap_or(LAST_BACKEND).min(LAST_BACKEND)
}

impl Ids {
    pub(crate) fn new() -> Self {
        let rows = FEWEST_BACKEND_COUNTERS;
        Self { free: [(1, last(rows))].into(), rows, most: MOST_BACKEND_ROWS }
    }

    /// The same set of ids, with all ids free.
    pub(crate) fn all_free(&self) -> Self {
        Self { free: [(1, last(self.rows))].into(), ..*self }
    }

    /// The free ids in their order, as runs (first, last).
    pub(crate) fn runs(&self) -> Vec<(u16, u16)> {
        self.free.iter().copied().collect()
    }

    /// The ids that are not `used`: first the ids in `runs` in their order, then the other ids up to the limit that
    /// must have been in effect.
    pub(crate) fn restored(runs: &[(u16, u16)], used: &HashSet<u16>) -> Self {
        let total = usize::from(LAST_BACKEND);
        let listed = runs.iter().take(total).flat_map(|&(first, end)| first.max(1)..=end.min(LAST_BACKEND)).take(total);
        let listed: Vec<u16> = listed.collect();
        let highest = listed.iter().chain(used).copied().max().unwrap_or(0);
        let rows = (u32::from(highest) + 1).next_power_of_two().clamp(FEWEST_BACKEND_COUNTERS, MOST_BACKEND_ROWS);
        let mut seen = vec![false; rows as usize];
        for &id in used {
            seen[usize::from(id)] = true;
        }
        let mut ids = Self { free: VecDeque::new(), rows, most: MOST_BACKEND_ROWS };
        for id in listed.into_iter().chain(1..=last(rows)) {
            if !mem::replace(&mut seen[usize::from(id)], true) {
                ids.append(id, id);
            }
        }
        ids
    }

    /// Fixes the limit of ids at a power of two.
    pub(crate) fn set_rows(&mut self, rows: u32) {
        let end = last(rows);
        for (first, last) in mem::take(&mut self.free) {
            self.append(first, last.min(end));
        }
        (self.rows, self.most) = (self.rows.min(rows), rows);
    }

    pub(crate) fn free(&self) -> usize {
        let free: usize = self.free.iter().map(|&(first, last)| usize::from(last - first) + 1).sum();
        free + usize::from(last(self.most) - last(self.rows))
    }

    /// The maximum number of backends of all services together.
    pub(crate) fn total(&self) -> usize {
        usize::from(last(self.most))
    }

    /// Whether maps with more rows would allow more ids.
    pub(crate) const fn lack_rows(&self) -> bool {
        self.most < MOST_BACKEND_ROWS
    }

    pub(crate) fn take(&mut self) -> Option<BackendId> {
        if self.free.is_empty() && self.rows < self.most {
            self.append(last(self.rows) + 1, last(2 * self.rows));
            self.rows *= 2;
        }
        let run = self.free.front_mut()?;
        let id = run.0;
        if run.0 == run.1 {
            self.free.pop_front();
        } else {
            run.0 += 1;
        }
        Some(BackendId(id))
    }

    /// Moves a free id to the end of the order of free ids.
    pub(crate) fn postpone(&mut self, id: BackendId) {
        let id = id.0;
        if !self.free.iter().any(|&(first, last)| (first..=last).contains(&id)) {
            return;
        }
        for (first, last) in mem::take(&mut self.free) {
            if (first..=last).contains(&id) {
                self.append(first, id - 1);
                self.append(id + 1, last);
            } else {
                self.append(first, last);
            }
        }
        self.append(id, id);
    }

    pub(crate) fn give_back(&mut self, id: BackendId) {
        self.append(id.0, id.0);
    }

    fn append(&mut self, first: u16, last: u16) {
        if first > last {
            return;
        }
        match self.free.back_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => self.free.push_back((first, last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(mut ids: Ids) -> Vec<u16> {
        std::iter::from_fn(|| ids.take()).map(|id| id.0).collect()
    }

    proptest! {
        #[test]
        fn when_ids_are_in_any_order_then_each_is_found(
            ids in prop_oneof![
                prop::collection::hash_set(any::<u16>(), 0..40).prop_map(Vec::from_iter),
                prop::collection::btree_set(any::<u16>(), 0..40).prop_map(Vec::from_iter),
                (any::<u16>(), 0..40u16).prop_map(|(first, count)| (first..first.saturating_add(count)).collect()),
            ],
            absent in any::<u16>(),
        ) {
            for id in ids.iter().copied().chain([absent]) {
                prop_assert_eq!(place(&ids, id, |&id| id), ids.iter().position(|&one| one == id));
            }
        }
    }

    #[test]
    fn when_ids_are_taken_then_every_id_comes_before_one_is_reused() {
        let mut ids = Ids::new();
        let first = ids.take().unwrap();
        ids.give_back(first);
        let round = all(ids);
        assert_eq!(round.len(), usize::from(LAST_BACKEND));
        assert_eq!(round[..3], [2, 3, 4]);
        // Ids below a lower limit come before ids above this limit.
        assert_eq!(round[4092..4097], [4094, 4095, 1, 4096, 4097]);
        assert_eq!(round.last(), Some(&LAST_BACKEND));
    }

    #[test]
    fn when_rows_are_set_then_no_higher_id_is_given_out() {
        let mut ids = Ids::new();
        ids.set_rows(32_768);
        assert_eq!((ids.free(), ids.total(), ids.lack_rows()), (32_767, 32_767, true));
        let first = ids.take().unwrap();
        ids.give_back(first);
        ids.postpone(BackendId(4000));
        let mut fewer = ids.clone();
        fewer.set_rows(2048);
        assert_eq!((fewer.runs(), fewer.free()), (vec![(2, 2047), (1, 1)], 2047));
        fewer.set_rows(65_536);
        assert_eq!((fewer.free(), fewer.lack_rows()), (65_534, false));
        assert_eq!(all(fewer)[2045..2049], [2047, 1, 2048, 2049]);
        assert_eq!(all(ids.all_free()), (1..=32_767).collect::<Vec<_>>());
        let round = all(ids);
        assert_eq!((&round[4091..4096], round.len()), (&[4094, 4095, 1, 4000, 4096][..], 32_767));
    }

    #[test]
    fn when_ids_are_restored_then_there_are_as_many_rows_as_there_must_have_been() {
        for (runs, used, free) in [
            (vec![], vec![], vec![(1, 4095)]),
            (vec![], vec![16_384], vec![(1, 16_383), (16_385, 32_767)]),
            (vec![(5, 40_000), (1, 4)], vec![], vec![(5, 40_000), (1, 4), (40_001, LAST_BACKEND)]),
            (vec![(2, LAST_BACKEND)], vec![1], vec![(2, LAST_BACKEND)]),
        ] {
            assert_eq!(Ids::restored(&runs, &used.into_iter().collect()).runs(), free);
        }
        let many = vec![(1, u16::MAX); usize::from(u16::MAX)];
        assert_eq!(Ids::restored(&many, &HashSet::new()).runs(), [(1, LAST_BACKEND)]);
    }

    #[test]
    fn when_runs_are_invalid_then_they_are_cleaned_up() {
        let ids = Ids::restored(&[(5, 7), (6, 9), (9, 3), (0, 2), (u16::MAX, u16::MAX)], &[1, 8].into());
        assert_eq!(all(ids)[..6], [5, 6, 7, 9, 2, 3]);
    }

    proptest! {
        #[test]
        fn when_runs_are_used_then_they_behave_like_a_queue_of_ids(steps in prop::collection::vec((0_u8..4, 1_u16..30), 0..200)) {
            let mut ids = Ids::new();
            ids.set_rows(4096);
            let mut queue: VecDeque<u16> = (1..4096).collect();
            let mut taken = VecDeque::new();
            for (step, id) in steps {
                match step {
                    0 | 1 => {
                        let id = ids.take().map(|id| id.0);
                        prop_assert_eq!(id, queue.pop_front());
                        taken.extend(id);
                    }
                    2 => {
                        if let Some(id) = taken.remove(usize::from(id) % taken.len().max(1)) {
                            ids.give_back(BackendId(id));
                            queue.push_back(id);
                        }
                    }
                    _ => {
                        ids.postpone(BackendId(id));
                        if let Some(place) = queue.iter().position(|&free| free == id) {
                            queue.remove(place);
                            queue.push_back(id);
                        }
                    }
                }
                prop_assert_eq!(ids.free(), queue.len());
            }
            let used = taken.into_iter().collect();
            let restored = Ids::restored(&ids.runs(), &used);
            prop_assert_eq!(restored.runs(), ids.runs());
            let (ids, queue): (Vec<u16>, Vec<u16>) = (all(ids), queue.into());
            prop_assert!(ids == queue, "another order");
        }
    }
}
