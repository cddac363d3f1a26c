//! Decides which outcomes of a backend's checks count towards a verdict.
//!
//! *Time-outs.* A server that pauses for a second or two answers none of the checks that begin in the meantime, and
//! packets may ask for many. With passive detection, time-outs therefore count only once in each interval of the check,
//! until a check passes: a server that is unreachable for less than `fall - 1` intervals keeps its clients. A refusal
//! always counts: the server or its network sent it.
//!
//! *Refusals.* The port of a server is shut while the server restarts. For that moment the balancer withholds the
//! server's resets from clients, whose SYNs come again. A refusal therefore counts only if the checks of the backend
//! have been refused for the time `restart_grace`, without one that passed.

use std::time::{Duration, Instant};

use balancer_config::config::CheckConfig;

use crate::health::{CheckOutcome, FailureKind, Verdict};

/// The outcomes of a backend's checks since a check last passed, as far as they decide which further outcomes count.
#[derive(Clone, Debug, Default)]
pub struct Counting {
    time_outs: TimeOuts,
    refusals: Refusals,
    is_shut: bool,
}

impl Counting {
    /// Returns the outcome that counts for a check that began at `start`; `None`: the check does not count. `verdict` is
    /// the verdict before the check.
    pub fn count(
        &mut self,
        outcome: CheckOutcome,
        start: Instant,
        (config, restart_grace): (&CheckConfig, Duration),
        verdict: &Verdict,
    ) -> Option<CheckOutcome> {
        // A backend that worked before, or that has failed softly, still has its known clients. Its refusals may mean that
        // its server restarts.
        let keeps_clients = has_clients(verdict) && *verdict != Verdict::Unknown;
        let may_restart = !restart_grace.is_zero() && keeps_clients;
        self.is_shut = may_restart && matches!(outcome, CheckOutcome::Shut(_));
        match outcome {
            CheckOutcome::Shut(why) if !may_restart || self.refusals.counts(start, restart_grace) => {
                Some(CheckOutcome::Hard(why))
            }
            CheckOutcome::Late(_) if !keeps_clients || !config.passive => Some(outcome),
            CheckOutcome::Late(_) => self.time_outs.counts(start, config.interval).then_some(outcome),
            CheckOutcome::Passed => {
                (self.time_outs, self.refusals) = Default::default();
                Some(outcome)
            }
            CheckOutcome::Soft(_) | CheckOutcome::Hard(_) | CheckOutcome::Shut(_) | CheckOutcome::Hindered(_) => {
                Some(outcome)
            }
        }
    }

    /// Whether the last check was refused, and the server may still be restarting, or a few more refusals are a
    /// verdict. `verdict` is the verdict after the check.
    #[must_use]
    pub const fn is_shut(&self, verdict: &Verdict) -> bool {
        self.is_shut && has_clients(verdict)
    }
}

/// Whether a backend keeps its known clients by default. A hard failure makes them leave.
const fn has_clients(verdict: &Verdict) -> bool {
    !matches!(verdict, Verdict::Down { kind: FailureKind::Hard, .. })
}

/// The time-outs since a check last passed.
#[derive(Clone, Debug, Default)]
struct TimeOuts {
    /// The start of the last check whose time-out counted.
    last: Option<Instant>,
}

impl TimeOuts {
    fn counts(&mut self, start: Instant, interval: Duration) -> bool {
        let counts = self.last.is_none_or(|last| start.saturating_duration_since(last) >= interval);
        if counts {
            self.last = Some(start);
        }
        counts
    }
}

/// The refusals since a check last passed.
#[derive(Clone, Debug, Default)]
struct Refusals {
    /// The start of the first check that was refused.
    since: Option<Instant>,
}

impl Refusals {
    fn counts(&mut self, start: Instant, grace: Duration) -> bool {
        let since = *self.since.get_or_insert(start);
        start.saturating_duration_since(since) >= grace
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::fixture::{check, now};

    use super::*;

    /// Returns which time-outs count, of checks that began after so many milliseconds.
    fn counted(config: &CheckConfig, verdict: &Verdict, checks: &[u64]) -> Vec<u64> {
        let (mut counting, begun) = (Counting::default(), now());
        let mut counts = |&ms: &u64| {
            let start = begun + Duration::from_millis(ms);
            let late = CheckOutcome::Late("connect: timeout after 1s".to_owned());
            counting.count(late, start, (config, Duration::ZERO), verdict).map(|_| ms)
        };
        checks.iter().filter_map(&mut counts).collect()
    }

    #[test]
    fn when_checks_time_out_then_one_counts_in_each_interval() {
        let series = [0, 50, 100, 1100, 1150, 1200, 2200, 2250, 2300, 3300, 4300];
        assert_eq!(counted(&check(), &Verdict::Up, &series), [0, 2200, 4300]);
        // Regular checks, each of which begins when the time of the one before is out.
        assert_eq!(counted(&check(), &Verdict::Up, &[0, 1000, 2000, 3000, 4000]), [0, 2000, 4000]);
    }

    #[test]
    fn when_there_is_no_passive_detection_then_every_time_out_counts() {
        let config = CheckConfig { passive: false, ..check() };
        assert_eq!(counted(&config, &Verdict::Up, &[0, 1000, 1100]), [0, 1000, 1100]);
    }

    #[test]
    fn when_a_backend_has_no_verdict_yet_then_every_time_out_counts() {
        assert_eq!(counted(&check(), &Verdict::Unknown, &[0, 1000, 1100]), [0, 1000, 1100]);
    }

    /// Returns which refusals count, of checks that began after so many milliseconds.
    fn refused(checks: &[u64], grace: Duration) -> Vec<u64> {
        let (mut counting, begun, config) = (Counting::default(), now(), check());
        let mut counts = |&ms: &u64| {
            let start = begun + Duration::from_millis(ms);
            let shut = CheckOutcome::Shut("connect: refused".to_owned());
            let counted = counting.count(shut, start, (&config, grace), &Verdict::Up);
            matches!(counted, Some(CheckOutcome::Hard(_))).then_some(ms)
        };
        checks.iter().filter_map(&mut counts).collect()
    }

    #[test]
    fn when_a_backend_failed_softly_then_its_restart_has_the_same_grace() {
        let (mut counting, config) = (Counting::default(), check());
        let soft = Verdict::Down { kind: FailureKind::Soft, reason: "status 503".to_owned() };
        let shut = || CheckOutcome::Shut("connect: refused".to_owned());
        let terms = (&config, Duration::from_secs(2));
        assert_eq!(counting.count(shut(), now(), terms, &soft), Some(shut()));
        let hard = Verdict::Down { kind: FailureKind::Hard, reason: "connect: refused".to_owned() };
        let counted = counting.count(shut(), now(), terms, &hard);
        assert!(matches!(counted, Some(CheckOutcome::Hard(_))));
    }

    #[test]
    fn when_a_port_is_shut_then_refusals_count_once_the_grace_is_over() {
        let checks = [0, 50, 100, 1000, 1999, 2000, 2050, 9000];
        assert_eq!(refused(&checks, Duration::from_secs(2)), [2000, 2050, 9000]);
        assert_eq!(refused(&checks, Duration::ZERO), checks);
    }
}
