//! Backends that may have failed, as packets or other members of the fleet indicate.

use std::{collections::HashMap, time::Duration};

use balancer_common::verdict::Signal;
use balancer_config::names::BackendName;
use balancer_control::{
    health::Verdict,
    io::{BackendId, CheckOutcome, Event, Report, ReportLevel},
};
use balancer_dataplane::Dataplane;
use tokio::time::Instant;

use super::Owner;

/// The time after which a suspicion expires if no check has ended.
const LAPSES: Duration = Duration::from_secs(10);
/// After a backend has passed a check, this balancer reports no suspicion from packets to other members for this time.
/// Without this limit, a client that keeps trying a closed port would cause endless reports.
const CALM: Duration = Duration::from_secs(10);

/// The numbers of signs of a backend's failure, by kind.
pub(super) type Counts = [u64; Signal::COUNT];

#[derive(Debug)]
struct Suspect {
    signal: Signal,
    since: Instant,
    /// Whether a check of the suspect has failed since the suspicion.
    fails: bool,
}

/// The suspected backends: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// The suspected backends that have passed no check since the suspicion.
    suspects: HashMap<BackendId, Suspect>,
    /// The times at which backends that are not suspected last passed a check.
    passed: HashMap<BackendId, Instant>,
    counts: HashMap<BackendId, Counts>,
}

/// The meaning of a check result for a suspect.
pub(super) enum Answer {
    /// No check of the suspect has failed.
    Works(BackendId),
    /// The suspect works again after checks that failed.
    Recovers(BackendId),
    /// The first check of the suspect has failed.
    Fails(BackendId, Signal, String),
}

impl Suspects {
    fn note(&mut self, id: BackendId, signal: Signal, is_down: bool, now: Instant) {
        self.counts.entry(id).or_default()[signal.index()] += 1;
        if is_down {
            self.suspects.remove(&id);
        } else {
            let suspect = self.suspects.entry(id).or_insert(Suspect { signal, since: now, fails: false });
            suspect.since = now;
        }
    }

    /// Records the result of a check, and returns what it means for a suspect.
    pub(super) fn answer(&mut self, event: &Event, now: Instant) -> Option<Answer> {
        let Event::Checked { backend, outcome, asked, .. } = event else { return None };
        match outcome {
            CheckOutcome::Passed => {
                let fails = self.suspects.get(backend)?.fails;
                if !asked && !fails {
                    // The check may have passed before the backend died, because the check started before the suspicion
                    // or was reported late.
                    return None;
                }
                self.suspects.remove(backend);
                self.passed.retain(|_, at| now.saturating_duration_since(*at) < CALM);
                self.passed.insert(*backend, now);
                Some(if fails { Answer::Recovers(*backend) } else { Answer::Works(*backend) })
            }
            CheckOutcome::Soft(why) | CheckOutcome::Hard(why) | CheckOutcome::Shut(why) | CheckOutcome::Late(why) => {
                let suspect = self.suspects.get_mut(backend).filter(|suspect| !suspect.fails)?;
                suspect.fails = true;
                let is_recent = now.saturating_duration_since(suspect.since) < LAPSES;
                is_recent.then(|| Answer::Fails(*backend, suspect.signal, why.clone()))
            }
            CheckOutcome::Hindered(_) => None,
        }
    }

    /// The backends that this balancer suspects because of packets, and that the other members should check.
    fn to_tell(&self, now: Instant) -> impl Iterator<Item = BackendId> {
        let is_news = move |(id, suspect): &(&BackendId, &Suspect)| {
            let is_calm = self.passed.get(id).is_some_and(|at| now.saturating_duration_since(*at) < CALM);
            suspect.signal != Signal::Member && !is_calm && now.saturating_duration_since(suspect.since) < LAPSES
        };
        self.suspects.iter().filter(is_news).map(|(id, _)| *id)
    }

    /// Forgets a removed backend, because another backend may get the same id.
    pub(super) fn forget(&mut self, id: BackendId) {
        self.suspects.remove(&id);
        self.passed.remove(&id);
        self.counts.remove(&id);
    }

    /// The numbers of signs of a backend's failure since this process began, by kind.
    pub(super) fn counts(&self, id: BackendId) -> Counts {
        self.counts.get(&id).copied().unwrap_or_default()
    }
}

/// Describes a sign of failure, for the end of a sentence.
const fn words(signal: Signal) -> &'static str {
    match signal {
        Signal::Refused => "it refuses connections",
        Signal::Unreachable => "packets to it are answered with ICMP errors",
        Signal::Unanswered => "clients do not complete their handshakes with it",
        Signal::Member => "another member of the fleet suspects it",
    }
}

