//! Tests of Kubernetes Services in a fleet. Each machine of the fleet runs a controller for Kubernetes, and only one of
//! these controllers acts.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
};

use balancer_testkit::{binaries, kubernetes::Kubernetes, topology::Family};
use serde_json::json;

use super::{Fleet, PORT, Plan};
use crate::support::wait;

/// A process that ends when the value is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Fleet {
    /// Starts a controller for Kubernetes on a member's machine.
    fn kubernetes(&self, number: usize, cluster: &Kubernetes) -> Killed {
        let files = self.files.path().join(format!("lb{}", number + 1));
        fs::write(files.join("kubeconfig"), cluster.kubeconfig()).unwrap();
        let log = fs::File::create(files.join("kubernetes.log")).unwrap();
        let mut command = Command::new(binaries::kubernetes().unwrap());
        command.args(["run", "--pool", "198.51.100.77/32", "--metrics", "127.0.0.1:0", "--lease", "none"]);
        command.arg("--kubeconfig").arg(files.join("kubeconfig")).arg("--socket").arg(files.join("balancer.sock"));
        command.arg("--configuration").arg(files.join("balancer.toml"));
        Killed(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn pods(&self, cluster: &Kubernetes, pods: &[(u16, bool)]) {
        let endpoint = |&(number, ready): &(u16, bool)| {
            json!({"addresses": [self.topology.backend_address(Family::V4, number - 1).to_string()],
                "targetRef": {"kind": "Pod", "uid": format!("pod{number}")},
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        };
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        cluster.put(
            "endpointslices",
            json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": PORT, "protocol": "TCP"}]}),
        );
    }

    /// Returns the Service's backends at a member, with their administrative states.
    fn admins(&self, number: usize) -> BTreeMap<String, String> {
        let status: serde_json::Value = serde_json::from_str(&self.cli(number, &["status", "--json"])).unwrap();
        let services = status["services"].as_array().unwrap();
        let service = services.iter().find(|service| service["name"] == "k8s.shop.web");
        let backends = service.into_iter().flat_map(|service| service["backends"].as_array().unwrap());
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        backends.map(|backend| (text(&backend["name"]), text(&backend["admin"]))).collect()
    }

    #[track_caller]
    fn wait_admins(&self, what: &str, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|&(name, admin)| (name.to_owned(), admin.to_owned())).collect();
        wait(what, || (0..2).all(|number| self.admins(number) == expected));
    }
}

#[test]
fn when_the_controller_of_one_machine_ends_then_that_of_another_goes_on_with_the_fleet() {
    let fleet = Fleet::planned(Plan { members: 2, ..Plan::default() });
    let homes = fleet.one_answer();
    let cluster = Kubernetes::start().unwrap();
    cluster.put(
        "services",
        json!({"metadata": {"namespace": "shop", "name": "web", "annotations": {
                "sticky.balancer/drain": "10s", "sticky.balancer/forwarding": "ipip", "sticky.balancer/check": "none"}},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp",
                "ports": [{"port": PORT, "protocol": "TCP"}]}}),
    );
    fleet.pods(&cluster, &[(1, true), (2, true)]);
    let first = fleet.kubernetes(0, &cluster);
    fleet.wait_admins("both members serve it", &[("pod1", "ready"), ("pod2", "ready")]);
    fleet.pods(&cluster, &[(1, false), (2, true), (3, true)]);
    fleet.wait_admins("one drains in both", &[("pod1", "drain"), ("pod2", "ready"), ("pod3", "ready")]);
    drop(first);

    // The configuration file on the second machine does not contain the Service's backends.
    fleet.pods(&cluster, &[(2, true), (3, true)]);
    let _second = fleet.kubernetes(1, &cluster);
    let file = fleet.files.path().join("lb2/balancer.toml");
    wait("the second has not looked", || fs::read_to_string(&file).unwrap().contains("pod1"));
    fleet.wait_admins("the drained one is not removed in the end", &[("pod2", "ready"), ("pod3", "ready")]);
    let address = cluster.get("services", "shop", "web").unwrap()["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    assert_eq!(address, "198.51.100.77");
    assert_eq!(fleet.one_answer(), homes, "clients of the fleet's own service stay");

    cluster.delete("services", "shop", "web");
    wait("the Service is not let go", || cluster.get("services", "shop", "web").is_none());
    fleet.wait_admins("it is left over", &[]);
    assert_eq!(fleet.one_answer(), homes);
}
