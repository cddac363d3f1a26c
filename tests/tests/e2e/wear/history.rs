//! A record of the clients' results and the operator's actions; the record checks that the actions explain the results.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    time::{Duration, Instant},
};

/// An attempt of a client to connect.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) client: u16,
    pub(super) start: Instant,
    pub(super) end: Instant,
    /// The backend that answered the attempt, or the error.
    pub(super) outcome: Result<String, String>,
}

impl Attempt {
    /// Returns the start and the result of the attempt, as a line.
    fn line(&self) -> (Instant, String) {
        let took = self.end.saturating_duration_since(self.start);
        (self.start, format!("client {} begins, and has {:?} after {took:.2?}", self.client, self.outcome))
    }
}

/// An action of the operator, with its time.
#[derive(Debug)]
struct Deed {
    at: Instant,
    what: String,
}

/// The effect of a backend's failure on clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The backend's clients may move, and their current connections may break.
    Moves,
    /// The backend does not answer its clients.
    Silent,
}

/// A period in which clients may leave a backend.
#[derive(Clone, Debug)]
struct Trouble {
    backend: u16,
    begun: Instant,
    over: Option<Instant>,
    kind: Kind,
}

impl Trouble {
    fn overlaps(&self, start: Instant, end: Instant) -> bool {
        self.begun <= end && self.over.is_none_or(|over| start <= over)
    }
}

/// The period before a fault that the report of the fault covers.
const STORY: Duration = Duration::from_secs(25);

/// All actions and results so far.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The backend that last answered each client, and the start of that connection.
    homes: HashMap<u16, (String, Instant)>,
    deeds: Vec<Deed>,
    troubles: Vec<Trouble>,
}

impl History {
    pub(super) fn note(&mut self, what: impl Into<String>) {
        self.deeds.push(Deed { at: Instant::now(), what: what.into() });
    }

    pub(super) fn begin(&mut self, backend: u16, begun: Instant, kind: Kind) {
        self.troubles.push(Trouble { backend, begun, over: None, kind });
    }

    /// Records which backends answered the clients while the operator made no changes.
    pub(super) fn seen(&mut self, homes: BTreeMap<u16, String>) {
        let now = Instant::now();
        self.homes.extend(homes.into_iter().map(|(client, home)| (client, (home, now))));
    }

    /// Returns whether a backend is silent, so that new clients may get no answer.
    pub(super) fn is_silent(&self) -> bool {
        self.troubles.iter().any(|trouble| trouble.kind == Kind::Silent && trouble.over.is_none())
    }

    /// Forgets failures that are over, and old actions.
    pub(super) fn forget(&mut self) {
        self.troubles.retain(|trouble| trouble.over.is_none());
        self.deeds.drain(..self.deeds.len().saturating_sub(50));
    }

    /// Records that the failure of a backend is over.
    pub(super) fn end(&mut self, backend: u16) {
        for trouble in self.troubles.iter_mut().filter(|trouble| trouble.backend == backend && trouble.over.is_none()) {
            trouble.over = Some(Instant::now());
        }
    }

    /// Returns the faults in the clients' attempts, in the order of each client's attempts. A client must stay with its
    /// backend unless the backend has failed, and must get an answer unless a backend is silent.
    pub(super) fn judge(&mut self, attempts: &[Attempt]) -> Vec<String> {
        let mut homes = std::mem::take(&mut self.homes);
        let wrong = attempts.iter().filter_map(|attempt| {
            let home = homes.get(&attempt.client);
            let wrong = self.judge_one(attempt, home.map(|(home, since)| (home.as_str(), *since)));
            if let Ok(backend) = &attempt.outcome {
                homes.insert(attempt.client, (backend.clone(), attempt.start));
            }
            wrong.map(|what| self.story(&what, attempt, attempts))
        });
        let wrong = wrong.collect();
        self.homes = homes;
        wrong
    }

