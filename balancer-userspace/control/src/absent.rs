//! Targets that a list no longer names. Their backends wait for a while before they drain, because a DNS server may give
//! a random part of its records in each answer, and a program that writes a list may restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

/// The number of answers in a row that must lack a target.
const ANSWERS: u32 = 3;
/// The maximum number of answers in a row that must lack a target if the source gives other targets each time.
const MOST_ANSWERS: u32 = 100;
/// How likely all these answers may lack a target by chance, if the source gives other targets each time.
const BY_CHANCE: f64 = 1e-6;
/// The number of answers, among the last 16, that must bring missing targets back for a habit.
const RETURNS: u32 = 3;

/// The backends of a list, by whether a version of the list names their targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The backends whose targets the version names.
    pub listed: BTreeSet<String>,
    /// The backends whose targets the version lacks, although the version before named them.
    pub missing: BTreeSet<String>,
}

/// The conditions under which a backend no longer waits for its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The time for which the target must be missing; zero: the backend drains at once.
    pub keep: Duration,
    /// Whether the source is asked again and again, so that the number of answers counts as well. A file and etcd tell
    /// only changes.
    pub counts_answers: bool,
}

/// A source that gives other targets in each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habit {
    /// The number of targets in the last answer.
    pub named: usize,
    /// The number of targets in all answers together.
    pub of: usize,
}

impl fmt::Display for Habit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gives other targets each time: {} of {}", self.named, self.of)
    }
}

impl Habit {
    /// The number of answers in a row that lack a target only if the target has gone.
    fn answers(self) -> u32 {
        let lacks = (self.of - self.named.min(self.of)) as f64 / self.of.max(1) as f64;
        let mut chance = 1.0;
        (1..MOST_ANSWERS)
            .find(|_| {
                chance *= lacks;
                chance <= BY_CHANCE
            })
            .unwrap_or(MOST_ANSWERS)
            .max(ANSWERS)
    }
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    since: Instant,
    /// The number of answers in a row that lack the target.
    answers: u32,
}

/// The missing targets of a list: see the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Absent {
    missing: BTreeMap<String, Missing>,
    /// Whether each of the last answers brought a missing target back; the lowest bit belongs to the last answer.
    returns: u16,
    /// The numbers of targets in the last answer, and of backends whose targets it lacks.
    sizes: (usize, usize),
}

impl Absent {
    /// Notes the version of the list that is in use now; `answers` is the number of answers since the last note, the
    /// last of which gave this version.
    pub fn note(&mut self, named: &Named, answers: u32, now: Instant) {
        let is_back = self.missing.keys().any(|name| named.listed.contains(name));
        self.missing.retain(|name, _| named.missing.contains(name));
        self.note_same(answers);
        self.returns |= u16::from(is_back && answers > 0);
        let first = Missing { since: now, answers: answers.min(1) };
        for name in &named.missing {
            self.missing.entry(name.clone()).or_insert(first);
        }
        self.sizes = (named.listed.len(), named.missing.len());
    }

    /// Notes `answers` that gave the same version again.
    pub fn note_same(&mut self, answers: u32) {
        self.returns = self.returns.checked_shl(answers).unwrap_or(0);
        self.missing.values_mut().for_each(|missing| missing.answers = missing.answers.saturating_add(answers));
    }

    /// The habit of the source, if it gives other targets each time.
    #[must_use]
    pub fn habit(&self) -> Option<Habit> {
        let (named, missing) = self.sizes;
        (self.returns.count_ones() >= RETURNS).then_some(Habit { named, of: named + missing })
    }

