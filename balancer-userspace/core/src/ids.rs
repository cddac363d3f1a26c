//! Backend ids: which are free, longest unused first.

use std::collections::{HashSet, VecDeque};

use balancer_common::map_types::MAX_BACKENDS;

use crate::io::BackendId;

/// The free backend ids. One that is given back is the last to be given out again, so that whatever still holds it has
/// the longest possible time to let go.
#[derive(Clone, Debug)]
pub(crate) struct Ids(VecDeque<u16>);

impl Ids {
    /// How many backends there can be over all services.
    pub(crate) const TOTAL: usize = MAX_BACKENDS as usize - 1;

    pub(crate) fn new() -> Self {
        Self((1..MAX_BACKENDS as u16).collect())
    }

    /// The free ids in their order, as runs of rising ids (first, last).
    pub(crate) fn runs(&self) -> Vec<(u16, u16)> {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for &id in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
                _ => runs.push((id, id)),
            }
        }
        runs
    }

    /// The ids that are not `used`: those in `runs` in their order, then the others.
    pub(crate) fn restored(runs: &[(u16, u16)], used: &HashSet<u16>) -> Self {
        let mut seen = used.clone();
        let all = 1..MAX_BACKENDS as u16;
        let listed = runs.iter().flat_map(|&(first, last)| first..=last).filter(|id| all.contains(id));
        Self(listed.chain(all.clone()).filter(|&id| seen.insert(id)).collect())
    }

    pub(crate) fn free(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn take(&mut self) -> Option<BackendId> {
        self.0.pop_front().map(BackendId)
    }

    /// Has a free id come after all others.
    pub(crate) fn postpone(&mut self, id: BackendId) {
        if let Some(place) = self.0.iter().position(|&free| free == id.0) {
            self.0.remove(place);
            self.0.push_back(id.0);
        }
    }

    pub(crate) fn give_back(&mut self, id: BackendId) {
        self.0.push_back(id.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_given_out_before_one_comes_again() {
        let mut ids = Ids::new();
        let first = ids.take().unwrap();
        ids.give_back(first);
        let round: Vec<u16> = std::iter::from_fn(|| ids.take()).map(|id| id.0).collect();
        assert_eq!(round.len(), Ids::TOTAL);
        assert_eq!((round[0], round[Ids::TOTAL - 1]), (2, 1));
        assert_eq!(ids.take(), None);
    }
}
