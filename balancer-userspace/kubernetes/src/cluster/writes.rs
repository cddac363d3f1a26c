//! All that this program writes into the cluster: finalizers, addresses, events.

use std::net::IpAddr;

use http::Method;
use serde_json::{Value, json};

use super::{Answer, Cluster, Failure};
use crate::{
    names,
    round::{FINALIZER, Notice, Object},
};

impl Cluster {
    /// Adds the finalizer to a Service, if nobody has changed it since it was seen.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer.
    pub async fn finalize(&self, object: &Object) -> Answer<()> {
        let mut finalizers = object.finalizers.clone();
        finalizers.push(FINALIZER.to_owned());
        self.patch(object, "", &json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.version}}))
            .await
    }

    /// Writes the addresses of a Service to its status.
    ///
    /// # Errors
    /// As [`finalize`](Self::finalize).
    pub async fn publish(&self, object: &Object, addresses: &[IpAddr]) -> Answer<()> {
        let ingress: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
        let ingress = if ingress.is_empty() { Value::Null } else { ingress.into() };
        // With its UID, the patch is not for another Service of that name.
        let patch = json!({"metadata": {"uid": object.uid}, "status": {"loadBalancer": {"ingress": ingress}}});
        self.patch(object, "/status", &patch).await
    }

    /// Takes addresses and finalizer away from a Service. One that is gone already is as it should be.
    ///
    /// # Errors
    /// As [`finalize`](Self::finalize).
    pub async fn release(&self, object: &Object) -> Answer<()> {
        let rest: Vec<&String> = object.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": rest, "resourceVersion": object.version}});
        let is_gone = |answer: Answer<()>| match answer {
            Err(Failure::NotFound(_)) => Ok(()),
            answer => answer,
        };
        // Without the finalizer nothing of this program would come back for the addresses.
        let metadata: Value = match self.get(&path(object, "")).await {
            Ok(metadata) => metadata,
            Err(failure) => return is_gone(Err(failure)),
        };
        if !metadata["status"]["loadBalancer"]["ingress"].is_null() {
            // The watch tells of the change, and the finalizer goes with the next comparison.
            return is_gone(self.publish(object, &[]).await);
        }
        is_gone(self.patch(object, "", &patch).await)
    }

    /// Tells the owner of a Service something, under a name that is the same for the same notice.
    ///
    /// # Errors
    /// As [`finalize`](Self::finalize).
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
            // It was told before this program was started again.
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