    /// The names of the backends that wait for their targets.
    #[must_use]
    pub fn waiting(&self, patience: Patience, now: Instant) -> BTreeSet<String> {
        let answers = self.habit().map_or(ANSWERS, Habit::answers);
        let waits = |missing: &Missing| {
            let is_early = now.saturating_duration_since(missing.since) < patience.keep;
            !patience.keep.is_zero() && (is_early || patience.counts_answers && missing.answers < answers)
        };
        self.missing.iter().filter(|(_, missing)| waits(missing)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::fixture::now;

    use super::*;

    const KEEP: Patience = Patience { keep: Duration::from_secs(30), counts_answers: true };

    fn named(listed: &[&str], missing: &[&str]) -> Named {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Named { listed: set(listed), missing: set(missing) }
    }

    /// The backends that wait after answers at these seconds, all of which lack `b`.
    fn waiting(patience: Patience, seconds: &[u64], at: u64) -> usize {
        let (start, mut absent) = (now(), Absent::default());
        for second in seconds {
            absent.note(&named(&["a"], &["b"]), 1, start + Duration::from_secs(*second));
        }
        absent.waiting(patience, start + Duration::from_secs(at)).len()
    }

    #[test]
    fn when_a_target_is_missing_then_its_backend_waits_for_the_time_and_for_three_answers() {
        assert_eq!(waiting(KEEP, &[0, 1, 2, 3], 29), 1);
        assert_eq!(waiting(KEEP, &[0, 1, 2, 3], 30), 0);
        assert_eq!(waiting(KEEP, &[0, 60], 90), 1, "two answers");
        assert_eq!(waiting(KEEP, &[0, 60, 120], 120), 0);
        let file = Patience { counts_answers: false, ..KEEP };
        assert_eq!((waiting(file, &[0], 29), waiting(file, &[0], 30)), (1, 0));
        assert_eq!(waiting(Patience { keep: Duration::ZERO, ..KEEP }, &[0], 0), 0);
    }

    #[test]
    fn when_a_target_is_back_then_its_backend_waits_anew_the_next_time() {
        let (start, mut absent) = (now(), Absent::default());
        let at = |second| start + Duration::from_secs(second);
        for second in 0..29 {
            absent.note(&named(&["a"], &["b"]), 1, at(second));
        }
        absent.note(&named(&["a", "b"], &[]), 1, at(29));
        for second in 30..40 {
            absent.note(&named(&["a"], &["b"]), 1, at(second));
        }
        assert_eq!((absent.waiting(KEEP, at(59)).len(), absent.waiting(KEEP, at(60)).len()), (1, 0));
        assert_eq!(absent.habit(), None, "one return is no habit");
    }

    #[test]
    fn when_a_source_gives_other_targets_each_time_then_its_habit_is_named_and_more_answers_are_needed() {
        let (start, mut absent) = (now(), Absent::default());
        let (one, other) = (["a", "b", "c"], ["d", "e", "f"]);
        for second in 0..8 {
            let (listed, missing) = if second % 2 == 0 { (&one, &other) } else { (&other, &one) };
            absent.note(&named(listed, missing), 1, start + Duration::from_secs(second * 60));
        }
        let habit = absent.habit().unwrap();
        assert_eq!((habit.to_string().as_str(), habit.answers()), ("gives other targets each time: 3 of 6", 20));
        assert_eq!(Habit { named: 5, of: 6 }.answers(), 8);
        assert_eq!((Habit { named: 1, of: 100 }.answers(), Habit { named: 6, of: 6 }.answers()), (100, 3));
        // A minute without a target means little then: it takes 20 answers.
        absent.note_same(18);
        assert_eq!(absent.habit(), None, "an old habit is forgotten");
    }

    #[test]
    fn when_half_of_the_targets_are_in_each_answer_at_random_then_no_backend_drains() {
        let start = now();
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut absent = Absent::default();
            let all = ["a", "b", "c", "d", "e", "f"];
            for answer in 0..2000_u64 {
                let mut order = all;
                random.shuffle(&mut order);
                let at = start + Duration::from_secs(answer * 60);
                let (listed, missing) = order.split_at(3);
                absent.note(&named(listed, missing), 1, at);
                if answer > 20 {
                    assert_eq!(absent.waiting(KEEP, at).len(), 3, "seed {seed}, answer {answer}");
                }
            }
        }
    }
}
