//! Past counts of a service, from which the balancer computes the counts of the last minute and of the last hour.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use balancer_common::verdict::{Decision, MOVE_COUNTERS};
use serde::{Deserialize, Serialize};

use crate::ratios;

/// The time between two samples, which is the precision of the "last minute".
pub const STEP: Duration = Duration::from_secs(10);
/// The number of samples that cover ten minutes.
const STEPS: usize = 61;
/// The minimum interval between the samples that cover the last hour: one minute less half a step of jitter.
pub(crate) const NEARLY_A_MINUTE: Duration = Duration::from_secs(55);
/// The minimum interval between two samples, even across a restart.
const HALF_A_STEP: Duration = Duration::from_secs(5);
/// The number of samples for the last hour, which cover more than an hour even at the minimum interval.
const MINUTES: usize = 67;

/// Counters of a service, added up over all its present and removed backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The number of new connections, by decision.
    pub decisions: [u64; Decision::COUNT],
    /// The number of known clients that moved, by cause.
    pub moves: [u64; MOVE_COUNTERS],
}

impl Counted {
    /// Returns the increase of the counts since `earlier`; 0 for a counter that is lower now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        let earlier = earlier.decisions.iter().chain(&earlier.moves);
        for (value, earlier) in difference.decisions.iter_mut().chain(&mut difference.moves).zip(earlier) {
            *value = value.saturating_sub(*earlier);
        }
        difference
    }

    /// The ratio of kept connections to kept and moved connections; `None` if no known client opened a connection.
    #[must_use]
    pub fn stickiness(&self) -> Option<f64> {
        let [kept, moved] = [Decision::Kept, Decision::Moved]
            .map(|decision| self.decisions.get(decision.index()).copied().unwrap_or(0));
        ratios::stickiness(kept, moved)
    }
}

/// Samples of the counters of a service.
#[derive(Clone, Debug, Default)]
pub struct History {
    steps: Moments,
    minutes: Moments,
}

/// The times of samples with their counts; equal counts share memory.
type Moments = VecDeque<(Duration, Arc<Counted>)>;

impl History {
    /// Stores the counts at `now`, a time on any clock that advances steadily. The caller calls this function every
    /// [`STEP`]; the function skips a sample that comes too early because of a restart.
    pub fn keep(&mut self, now: Duration, counted: Counted) {
        let last = self.steps.back().map(|(_, last)| last).filter(|last| ***last == counted);
        let counted = last.map_or_else(|| Arc::new(counted), Arc::clone);
        push(&mut self.steps, STEPS, HALF_A_STEP, (now, Arc::clone(&counted)));
        push(&mut self.minutes, MINUTES, NEARLY_A_MINUTE, (now, counted));
    }

    /// The samples of the last ten minutes, one step apart, oldest first.
    pub fn steps(&self) -> impl Iterator<Item = (Duration, Counted)> {
        self.steps.iter().map(of)
    }

    /// The samples of the last hour, one minute apart, oldest first.
    pub fn minutes(&self) -> impl Iterator<Item = (Duration, Counted)> {
        self.minutes.iter().map(of)
    }

    /// The sample whose time is nearest to `ago` before `now`; `None` if there are no samples.
    #[must_use]
    pub fn before(&self, now: Duration, ago: Duration) -> Option<(Duration, Counted)> {
        let wanted = now.saturating_sub(ago);
        let kept = self.minutes.iter().chain(&self.steps);
        kept.min_by_key(|(at, _)| at.abs_diff(wanted)).map(of)
    }
}

fn of((at, counted): &(Duration, Arc<Counted>)) -> (Duration, Counted) {
    (*at, **counted)
}

fn push(queue: &mut Moments, room: usize, apart: Duration, value: (Duration, Arc<Counted>)) {
    if queue.back().is_some_and(|(last, _)| value.0.saturating_sub(*last) < apart) {
        return;
    }
    if queue.len() >= room {
        queue.pop_front();
    }
    queue.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(kept: u64, moved: u64) -> Counted {
        let mut counted = Counted::default();
        counted.decisions[Decision::Kept.index()] = kept;
        counted.decisions[Decision::Moved.index()] = moved;
        counted
    }

    #[test]
    fn when_counts_are_kept_then_a_minute_and_an_hour_are_precise_to_a_step() {
        let mut history = History::default();
        assert!(history.before(Duration::ZERO, Duration::from_secs(60)).is_none());
        // The test makes a sample every ten seconds for three hours.
        for step in 0..=1080u64 {
            history.keep(STEP * step as u32, counted(step * 10, 0));
        }
        let now = STEP * 1080 + Duration::from_secs(4);
        for (ago, slack) in [(60, 5), (3600, 35)] {
            let (at, then) = history.before(now, Duration::from_secs(ago)).unwrap();
            assert!((now - at).abs_diff(Duration::from_secs(ago)) <= Duration::from_secs(slack), "{at:?}");
            let since = counted(10_804, 0).since(&then).decisions[Decision::Kept.index()];
            assert_eq!(since, (now - at).as_secs());
        }
        assert!(history.steps.len() <= STEPS && history.minutes.len() <= MINUTES);
    }

    #[test]
    fn when_restarts_are_many_then_the_hour_stays_whole() {
        let mut history = History::default();
        for second in 0..=3600 {
            history.keep(Duration::from_secs(second), counted(second, 0));
        }
        let hour = Duration::from_secs(3600);
        assert_eq!(history.before(hour, hour).unwrap(), (Duration::ZERO, counted(0, 0)));
        let (at, _) = history.before(hour, Duration::from_secs(60)).unwrap();
        assert!((hour - at).abs_diff(Duration::from_secs(60)) <= HALF_A_STEP, "{at:?}");
    }

    #[test]
    fn when_history_is_short_then_counts_are_since_the_first_sample() {
        let mut history = History::default();
        history.keep(Duration::from_secs(100), counted(5, 0));
        history.keep(Duration::from_secs(110), counted(6, 0));
        assert_eq!(history.before(Duration::from_secs(115), Duration::from_secs(3600)).unwrap().1, counted(5, 0));
    }

    #[test]
    fn when_stickiness_is_computed_then_only_known_clients_count() {
        assert_eq!(counted(0, 0).stickiness(), None);
        assert_eq!(counted(3, 1).stickiness(), Some(0.75));
        // If a service was removed and added again, its counters start from zero.
        assert_eq!(counted(3, 1).since(&counted(10, 0)), counted(0, 1));
    }
}