    /// Returns the fault in a client's attempt, if there is one. `home` is the backend that last answered the client,
    /// with the start time of that connection.
    fn judge_one(&self, attempt: &Attempt, home: Option<(&str, Instant)>) -> Option<String> {
        let Attempt { client, start, end, outcome } = attempt;
        match (outcome, home) {
            (Ok(backend), Some((home, since))) if home != backend && !self.may_leave(home, since, *end) => {
                Some(format!("client {client} went from {home} to {backend}"))
            }
            (Ok(_), _) => None,
            (Err(why), home) => {
                let silent = |trouble: &Trouble| trouble.kind == Kind::Silent && trouble.overlaps(*start, *end);
                let cut = home.is_some_and(|(home, _)| self.may_leave(home, *start, *end));
                let expected = cut || self.troubles.iter().any(silent);
                (!expected).then(|| format!("client {client} of {home:?} was not answered: {why}"))
            }
        }
    }

    fn may_leave(&self, home: &str, start: Instant, end: Instant) -> bool {
        let of = |trouble: &&Trouble| format!("web{}", trouble.backend) == home;
        self.troubles.iter().filter(of).any(|trouble| trouble.overlaps(start, end))
    }

    /// Describes a fault, the actions before the fault, and the client's results.
    fn story(&self, what: &str, attempt: &Attempt, attempts: &[Attempt]) -> String {
        let took = attempt.end.saturating_duration_since(attempt.start);
        let mut lines: Vec<(Instant, String)> =
            attempts.iter().filter(|other| other.client == attempt.client).map(Attempt::line).collect();
        for trouble in &self.troubles {
            lines.push((trouble.begun, format!("web{} {:?}", trouble.backend, trouble.kind)));
            lines.extend(trouble.over.map(|over| (over, format!("web{} is well", trouble.backend))));
        }
        self.tell(&format!("{what}, after {took:.2?}"), attempt.end, lines)
    }

    /// Describes a current fault, and the actions before the fault.
    pub(super) fn story_until_now(&self, what: &str) -> String {
        self.tell(what, Instant::now(), Vec::new())
    }

    fn tell(&self, what: &str, end: Instant, mut lines: Vec<(Instant, String)>) -> String {
        lines.extend(self.deeds.iter().map(|deed| (deed.at, deed.what.clone())));
        lines.retain(|(at, _)| *at <= end && *at + STORY > end);
        lines.sort();
        let mut text = format!("{what}\n");
        for (at, what) in lines {
            let before = end.saturating_duration_since(at);
            let _infallible = writeln!(text, "  {:6.2} s before: {what}", before.as_secs_f32());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(at: Instant, outcome: Result<&str, &str>) -> Attempt {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        Attempt { client: 1, start: at, end: at + Duration::from_millis(10), outcome }
    }

    #[test]
    fn when_a_client_moves_or_has_no_answer_without_cause_then_it_is_reported() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let wrong = |history: &mut History, attempts: &[Attempt]| {
            history.homes.clear();
            history.judge(attempts).len()
        };
        let mut history = History::default();
        let moved = [attempt(at(1), Ok("web1")), attempt(at(2), Ok("web2"))];
        let unanswered = [attempt(at(1), Ok("web1")), attempt(at(2), Err("refused"))];
        assert_eq!(wrong(&mut history, &moved), 1);
        assert_eq!(wrong(&mut history, &unanswered), 1);
        history.begin(2, at(1), Kind::Moves);
        assert_eq!(wrong(&mut history, &moved), 1, "another's trouble");
        assert_eq!(wrong(&mut history, &unanswered), 1, "another's trouble");
        history.begin(3, at(1), Kind::Silent);
        assert_eq!(wrong(&mut history, &unanswered), 0, "somebody answers nobody");
        let mut history = History::default();
        history.begin(1, at(1), Kind::Moves);
        assert_eq!(wrong(&mut history, &moved), 0);
        assert_eq!(wrong(&mut history, &unanswered), 0, "its own trouble cuts a connection");
    }
}
