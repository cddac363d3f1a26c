//! Tests of Kubernetes Services in a fleet: with a controller on each machine of the fleet, of which only one acts, and
//! with a controller on another machine.

mod routers;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use balancer_testkit::{
    binaries,
    kubernetes::Kubernetes,
    topology::{Family, Topology},
};
use serde_json::json;

use crate::{
    fleet::{Fleet, PORT, Plan},
    remote_control::Certificates,
    support::wait,
};

/// A process that ends when the value is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The options of controllers in tests that need no Lease and only one address.
const ONE_ADDRESS: &[&str] = &["--pool", "198.51.100.77/32", "--lease", "none"];

/// Starts a controller for Kubernetes by a command that contains the program and the options for the balancer.
fn start(mut command: Command, options: &[&str], files: &Path, cluster: &Kubernetes) -> Killed {
    fs::create_dir_all(files).unwrap();
    fs::write(files.join("kubeconfig"), cluster.kubeconfig()).unwrap();
    let log = fs::File::create(files.join("kubernetes.log")).unwrap();
    command.args(options).args(["--metrics", "127.0.0.1:0"]);
    command.arg("--kubeconfig").arg(files.join("kubeconfig"));
    Killed(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

fn put_service(cluster: &Kubernetes) {
    cluster.put(
        "services",
        json!({"metadata": {"namespace": "shop", "name": "web", "annotations": {
                "sticky.balancer/drain": "10s", "sticky.balancer/forwarding": "ipip", "sticky.balancer/check": "none"}},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp",
                "ports": [{"port": PORT, "protocol": "TCP"}]}}),
    );
}

impl Fleet {
    /// Starts a controller for Kubernetes on a member's machine.
    fn kubernetes(&self, number: usize, options: &[&str], cluster: &Kubernetes) -> Killed {
        let files = self.files.path().join(format!("lb{}", number + 1));
        let mut command = Command::new(binaries::kubernetes().unwrap());
        command.arg("run").arg("--socket").arg(files.join("balancer.sock"));
        start(command, options, &files, cluster)
    }

    /// Writes the `EndpointSlice` of IPv4 addresses: the pods' numbers, and whether they are ready.
    fn pods(&self, cluster: &Kubernetes, pods: &[(u16, bool)]) {
        self.pods_of(Family::V4, PORT, cluster, pods);
    }

    fn pods_of(&self, family: Family, port: u16, cluster: &Kubernetes, pods: &[(u16, bool)]) {
        let endpoint = |&(number, ready): &(u16, bool)| {
            json!({"addresses": [self.topology.backend_address(family, number - 1).to_string()],
                "targetRef": {"kind": "Pod", "uid": format!("pod{number}")},
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        };
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        cluster.put(
            "endpointslices",
            json!({"metadata": {"namespace": "shop", "name": format!("web-{family:?}").to_lowercase(),
                    "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
                "endpoints": endpoints, "ports": [{"name": "", "port": port, "protocol": "TCP"}]}),
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
        wait(what, || self.members().all(|number| self.admins(number) == expected));
    }
}

#[test]
fn when_the_controller_of_one_machine_ends_then_that_of_another_goes_on_with_the_fleet() {
    let fleet = Fleet::planned(Plan { members: 2, ..Plan::default() });
    let homes = fleet.one_answer();
    let cluster = Kubernetes::start().unwrap();
    put_service(&cluster);
    fleet.pods(&cluster, &[(1, true), (2, true)]);
    let first = fleet.kubernetes(0, ONE_ADDRESS, &cluster);
    fleet.wait_admins("both members serve it", &[("pod1", "ready"), ("pod2", "ready")]);
    fleet.pods(&cluster, &[(1, false), (2, true), (3, true)]);
    fleet.wait_admins("one drains in both", &[("pod1", "drain"), ("pod2", "ready"), ("pod3", "ready")]);
    drop(first);

    fleet.pods(&cluster, &[(2, true), (3, true)]);
    let _second = fleet.kubernetes(1, ONE_ADDRESS, &cluster);
    fleet.wait_admins("the drained one is not removed in the end", &[("pod2", "ready"), ("pod3", "ready")]);
    let address = cluster.get("services", "shop", "web").unwrap()["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    assert_eq!(address, "198.51.100.77");
    assert_eq!(fleet.one_answer(), homes, "clients of the fleet's own service stay");

    cluster.delete("services", "shop", "web");
    wait("the Service is not let go", || cluster.get("services", "shop", "web").is_none());
    fleet.wait_admins("it is left over", &[]);
    assert_eq!(fleet.one_answer(), homes);
}

#[test]
fn when_the_controller_is_on_another_machine_then_it_changes_the_fleet_through_a_member_that_is_there() {
    let certificates = Certificates::new();
    let addresses = [0, 1].map(|number| Topology::balancers_address(Family::V4, number).to_string());
    certificates.sign_for("fleet", addresses.to_vec());
    let at = |name: &str| certificates.path(name).display().to_string();
    let control = format!(
        "listen = \"ADDRESS:9661\"\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\nroles = {{ admin = \"all\" }}\n",
        at("fleet.pem"),
        at("fleet.key"),
        at("ca.pem")
    );
    let mut fleet = Fleet::planned(Plan { members: 2, control, ..Plan::default() });
    let homes = fleet.one_answer();
    let elsewhere = &fleet.engines[0];
    let cluster = elsewhere.run_in_thread(Kubernetes::start).unwrap().unwrap();
    put_service(&cluster);
    fleet.pods(&cluster, &[(1, true), (2, true)]);
    let mut command = elsewhere.command(binaries::kubernetes().unwrap());
    command.arg("run").args(addresses.iter().flat_map(|at| ["--server".to_owned(), format!("https://{at}:9661")]));
    command.args(["--ca", &at("ca.pem"), "--cert", &at("admin.pem"), "--key", &at("admin.key")]);
    let files = fleet.files.path().join("elsewhere");
    let _controller = start(command, ONE_ADDRESS, &files, &cluster);
    fleet.wait_admins("both members serve it", &[("pod1", "ready"), ("pod2", "ready")]);

    fleet.kill(0);
    fleet.pods(&cluster, &[(1, false), (2, true), (3, true)]);
    fleet.wait_admins("the other member has it", &[("pod1", "drain"), ("pod2", "ready"), ("pod3", "ready")]);
    fleet.start_again(0);
    fleet.wait_admins("the first one has it as well", &[("pod1", "drain"), ("pod2", "ready"), ("pod3", "ready")]);
    // The configuration files of the members do not have the Service.
    let file = fleet.files.path().join("lb2/balancer.toml").display().to_string();
    fleet.cli(1, &["apply", &file, "--reset", "--force"]);
    fleet.cli(1, &["apply", &file, "--reread"]);
    fleet.pods(&cluster, &[(2, true), (3, true)]);
    fleet.wait_admins("the drained one is removed in the end", &[("pod2", "ready"), ("pod3", "ready")]);
    assert_eq!(fleet.one_answer(), homes, "clients of the fleet's own service stay");
    let address = cluster.get("services", "shop", "web").unwrap()["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    assert_eq!(address, "198.51.100.77");

    fleet.stop(1);
    cluster.delete("services", "shop", "web");
    wait("the Service is not let go", || cluster.get("services", "shop", "web").is_none());
    fleet.start_again(1);
    fleet.wait_admins("it is left over", &[]);
    assert_eq!(fleet.cli(0, &["drop-in", "list", "--json"]), "[]");
}
