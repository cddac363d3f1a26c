//! Chooses the endpoint to use: tries one endpoint after the other until an endpoint works.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::Status;

use crate::{
    Settings,
    facts::{Facts, Traffic},
    link::{Link, connect, no_answer},
    message::StatusResponse,
    words,
};

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT_WHEN_REFUSED: Duration = Duration::from_secs(5);

/// The link in use, if there is one, and the search for another link.
#[derive(Debug)]
pub(crate) struct Links {
    settings: Settings,
    current: watch::Sender<Option<Link>>,
    failures: AtomicU32,
    /// The id of the cluster to which the session belongs; 0 if any cluster is acceptable.
    cluster: AtomicU64,
    pub(crate) facts: watch::Sender<Facts>,
    traffic: Arc<Traffic>,
}

/// The reason why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection failed, so it is unknown whether the server has carried the call out. The call may succeed on
    /// another link.
    Broken(String),
    Refused(Status),
}

impl Links {
    pub(crate) fn new(settings: Settings, facts: watch::Sender<Facts>, traffic: Arc<Traffic>) -> Self {
        let (failures, cluster) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { settings, current: watch::Sender::new(None), failures, cluster, facts, traffic }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the link in use; waits until there is a link.
    pub(crate) async fn link(&self) -> Link {
        let mut current = self.current.subscribe();
        loop {
            if let Some(link) = current.borrow_and_update().clone() {
                return link;
            }
            // The wait cannot fail, because the sender lives as long as `self`.
            let _ = current.changed().await;
        }
    }

    /// Returns the link in use, if there is one.
    pub(crate) fn now(&self) -> Option<Link> {
        self.current.borrow().clone()
    }

    /// Makes the search skip endpoints that belong to another cluster than `cluster`; 0 accepts all clusters.
    pub(crate) fn expect(&self, cluster: u64) {
        self.cluster.store(cluster, Relaxed);
    }

    /// Waits until this link is no longer in use.
    pub(crate) async fn gone(&self, link: &Link) {
        let mut current = self.current.subscribe();
        let _ = current.wait_for(|now| now.as_ref().is_none_or(|now| now.number != link.number)).await;
    }

    /// Gives up a link that no longer works. The function does nothing if the link is no longer in use.
    pub(crate) fn broken(&self, link: &Link, why: &str) {
        let given_up = self.current.send_if_modified(|now| {
            let is_in_use = now.as_ref().is_some_and(|now| now.number == link.number);
            if is_in_use {
                *now = None;
            }
            is_in_use
        });
        if given_up {
            tracing::warn!(endpoint = link.endpoint, "the engine: {why}; trying another endpoint");
            self.trouble(format!("{}: {why}", link.endpoint));
            self.facts.send_if_modified(|facts| std::mem::replace(&mut facts.reachable, false));
        }
    }

    /// Records that the link in use works, so that the driver tries the next endpoint at once when this link fails.
    pub(crate) fn proved(&self) {
        self.failures.store(0, Relaxed);
    }

    pub(crate) fn trouble(&self, why: String) {
        self.facts.send_modify(|facts| facts.trouble = Some(why));
    }

    /// Records that the engine refuses all writes.
    pub(crate) fn denies(&self, why: String) {
        self.facts.send_if_modified(|facts| facts.denial.replace(why.clone()).is_none_or(|known| known != why));
    }

    /// Records that the engine has accepted a write.
    pub(crate) fn takes_writes(&self) {
        self.facts.send_if_modified(|facts| facts.denial.take().is_some());
    }

    /// Records whether etcd keeps more history than any member needs.
    pub(crate) fn keeps_history(&self, keeps: bool) {
        self.facts.send_if_modified(|facts| std::mem::replace(&mut facts.keeps_history, keeps) != keeps);
    }

    pub(crate) fn skipped(&self, count: u64) {
        if count > 0 {
            self.facts.send_modify(|facts| facts.skipped += count);
        }
    }

    /// Makes a call within its time limit, as long as the link stays in use. If the call fails, the function gives up
    /// the link.
    pub(crate) async fn attempt<T>(
        &self,
        link: &Link,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        let result = tokio::select! {
            result = timeout(limit, call) => result,
            () = self.gone(link) => return Err(Failure::Broken(format!("{}: the connection was given up", link.endpoint))),
        };
        let why = match result {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) if !words::is_broken(&status) => return Err(Failure::Refused(status)),
            Ok(Err(status)) => words::status(&status),
            Err(_) => no_answer(limit),
        };
        self.broken(link, &why);
        Err(Failure::Broken(format!("{}: {why}", link.endpoint)))
    }

