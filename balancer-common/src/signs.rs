//! Signs in packets that a backend may have failed: handshakes that stay unanswered, and connections that the backend
//! refuses.
//!
//! A sign does not prove a failure. A sign only makes the controller check the backend immediately, so a forged sign
//! does no harm.

/// The time unit of a [`Handshake`] as a power of two of coarse-clock nanoseconds: 17 ms.
pub const HANDSHAKE_UNIT_BITS: u32 = 24;
/// The maximum number of handshakes that the program watches at a time.
pub const HANDSHAKES: u32 = 1 << HANDSHAKE_BITS;
const HANDSHAKE_BITS: u32 = 14;
/// The time in units after which a second SYN counts as a repetition: 0.9 s. Clients repeat a SYN after one second, and
/// again after two more seconds.
const AGAIN_AFTER: u16 = (900_000_000 >> HANDSHAKE_UNIT_BITS) as u16;
/// The minimum number of waiting handshakes that counts as a sign of failure.
const ENOUGH: u32 = 3;
/// The time for which `ENOUGH` handshakes must wait before they count as a sign, if the backend usually answers
/// immediately: 0.2 s.
const LONG: u64 = 200_000_000;
/// A number of waiting handshakes that cannot be a coincidence; if so many handshakes wait, a shorter wait counts as a
/// sign.
const MANY: u32 = 8;
/// The time for which `MANY` handshakes must wait before they count as a sign: 0.05 s.
const NOT_LONG: u64 = 50_000_000;
/// A handshake is overdue after this multiple of the usual duration.
const LONGER: u64 = 4;
/// The weight of a new handshake in the smoothed duration, as a negative power of two.
const SMOOTHING_BITS: u32 = 3;
/// After this time without a reset from the backend, the program withholds resets again.
pub const QUIET: u64 = 10_000_000_000;

/// The table index of a client's handshake and the client's tag, both derived from the mixed address and port.
/// Handshakes of two clients with the same index overwrite each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshaker(u64);

impl Handshaker {
    /// Mixes the bits of an address (network order, IPv4 in the first word) and of a port. An outsider who chooses
    /// address and port can at worst hide a sign or cause an unnecessary check.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: &[u32; 4], port: u16) -> Self {
        let [a, b, c, d] = *address;
        let address = (a as u64 | (b as u64) << 32) ^ (c as u64 | (d as u64) << 32).rotate_left(29);
        Self((address ^ (port as u64) << 40 ^ port as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The value as an argument of a BPF function.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Reads the value that [`Self::word`] has packed.
    #[inline(always)]
    #[must_use]
    pub const fn of_word(word: u64) -> Self {
        Self(word)
    }

    /// The table index of the handshake, below [`HANDSHAKES`].
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> u32 {
        (self.0 >> (64 - HANDSHAKE_BITS)) as u32
    }

    #[inline(always)]
    const fn tag(self) -> u32 {
        self.0 as u32
    }
}

/// A SYN on its way to a backend: the client's tag, the backend and the time, in one word. The word 0 means that no
/// handshake is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake(pub u64);

impl Handshake {
    /// The word that means no handshake.
    pub const NONE: Self = Self(0);

    /// A handshake that begins at `now` (coarse ns).
    #[inline(always)]
    #[must_use]
    pub const fn new(client: Handshaker, backend: u16, now: u64) -> Self {
        Self((client.tag() as u64) << 32 | (backend as u64) << 16 | Self::units(now) as u64)
    }

    #[inline(always)]
    const fn units(now: u64) -> u16 {
        (now >> HANDSHAKE_UNIT_BITS) as u16
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, client: Handshaker) -> bool {
        self.0 != 0 && (self.0 >> 32) as u32 == client.tag()
    }

    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The number of time units since the handshake began.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u64) -> u16 {
        Self::units(now).wrapping_sub(self.0 as u16)
    }

    /// Whether a new SYN of the same connection is a repetition, which the client sends because it got no answer.
    #[inline(always)]
    #[must_use]
    pub const fn comes_again(self, now: u64) -> bool {
        self.age(now) >= AGAIN_AFTER
    }
}

/// The unfinished handshakes with one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The time at which the first handshake began since a handshake last ended, in coarse ns; 0: none.
    pub since: u64,
    /// The number of handshakes that began since the time in `since`.
    pub begun: u32,
    /// Eight times the smoothed duration of a handshake, in units.
    pub usual: u32,
}

impl Waiting {
    /// Counts a handshake that begins; `again` says whether its SYN is a repetition. The second value of the result
    /// says whether the handshake is a sign that the backend does not answer.
    #[inline(always)]
    #[must_use]
    pub const fn begin(self, now: u64, again: bool) -> (Self, bool) {
        if self.since == 0 {
            return (Self { since: now, begun: 1, usual: self.usual }, false);
        }
        let begun = self.begun.saturating_add(1);
        let waited = now.saturating_sub(self.since);
        let unusual = ((self.usual >> SMOOTHING_BITS) as u64 * LONGER) << HANDSHAKE_UNIT_BITS;
        let long = if begun >= MANY { NOT_LONG } else { LONG };
        let is_long = waited >= long && waited >= unusual;
        (Self { begun, ..self }, is_long && (again || begun >= ENOUGH))
    }

    /// Counts a handshake that ended after `took` units, which shows that the backend answers.
    #[inline(always)]
    #[must_use]
    pub const fn end(self, took: u16) -> Self {
        let usual = self.usual - (self.usual >> SMOOTHING_BITS) + took as u32;
        Self { since: 0, begun: 0, usual }
    }
}

/// The state that determines whether the program withholds the resets by which a backend refuses connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// The time since which the program withholds resets, in coarse ns; 0: resets pass.
    pub since: u64,
    /// The time of the last reset that passed, or of the last check that found the backend working, in coarse ns; 0:
    /// never.
    pub passed: u64,
}

