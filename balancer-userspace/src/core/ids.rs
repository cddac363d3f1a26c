//! Backend ids: which are free, longest unused first.

use std::collections::VecDeque;

use balancer_common::map_types::MAX_BACKENDS;

use crate::core::io::BackendId;

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

    pub(crate) fn free(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn take(&mut self) -> Option<BackendId> {
        self.0.pop_front().map(BackendId)
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
