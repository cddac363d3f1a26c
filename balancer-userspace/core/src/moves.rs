//! What a change of a live table moves.

use std::collections::BTreeSet;

use balancer_common::map_types::{ALL_DOWN, NO_BACKEND};

use crate::{by_id::ById, table::Shares};

/// The slots that differ between two live tables of a service.
///
/// A move from backend A to backend B is *required* if A has come to deserve less (it is no longer steered to, is gone,
/// or its weight was lowered) or B more (it was added, is steered to again, or its weight was raised), or if A or B is
/// no backend at all. Every other move is *needless*: neither of the two has changed.
///
/// Where the number of slots changed, each new slot is compared with the old one that its clients' hashes fell into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// From whom to whom, one for each slot moved.
    pairs: Vec<(u16, u16)>,
    needless: u32,
}

impl Moves {
    /// What replacing the live table `old` by `new` moves. `old` without slots: nothing, there were no clients yet.
    #[must_use]
    pub fn between(old: &[u16], old_shares: &Shares, new: &[u16], new_shares: &Shares) -> Self {
        if old.is_empty() {
            return Self::default();
        }
        // By id: nothing speaks for leaving it, nothing for coming to it. Many slots move, few backends change.
        let mut unchanged = ById::new(old_shares.keys().chain(new_shares.keys()).copied(), (false, false));
        for (&id, &before) in old_shares {
            unchanged.set(id, |unchanged| unchanged.0 = new_shares.get(&id).copied().unwrap_or(0) >= before);
        }
        for (&id, &after) in new_shares {
            unchanged.set(id, |unchanged| unchanged.1 = after <= old_shares.get(&id).copied().unwrap_or(0));
        }
        let needless =
            |from: u16, to: u16| unchanged.get(from).is_some_and(|of| of.0) && unchanged.get(to).is_some_and(|of| of.1);
        let mut moves = Self::default();
        for (slot, &to) in new.iter().enumerate() {
            let slot = if old.len() == new.len() { slot } else { slot * old.len() / new.len() };
            let Some(&from) = old.get(slot).filter(|&&from| from != to) else { continue };
            moves.pairs.push((from, to));
            moves.needless += u32::from(needless(from, to));
        }
        moves
    }

    /// From whom to whom, one for each slot moved.
    #[must_use]
    pub fn pairs(&self) -> &[(u16, u16)] {
        &self.pairs
    }

    /// Slots moved.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.pairs.len() as u32
    }

    /// Slots moved although neither the old nor the new backend has changed.
    #[must_use]
    pub const fn needless(&self) -> u32 {
        self.needless
    }

    /// Slots that left a backend, and over how many others (not counting entries that name none) they were spread.
    #[must_use]
    pub fn from(&self, id: u16) -> (u32, usize) {
        Self::count(self.pairs.iter().filter(|pair| pair.0 == id).map(|pair| pair.1))
    }

    /// Slots that came to a backend, and from how many others.
    #[must_use]
    pub fn to(&self, id: u16) -> (u32, usize) {
        Self::count(self.pairs.iter().filter(|pair| pair.1 == id).map(|pair| pair.0))
    }

    fn count(others: impl Iterator<Item = u16>) -> (u32, usize) {
        let mut slots = 0;
        let mut distinct = BTreeSet::new();
        for other in others {
            slots += 1;
            if other != NO_BACKEND && other != ALL_DOWN {
                distinct.insert(other);
            }
        }
        (slots, distinct.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_required_where_a_share_changed() {
        let shares = |shares: &[(u16, u32)]| shares.iter().copied().collect::<Shares>();
        let (old, new) = (shares(&[(1, 10), (2, 10), (3, 10)]), shares(&[(1, 10), (2, 5), (4, 10)]));
        let needless = |from, to| Moves::between(&[from], &old, &[to], &new).needless();
        assert_eq!(needless(3, 1), 0, "3 is gone");
        assert_eq!(needless(2, 1), 0, "2 was lowered");
        assert_eq!(needless(1, 4), 0, "4 is new");
        assert_eq!(needless(1, 2), 1, "1 stays as it was, 2 was not raised");
        assert_eq!(needless(NO_BACKEND, 1), 0);
        assert_eq!(needless(1, ALL_DOWN), 0);
        assert_eq!(Moves::between(&[1], &old, &[1], &new).total(), 0);
        assert_eq!(Moves::between(&[], &old, &[1], &new).total(), 0);
        let resized = Moves::between(&[1, 2], &old, &[1, 1, 2, 1], &old);
        assert_eq!((resized.total(), resized.to(1)), (1, (1, 1)));
    }
}
