//! What packets say of a backend's health: handshakes that stay unanswered, and connections that it refuses.
//!
//! A sign makes no verdict. It has the controller check the backend at once, so that anybody may forge one.

/// Nanoseconds of the coarse clock for each unit of the time in a [`Handshake`]: 17 ms.
pub const HANDSHAKE_UNIT_BITS: u32 = 24;
/// Handshakes that are watched at once.
pub const HANDSHAKES: u32 = 1 << HANDSHAKE_BITS;
const HANDSHAKE_BITS: u32 = 12;
/// A client sends its SYN again after a second, and again after two more; 0.9 s in units.
const AGAIN_AFTER: u16 = (900_000_000 >> HANDSHAKE_UNIT_BITS) as u16;
/// So many handshakes wait for the backend before they are a sign.
const ENOUGH: u32 = 3;
/// And so long, if its clients usually answer at once: 0.2 s.
const LONG: u64 = 200_000_000;
/// So many that wait are no coincidence: they need not wait as long.
const MANY: u32 = 8;
/// How long these have to wait: 0.05 s.
const NOT_LONG: u64 = 50_000_000;
/// How much longer than usual is long.
const LONGER: u64 = 4;
/// Of the smoothed time that handshakes take: so many parts of a new one are taken over.
const SMOOTHING_BITS: u32 = 3;
/// Resets that came so long after the last one begin to be withheld again.
pub const QUIET: u64 = 10_000_000_000;

/// Where a client's handshake is noted, and what is noted of it: the client's address and port, mixed. Clients that share a
/// place take it from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshaker(u64);

impl Handshaker {
    /// Of an address (network order, IPv4 in the first word) and a port. What an outsider could do by choosing them is to
    /// have a sign missed or to have a backend checked.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: &[u32; 4], port: u16) -> Self {
        let [a, b, c, d] = *address;
        let address = (a as u64 | (b as u64) << 32) ^ (c as u64 | (d as u64) << 32).rotate_left(29);
        Self((address ^ (port as u64) << 40 ^ port as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// As the argument of a function of the kernel program.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The one of [`Self::word`].
    #[inline(always)]
    #[must_use]
    pub const fn of_word(word: u64) -> Self {
        Self(word)
    }

    /// Below [`HANDSHAKES`].
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

/// A SYN on its way to a backend: the client's tag, the backend and the time, in one word. 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake(pub u64);

impl Handshake {
    /// Nobody's.
    pub const NONE: Self = Self(0);

    /// One that begins `now` (coarse ns).
    #[inline(always)]
    #[must_use]
    pub const fn new(client: Handshaker, backend: u16, now: u64) -> Self {
        Self((client.tag() as u64) << 32 | (backend as u64) << 16 | Self::units(now) as u64)
    }

    #[inline(always)]
    const fn units(now: u64) -> u16 {
        (now >> HANDSHAKE_UNIT_BITS) as u16
    }

    /// Whether it is this client's.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, client: Handshaker) -> bool {
        self.0 != 0 && (self.0 >> 32) as u32 == client.tag()
    }

    /// To whom it goes.
    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Units since it has begun.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u64) -> u16 {
        Self::units(now).wrapping_sub(self.0 as u16)
    }

    /// Whether a SYN that is like it is one that the client sends again because nobody has answered.
    #[inline(always)]
    #[must_use]
    pub const fn comes_again(self, now: u64) -> bool {
        self.age(now) >= AGAIN_AFTER
    }
}

/// The handshakes with one backend that have begun and not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// When the first of them began, since one last ended; coarse ns, 0: there is none.
    pub since: u64,
    /// How many have begun since then.
    pub begun: u32,
    /// Eight times the units that a handshake takes, smoothed.
    pub usual: u32,
}

impl Waiting {
    /// One more begins, or begins `again`; and whether this is a sign that the backend does not answer.
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

    /// One has ended, after so many units: the backend answers.
    #[inline(always)]
    #[must_use]
    pub const fn end(self, took: u16) -> Self {
        let usual = self.usual - (self.usual >> SMOOTHING_BITS) + took as u32;
        Self { since: 0, begun: 0, usual }
    }
}

/// What becomes of the resets with which a backend refuses connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Since when they are withheld; coarse ns, 0: they are not.
    pub since: u64,
    /// When the last one was let pass, or the controller found that the backend works; 0: never.
    pub passed: u64,
}

impl Refusals {
    /// A backend refuses a connection; and whether its reset is withheld, for at most `withhold` ns. Those that a backend which
    /// works sends are not, after the first ones: see [`Self::works`].
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

    /// The controller has checked the backend, and it works: what it refuses it refuses by intent.
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
        fn a_handshake_keeps_its_fields(address: [u32; 4], port: u16, backend in 1u16.., now in 0u64..1 << 50, later in 0u64..60 * SECOND) {
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
            // 300 ms.
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
