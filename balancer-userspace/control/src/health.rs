//! Derives a verdict on a backend from single health checks, by the settings `rise` and `fall`.

use balancer_config::config::CheckConfig;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    Passed,
    /// The backend answered with a failure (`status 503`, `body without "ok"`).
    Soft(String),
    /// The backend or its network refused the check, or ended it without an answer (`connect: refused`).
    Hard(String),
    /// The port is shut, perhaps only while the server restarts (`connect: refused`): not yet a failure.
    Shut(String),
    /// The backend did not answer in time (`connect: timeout after 1s`), which is a hard failure as well.
    Late(String),
    /// This machine could not make the check, which says nothing about the backend.
    Hindered(String),
}

impl CheckOutcome {
    /// Returns `passed`, `soft`, `hard` or `hindered`, and the reason.
    #[must_use]
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Passed => ("passed", ""),
            Self::Soft(reason) => ("soft", reason),
            Self::Hard(reason) | Self::Shut(reason) | Self::Late(reason) => ("hard", reason),
            Self::Hindered(reason) => ("hindered", reason),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The backend answers with a failure.
    Soft,
    /// The backend does not answer.
    Hard,
}

/// The verdict of the health checks on a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The checks have given no verdict yet.
    #[default]
    Unknown,
    /// The verdict is that the backend works.
    Up,
    /// The verdict is that the backend has failed.
    Down {
        /// Whether the failed backend answers at all.
        kind: FailureKind,
        /// The reason of the failure in words (`connect: refused`).
        reason: String,
    },
}

impl Verdict {
    /// The name of the verdict that users see.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down { .. } => "down",
        }
    }
}

