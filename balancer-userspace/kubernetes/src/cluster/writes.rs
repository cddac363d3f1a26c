//! All writes to the cluster: finalizers, addresses and events.

use std::net::IpAddr;

use http::Method;
use serde_json::{Value, json};

use super::{Answer, Cluster, Failure};
use crate::{
    names,
    round::{FINALIZER, Notice, Object},
};

impl Cluster {
    /// Adds the finalizer to a Service, if the Service has not changed since the program read it.
    ///
    /// # Errors
    /// Fails if the API server refuses the write, or does not answer.
    pub async fn finalize(&self, object: &Object) -> Answer<()> {
        let mut finalizers = object.finalizers.clone();
        finalizers.push(FINALIZER.to_owned());
        self.patch(object, "", &json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.version}}))
            .await
    }

    /// Writes the addresses of a Service to its status.
    ///
    /// # Errors
    /// See [`finalize`](Self::finalize).
    pub async fn publish(&self, object: &Object, addresses: &[IpAddr]) -> Answer<()> {
        let ingress: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
        let ingress = if ingress.is_empty() { Value::Null } else { ingress.into() };
        // The UID makes the API server refuse the write if another Service now has this name.
        let patch = json!({"metadata": {"uid": object.uid}, "status": {"loadBalancer": {"ingress": ingress}}});
        self.patch(object, "/status", &patch).await
    }

    /// Removes the addresses and the finalizer from a Service. If the Service no longer exists, the function succeeds.
    ///
    /// # Errors
    /// See [`finalize`](Self::finalize).
    pub async fn release(&self, object: &Object) -> Answer<()> {
        let rest: Vec<&String> = object.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": rest, "resourceVersion": object.version}});
        let is_gone = |answer: Answer<()>| match answer {
            Err(Failure::NotFound(_)) => Ok(()),
            answer => answer,
        };
        // The addresses must be removed before the finalizer: without the finalizer, this program would not handle the
        // Service again.
        let metadata: Value = match self.get(&path(object, "")).await {
            Ok(metadata) => metadata,
            Err(failure) => return is_gone(Err(failure)),
        };
        if !metadata["status"]["loadBalancer"]["ingress"].is_null() {
            // The watch will report this change, and the next comparison will remove the finalizer.
            return is_gone(self.publish(object, &[]).await);
        }
        is_gone(self.patch(object, "", &patch).await)
    }

    /// Writes a notice to the owner of a Service, as an event. Equal notices get the same event name, so that each is
    /// written only once.
    ///
    /// # Errors
    /// See [`finalize`](Self::finalize).
    pub async fn tell(&self, object: &Object, notice: &Notice) -> Answer<()> {
        let Object { namespace, name, uid, .. } = object;
        let hash = names::hash(&format!("{uid} {} {}", notice.reason, notice.message));
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let short: String = name.chars().take(200).collect();
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": notice.reason, "message": notice.message,
            "metadata": {"name": format!("{short}.{hash:016x}"), "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name, "uid": uid},
            "source": {"component": "balancer-kubernetes"}, "count": 1, "firstTimestamp": now, "lastTimestamp": now,
        });
        let answer =
            self.send::<Value>(Method::POST, &format!("/api/v1/namespaces/{namespace}/events"), Some(&event)).await;
        match answer {
            // An earlier process of this program has already written this notice.
            Ok(_) | Err(Failure::Conflict(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn patch(&self, object: &Object, part: &str, patch: &Value) -> Answer<()> {
        self.send::<Value>(Method::PATCH, &path(object, part), Some(patch)).await.map(drop)
    }
}

fn path(object: &Object, part: &str) -> String {
    format!("/api/v1/namespaces/{}/services/{}{part}", object.namespace, object.name)
}
