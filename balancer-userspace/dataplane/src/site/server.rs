//! A simulated server, and how it answers.

use std::time::{Duration, Instant};

use balancer_control::io::CheckOutcome;

/// What may be wrong with a server for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The server answers checks with an error, and serves its clients.
    Overloaded,
    /// The server's port is shut.
    Restarts,
    /// The server answers later.
    Pauses,
    /// The server's link is down.
    Cut,
}

/// The time for which a check takes if the server answers at once.
const ANSWER: Duration = Duration::from_millis(1);

/// The time for which a server may work without a check that passes.
const MISSED: Duration = Duration::from_millis(1700);

/// The time for which a server that is down may work before two checks have passed: one after the interval, and one
/// after the fast interval.
const RISING: Duration = Duration::from_millis(2600);

/// A time in which a server is unreachable.
#[derive(Clone, Copy, Debug)]
struct Gap {
    since: Instant,
    until: Instant,
    /// Whether the server's port is shut for some of the time.
    is_shut: bool,
}

impl Gap {
    /// The shortest time that ends in a verdict.
    fn enough(self, (silent, shut): (Duration, Duration)) -> Duration {
        if self.is_shut { shut.min(silent) } else { silent }
    }

    fn is_enough(self, now: Instant, returned: Duration, terms: (Duration, Duration)) -> bool {
        self.since + self.enough(terms) <= now && now <= self.until + returned && self.ends_in_a_verdict(terms)
    }

    fn ends_in_a_verdict(self, terms: (Duration, Duration)) -> bool {
        self.until.saturating_duration_since(self.since) >= self.enough(terms)
    }

    /// The last moment at which another fault may begin before checks have noticed that the server works again.
    fn unnoticed_until(self, terms: (Duration, Duration)) -> Instant {
        self.until + if self.ends_in_a_verdict(terms) { RISING } else { MISSED }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    /// The faults, each with its beginning and its end.
    faults: Vec<(Fault, Instant, Instant)>,
}

impl Server {
    /// Begins a fault.
    pub(super) fn fails(&mut self, fault: Fault, now: Instant, time: Duration) {
        self.faults.push((fault, now, now + time));
    }

    /// The worst fault that the server has at `now`, with its end.
    pub(super) fn fault(&self, now: Instant) -> Option<(Fault, Instant)> {
        let present = self.faults.iter().filter(|&&(_, since, until)| since <= now && now < until);
        present.map(|&(fault, _, until)| (fault, until)).max()
    }

    /// Whether the server answers clients.
    pub(super) fn serves(&self, now: Instant) -> bool {
        self.fault(now).is_none_or(|(fault, _)| fault == Fault::Overloaded)
    }

    /// Whether checks may have found the server down, which now works or may have worked again for at most `returned`. A
    /// verdict needs a time without an answer, or a time in which the port is shut (`terms`).
    pub(super) fn may_be_down(&self, now: Instant, returned: Duration, terms: (Duration, Duration)) -> bool {
        let mut hard: Vec<_> = self.faults.iter().filter(|(fault, ..)| *fault != Fault::Overloaded).collect();
        hard.sort_by_key(|(_, since, _)| *since);
        let mut gap: Option<Gap> = None;
        for &&(fault, since, until) in &hard {
            let is_shut = fault == Fault::Restarts;
            gap = Some(match gap {
                Some(gap) if since <= gap.unnoticed_until(terms) => {
                    Gap { until: gap.until.max(until), is_shut: gap.is_shut || is_shut, ..gap }
                }
                Some(before) if before.is_enough(now, returned, terms) => return true,
                Some(_) | None => Gap { since, until, is_shut },
            });
        }
        gap.is_some_and(|gap| gap.is_enough(now, returned, terms))
    }

    /// The outcome of a check that begins at `start`, and the time at which it ends.
    pub(super) fn check(&self, start: Instant, timeout: Duration) -> (CheckOutcome, Instant) {
        let late = (CheckOutcome::Late("connect: timeout after 1s".to_owned()), start + timeout);
        match self.fault(start) {
            None => (CheckOutcome::Passed, start + ANSWER),
            Some((Fault::Overloaded, _)) => (CheckOutcome::Soft("status 503".to_owned()), start + ANSWER),
            Some((Fault::Restarts, _)) => (CheckOutcome::Shut("connect: refused".to_owned()), start + ANSWER),
            Some((Fault::Pauses, until)) if until + ANSWER < start + timeout => {
                // The server answers what has waited, unless it then has another fault.
                match self.fault(until) {
                    None => (CheckOutcome::Passed, until + ANSWER),
                    Some(_) => late,
                }
            }
            Some((Fault::Pauses | Fault::Cut, _)) => late,
        }
    }
}