/// The verdict on a backend, and the checks counted so far towards another verdict.
///
///
/// ```text
///             1 pass                 fall failures
/// Unknown ───────────────► Up ────────────────────────► Down(kind of the last one)
///    │                     ▲                             │  ▲ │
///    │                     └──────── rise passes ────────┘  │ │ fall failures of the other kind
///    └─────────────────── fall failures ────────────────────┘ └──► Down(other kind)
/// ```
///
/// Only consecutive checks count: a failure resets the number of passes to zero, and a pass resets the number of
/// failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    verdict: Verdict,
    passes: u32,
    failures: u32,
    /// The kind and the reason of the last failure, and the number of consecutive failures of this kind.
    last_failure: Option<Box<(FailureKind, String, u32)>>,
    /// The number of refused checks that do not count as failures yet, since the last check that found the port open.
    /// Together with the failures that count towards the same verdict, they are fewer than `fall`.
    #[serde(default, skip_serializing_if = "is_zero")]
    shut: u32,
    /// See [`Self::is_doubted`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    doubted: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Health {
    /// Makes a health value from the verdict on which the members of a fleet have agreed.
    #[must_use]
    pub fn agreed(verdict: Verdict) -> Self {
        Self { verdict, ..Self::default() }
    }

    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The number of consecutive failures that have not changed the verdict yet, and the reason for the last failure.
    #[must_use]
    pub fn failing(&self) -> Option<(u32, &str)> {
        match (&self.verdict, self.last_failure.as_deref()) {
            (Verdict::Unknown | Verdict::Up, Some((_, reason, _))) => Some((self.failures + self.shut, reason)),
            (Verdict::Unknown | Verdict::Up, None) | (Verdict::Down { .. }, _) => None,
        }
    }

    /// Records a check that ended with this `outcome`.
    pub fn record(&mut self, outcome: &CheckOutcome, check: &CheckConfig) {
        match outcome {
            CheckOutcome::Passed => self.pass(check.rise),
            CheckOutcome::Soft(reason) => {
                self.shut = 0;
                self.fail(FailureKind::Soft, reason, check.fall);
            }
            CheckOutcome::Hard(reason) => self.fail(FailureKind::Hard, reason, check.fall),
            CheckOutcome::Late(reason) => {
                self.shut = 0;
                self.fail(FailureKind::Hard, reason, check.fall);
            }
            CheckOutcome::Shut(reason) => self.wait(reason, check.fall),
            CheckOutcome::Hindered(_) => {}
        }
    }

    /// The numbers of consecutive passes and of consecutive failures; one of the two numbers is 0.
    #[must_use]
    pub const fn streak(&self) -> (u32, u32) {
        (self.passes, self.failures + self.shut)
    }

    /// Whether the last check contradicts the verdict, so that more such checks would change the verdict.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        match (&self.verdict, self.last_failure.as_deref()) {
            (Verdict::Unknown | Verdict::Up, _) => self.failures > 0 || self.doubted,
            (Verdict::Down { kind, .. }, Some((last, ..))) => kind != last || self.shut > 0,
            (Verdict::Down { .. }, None) => true,
        }
    }

    /// Records that the last check got no answer in time, and that packets had asked for this check.
    pub const fn doubt(&mut self) {
        self.doubted = !matches!(self.verdict, Verdict::Down { .. });
    }

    /// Whether new clients should avoid the backend until there is a verdict, because packets hint at a failure and a
    /// check confirmed the hint by a time-out, or because the backend's port is shut.
    #[must_use]
    pub const fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Keeps the verdict, and begins again to count checks towards another verdict.
    pub fn count_anew(&mut self) {
        (self.passes, self.failures, self.shut, self.last_failure, self.doubted) = (0, 0, 0, None, false);
    }

    /// Returns a text that says how many more passes or failures would change the verdict (`down after 2 more
    /// failures`), given the required numbers (rise, fall).
    #[must_use]
    pub fn next_verdict(&self, (rise, fall): (u32, u32)) -> String {
        let more = |count: u32, one: &str, many: &str| match count {
            1 => format!("1 more {one}"),
            count => format!("{count} more {many}"),
        };
        let failures = more(fall.saturating_sub(self.failures + self.shut), "failure", "failures");
        match self.verdict {
            Verdict::Unknown => format!("up after 1 more pass, down after {failures}"),
            Verdict::Up => format!("down after {failures}"),
            Verdict::Down { .. } => {
                format!("up after {}", more(rise.saturating_sub(self.passes), "pass", "passes"))
            }
        }
    }

    fn pass(&mut self, rise: u32) {
        (self.failures, self.shut) = (0, 0);
        (self.last_failure, self.doubted) = (None, false);
        self.passes = self.passes.saturating_add(1);
        match self.verdict {
            Verdict::Unknown => self.verdict = Verdict::Up,
            Verdict::Down { .. } if self.passes >= rise => self.verdict = Verdict::Up,
            Verdict::Up | Verdict::Down { .. } => {}
        }
    }

    fn fail(&mut self, kind: FailureKind, reason: &str, fall: u32) {
        self.passes = 0;
        self.failures = self.failures.saturating_add(1);
        let alike = self.failed_as(kind, reason);
        let (convinced, kind) = match self.verdict {
            // A backend has failed hard only if all of these checks failed hard: known clients would leave it.
            Verdict::Unknown | Verdict::Up => {
                let kind = if alike < fall { FailureKind::Soft } else { kind };
                (self.failures.saturating_add(self.shut) >= fall, kind)
            }
            Verdict::Down { kind: known, .. } => (known == kind || alike.saturating_add(self.shut) >= fall, kind),
        };
        if convinced {
            self.verdict = Verdict::Down { kind, reason: reason.to_owned() };
            (self.shut, self.doubted) = (0, false);
        }
    }

    /// Records a failure that alone leads to no verdict.
    fn wait(&mut self, reason: &str, fall: u32) {
        let failures = match self.verdict {
            Verdict::Down { kind: FailureKind::Hard, .. } => return self.fail(FailureKind::Hard, reason, fall),
            // Known clients stay at a backend that has failed softly, and may wait for its restart.
            Verdict::Down { kind: FailureKind::Soft, .. } => 0,
            Verdict::Unknown | Verdict::Up => {
                self.failed_as(FailureKind::Hard, reason);
                self.doubted = true;
                self.failures
            }
        };
        self.passes = 0;
        self.shut = self.shut.saturating_add(1).min(fall.saturating_sub(1).saturating_sub(failures));
    }

    /// Notes the kind and the reason of a failure. Returns the number of consecutive failures of this kind.
    fn failed_as(&mut self, kind: FailureKind, reason: &str) -> u32 {
        let alike = match self.last_failure.as_deref() {
            Some((last, _, alike)) if *last == kind => alike.saturating_add(1),
            Some(_) | None => 1,
        };
        self.last_failure = Some(Box::new((kind, reason.to_owned(), alike)));
        alike
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_config::fixture;
    use proptest::prelude::*;

    use super::*;

    fn check(fall: u32, rise: u32) -> CheckConfig {
        let interval = Duration::from_secs(2);
        CheckConfig { interval, timeout: interval, fast_interval: interval, fall, rise, ..fixture::check() }
    }

    /// Returns the verdict after each of the `outcomes` (`p`ass, `s`oft, `h`ard) as `?`, `+`, `s`, `h`.
    fn verdicts(outcomes: &str, fall: u32, rise: u32) -> String {
        let mut health = Health::default();
        outcomes
            .chars()
            .map(|outcome| {
                let outcome = match outcome {
                    'p' => CheckOutcome::Passed,
                    's' => CheckOutcome::Soft("status 503".to_owned()),
                    _ => CheckOutcome::Hard("connect: refused".to_owned()),
                };
                health.record(&outcome, &check(fall, rise));
                match health.verdict() {
                    Verdict::Unknown => '?',
                    Verdict::Up => '+',
                    Verdict::Down { kind: FailureKind::Soft, .. } => 's',
                    Verdict::Down { kind: FailureKind::Hard, .. } => 'h',
                }
            })
            .collect()
    }

    #[test]
    fn when_checks_pass_once_or_fail_fall_times_then_the_verdict_changes() {
        assert_eq!(verdicts("p", 3, 2), "+");
        assert_eq!(verdicts("hhh", 3, 2), "??h");
        assert_eq!(verdicts("hhphhh", 3, 2), "??+++h");
        assert_eq!(verdicts("phhhpphp", 3, 2), "+++hh+++");
        assert_eq!(verdicts("hp", 1, 1), "h+");
    }

    #[test]
    fn when_the_kind_of_failure_changes_then_the_verdict_follows_after_fall_checks() {
        assert_eq!(verdicts("phsssh", 3, 2), "+++sss");
        assert_eq!(verdicts("sssshshhh", 3, 2), "??ssssssh");
    }

    /// An overloaded server that is cut off for a moment has not failed hard.
    #[test]
    fn when_failures_of_both_kinds_lead_to_a_verdict_then_it_is_soft_until_enough_are_hard() {
        assert_eq!(verdicts("psshhh", 3, 2), "+++ssh");
        assert_eq!(verdicts("phshhh", 3, 2), "+++ssh");
        assert_eq!(verdicts("hsh", 3, 2), "??s");
    }

    #[test]
    fn when_a_backend_that_failed_softly_restarts_then_only_later_refusals_are_a_hard_failure() {
        let refused = || "connect: refused".to_owned();
        for fall in [1, 3] {
            let mut health = Health::default();
            (0..fall).for_each(|_| health.record(&CheckOutcome::Soft("status 503".to_owned()), &check(fall, 2)));
            (0..9).for_each(|_| health.record(&CheckOutcome::Shut(refused()), &check(fall, 2)));
            assert!(matches!(health.verdict(), Verdict::Down { kind: FailureKind::Soft, .. }), "{fall}");
            health.record(&CheckOutcome::Hard(refused()), &check(fall, 2));
            assert!(matches!(health.verdict(), Verdict::Down { kind: FailureKind::Hard, .. }), "{fall}");
        }
        // The port is open again, and the server is slow at first.
        let mut health = Health::default();
        (0..3).for_each(|_| health.record(&CheckOutcome::Soft("status 503".to_owned()), &check(3, 2)));
        (0..9).for_each(|_| health.record(&CheckOutcome::Shut(refused()), &check(3, 2)));
        (0..2).for_each(|_| health.record(&CheckOutcome::Late("connect: timeout after 1s".to_owned()), &check(3, 2)));
        assert!(matches!(health.verdict(), Verdict::Down { kind: FailureKind::Soft, .. }));
    }

    #[test]
    fn when_failures_repeat_then_the_reason_is_the_latest_of_its_kind() {
        let mut health = Health::default();
        for reason in ["connect: refused", "timeout after 1s"] {
            health.record(&CheckOutcome::Hard(reason.to_owned()), &check(1, 1));
        }
        let down = Verdict::Down { kind: FailureKind::Hard, reason: "timeout after 1s".to_owned() };
        assert_eq!(health.verdict(), &down);
        assert_eq!(health.failing(), None);
    }

    /// Returns whether another verdict is pending after `outcomes`, and the text about this verdict.
    fn pending(outcomes: &str) -> (bool, String) {
        let mut health = Health::default();
        for outcome in outcomes.chars() {
            let outcome = match outcome {
                'p' => CheckOutcome::Passed,
                's' => CheckOutcome::Soft("status 503".to_owned()),
                'x' => CheckOutcome::Hindered("no sockets".to_owned()),
                _ => CheckOutcome::Hard("connect: refused".to_owned()),
            };
            health.record(&outcome, &check(3, 2));
        }
        (health.is_pending(), health.next_verdict((2, 3)))
    }

    #[test]
    fn when_checks_contradict_the_verdict_then_it_is_pending() {
        for (outcomes, is_pending, next) in [
            ("", false, "up after 1 more pass, down after 3 more failures"),
            ("h", true, "up after 1 more pass, down after 2 more failures"),
            ("hx", true, "up after 1 more pass, down after 2 more failures"),
            ("px", false, "down after 3 more failures"),
            ("pph", true, "down after 2 more failures"),
            ("pphh", true, "down after 1 more failure"),
            ("phhh", false, "up after 2 more passes"),
            ("phhhs", true, "up after 2 more passes"),
            ("phhhsss", false, "up after 2 more passes"),
            ("phhhp", true, "up after 1 more pass"),
            ("phhhpp", false, "down after 3 more failures"),
        ] {
            assert_eq!(pending(outcomes), (is_pending, next.to_owned()), "{outcomes}");
        }
    }

    #[test]
    fn when_a_port_is_shut_for_a_moment_then_the_backend_is_doubted_and_only_later_refusals_are_a_verdict() {
        let refused = || "connect: refused".to_owned();
        for fall in [1, 3] {
            let mut health = Health::default();
            health.record(&CheckOutcome::Passed, &check(fall, 2));
            (0..10).for_each(|_| health.record(&CheckOutcome::Shut(refused()), &check(fall, 2)));
            assert_eq!((health.verdict(), health.is_doubted(), health.is_pending()), (&Verdict::Up, true, true));
            assert_eq!(health.failing(), Some((fall - 1, "connect: refused")));
            let mut dead = health.clone();
            dead.record(&CheckOutcome::Hard(refused()), &check(fall, 2));
            assert_eq!((dead.verdict().word(), dead.is_doubted()), ("down", false));
            health.record(&CheckOutcome::Passed, &check(fall, 2));
            assert_eq!((health.verdict(), health.is_doubted(), health.is_pending()), (&Verdict::Up, false, false));
        }
    }

    /// After a restart, a server may need some time for its first answers.
    #[test]
    fn when_a_port_was_shut_and_is_open_again_then_refusals_do_not_count_towards_other_failures() {
        let failures =
            [CheckOutcome::Late("http: timeout after 1s".to_owned()), CheckOutcome::Soft("status 503".to_owned())];
        for failure in failures {
            let mut health = Health::default();
            health.record(&CheckOutcome::Passed, &check(3, 2));
            (0..5).for_each(|_| health.record(&CheckOutcome::Shut("connect: refused".to_owned()), &check(3, 2)));
            (0..2).for_each(|_| health.record(&failure, &check(3, 2)));
            assert_eq!((health.verdict(), health.streak()), (&Verdict::Up, (0, 2)));
            health.record(&failure, &check(3, 2));
            assert_eq!(health.verdict().word(), "down");
        }
    }

    proptest! {
        #[test]
        fn when_a_backend_flaps_below_fall_and_rise_then_nothing_changes(
            fall in 1u32..6, rise in 1u32..6, flaps in prop::collection::vec((any::<u32>(), any::<bool>()), 0..40)
        ) {
            let mut up = "p".to_owned();
            let mut down = "h".repeat(fall as usize);
            for (length, soft) in flaps {
                up += &if soft { "s" } else { "h" }.repeat((length % fall) as usize);
                up.push('p');
                down += &"p".repeat((length % rise) as usize);
                down.push('h');
            }
            prop_assert!(verdicts(&up, fall, rise).chars().all(|verdict| verdict == '+'));
            prop_assert!(verdicts(&down, fall, rise).chars().skip(fall as usize).all(|verdict| verdict == 'h'));
        }
    }
}
