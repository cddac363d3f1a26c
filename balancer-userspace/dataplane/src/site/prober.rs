//! Simulated checks of backends: regular checks, and checks that packets ask for.

use std::time::{Duration, Instant};

use balancer_common::verdict::Signal;
use balancer_control::{
    counting::Counting,
    health::Verdict,
    io::{CheckOutcome, CheckSpec, Event},
};
use fastrand::Rng;

use super::server::Server;

const GAP: Duration = Duration::from_millis(50);
const SHUT_GAP: Duration = Duration::from_millis(100);
const PERIOD: Duration = Duration::from_secs(1);
const LONGEST_PERIOD: Duration = Duration::from_secs(60);

/// A check that runs.
#[derive(Clone, Debug)]
struct Running {
    start: Instant,
    end: Instant,
    outcome: CheckOutcome,
    asked: bool,
}

/// A series of checks that packets have asked for.
#[derive(Clone, Copy, Debug)]
struct Series {
    begun: u32,
    wanted: u32,
    next: Instant,
    last: Instant,
}

/// The checks of one backend.
#[derive(Clone, Debug)]
pub(super) struct Prober {
    pub(super) spec: CheckSpec,
    counting: Counting,
    due: Instant,
    running: Vec<Running>,
    series: Option<Series>,
    /// Whether the backend's own resets, or packets that anybody can cause, ask for a series.
    asked: [bool; 2],
    last_series: Option<Instant>,
    patience: Duration,
}

impl Prober {
    pub(super) fn new(spec: CheckSpec, now: Instant, rng: &mut Rng) -> Self {
        let due = now + spec.check.interval.mul_f64(rng.f64());
        let counting = Counting::default();
        Self {
            spec,
            counting,
            due,
            running: Vec::new(),
            series: None,
            asked: [false; 2],
            last_series: None,
            patience: PERIOD,
        }
    }

    /// Notes a sign of failure.
    pub(super) fn suspect(&mut self, signal: Signal) {
        let is_hint = matches!(signal, Signal::Unreachable | Signal::Unanswered);
        self.asked[usize::from(is_hint)] = true;
    }

    /// Checks the backend soon, because another backend of the service begins to fail.
    pub(super) fn alarm(&mut self, now: Instant, rng: &mut Rng) {
        if !self.spec.health.is_pending() {
            self.due = self.due.min(now + self.spec.check.fast_interval.mul_f64(rng.f64()));
        }
    }

    /// Starts the checks that are due, and returns the results of those that have ended.
    pub(super) fn advance(&mut self, server: &Server, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        self.begin(server, now);
        loop {
            let ended = self.running.iter().enumerate().filter(|(_, check)| check.end <= now);
            let Some((place, _)) = ended.min_by_key(|(_, check)| check.end) else { break };
            let check = self.running.swap_remove(place);
            events.extend(self.count(check));
            self.end_series();
        }
        events
    }

    fn is_down(&self) -> bool {
        matches!(self.spec.health.verdict(), Verdict::Down { .. })
    }

    fn begin(&mut self, server: &Server, now: Instant) {
        let [words, hints] = self.asked;
        let wait = if words { PERIOD } else { self.patience };
        if self.series.is_none() && (words || hints) && self.last_series.is_none_or(|last| last + wait <= now) {
            (self.asked, self.last_series) = ([false; 2], Some(now));
            if !self.is_down() {
                // The series replaces the running check.
                self.running.clear();
                let wanted = self.spec.check.fall.saturating_sub(self.spec.health.streak().1).clamp(1, 20);
                self.series = Some(Series { begun: 0, wanted, next: now, last: now });
            }
        }
        if let Some(series) = &mut self.series {
            let is_shut = self.counting.is_shut(self.spec.health.verdict());
            while series.next <= now && (series.begun < series.wanted || is_shut) {
                let start = series.next;
                let (outcome, end) = server.check(start, self.spec.check.timeout);
                self.running.push(Running { start, end, outcome, asked: true });
                series.begun += 1;
                series.last = start;
                series.next += if series.begun < series.wanted { GAP } else { SHUT_GAP };
            }
        } else if self.due <= now && self.running.is_empty() {
            let (outcome, end) = server.check(self.due, self.spec.check.timeout);
            self.running.push(Running { start: self.due, end, outcome, asked: false });
        }
    }

    fn count(&mut self, Running { start, end, outcome, asked }: Running) -> Option<Event> {
        let passed = outcome == CheckOutcome::Passed;
        let (verdict, terms) = (self.spec.health.verdict().clone(), (&self.spec.check, self.spec.restart_grace));
        let outcome = self.counting.count(outcome, start, terms, &verdict);
        if let Some(outcome) = &outcome {
            self.spec.health.record(outcome, &self.spec.check);
        }
        if !asked {
            self.patience = if passed { self.patience } else { PERIOD };
            self.wait(start, end);
        } else if passed || self.is_down() {
            self.stop_series(start, end);
        }
        let (backend, check) = (self.spec.backend, self.spec.number);
        outcome.map(|outcome| Event::Checked { backend, check, outcome, took: end - start, asked })
    }

    fn wait(&mut self, start: Instant, end: Instant) {
        let is_pending = self.spec.health.is_pending();
        let interval = if is_pending { self.spec.check.fast_interval } else { self.spec.check.interval };
        self.due = (start + interval).max(end);
    }

    /// Ends the series if all its checks have ended.
    fn end_series(&mut self) {
        let Some(series) = self.series else { return };
        let is_shut = self.counting.is_shut(self.spec.health.verdict());
        if series.begun >= series.wanted && self.running.is_empty() && !is_shut {
            self.stop_series(series.last, series.last);
        }
    }

    fn stop_series(&mut self, start: Instant, end: Instant) {
        if self.series.take().is_some() {
            self.running.clear();
            let fails = self.spec.health.is_pending() || self.is_down();
            self.patience = if fails { PERIOD } else { (2 * self.patience).min(LONGEST_PERIOD) };
            self.wait(start, end);
        }
    }
}
