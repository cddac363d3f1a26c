//! The share of clients' handshakes that clients complete.
//!
//! A client that completes its handshake has received an answer. If few clients do, clients are not served, whatever
//! the health checks of this machine find. Forged packets can lower the share, but they move no client.

use std::{
    collections::VecDeque,
    iter::Sum,
    ops::{Add, AddAssign},
    time::Duration,
};

/// The time for which the outcomes of handshakes count.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The minimum number of handshakes from which a share can be judged.
const ENOUGH: u64 = 20;

/// The numbers of handshakes by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCounts {
    /// The client continued the handshake, and so has received an answer.
    pub completed: u64,
    /// The client did not continue the handshake within two seconds.
    pub unanswered: u64,
}

/// The outcomes of handshakes with one backend.
#[derive(Clone, Debug, Default)]
pub struct Served {
    total: HandshakeCounts,
    /// The outcomes of the last [`WINDOW`], with the time at which they became known, in the order of time.
    recent: VecDeque<(Duration, HandshakeCounts)>,
}

impl HandshakeCounts {
    /// The number of handshakes whose outcome is known.
    #[must_use]
    pub const fn tries(self) -> u64 {
        self.completed.saturating_add(self.unanswered)
    }

    /// The share of handshakes that clients completed, from 0 to 1; `None`: no outcome is known.
    #[must_use]
    pub fn share(self) -> Option<f64> {
        (self.tries() != 0).then(|| self.completed as f64 / self.tries() as f64)
    }

    /// Whether so many handshakes remained unanswered that clients are not served.
    #[must_use]
    pub const fn fail(self) -> bool {
        self.tries() >= ENOUGH && self.completed < self.unanswered
    }
}

impl Add for HandshakeCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { completed: self.completed + other.completed, unanswered: self.unanswered + other.unanswered }
    }
}

impl AddAssign for HandshakeCounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for HandshakeCounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl Served {
    /// Adds outcomes that became known at `now`.
    pub fn add(&mut self, new: HandshakeCounts, now: Duration) {
        self.total += new;
        self.recent.push_back((now, new));
    }

    /// Forgets the outcomes that no longer count at `now`.
    pub fn expire(&mut self, now: Duration) {
        while self.recent.front().is_some_and(|(then, _)| now.saturating_sub(*then) >= WINDOW) {
            self.recent.pop_front();
        }
    }

    /// The outcomes of the last minute.
    #[must_use]
    pub fn recent(&self) -> HandshakeCounts {
        self.recent.iter().map(|(_, of)| *of).sum()
    }

    /// The outcomes since the backend was added.
    #[must_use]
    pub const fn total(&self) -> HandshakeCounts {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(completed: u64, unanswered: u64) -> HandshakeCounts {
        HandshakeCounts { completed, unanswered }
    }

    #[test]
    fn when_a_minute_has_passed_then_outcomes_no_longer_count() {
        let mut served = Served::default();
        for second in 0..60 {
            served.add(of(2, 1), Duration::from_secs(second));
        }
        served.expire(Duration::from_secs(59));
        assert_eq!(served.recent(), of(120, 60));
        served.expire(Duration::from_secs(90));
        assert_eq!((served.recent(), served.total()), (of(58, 29), of(120, 60)));
    }

    #[test]
    fn when_less_than_half_of_enough_handshakes_complete_then_they_fail() {
        for (handshakes, fail) in [
            (of(0, 0), false),
            (of(0, 19), false),
            (of(0, 20), true),
            (of(9, 11), true),
            (of(10, 10), false),
            (of(1000, 900), false),
        ] {
            assert_eq!(handshakes.fail(), fail, "{handshakes:?}");
        }
        assert_eq!((of(0, 0).share(), of(3, 1).share()), (None, Some(0.75)));
    }
}
