//! Computes which slots a change of a live table moves.

use balancer_common::map_types::{ALL_DOWN, NO_BACKEND};

use crate::{
    bits::{RUN, bits, set},
    by_id::ById,
    table::Shares,
};

/// The slots that differ between two live tables of a service.
///
/// A move from backend A to backend B is *required* if A's share fell (A no longer takes clients, was removed, or has a
/// lower weight), if B's share rose (B was added, takes clients again, or has a higher weight), or if A or B is not a
/// backend. Every other move is *needless*: neither of the two backends has changed.
///
/// If the number of slots changes, the function compares each new slot with the old slot of the same client hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// The old and the new backend of each moved slot.
    pairs: Vec<(u16, u16)>,
    needless: u32,
}

impl Moves {
    /// Returns the moves from the live table `old` to `new`. If the `old` table has no slots, the result is empty,
    /// because the service had no clients yet.
    #[must_use]
    pub fn between(old: &[u16], old_shares: &Shares, new: &[u16], new_shares: &Shares) -> Self {
        if old.is_empty() {
            return Self::default();
        }
        // The old and the new shares by id; 0: the backend takes no clients.
        let mut shares = ById::new(old_shares.ids().chain(new_shares.ids()), (0, 0));
        old_shares.iter().for_each(|(id, share)| shares.set(id, |of| of.0 = share));
        new_shares.iter().for_each(|(id, share)| shares.set(id, |of| of.1 = share));
        let may_stay = |from| shares.get(from).is_some_and(|&(before, after)| before != 0 && after >= before);
        let need_not_grow = |to| shares.get(to).is_some_and(|&(before, after)| after != 0 && after <= before);
        let pairs = if old.len() == new.len() { differing(old, new) } else { rescaled(old, new) };
        let needless = pairs.iter().filter(|&&(from, to)| may_stay(from) && need_not_grow(to)).count() as u32;
        Self { pairs, needless }
    }

    /// The old and the new backend of each moved slot.
    #[must_use]
    pub fn pairs(&self) -> &[(u16, u16)] {
        &self.pairs
    }

    #[must_use]
    pub fn total(&self) -> u32 {
        self.pairs.len() as u32
    }

    /// The number of slots that moved although neither their old nor their new backend has changed.
    #[must_use]
    pub const fn needless(&self) -> u32 {
        self.needless
    }

    /// The number of slots that a backend lost, and the number of other backends that got these slots (slots without a
    /// new backend do not count).
    #[must_use]
    pub fn from(&self, id: u16) -> (u32, usize) {
        Self::count(self.pairs.iter().filter(|pair| pair.0 == id).map(|pair| pair.1))
    }

    /// The number of slots that a backend got, and the number of other backends that had these slots before.
    #[must_use]
    pub fn to(&self, id: u16) -> (u32, usize) {
        Self::count(self.pairs.iter().filter(|pair| pair.1 == id).map(|pair| pair.0))
    }

    fn count(others: impl Iterator<Item = u16>) -> (u32, usize) {
        let (mut slots, mut distinct) = (0, [0u64; 1 << 10]);
        for other in others {
            slots += 1;
            if let Some(word) = distinct.get_mut(usize::from(other) / 64).filter(|_| is_backend(other)) {
                *word |= 1 << (other % 64);
            }
        }
        (slots, distinct.into_iter().map(u64::count_ones).sum::<u32>() as usize)
    }
}

const fn is_backend(id: u16) -> bool {
    id != NO_BACKEND && id != ALL_DOWN
}

/// Returns the entries that differ between two tables of the same size. Usually only few entries differ, so the
/// function compares whole runs of entries first.
fn differing(old: &[u16], new: &[u16]) -> Vec<(u16, u16)> {
    let mut all = Vec::new();
    for (old, new) in old.chunks(RUN).zip(new.chunks(RUN)).filter(|(old, new)| old != new) {
        let differs = bits(old.iter().zip(new), |(from, to)| from != to);
        all.extend(set(differs).filter_map(|place| Some((*old.get(place)?, *new.get(place)?))));
    }
    all
}

/// Pairs each new slot with the old slot of the same client hashes, for two tables of different sizes.
fn rescaled(old: &[u16], new: &[u16]) -> Vec<(u16, u16)> {
    let pair = |(slot, &to): (usize, &u16)| Some((*old.get(slot * old.len() / new.len())?, to));
    new.iter().enumerate().filter_map(pair).filter(|(from, to)| from != to).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_slots_differ_then_each_is_reported_once(
            slots in prop::collection::vec((0u16..3, prop_oneof![9 => Just(None), 1 => (0u16..3).prop_map(Some)]), 1..200)
        ) {
            let (old, new): (Vec<u16>, Vec<u16>) = slots.into_iter().map(|(old, new)| (old, new.unwrap_or(old))).unzip();
            let pairs: Vec<_> = old.iter().copied().zip(new.iter().copied()).filter(|(from, to)| from != to).collect();
            let moves = Moves::between(&old, &Shares::new(), &new, &Shares::new());
            prop_assert_eq!(moves.pairs(), pairs);
        }
    }

    #[test]
    fn when_a_share_has_changed_then_its_moves_are_required() {
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
