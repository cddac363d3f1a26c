//! Decides which one wins if two members know a client at different backends (places).

use crate::{emptied::Emptied, records::Record};

/// The backend at which a member knows a client, and how the client came to that backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) backend: u16,
    /// Whether the client came to this backend from another backend.
    pub(super) moved: bool,
    /// The epoch in which the client came to this backend; 0 if the epoch is unknown.
    pub(super) epoch: u32,
}

impl Place {
    /// The epoch of an invalid place, which exceeds every epoch's number.
    pub(super) const NONE: u32 = u32::MAX;

    pub(super) const fn of(record: &Record) -> Self {
        Self { backend: record.backend, moved: record.moved, epoch: record.epoch }
    }

    /// Whether the reported place `self` wins against the place `other`. A place wins if the client came to it after
    /// the client had to leave the other place. If this is not decisive, a place to which the client moved wins against
    /// a place where the client began. Of two places to which the client moved, the later wins; of two places where the
    /// client began, the earlier wins. The result depends only on the records and the epoch, so all members get the
    /// same result.
    pub(super) fn holds_against(&self, other: &Self, emptied: &Emptied) -> bool {
        if other.epoch == Self::NONE || self.follows(other, emptied) {
            return true;
        }
        if other.follows(self, emptied) {
            return false;
        }
        match (self.moved, other.moved) {
            (true, false) => true,
            (false, true) => false,
            (true, true) => (self.epoch, self.backend) > (other.epoch, other.backend),
            (false, false) => (self.epoch, self.backend) < (other.epoch, other.backend),
        }
    }

    fn follows(&self, before: &Self, emptied: &Emptied) -> bool {
        emptied.between(before.backend, before.epoch, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Backend 4 stopped keeping its clients in epoch 5.
    fn emptied() -> Emptied {
        let mut emptied = Emptied::default();
        emptied.note([4], 5);
        emptied
    }

    const fn at(backend: u16, epoch: u32) -> Place {
        Place { backend, moved: false, epoch }
    }

    const fn moved(backend: u16, epoch: u32) -> Place {
        Place { moved: true, ..at(backend, epoch) }
    }

    #[test]
    fn when_two_places_are_compared_then_the_table_of_rules_decides() {
        for (winner, loser) in [
            (at(3, 1), at(4, 2)),
            (at(4, 2), at(3, 4)),
            // The client came to backend 3 when it could no longer stay at backend 4.
            (at(3, 5), at(4, 2)),
            (at(3, 9), at(4, 0)),
            (at(3, 9), moved(4, 2)),
            (moved(3, 9), at(4, 2)),
            (at(4, 5), at(4, 2)),
            // The client came to backend 4 after it had been at backend 3.
            (at(4, 5), at(3, 6)),
            (at(3, 6), at(4, 7)),
            // The client was at backend 3 at first, and has moved from there to backend 4.
            (moved(4, 3), at(3, 2)),
            (moved(4, 3), moved(3, 2)),
            (moved(4, 7), at(3, 8)),
            (at(3, 9), at(2, Place::NONE)),
            (at(4, 2), at(3, Place::NONE)),
        ] {
            assert!(winner.holds_against(&loser, &emptied()), "{winner:?} {loser:?}");
            let is_real = loser.epoch != Place::NONE;
            assert!(!is_real || !loser.holds_against(&winner, &emptied()), "{winner:?} {loser:?}");
        }
    }

    prop_compose! {
        fn any_place()(backend in 1..5_u16, moved: bool, epoch in 0..8_u32) -> Place {
            Place { backend, moved, epoch }
        }
    }

    proptest! {
        #[test]
        fn when_a_client_has_two_places_then_exactly_one_holds(a in any_place(), b in any_place(), noted in prop::collection::vec((1..5_u16, 0..8_u32), 0..5)) {
            let mut emptied = Emptied::default();
            for (backend, epoch) in noted {
                emptied.note([backend], epoch);
            }
            let wins = (a.holds_against(&b, &emptied), b.holds_against(&a, &emptied));
            prop_assert_eq!(wins.0 || wins.1, a != b);
            prop_assert!(wins != (true, true));
        }
    }
}
