//! A state of the fleet that waits until the kernel program has all features, and the kernel's maps have all room, which
//! the state needs. The owner handles events while the host loads the program.

use std::{future::pending, mem, time::Duration};

use balancer_common::features::Features;
use balancer_control::{
    room::Need,
    state::{Moment, SavedState},
};
use balancer_dataplane::Dataplane;
use balancer_fleet::{
    member::LastChanges,
    store_schema::{Epoch, Line},
};
use tokio::{task::JoinHandle, time::Instant};

use crate::{growing::Growing, host::Host};

/// A state that the protocol tells this member to follow.
pub(super) struct Next {
    pub(super) epoch: Epoch,
    pub(super) state: Box<SavedState>,
    pub(super) at: Moment,
    /// The age of the decision at the time `since`.
    pub(super) age: Duration,
    pub(super) since: Instant,
    pub(super) changed: LastChanges,
    pub(super) whole: bool,
    pub(super) lines: Vec<Line>,
}

impl Next {
    /// The present age of the decision.
    pub(super) fn age(&self) -> Duration {
        self.age + self.since.elapsed()
    }
}

/// A waiting state: see the [module](self).
pub(super) struct Awaiting {
    next: Next,
    features: Features,
    need: Need,
    step: Step,
}

enum Step {
    Begins,
    /// The host loads the program with the features.
    Extending(JoinHandle<anyhow::Result<()>>),
    /// The program has the features.
    Extended,
    Growing(Growing),
    /// The outcome; an error is one line.
    Ended(Result<(), String>),
}

impl Awaiting {
    /// Makes a state wait in place of the state that has waited so far. A growth in progress goes on.
    pub(super) fn new(next: Next, features: Features, need: Need, before: Option<Self>) -> Self {
        let step = match before {
            Some(Self { step: step @ Step::Growing(_), .. }) => step,
            Some(_) | None => Step::Begins,
        };
        Self { next, features, need, step }
    }

    /// Asks the host for the next step, if the last step has ended.
    pub(super) fn advance<D: Dataplane>(&mut self, dataplane: &mut D, host: &Host) {
        self.step = match mem::replace(&mut self.step, Step::Begins) {
            Step::Begins => Step::Extending(tokio::spawn(host.extend(self.features))),
            Step::Extended => match dataplane.growth(&self.need) {
                Some(growth) => Step::Growing(Growing::begin(growth, host)),
                None => Step::Ended(Ok(())),
            },
            Step::Growing(growing) => match growing.advance(dataplane, host) {
                Err(growing) => Step::Growing(growing),
                // Another state may have come in the meantime.
                Ok(Ok(())) => Step::Begins,
                Ok(Err(why)) => Step::Ended(Err(why)),
            },
            under_way @ (Step::Extending(_) | Step::Ended(_)) => under_way,
        };
    }

    /// Waits until the state needs a call of [`advance`](Self::advance) or [`take`](Self::take); waits forever if there
    /// is no state.
    pub(super) async fn progress(this: &mut Option<Self>) {
        let Some(Self { step, .. }) = this else { return pending().await };
        match step {
            Step::Extending(loading) => {
                *step = match loading.await.unwrap_or_else(|error| Err(error.into())) {
                    Ok(()) => Step::Extended,
                    Err(error) => Step::Ended(Err(format!("{error:#}"))),
                };
            }
            Step::Growing(growing) => growing.progress().await,
            Step::Begins | Step::Extended | Step::Ended(_) => {}
        }
    }

    /// Takes the state and the outcome, if the state no longer waits.
    pub(super) fn take(this: &mut Option<Self>) -> Option<(Next, Result<(), String>)> {
        let Self { next, step, .. } = this.take_if(|this| matches!(this.step, Step::Ended(_)))?;
        if let Step::Ended(outcome) = step { Some((next, outcome)) } else { None }
    }
}
