//! The Kubernetes object `EndpointSlice` in the versions `discovery.k8s.io/v1` and `v1beta1`.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A list of endpoints of a Service, all of one address family and with the same ports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// The name, the namespace and the labels of the slice.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The type of the addresses: `IPv4`, `IPv6` or `FQDN`.
    #[serde(default)]
    pub address_type: String,
    #[serde(default, deserialize_with = "nothing_for_null")]
    pub endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "nothing_for_null")]
    pub ports: Vec<EndpointPort>,
}

/// An endpoint of a Service: a pod, or another server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The addresses of the endpoint. The program uses only the first address.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The conditions that determine whether the endpoint can be used.
    #[serde(default)]
    pub conditions: Conditions,
    /// A reference to the pod, if the endpoint is a pod.
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
}

/// The conditions of an endpoint, which tell whether it can be used. An absent condition is unknown; for such a
/// condition, the program assumes the usual value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Conditions {
    /// Whether the endpoint accepts clients; false while the endpoint is terminating.
    #[serde(default)]
    pub ready: Option<bool>,
    /// Whether the endpoint answers requests, even while it is terminating.
    #[serde(default)]
    pub serving: Option<bool>,
    #[serde(default)]
    pub terminating: Option<bool>,
}

/// Whether an endpoint may take new clients, by the rules of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Eligibility {
    /// The endpoint takes no new clients.
    Never,
    /// The endpoint takes new clients while no other endpoint of the Service is ready.
    LastResort,
    /// The endpoint takes new clients.
    Ready,
}

impl Conditions {
    /// Whether the endpoint may take new clients. With `publishNotReadyAddresses`, an endpoint is `ready` whatever its
    /// other conditions say.
    #[must_use]
    pub fn eligibility(self) -> Eligibility {
        if self.ready.unwrap_or(true) {
            Eligibility::Ready
        } else if self.serving.unwrap_or(true) && self.terminating.unwrap_or(false) {
            Eligibility::LastResort
        } else {
            Eligibility::Never
        }
    }
}

/// A reference to the object behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TargetRef {
    /// The UID of the object, which no other object ever has.
    #[serde(default)]
    pub uid: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct EndpointPort {
    #[serde(default)]
    pub name: Option<String>,
    /// The port number; absent: every port is meant.
    #[serde(default)]
    pub port: Option<u16>,
    /// The protocol of the port: `TCP`, `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: Option<String>,
}

impl EndpointSlice {
    /// The name of the Service to which the slice belongs.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(SERVICE_NAME).map(String::as_str)
    }
}

impl Endpoint {
    /// The address of the endpoint that the program uses, if the address is valid.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.first()?.parse().ok()
    }

    /// The name that identifies the endpoint: the UID of the pod, or the address if the endpoint is no pod.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        let uid = self.target_ref.as_ref().and_then(|target| target.uid.clone());
        uid.or_else(|| Some(self.address()?.to_string().replace(':', "-")))
    }
}

/// Parses a list, because the API server writes `null` for an empty list.
fn nothing_for_null<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_slice_is_of_either_version_then_it_says_the_same() {
        let v1 = r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": ["10.0.0.11"], "nodeName": "node1", "targetRef": {"kind": "Pod", "uid": "u1"},
                "conditions": {"ready": false, "serving": true, "terminating": true}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}"#;
        let beta = v1.replace("/v1\"", "/v1beta1\"").replace("\"nodeName\": \"node1\"", "\"topology\": {\"x\": \"y\"}");
        let v1: EndpointSlice = serde_json::from_str(v1).unwrap();
        let beta: EndpointSlice = serde_json::from_str(&beta).unwrap();
        assert_eq!(v1, beta);
        assert_eq!(v1.service(), Some("web"));
        assert_eq!(v1.endpoints[0].identity().as_deref(), Some("u1"));
        assert_eq!(v1.endpoints[0].conditions.eligibility(), Eligibility::LastResort);
    }

    #[test]
    fn when_conditions_are_given_then_the_endpoint_is_as_eligible_as_the_page_says() {
        let page = include_str!("../../../docs/src/kubernetes.md");
        let rows = page.lines().filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, ready, serving, terminating, new, ..] = *cells else { return None };
            let condition = |cell: &str| match cell {
                "true" => Some(vec![Some(true)]),
                "false" => Some(vec![Some(false)]),
                "any" => Some(vec![Some(true), Some(false), None]),
                _ => None,
            };
            Some((condition(ready)?, condition(serving)?, condition(terminating)?, new))
        });
        let mut seen = 0;
        for (ready, serving, terminating, new) in rows {
            let expected = match new {
                "yes" => Eligibility::Ready,
                "only while no endpoint is `ready`" => Eligibility::LastResort,
                "no" => Eligibility::Never,
                other => panic!("{other:?}"),
            };
            for ready in ready {
                for &serving in &serving {
                    for &terminating in &terminating {
                        let conditions = Conditions { ready, serving, terminating };
                        assert_eq!(conditions.eligibility(), expected, "{conditions:?}");
                        seen += 1;
                    }
                }
            }
        }
        // An absent condition is `any` in one row only.
        assert_eq!(seen, 9 + 3 + 1 + 1, "the table has a row for each case");
    }

    #[test]
    fn when_lists_are_null_and_conditions_are_missing_then_there_are_no_endpoints_and_they_are_ready() {
        let slice: EndpointSlice =
            serde_json::from_str(r#"{"addressType": "IPv6", "metadata": {}, "endpoints": null, "ports": null}"#)
                .unwrap();
        assert_eq!((slice.endpoints.len(), slice.ports.len(), slice.service()), (0, 0, None));
        let endpoint: Endpoint = serde_json::from_str(r#"{"addresses": ["fd00::1"]}"#).unwrap();
        assert_eq!(endpoint.conditions.eligibility(), Eligibility::Ready);
        assert_eq!(endpoint.identity().as_deref(), Some("fd00--1"));
    }
}
