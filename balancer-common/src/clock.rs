//! The clock of a service's client memory: the tick, and the number of ticks for which the balancer remembers a client.

/// The number of ticks in `remember`, chosen so that the age of an entry stays far below the wrap-around.
pub const TICKS_PER_REMEMBER: u32 = 4096;

/// The maximum number of ticks in `remember` after the user has increased `remember`: a sweep must find an entry before
/// the entry's age wraps around.
const MOST_TICKS: u32 = 12_000;
/// The minimum number of ticks in `remember` after the user has decreased `remember`.
const FEWEST_TICKS: u32 = 64;

/// The clock of a service that remembers clients for `seconds` (at least 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    pub tick_seconds: u32,
    /// The number of ticks after which an entry is expired.
    pub remember: u16,
}

impl Clock {
    /// The coarsest clock with enough precision for `seconds`: its ticks last `seconds` / 4096, at least one second.
    #[must_use]
    pub const fn new(seconds: u32) -> Self {
        Self::with_ticks(seconds, seconds.div_ceil(TICKS_PER_REMEMBER))
    }

    /// The length of a tick in a service that remembers clients for `seconds`, and that has so far recorded clients in
    /// ticks of `tick_seconds` (0: the service has no clients yet). The length of a tick stays the same as long as the
    /// resulting number of ticks in `seconds` is suitable.
    #[must_use]
    pub const fn tick_after(tick_seconds: u32, seconds: u32) -> u32 {
        if tick_seconds > 0 {
            let ticks = seconds.div_ceil(tick_seconds);
            if ticks <= MOST_TICKS && (ticks >= FEWEST_TICKS || tick_seconds == 1) {
                return tick_seconds;
            }
        }
        seconds.div_ceil(TICKS_PER_REMEMBER)
    }

    /// A clock with ticks of `tick_seconds`, at least 1; `seconds` may be at most 2^14 − 1 of those ticks.
    #[must_use]
    pub const fn with_ticks(seconds: u32, tick_seconds: u32) -> Self {
        Self { tick_seconds, remember: seconds.div_ceil(tick_seconds) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_a_clock_is_made_then_its_ticks_cover_the_time(seconds in 1u32..=100 * 86_400) {
            let clock = Clock::new(seconds);
            let covered = clock.tick_seconds * u32::from(clock.remember);
            prop_assert!(covered >= seconds && covered < seconds + clock.tick_seconds);
            prop_assert!(u32::from(clock.remember) <= TICKS_PER_REMEMBER);
        }
    }
}
