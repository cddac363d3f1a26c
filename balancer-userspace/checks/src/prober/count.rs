//! The results of a backend's checks, counted by the rules of the controller.

use std::{io, sync::Arc, time::Duration};

use balancer_config::{config::CheckConfig, names::BackendName};
use balancer_control::{
    counting::Counting,
    health::{Health, Verdict},
    io::{BackendId, CheckNumber, CheckOutcome},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// Notifies the checks of a service's backends when one of the backends begins to fail, so that the balancer detects an
/// outage of all backends before the first verdict.
pub(super) type Alarm = watch::Sender<Option<Instant>>;

/// The result of a check.
pub(super) struct CheckResult {
    pub(super) backend: BackendId,
    /// The number of the check in the sequence of checks of its backend.
    pub(super) number: CheckNumber,
    pub(super) outcome: CheckOutcome,
    pub(super) took: Duration,
    /// Whether a suspicion triggered the check.
    pub(super) asked: bool,
    /// Whether the result may change the controller's verdict about the backend.
    pub(super) matters: bool,
}

/// The counts of the results of a backend's checks so far.
pub(super) struct Count {
    pub(super) backend: BackendId,
    pub(super) number: CheckNumber,
    pub(super) name: BackendName,
    pub(super) config: CheckConfig,
    pub(super) restart_grace: Duration,
    /// The verdict about the backend, and the counts that lead to it. The controller gets the same outcomes, and counts
    /// them by the same rules.
    pub(super) health: Health,
    pub(super) counting: Counting,
    pub(super) hindered: bool,
    pub(super) found: mpsc::Sender<CheckResult>,
    pub(super) alarm: Arc<Alarm>,
}

/// The error that the receiver of results no longer exists.
pub(super) struct ReceiverGone;

impl Count {
    /// Counts a check that began at `start`, and reports its outcome. The report is immediate if the controller may
    /// have to act, or if a suspicion triggered the check (`asked`). A check that [does not count](Counting)
    /// is not reported.
    pub(super) async fn add(
        &mut self,
        outcome: io::Result<CheckOutcome>,
        start: Instant,
        asked: bool,
    ) -> Result<(), ReceiverGone> {
        let outcome = outcome.unwrap_or_else(|error| {
            let why = error.to_string();
            if !self.hindered {
                tracing::warn!(
                    "backend {} cannot be checked: {why} on this machine; its health stays as it is",
                    self.name
                );
            }
            CheckOutcome::Hindered(why)
        });
        self.hindered = matches!(outcome, CheckOutcome::Hindered(_));
        let (verdict, was_pending) = (self.health.verdict().clone(), self.health.is_pending());
        let terms = (&self.config, self.restart_grace);
        let Some(outcome) = self.counting.count(outcome, start.into_std(), terms, &verdict) else {
            return Ok(());
        };
        self.health.record(&outcome, &self.config);
        let failed_before = was_pending || matches!(verdict, Verdict::Down { .. });
        let begins_to_fail = !failed_before && self.fails();
        let matters = asked || was_pending || self.health.is_pending() || *self.health.verdict() != verdict;
        let took = start.elapsed();
        let found = CheckResult { backend: self.backend, number: self.number, outcome, took, asked, matters };
        self.found.send(found).await.map_err(|_| ReceiverGone)?;
        if begins_to_fail {
            raise(&self.alarm, self.config.interval);
        }
        Ok(())
    }

    /// Whether the last check was refused, and the server may still be restarting, or a few more refusals are a verdict.
    pub(super) fn is_shut(&self) -> bool {
        self.counting.is_shut(self.health.verdict())
    }

    /// Whether the last check failed.
    pub(super) fn fails(&self) -> bool {
        match self.health.verdict() {
            Verdict::Up | Verdict::Unknown => self.health.is_pending(),
            Verdict::Down { .. } => self.health.streak().0 == 0,
        }
    }
}

/// Triggers checks of the service's other backends, at most once per `interval`, so that a backend that keeps failing
/// and recovering does not cause constant checks.
fn raise(alarm: &Alarm, interval: Duration) {
    let now = Instant::now();
    alarm.send_if_modified(|last| {
        let may = last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if may {
            *last = Some(now);
        }
        may
    });
}
