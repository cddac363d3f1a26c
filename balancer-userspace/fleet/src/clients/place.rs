//! Deciding which of two places of a client wins.

use crate::{emptied::Emptied, records::Record};

/// The place of a client as a member knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) backend: u16,
    /// Whether the client came there from another backend.
    pub(super) moved: bool,
    /// The epoch in which the client came there; 0: unknown.
    pub(super) epoch: u32,
}

impl Place {
    /// The epoch of a place that does not count; it is higher than every epoch's number.
    pub(super) const NONE: u32 = u32::MAX;

    pub(super) const fn of(record: &Record) -> Self {
        Self { backend: record.backend, moved: record.moved, epoch: record.epoch }
    }

    /// Whether this reported place wins against the other one. A place wins if the client came there after it could no
    /// longer stay at the other place. Otherwise a place to which the client has moved wins (the later one, if it moved
    /// to both), and else the older place. The result depends only on the records and the epoch, so all members reach
    /// the same result.
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

    /// Backend 4 had to give up its clients in epoch 5.
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
            // The client came to 3 when it could not stay at 4.
            (at(3, 5), at(4, 2)),
            (at(3, 9), at(4, 0)),
            (at(3, 9), moved(4, 2)),
            (moved(3, 9), at(4, 2)),
            (at(4, 5), at(4, 2)),
            // The client came to 4 after it had been at 3.
            (at(4, 5), at(3, 6)),
            (at(3, 6), at(4, 7)),
            // The client was at 3 before, and has left it for 4.
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