impl Refusals {
    /// Counts a connection that the backend refused. The second value of the result says whether the program must
    /// withhold the reset, for at most `withhold` ns. Resets of a working backend pass, except for the first resets
    /// after a pause: see [`Self::works`].
    #[inline(always)]
    #[must_use]
    pub const fn refuse(self, now: u64, withhold: u64) -> (Self, bool) {
        if self.passed != 0 && now.saturating_sub(self.passed) < QUIET {
            return (Self { since: 0, passed: now }, false);
        }
        let begins = self.since == 0 || now.saturating_sub(self.since) >= QUIET;
        let since = if begins { now } else { self.since };
        if now.saturating_sub(since) < withhold {
            (Self { since, passed: 0 }, true)
        } else {
            (Self { since: 0, passed: now }, false)
        }
    }

    /// Records that a check has found the backend working, which means that the backend refuses connections on purpose.
    #[inline(always)]
    #[must_use]
    pub const fn works(self, now: u64) -> Self {
        if self.since == 0 { self } else { Self { since: 0, passed: now } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;
    const T: u64 = 5_000 * SECOND;

    fn client(port: u16) -> Handshaker {
        Handshaker::new(&[u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0], port)
    }

    proptest! {
        #[test]
        fn when_a_handshake_is_packed_then_its_fields_can_be_read_back(address: [u32; 4], port: u16, backend in 1u16.., now in 0u64..1 << 50, later in 0u64..60 * SECOND) {
            let client = Handshaker::new(&address, port);
            prop_assert!(client.place() < HANDSHAKES);
            let handshake = Handshake::new(client, backend, now);
            prop_assert!(handshake.is_of(client));
            prop_assert_eq!(handshake.backend(), backend);
            let units = ((now + later) >> HANDSHAKE_UNIT_BITS) - (now >> HANDSHAKE_UNIT_BITS);
            prop_assert_eq!(u64::from(handshake.age(now + later)), units);
        }
    }

    #[test]
    fn when_a_syn_comes_again_within_a_moment_then_it_is_the_networks_doing() {
        let handshake = Handshake::new(client(1), 7, T);
        assert!(!handshake.comes_again(T + 300 * MS) && handshake.comes_again(T + 950 * MS));
        assert!(!Handshake::NONE.is_of(client(1)) && !handshake.is_of(client(2)));
    }

    #[test]
    fn when_three_handshakes_wait_for_a_fifth_of_a_second_then_it_is_a_sign() {
        let (waiting, sign) = Waiting::default().begin(T, false);
        assert!(!sign);
        let (waiting, sign) = waiting.begin(T + 10 * MS, false);
        assert!(!sign);
        let (waiting, sign) = waiting.begin(T + 20 * MS, false);
        assert!(!sign, "it may be about to answer");
        let (waiting, sign) = waiting.begin(T + 210 * MS, false);
        assert!(sign);
        assert_eq!(
            waiting.end(0).begin(T + 220 * MS, false),
            (Waiting { since: T + 220 * MS, begun: 1, usual: 0 }, false)
        );
    }

    #[test]
    fn when_many_handshakes_wait_then_a_twentieth_of_a_second_is_enough() {
        for (gap, told_at) in [(1, 50), (6, 54), (8, 56), (20, 140), (60, 240)] {
            let (mut waiting, mut now) = (Waiting::default(), T);
            let at = loop {
                let (next, sign) = waiting.begin(now, false);
                if sign {
                    break now - T;
                }
                (waiting, now) = (next, now + gap * MS);
            };
            assert_eq!(at, told_at * MS, "one in {gap} ms");
        }
    }

    #[test]
    fn when_clients_are_far_away_then_it_takes_longer() {
        let mut waiting = Waiting::default();
        for _ in 0..100 {
            // In this test, a handshake takes 300 ms.
            waiting = waiting.begin(T, false).0.end(18);
        }
        for begun in 0..100 {
            let (next, sign) = waiting.begin(T + begun * 20 * MS, false);
            waiting = next;
            assert_eq!(sign, begun * 20 >= 1208, "{begun}");
        }
    }

    #[test]
    fn when_the_only_client_sends_its_syn_again_then_it_is_a_sign() {
        let (waiting, _) = Waiting::default().begin(T, false);
        assert!(!waiting.begin(T + 100 * MS, false).1);
        assert!(waiting.begin(T + SECOND, true).1);
    }

    #[test]
    fn when_a_backend_refuses_then_its_resets_are_withheld_for_so_long_and_no_longer() {
        let (mut refusals, mut withheld) = (Refusals::default(), Vec::new());
        for ms in [0, 500, 999, 1000, 1001, 5000, 14_000] {
            let (next, is_withheld) = refusals.refuse(T + ms * MS, SECOND);
            refusals = next;
            withheld.push(is_withheld);
        }
        assert_eq!(withheld, [true, true, true, false, false, false, false]);
        assert!(refusals.refuse(T + 24_001 * MS, SECOND).1, "after a while of quiet it is news again");
        assert!(!Refusals::default().refuse(T, 0).1, "switched off");
    }

    #[test]
    fn when_the_check_passes_then_the_next_reset_does_as_well() {
        let (refusals, withheld) = Refusals::default().refuse(T, SECOND);
        assert!(withheld);
        let refusals = refusals.works(T + 10 * MS);
        let (refusals, withheld) = refusals.refuse(T + 20 * MS, SECOND);
        assert!(!withheld);
        assert!(!refusals.refuse(T + 9 * SECOND, SECOND).1);
        assert_eq!(Refusals::default().works(T), Refusals::default(), "nothing was refused");
    }
}
