//! Partial steering: the choice of the clients that the program steers if it steers only some clients of a service.
//! Each client has a position in a fixed order, and the program steers the clients whose position is below the share.
//!
//! The position follows from the tag, which is the high half of a client's hash, so an entry of the client table shows
//! whether the program steers the entry's client. The order never changes: a larger share adds clients and removes no
//! client.

/// The share, in percent, that means all clients.
pub const WHOLE: u8 = 100;

/// The time in seconds after a change of the share for which clients may still have connections that began before the
/// change: one hour.
pub const SETTLES_SECONDS: u64 = 3600;

/// The share of a service's clients that the program steers, in percent, now and in the recent past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Share {
    pub now: u8,
    /// The smallest value of the share within the time for which connections are expected to last; at most `now`.
    pub least: u8,
    /// The largest value of the share within the time for which connections are expected to last; at least `now`.
    pub most: u8,
}

/// How a client is served: the program steers the client to a backend, or the host serves the client.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The program steers the client's packets.
    Steered = 0,
    /// The program steers the client's packets, but the client may still have connections to the host.
    Came = 1,
    /// The host serves the client, but the client may still have connections to a backend.
    Left = 2,
    /// The client's packets pass to the host.
    Host = 3,
}

impl Share {
    /// The program steers every client, and has done so for a long time.
    pub const ALL: Self = Self { now: WHOLE, least: WHOLE, most: WHOLE };

    /// The share of a service whose share has never changed.
    #[must_use]
    pub const fn always(percent: u8) -> Self {
        Self { now: percent, least: percent, most: percent }
    }

    /// Whether the program steers every client and no client has a connection to the host.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.least >= WHOLE
    }

    /// Whether the program or the host serves a client with this tag (the high half of the client's hash).
    #[inline(always)]
    #[must_use]
    pub const fn side(self, tag: u32) -> Side {
        let place = place(tag);
        if place < self.now {
            if place < self.least { Side::Steered } else { Side::Came }
        } else if place < self.most {
            Side::Left
        } else {
            Side::Host
        }
    }

    /// The share after a change to `percent`, during the time in which earlier connections may still be open.
    #[must_use]
    pub const fn changed(self, percent: u8) -> Self {
        let least = if percent < self.least { percent } else { self.least };
        let most = if percent > self.most { percent } else { self.most };
        Self { now: percent, least, most }
    }
}

/// A client's position in the order of steering, below [`WHOLE`]. Clients with neighbouring tags, and therefore clients
/// of neighbouring slots, are far apart in this order.
#[inline(always)]
#[must_use]
pub const fn place(tag: u32) -> u8 {
    const MULTIPLIER: u32 = 0x9e37_79b1;
    ((tag.wrapping_mul(MULTIPLIER) as u64 * WHOLE as u64) >> 32) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn is_steered(side: Side) -> bool {
        matches!(side, Side::Steered | Side::Came)
    }

    proptest! {
        #[test]
        fn when_the_share_grows_then_no_client_is_sent_away(tag: u32, small in 0..=WHOLE, large in 0..=WHOLE) {
            let (small, large) = (small.min(large), small.max(large));
            let [before, after] = [small, large].map(|share| is_steered(Share::always(share).side(tag)));
            prop_assert!(after || !before);
        }

        #[test]
        fn when_a_share_changes_then_only_clients_that_changed_sides_are_looked_at_twice(
            tag: u32, changes in prop::collection::vec(0..=WHOLE, 1..6)
        ) {
            let mut share = Share::always(changes[0]);
            let mut was = vec![is_steered(share.side(tag))];
            for &percent in &changes[1..] {
                share = share.changed(percent);
                was.push(is_steered(share.side(tag)));
            }
            let (before, now) = (&was[..was.len() - 1], was[was.len() - 1]);
            let changed = before.contains(&!now);
            let expected = match (now, changed) {
                (true, false) => Side::Steered,
                (true, true) => Side::Came,
                (false, true) => Side::Left,
                (false, false) => Side::Host,
            };
            prop_assert_eq!(share.side(tag), expected);
        }

        #[test]
        fn when_a_share_is_none_or_all_then_every_client_is_on_that_side(tag: u32) {
            prop_assert_eq!(Share::ALL.side(tag), Side::Steered);
            prop_assert_eq!(Share::always(0).side(tag), Side::Host);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn when_a_share_is_set_then_every_slot_gives_that_part_of_its_clients() {
        const SLOTS: u32 = 16;
        let mut steered = [0u32; SLOTS as usize];
        let mut state = 1u32;
        for _ in 0..160_000 {
            // A full-period generator (Numerical Recipes) over all tags.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let slot = (u64::from(state) * u64::from(SLOTS)) >> 32;
            steered[slot as usize] += u32::from(is_steered(Share::always(30).side(state)));
        }
        // Each slot should get 3,000 clients; the limit is five standard deviations of 46 clients.
        assert!(steered.iter().all(|&count| count.abs_diff(3000) < 230), "{steered:?}");
    }
}
