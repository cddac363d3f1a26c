//! A state of the fleet that waits until the kernel program has all features which the state needs. The owner handles
//! events while the host loads the program.

use std::{future::pending, time::Duration};

use balancer_common::features::Features;
use balancer_control::state::{Moment, SavedState};
use balancer_fleet::store_schema::{Epoch, Line};
use tokio::{task::JoinHandle, time::Instant};

use crate::host::Host;

/// A state that the protocol tells this member to follow.
pub(super) struct Next {
    pub(super) epoch: Epoch,
    pub(super) state: Box<SavedState>,
    pub(super) at: Moment,
    /// The age of the decision at the time `since`.
    pub(super) age: Duration,
    pub(super) since: Instant,
    pub(super) changed: Option<Duration>,
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
    loading: Option<JoinHandle<anyhow::Result<()>>>,
    /// The outcome; an error is one line.
    extended: Option<Result<(), String>>,
}

impl Awaiting {
    pub(super) const fn new(next: Next, features: Features) -> Self {
        Self { next, features, loading: None, extended: None }
    }

    /// Asks the host for the program, once.
    pub(super) fn ask(&mut self, host: &Host) {
        self.loading.get_or_insert_with(|| tokio::spawn(host.extend(self.features)));
    }

    /// Waits until the host has answered; waits forever if nothing waits for an answer.
    pub(super) async fn extended(this: &mut Option<Self>) {
        let Some(Self { loading: Some(loading), extended: extended @ None, .. }) = this else { return pending().await };
        let loaded = loading.await.unwrap_or_else(|error| Err(error.into()));
        *extended = Some(loaded.map_err(|error| format!("{error:#}")));
    }

    /// Takes the state and the outcome, if the host has answered.
    pub(super) fn take(this: &mut Option<Self>) -> Option<(Next, Result<(), String>)> {
        let Self { next, extended, .. } = this.take_if(|this| this.extended.is_some())?;
        Some((next, extended?))
    }
}