/// Reports that a suspect has failed its check.
pub(super) fn report(name: BackendName, signal: Signal, why: &str) -> Report {
    let message = format!("{name} was checked at once, because {}: {why}", words(signal));
    Report { level: ReportLevel::Info, about: Some(name), message, moves: None }
}

impl<D: Dataplane> Owner<D> {
    /// Makes the prober check a backend immediately, because the backend may have failed.
    pub fn suspect(&mut self, id: BackendId, signal: Signal) {
        let Some(backend) = self.controller.backend_with_id(id) else { return };
        let is_down = matches!(backend.health().verdict(), Verdict::Down { .. });
        self.suspects.note(id, signal, is_down, Instant::now());
        self.prober.suspect(id, signal);
    }

    /// The backends that other members of the fleet should check immediately: those suspected because of packets, and
    /// those that begin to fail this balancer's checks.
    pub(crate) fn suspected(&self) -> Vec<BackendId> {
        let mut all: Vec<BackendId> = self.suspects.to_tell(Instant::now()).collect();
        all.extend(self.controller.begin_to_fail());
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use balancer_control::io::CheckNumber;

    use super::*;

    const WEB: BackendId = BackendId(7);

    fn checked(outcome: CheckOutcome) -> Event {
        Event::Checked { backend: WEB, check: CheckNumber(1), outcome, took: Duration::from_millis(1), asked: true }
    }

    fn fails() -> Event {
        checked(CheckOutcome::Hard("connect: refused".to_owned()))
    }

    fn told(suspects: &Suspects, now: Instant) -> Vec<BackendId> {
        suspects.to_tell(now).collect()
    }

    #[test]
    fn when_a_suspect_fails_its_check_then_that_is_told_once() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        assert!(suspects.answer(&fails(), now).is_none(), "nothing has suspected it");
        suspects.note(WEB, Signal::Refused, false, now);
        let Some(Answer::Fails(WEB, Signal::Refused, why)) = suspects.answer(&fails(), now) else { panic!("not told") };
        let name = BackendName { service: "web".to_owned(), backend: "web7".to_owned() };
        let line = report(name, Signal::Refused, &why).message;
        assert_eq!(line, "web/web7 was checked at once, because it refuses connections: connect: refused");
        assert!(suspects.answer(&fails(), now).is_none());
        assert_eq!(told(&suspects, now), [WEB]);
    }

    #[test]
    fn when_a_backend_works_then_signals_are_counted_and_not_told_to_others_for_a_while() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        suspects.note(WEB, Signal::Unanswered, false, now);
        assert_eq!(told(&suspects, now), [WEB]);
        assert!(matches!(suspects.answer(&checked(CheckOutcome::Passed), now), Some(Answer::Works(WEB))));
        suspects.note(WEB, Signal::Unanswered, false, now);
        assert!(told(&suspects, now).is_empty());
        assert_eq!(suspects.counts(WEB)[Signal::Unanswered.index()], 2);
        suspects.note(WEB, Signal::Refused, false, now + CALM);
        assert_eq!(told(&suspects, now + CALM), [WEB]);
        assert!(told(&suspects, now + CALM + LAPSES).is_empty(), "it lapses");
        suspects.forget(WEB);
        assert_eq!(suspects.counts(WEB), Counts::default());
    }

    #[test]
    fn when_a_check_of_a_suspect_failed_before_one_passes_then_its_resets_were_not_on_purpose() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        suspects.note(WEB, Signal::Refused, false, now);
        assert!(suspects.answer(&checked(CheckOutcome::Shut("connect: refused".to_owned())), now).is_some());
        assert!(matches!(suspects.answer(&checked(CheckOutcome::Passed), now), Some(Answer::Recovers(WEB))));
    }

    #[test]
    fn when_a_check_passed_before_the_backend_was_suspected_and_is_told_later_then_it_stays_suspected() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        suspects.note(WEB, Signal::Refused, false, now);
        let Event::Checked { backend, check, outcome, took, .. } = checked(CheckOutcome::Passed) else { panic!() };
        let earlier = Event::Checked { backend, check, outcome, took, asked: false };
        assert!(suspects.answer(&earlier, now).is_none());
        assert_eq!(told(&suspects, now), [WEB]);
    }

    #[test]
    fn when_another_member_suspects_a_backend_then_it_is_not_told_back() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        suspects.note(WEB, Signal::Member, false, now);
        assert!(told(&suspects, now).is_empty());
        assert!(matches!(suspects.answer(&fails(), now), Some(Answer::Fails(..))));
    }

    #[test]
    fn when_a_backend_is_down_already_then_its_signals_are_only_counted() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        suspects.note(WEB, Signal::Refused, true, now);
        assert!(told(&suspects, now).is_empty() && suspects.answer(&fails(), now).is_none());
        assert_eq!(suspects.counts(WEB)[Signal::Refused.index()], 1);
    }
}
