//! When checks come.

use std::time::Duration;

use balancer_model::config::CheckConfig;
use tokio::time::Instant;

/// The longest wait before the first check.
const FIRST: Duration = Duration::from_millis(500);
/// Checks that are due within so short a time come together: one wake-up does for all of them.
const TOGETHER: Duration = Duration::from_millis(5);

/// The moments at which the checks of one backend come.
pub(super) struct Pace {
    random: fastrand::Rng,
    /// Where everybody's moments are counted from.
    origin: Instant,
}

impl Pace {
    pub(super) const fn new(random: fastrand::Rng, origin: Instant) -> Self {
        Self { random, origin }
    }

    /// When the first check comes, if asked for `now`.
    pub(super) fn first(&mut self, now: Instant, interval: Duration) -> Instant {
        let wait = interval.min(FIRST).mul_f64(self.random.f64());
        self.shared(now + wait)
    }

    /// When the check after that of `last` comes.
    pub(super) fn next(&mut self, last: Instant, interval: Duration) -> Instant {
        let jitter = CheckConfig::JITTER;
        let wait = interval.mul_f64(1.0 - jitter + 2.0 * jitter * self.random.f64());
        self.shared(last + wait)
    }

    /// The next of the moments that all share.
    fn shared(&self, moment: Instant) -> Instant {
        let since = moment.saturating_duration_since(self.origin).as_nanos();
        let over = u64::try_from(since % TOGETHER.as_nanos()).unwrap_or(0);
        match over {
            0 => moment,
            over => moment + (TOGETHER - Duration::from_nanos(over)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(fastrand::Rng::with_seed(7), Instant::now())
    }

    #[test]
    fn jitter_stays_within_ten_percent() {
        let mut pace = pace();
        let last = pace.origin + Duration::from_millis(1);
        let waits: Vec<Duration> = (0..10_000).map(|_| pace.next(last, Duration::from_secs(2)) - last).collect();
        let allowed = Duration::from_millis(1800)..=Duration::from_millis(2200) + TOGETHER;
        assert!(waits.iter().all(|wait| allowed.contains(wait)));
        let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
        assert!(spread > Duration::from_millis(390), "{spread:?}");
    }

    #[test]
    fn a_thousand_backends_do_not_start_at_once() {
        let mut by_tenth = [0u32; 11];
        let mut pace = pace();
        let now = pace.origin;
        for _ in 0..1000 {
            let delay = pace.first(now, Duration::from_secs(2)) - now;
            by_tenth[usize::try_from(delay.as_millis() * 10 / FIRST.as_millis()).unwrap()] += 1;
        }
        // 100 expected in each, standard deviation 9.5: five of them. Those of the last 5 ms come at its very end.
        by_tenth[9] += by_tenth[10];
        assert!(by_tenth[..10].iter().all(|&count| count.abs_diff(100) < 48), "{by_tenth:?}");
        assert!(pace.first(now, Duration::from_millis(100)) <= now + Duration::from_millis(100));
    }

    #[test]
    fn what_is_due_at_about_the_same_time_comes_together() {
        let pace = pace();
        let at = |micros| pace.shared(pace.origin + Duration::from_micros(micros)) - pace.origin;
        assert_eq!(at(10_000), Duration::from_millis(10));
        assert_eq!(at(10_001), Duration::from_millis(15));
        assert_eq!(at(15_000), Duration::from_millis(15));
    }
}
