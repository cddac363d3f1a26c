//! Tests of Kubernetes nodes as backends; a user drains the nodes.

use balancer_testkit::topology::Family;
use serde_json::json;

use super::{SERVICE, World};

const NODES: &[&str] = &["--lease", "none", "--target", "node"];

impl World {
    /// Writes node objects with the given numbers, as kubelets would.
    fn nodes(&self, numbers: &[u16], ready: bool) {
        for number in numbers {
            let address = self.site.backend_address(Family::V4, *number).ip().to_string();
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{number}")}});
            self.api.apply(&node).unwrap();
            let mut node = self.api.get("node", "", &format!("node{number}")).unwrap().unwrap();
            node["status"] = json!({"addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}]});
            let path = format!("/api/v1/nodes/node{number}/status");
            self.api.kubectl_with(&["replace", "--raw", &path, "-f", "-"], &node.to_string()).unwrap();
        }
    }

    #[track_caller]
    fn wait_nodes(&self, what: &str, expected: &[(u16, &str)]) {
        let expected = expected.iter().map(|(number, state)| (format!("node{number}"), (*state).to_owned())).collect();
        self.wait(what, |world| world.states() == expected);
    }
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_nodes_are_drained_or_not_ready_then_clients_stay_while_they_drain_and_new_ones_go_elsewhere() {
    let mut world = World::start();
    world.controller("one", NODES);
    world.nodes(&[1, 2, 3, 4], true);
    let port = world.site.backend_address(Family::V4, 1).port();
    world
        .api
        .apply(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"sticky.balancer/drain": "2m"}},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": port}]}}))
        .unwrap();
    let up = [(1, "up"), (2, "up"), (3, "up"), (4, "up")];
    world.wait_nodes("four nodes are up", &up);
    let homes = world.homes(1..=200);
    world.under_load(1..=200, 0, |world| {
        world.api.kubectl(&["drain", "node1", "--ignore-daemonsets"]).unwrap();
        world.wait_nodes("one drains", &[(1, "draining"), (2, "up"), (3, "up"), (4, "up")]);
        world.nodes(&[2], false);
        world.wait_nodes("two drain", &[(1, "draining"), (2, "draining"), (3, "up"), (4, "up")]);
        assert_eq!(world.homes(1..=200), homes);
        let new = world.homes(201..=300);
        assert!(new.values().all(|home| ["web3", "web4"].contains(&home.as_str())), "{new:?}");
        world.api.kubectl(&["uncordon", "node1"]).unwrap();
        world.nodes(&[2], true);
        world.wait_nodes("all are up", &up);
        assert_eq!(world.homes(1..=200), homes);
        let label = "node.kubernetes.io/exclude-from-external-load-balancers=";
        world.api.kubectl(&["label", "node", "node4", label]).unwrap();
        world.wait_nodes("one is excluded", &[(1, "up"), (2, "up"), (3, "up"), (4, "draining")]);
        assert_eq!(world.homes(1..=200), homes);
    });
    assert!(world.site.status().unwrap().services.iter().any(|service| service.name == SERVICE));
    world.delete();
    world.wait_gone();
    world.assert_nothing_was_refused();
}
