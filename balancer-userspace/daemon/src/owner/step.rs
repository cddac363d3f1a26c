//! Whether the data path has the state that the controller wants.

use std::time::Duration;

use balancer_control::readiness::OutOfStep;
use tokio::time::Instant;

/// A failure that lasts longer than this is a reason to send clients to another balancer.
const LASTING: Duration = Duration::from_secs(1);

/// The failure of the last resynchronization, if it failed: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Step {
    out: Option<Out>,
}

#[derive(Debug)]
struct Out {
    since: Instant,
    why: String,
    /// Whether the failure was already lasting at the last call of [`Step::begins_to_last`].
    lasted: bool,
}

impl Step {
    /// Whether the data path lacks something, so that the owner must try again.
    pub(super) const fn is_out(&self) -> bool {
        self.out.is_some()
    }

    /// Records a failure, and returns whether the data path was in step before.
    pub(super) fn is_not_in(&mut self, why: String, now: Instant) -> bool {
        let is_news = self.out.is_none();
        let out = self.out.get_or_insert(Out { since: now, why: String::new(), lasted: false });
        out.why = why;
        is_news
    }

    /// Records a success, and returns whether the data path was out of step before.
    pub(super) fn is_in_again(&mut self) -> bool {
        self.out.take().is_some()
    }

    /// Whether a failure has become a lasting one since the last call.
    pub(super) fn begins_to_last(&mut self, now: Instant) -> bool {
        self.out.as_mut().is_some_and(|out| out.lasts(now) && !std::mem::replace(&mut out.lasted, true))
    }

    /// The failure at the moment `now`.
    pub(super) fn facts(&self, now: Instant) -> Option<OutOfStep> {
        self.out.as_ref().map(|out| OutOfStep { why: out.why.clone(), lasts: out.lasts(now) })
    }
}

impl Out {
    fn lasts(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > LASTING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_data_path_is_out_of_step_for_longer_than_a_second_then_the_failure_lasts() {
        let (mut step, begin) = (Step::default(), Instant::now());
        let lasts = |step: &Step, now| step.facts(now).map(|out| out.lasts);
        assert!(step.is_not_in("no room".to_owned(), begin) && step.is_out());
        assert_eq!(lasts(&step, begin + LASTING), Some(false));
        assert!(!step.begins_to_last(begin + LASTING));
        let later = begin + LASTING + Duration::from_millis(1);
        assert!(!step.is_not_in("no rows".to_owned(), later), "it was out of step already");
        assert_eq!(step.facts(later), Some(OutOfStep { why: "no rows".to_owned(), lasts: true }));
        assert!(step.begins_to_last(later) && !step.begins_to_last(later), "that is news once");
        assert!(step.is_in_again() && !step.is_in_again());
        assert_eq!(step.facts(later), None);
    }
}
