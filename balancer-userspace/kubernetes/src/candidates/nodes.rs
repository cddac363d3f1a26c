//! Nodes as backends, which accept packets at NodePorts.

use k8s_openapi::api::core::v1::Node;

use super::{Candidate, Candidates, Port};
use crate::names;

/// The label of a node that must not receive clients' packets.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The taint of a node that is about to be removed.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Returns all nodes that may become backends.
#[must_use]
pub fn candidates(ports: &[Port], nodes: &[Node]) -> Candidates {
    let ports = ports.iter().filter_map(|port| Some((port.port, port.node_port?)));
    let all = Candidate { ports: ports.collect(), ..Candidate::default() };
    let mut candidates = Candidates::new();
    for node in nodes.iter().filter(|node| !is_excluded(node)) {
        let Some(name) = &node.metadata.name else { continue };
        let mut candidate = Candidate { eligible: is_eligible(node), ..all.clone() };
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        for address in addresses.filter(|address| address.type_ == "InternalIP") {
            if let Ok(address) = address.address.parse() {
                candidate.at(address);
            }
        }
        candidates.insert(names::fitting(name), candidate);
    }
    candidates
}

fn is_excluded(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED))
}

fn is_eligible(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let leaves = node.metadata.deletion_timestamp.is_some()
        || spec.unschedulable.unwrap_or(false)
        || spec.taints.iter().flatten().any(|taint| taint.key == TO_BE_DELETED);
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.filter(|condition| condition.type_ == "Ready").all(|condition| condition.status == "True");
    ready && !leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(more: &serde_json::Value) -> Node {
        let mut node = serde_json::json!({
            "metadata": {"name": "node1"},
            "spec": {},
            "status": {
                "addresses": [{"type": "Hostname", "address": "node1"}, {"type": "InternalIP", "address": "10.0.0.1"},
                    {"type": "InternalIP", "address": "fd00::1"}, {"type": "ExternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}],
            },
        });
        for part in ["metadata", "spec", "status"] {
            for (key, value) in more[part].as_object().into_iter().flatten() {
                node[part][key] = value.clone();
            }
        }
        serde_json::from_value(node).unwrap()
    }

    fn of(more: &serde_json::Value) -> Candidates {
        let port = Port { name: String::new(), protocol: "TCP".to_owned(), port: 80, node_port: Some(30_080) };
        candidates(&[port], &[node(more)])
    }

    #[test]
    fn when_a_node_is_ready_then_it_takes_clients_at_its_internal_addresses_and_node_ports() {
        let nodes = of(&serde_json::json!({}));
        let node = &nodes["node1"];
        assert_eq!((node.v4, node.v6), ("10.0.0.1".parse().ok(), "fd00::1".parse().ok()));
        assert_eq!((node.eligible, &node.ports), (true, &[(80, 30_080)].into()));
    }

    #[test]
    fn when_a_node_is_drained_or_not_ready_or_about_to_go_then_it_takes_no_new_clients() {
        for more in [
            serde_json::json!({"spec": {"unschedulable": true}}),
            serde_json::json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}}),
            serde_json::json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            serde_json::json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
        ] {
            assert!(!of(&more)["node1"].eligible, "{more}");
        }
    }

    #[test]
    fn when_a_node_is_excluded_then_it_is_no_backend() {
        assert!(of(&serde_json::json!({"metadata": {"labels": {EXCLUDED: ""}}})).is_empty());
    }
}
