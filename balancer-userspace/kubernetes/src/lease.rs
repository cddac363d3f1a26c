//! The Lease, which makes only one of several controllers act.

use std::time::Duration;

use http::Method;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::cluster::{Answer, Cluster, Failure, trouble::Trouble};

/// How long a Lease is valid after its renewal.
const DURATION: Duration = Duration::from_secs(15);

/// The time between two checks or renewals of the Lease.
const PACE: Duration = Duration::from_secs(3);

/// The Lease, and the identity of this controller.
#[derive(Clone, Debug)]
pub struct Candidacy {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// The name of this controller.
    pub identity: String,
}

/// The Lease at its last observed change. Only changes count, because the clocks of other machines may be wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

impl Seen {
    /// The Lease as observed now, given the observation `before`.
    #[must_use]
    pub fn after(before: Option<Self>, spec: LeaseSpec, now: Instant) -> Self {
        match before {
            Some(before) if before.spec == spec => before,
            _ => Self { spec, since: now },
        }
    }

    /// Whether `identity` may take the Lease.
    #[must_use]
    pub fn is_free_for(&self, identity: &str, now: Instant) -> bool {
        let holder = self.spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = self.spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(DURATION, Duration::from_secs);
        holder.is_empty() || holder == identity || now >= self.since + duration
    }

    /// The Lease held by `identity` from now on.
    fn taken(&self, identity: &str, now: MicroTime) -> LeaseSpec {
        let is_new = self.spec.holder_identity.as_deref() != Some(identity);
        let transitions = self.spec.lease_transitions.unwrap_or(0);
        LeaseSpec {
            acquire_time: if is_new { Some(now.clone()) } else { self.spec.acquire_time.clone() },
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions + i32::from(is_new)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

impl Candidacy {
    /// Takes the Lease whenever it is free, and renews it. `until` has the time until which this controller certainly
    /// holds the Lease; a time in the past means that it does not.
    pub async fn run(self, cluster: Cluster, until: watch::Sender<Option<Instant>>) {
        let mut seen = None;
        let mut trouble = Trouble::new(&format!("Lease {}/{}", self.namespace, self.name));
        loop {
            let asked = Instant::now();
            let round = self.round(&cluster, &mut seen).await;
            if round.is_ok() {
                trouble.is_over();
            }
            match round {
                // Other controllers wait for the same time, but from the moment at which they saw the renewal, which is
                // later.
                Ok(true) => drop(until.send_replace(Some(asked + DURATION - PACE))),
                Ok(false) => drop(until.send_replace(None)),
                Err(failure) => trouble.say(&failure, "it is tried again"),
            }
            sleep(PACE).await;
        }
    }

    async fn round(&self, cluster: &Cluster, seen: &mut Option<Seen>) -> Answer<bool> {
        let now = Instant::now();
        let lease: Lease = match cluster.get(&self.path()).await {
            Ok(lease) => lease,
            Err(Failure::NotFound(_)) => {
                let empty = Seen { spec: LeaseSpec::default(), since: now };
                let spec = empty.taken(&self.identity, MicroTime(jiff::Timestamp::now()));
                let created = cluster.send::<Value>(Method::POST, &self.all(), Some(&self.written(&spec, None))).await;
                return won(created);
            }
            Err(failure) => return Err(failure),
        };
        let current = Seen::after(seen.take(), lease.spec.unwrap_or_default(), now);
        let is_free = current.is_free_for(&self.identity, now);
        let spec = current.taken(&self.identity, MicroTime(jiff::Timestamp::now()));
        *seen = Some(current);
        if !is_free {
            return Ok(false);
        }
        let written = self.written(&spec, lease.metadata.resource_version.as_deref());
        won(cluster.send::<Value>(Method::PUT, &self.path(), Some(&written)).await)
    }

    /// Releases the Lease, so that another controller need not wait.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn resign(&self, cluster: &Cluster) -> Answer<()> {
        let lease: Lease = cluster.get(&self.path()).await?;
        let spec = lease.spec.unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        let spec = LeaseSpec { holder_identity: Some(String::new()), ..spec };
        let written = self.written(&spec, lease.metadata.resource_version.as_deref());
        cluster.send::<Value>(Method::PUT, &self.path(), Some(&written)).await.map(drop)
    }

    fn written(&self, spec: &LeaseSpec, version: Option<&str>) -> Value {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
            "metadata": {"name": self.name, "namespace": self.namespace, "resourceVersion": version}})
    }

    fn all(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.all(), self.name)
    }
}

/// Whether this controller wrote the Lease before any other did.
fn won(answer: Answer<Value>) -> Answer<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(Failure::Conflict(_)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn when_a_lease_does_not_change_for_its_duration_then_another_may_take_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let seen = Seen::after(None, spec("one", 1), start);
        assert!(seen.is_free_for("one", at(0)) && !seen.is_free_for("other", at(14)));
        let same = Seen::after(Some(seen.clone()), spec("one", 1), at(14));
        assert!(same.is_free_for("other", at(15)));
        let renewed = Seen::after(Some(seen), spec("one", 2), at(14));
        assert!(!renewed.is_free_for("other", at(15)) && renewed.is_free_for("other", at(29)));
    }

    #[test]
    fn when_a_lease_was_given_up_then_anybody_may_take_it_and_that_is_counted() {
        let seen = Seen::after(None, spec("", 4), Instant::now());
        assert!(seen.is_free_for("other", Instant::now()));
        let taken = seen.taken("other", MicroTime(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("other"), Some(5)));
        let again = Seen::after(None, taken, Instant::now()).taken("other", MicroTime(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(again.lease_transitions, Some(5));
    }
}