    /// Connects to an endpoint whenever there is no link. The function never returns.
    pub(crate) async fn keep(&self) {
        let endpoints = &self.settings.endpoints;
        // The first endpoint is random, so that members that start at the same time do not all begin with the same
        // server.
        let turns = (fastrand::usize(..endpoints.len().max(1))..).zip(1..);
        let mut current = self.current.subscribe();
        for (turn, number) in turns {
            let _ = current.wait_for(Option::is_none).await;
            let Some(endpoint) = endpoints.get(turn % endpoints.len().max(1)) else {
                return std::future::pending().await;
            };
            let failures = self.failures.fetch_add(1, Relaxed);
            sleep(wait(failures)).await;
            let expected = self.cluster.load(Relaxed);
            let why = match connect(&self.settings, endpoint, number, &self.traffic).await {
                Ok((link, status)) if expected == 0 || link.cluster == expected => {
                    self.connected(link, &status);
                    continue;
                }
                Ok(_) => "it belongs to another cluster".to_owned(),
                Err(why) => why,
            };
            if failures == 0 {
                tracing::warn!(endpoint, "the engine: {why}; trying again, and other endpoints");
            } else {
                tracing::debug!(endpoint, "the engine: {why}");
            }
            self.trouble(format!("{endpoint}: {why}"));
        }
    }

    fn connected(&self, link: Link, status: &StatusResponse) {
        tracing::info!(endpoint = link.endpoint, version = status.version, "connected to the engine");
        self.heard(status);
        self.facts.send_modify(|facts| {
            facts.reachable = true;
            facts.endpoint = Some(link.endpoint.clone());
            facts.local = link.local;
        });
        self.current.send_replace(Some(link));
    }

    /// Records the status that the server has reported.
    pub(crate) fn heard(&self, status: &StatusResponse) {
        self.facts.send_if_modified(|facts| {
            let before = facts.clone();
            facts.version.clone_from(&status.version);
            facts.member = status.header.as_ref().map_or(0, |header| header.member_id);
            facts.leader = status.leader;
            facts.database_bytes = status.db_size.try_into().unwrap_or(0);
            facts.database_bytes_used = status.db_size_in_use.try_into().unwrap_or(0);
            facts.database_quota = status.db_size_quota.try_into().ok().filter(|quota| *quota > 0);
            facts.errors.clone_from(&status.errors);
            *facts != before
        });
    }
}

/// The time to wait after this number of consecutive failures.
pub(crate) fn wait(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = SHORTEST_WAIT.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_WAIT);
    SHORTEST_WAIT.max(longest.mul_f64(fastrand::f64().mul_add(0.5, 0.5)))
}

/// The time to wait after this number of consecutive refusals; the time grows because each attempt causes work for the
/// engine.
pub(crate) fn wait_longer(refusals: u32) -> Duration {
    let longest = SHORTEST_WAIT.saturating_mul(1 << refusals.min(8)).min(LONGEST_WAIT_WHEN_REFUSED);
    longest.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_failures_repeat_then_waits_grow_to_a_second() {
        assert_eq!(wait(0), Duration::ZERO);
        for failures in 1..40 {
            let wait = wait(failures);
            assert!((SHORTEST_WAIT..=LONGEST_WAIT).contains(&wait), "{failures}: {wait:?}");
        }
        assert!((0..100).any(|_| wait(39) > LONGEST_WAIT / 2));
    }
}
