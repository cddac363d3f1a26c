//! The Kubernetes Lease by which only one of several controllers acts.

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

/// The time for which a Lease is valid after its renewal.
const DURATION: Duration = Duration::from_secs(15);

/// The time from one check or renewal of the Lease to the next.
const PACE: Duration = Duration::from_secs(3);

/// The name of the Lease, and the identity of this controller.
#[derive(Clone, Debug)]
pub struct Candidacy {
    pub namespace: String,
    pub name: String,
    /// The name by which this controller holds the Lease.
    pub identity: String,
}

/// The Lease as it was when the controller last saw it change. The controller relies only on when it sees changes,
/// because the clocks of other machines may be wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

impl Seen {
    /// The Lease as the controller sees it now; `before` is the previous observation.
    #[must_use]
    pub fn after(before: Option<Self>, spec: LeaseSpec, now: Instant) -> Self {
        match before {
            Some(before) if before.spec == spec => before,
            _ => Self { spec, since: now },
        }
    }

    /// Whether the controller `identity` may take the Lease.
    #[must_use]
    pub fn is_free_for(&self, identity: &str, now: Instant) -> bool {
        let holder = self.spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = self.spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(DURATION, Duration::from_secs);
        holder.is_empty() || holder == identity || now >= self.since + duration
    }

    /// The specification of a Lease that `identity` holds from now on.
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
    /// Takes the Lease whenever it is free, and renews it while this controller holds it. `until` contains the time
    /// until which this controller certainly holds the Lease; a time in the past means that it does not hold the Lease.
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
                // Other controllers wait for the same time, but their wait begins later, when they see the renewal.
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

    /// Releases the Lease, so that another controller need not wait until the Lease expires.
    ///
    /// # Errors
    /// Fails if the API server does not answer.
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

/// Whether this controller's write of the Lease succeeded before that of any other controller.
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
