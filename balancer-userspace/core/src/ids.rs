//! Backend ids: which are free, longest unused first.

use std::collections::{HashSet, VecDeque};

use balancer_common::map_types::MAX_BACKENDS;

use crate::io::BackendId;

/// The free backend ids. One that is given back is the last to be given out again, so that whatever still holds it has
/// the longest possible time to let go.
///
/// They are kept as runs of rising ids (first, last), none of which goes on where the one before it ends: nearly all ids
/// are free nearly always, and a controller that decides for a fleet is copied and compared often.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ids(VecDeque<(u16, u16)>);

impl Ids {
    /// How many backends there can be over all services.
    pub(crate) const TOTAL: usize = MAX_BACKENDS as usize - 1;

    pub(crate) fn new() -> Self {
        Self([(1, MAX_BACKENDS as u16 - 1)].into())
    }

    /// The free ids in their order, as runs of rising ids (first, last).
    pub(crate) fn runs(&self) -> Vec<(u16, u16)> {
        self.0.iter().copied().collect()
    }

    /// The ids that are not `used`: those in `runs` in their order, then the others.
    pub(crate) fn restored(runs: &[(u16, u16)], used: &HashSet<u16>) -> Self {
        let mut seen = vec![false; MAX_BACKENDS as usize];
        for &id in used {
            if let Some(seen) = seen.get_mut(usize::from(id)) {
                *seen = true;
            }
        }
        let all = 1..MAX_BACKENDS as u16;
        let listed =
            runs.iter().take(Self::TOTAL).flat_map(|&(first, last)| first.max(all.start)..=last.min(all.end - 1));
        let mut ids = Self(VecDeque::new());
        for id in listed.chain(all.clone()) {
            if !std::mem::replace(&mut seen[usize::from(id)], true) {
                ids.append(id, id);
            }
        }
        ids
    }

    pub(crate) fn free(&self) -> usize {
        self.0.iter().map(|&(first, last)| usize::from(last - first) + 1).sum()
    }

    pub(crate) fn take(&mut self) -> Option<BackendId> {
        let run = self.0.front_mut()?;
        let id = run.0;
        if run.0 == run.1 {
            self.0.pop_front();
        } else {
            run.0 += 1;
        }
        Some(BackendId(id))
    }

    /// Has a free id come after all others.
    pub(crate) fn postpone(&mut self, id: BackendId) {
        let id = id.0;
        if !self.0.iter().any(|&(first, last)| (first..=last).contains(&id)) {
            return;
        }
        for (first, last) in std::mem::take(&mut self.0) {
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
        match self.0.back_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => self.0.push_back((first, last)),
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

    #[test]
    fn every_id_is_given_out_before_one_comes_again() {
        let mut ids = Ids::new();
        let first = ids.take().unwrap();
        ids.give_back(first);
        let round = all(ids);
        assert_eq!(round.len(), Ids::TOTAL);
        assert_eq!((round[0], round[Ids::TOTAL - 1]), (2, 1));
    }

    #[test]
    fn runs_from_elsewhere_may_overlap_reach_beyond_all_ids_and_be_empty() {
        let ids = Ids::restored(&[(5, 7), (6, 9), (9, 3), (0, 2), (u16::MAX, u16::MAX)], &[1, 8].into());
        assert_eq!(all(ids)[..6], [5, 6, 7, 9, 2, 3]);
    }

    proptest! {
        #[test]
        fn runs_are_a_queue_of_ids(steps in prop::collection::vec((0_u8..4, 1_u16..30), 0..200)) {
            let mut ids = Ids::new();
            let mut queue: VecDeque<u16> = (1..MAX_BACKENDS as u16).collect();
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
            prop_assert_eq!(ids, queue);
        }
    }
}
