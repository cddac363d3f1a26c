//! Determines the times at which checks start.

use std::time::Duration;

use balancer_config::config::CheckConfig;
use tokio::time::Instant;

/// The maximum time before the first check of a backend.
const FIRST: Duration = Duration::from_millis(500);
/// The time span within which due checks share one wake-up.
const TOGETHER: Duration = Duration::from_millis(5);

/// The timing of one backend's checks.
pub(super) struct Pace {
    random: fastrand::Rng,
    /// The origin of the wake-up times of all backends.
    origin: Instant,
}

impl Pace {
    pub(super) const fn new(random: fastrand::Rng, origin: Instant) -> Self {
        Self { random, origin }
    }

    /// The time of the first check if a check is requested at `now`.
    pub(super) fn first(&mut self, now: Instant, interval: Duration) -> Instant {
        let wait = interval.min(FIRST).mul_f64(self.random.f64());
        self.shared(now + wait)
    }

    /// The time of the next check if the previous check started at `last`.
    pub(super) fn next(&mut self, last: Instant, interval: Duration) -> Instant {
        let jitter = CheckConfig::JITTER;
        let wait = interval.mul_f64(1.0 - jitter + 2.0 * jitter * self.random.f64());
        self.shared(last + wait)
    }

    /// The next wake-up time after `moment`; the wake-up times are the same for all backends.
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
    fn when_checks_have_jitter_then_it_stays_within_ten_percent() {
        let mut pace = pace();
        let last = pace.origin + Duration::from_millis(1);
        let waits: Vec<Duration> = (0..10_000).map(|_| pace.next(last, Duration::from_secs(2)) - last).collect();
        let allowed = Duration::from_millis(1800)..=Duration::from_millis(2200) + TOGETHER;
        assert!(waits.iter().all(|wait| allowed.contains(wait)));
        let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
        assert!(spread > Duration::from_millis(390), "{spread:?}");
    }

    #[test]
    fn when_a_thousand_backends_start_then_their_checks_are_spread() {
        let mut by_tenth = [0u32; 11];
        let mut pace = pace();
        let now = pace.origin;
        for _ in 0..1000 {
            let delay = pace.first(now, Duration::from_secs(2)) - now;
            by_tenth[usize::try_from(delay.as_millis() * 10 / FIRST.as_millis()).unwrap()] += 1;
        }
        // Each tenth of the interval should get 100 checks; the allowed difference is five standard deviations of 9.5.
        // Checks due in the last 5 ms start exactly at the end of the interval.
        by_tenth[9] += by_tenth[10];
        assert!(by_tenth[..10].iter().all(|&count| count.abs_diff(100) < 48), "{by_tenth:?}");
        assert!(pace.first(now, Duration::from_millis(100)) <= now + Duration::from_millis(100));
    }

    #[test]
    fn when_checks_are_due_at_about_the_same_time_then_they_come_together() {
        let pace = pace();
        let at = |micros| pace.shared(pace.origin + Duration::from_micros(micros)) - pace.origin;
        assert_eq!(at(10_000), Duration::from_millis(10));
        assert_eq!(at(10_001), Duration::from_millis(15));
        assert_eq!(at(15_000), Duration::from_millis(15));
    }
}
