//! Decides which outcomes of a backend's checks count towards a verdict.
//!
//! *Time-outs.* A server that pauses for a second or two answers none of the checks that packets ask for in the
//! meantime. All these checks are one look at the server. Once packets have asked for a check that timed out, further
//! time-outs therefore count only once in each interval of the check, until a check passes. A refusal always counts:
//! the server or its network sent it.
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
    /// Returns the outcome that counts for a check that began at `start`; `None`: the check does not count. `asked` says
    /// whether packets have asked for the check. `verdict` is the verdict before the check.
    pub fn count(
        &mut self,
        outcome: CheckOutcome,
        (start, asked): (Instant, bool),
        (config, restart_grace): (&CheckConfig, Duration),
        verdict: &Verdict,
    ) -> Option<CheckOutcome> {
        // A backend that worked before, or that has failed softly, still has its known clients. Its refusals may mean that
        // its server restarts.
        let has_clients = has_clients(verdict);
        let may_restart = !restart_grace.is_zero() && has_clients && *verdict != Verdict::Unknown;
        self.is_shut = may_restart && matches!(outcome, CheckOutcome::Shut(_));
        match outcome {
            CheckOutcome::Shut(why) if !may_restart || self.refusals.counts(start, restart_grace) => {
                Some(CheckOutcome::Hard(why))
            }
            CheckOutcome::Late(_) if !has_clients => Some(outcome),
            CheckOutcome::Late(_) => self.time_outs.counts((start, asked), config.interval).then_some(outcome),
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
    /// Whether packets have asked for one of the checks that timed out.
    asked: bool,
}

impl TimeOuts {
    fn counts(&mut self, (start, asked): (Instant, bool), interval: Duration) -> bool {
        self.asked |= asked;
        let counts = !self.asked || self.last.is_none_or(|last| start.saturating_duration_since(last) >= interval);
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

    /// Returns which time-outs count, of checks that began after so many milliseconds; packets asked for some.
    fn counted(checks: &[(u64, bool)]) -> Vec<u64> {
        let (mut counting, begun, config) = (Counting::default(), now(), check());
        let mut counts = |&(ms, asked): &(u64, bool)| {
            let start = begun + Duration::from_millis(ms);
            let late = CheckOutcome::Late("connect: timeout after 1s".to_owned());
            counting.count(late, (start, asked), (&config, Duration::ZERO), &Verdict::Up).map(|_| ms)
        };
        checks.iter().filter_map(&mut counts).collect()
    }

    #[test]
    fn when_packets_ask_for_checks_that_time_out_then_one_counts_in_each_interval() {
        let series = [0, 50, 100, 1100, 1150, 1200, 2200, 2250, 2300, 3300, 4300].map(|ms| (ms, true));
        assert_eq!(counted(&series), [0, 2200, 4300]);
        // Regular checks follow the series.
        assert_eq!(counted(&[(0, true), (50, true), (1000, false), (2000, false), (2050, true)]), [0, 2000]);
        assert_eq!(counted(&[(0, false), (50, true), (600, false), (2000, false)]), [0, 2000]);
    }

    #[test]
    fn when_packets_ask_for_no_check_then_every_time_out_counts() {
        assert_eq!(counted(&[(0, false), (1000, false), (1100, false)]), [0, 1000, 1100]);
    }

    /// Returns which refusals count, of checks that began after so many milliseconds.
    fn refused(checks: &[u64], grace: Duration) -> Vec<u64> {
        let (mut counting, begun, config) = (Counting::default(), now(), check());
        let mut counts = |&ms: &u64| {
            let start = begun + Duration::from_millis(ms);
            let shut = CheckOutcome::Shut("connect: refused".to_owned());
            let counted = counting.count(shut, (start, false), (&config, grace), &Verdict::Up);
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
        assert_eq!(counting.count(shut(), (now(), false), terms, &soft), Some(shut()));
        let hard = Verdict::Down { kind: FailureKind::Hard, reason: "connect: refused".to_owned() };
        let counted = counting.count(shut(), (now(), false), terms, &hard);
        assert!(matches!(counted, Some(CheckOutcome::Hard(_))));
    }

    #[test]
    fn when_a_port_is_shut_then_refusals_count_once_the_grace_is_over() {
        let checks = [0, 50, 100, 1000, 1999, 2000, 2050, 9000];
        assert_eq!(refused(&checks, Duration::from_secs(2)), [2000, 2050, 9000]);
        assert_eq!(refused(&checks, Duration::ZERO), checks);
    }
}
