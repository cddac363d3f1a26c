//! A cluster, a balancer without a data path, and controllers that connect the two.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

pub(crate) mod fake;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use balancer_testkit::kubernetes::Kubernetes;
use serde_json::{Value, json};
use tempfile::TempDir;

use fake::Balancer;

/// The maximum duration of each step of a test.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const FINALIZER: &str = "sticky.balancer/cleanup";

pub(crate) struct World {
    pub(crate) cluster: Kubernetes,
    pub(crate) balancer: Balancer,
    pub(crate) controllers: Vec<Controller>,
    files: TempDir,
}

/// A controller process, which is killed when this value is dropped.
pub(crate) struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// Makes a cluster and a balancer, without a controller.
    pub(crate) fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let balancer = Balancer::start(files.path());
        let cluster = Kubernetes::start().unwrap();
        fs::write(files.path().join("kubeconfig"), cluster.kubeconfig()).unwrap();
        Self { cluster, balancer, controllers: Vec::new(), files }
    }

    /// Makes a cluster and a balancer, with a controller.
    pub(crate) fn with_controller() -> Self {
        let mut world = Self::new();
        world.start(&[]);
        world
    }

    /// Starts a controller, which uses no Lease unless `more` names one.
    pub(crate) fn start(&mut self, more: &[&str]) {
        let path = |name: &str| self.files.path().join(name).into_os_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_balancer-kubernetes"));
        command.args(["run", "--pool", "198.51.100.0/30", "--pool", "2001:db8:1::/126", "--metrics", "127.0.0.1:0"]);
        command.arg("--kubeconfig").arg(path("kubeconfig")).arg("--socket").arg(path("balancer.sock"));
        if !more.contains(&"--lease") {
            command.args(["--lease", "none"]);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let child = command.args(more).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.controllers.push(Controller(child));
    }

    /// Kills the processes of all controllers.
    pub(crate) fn kill(&mut self) {
        self.controllers.clear();
    }

    /// Waits until the condition `is_so` is true.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            if start.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.files.path().join("log")).unwrap_or_default();
                panic!("{what}: not within {PATIENCE:?}\n{}\n{}\n{log}", self.balancer.told(), self.balancer.drop_in());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    /// Returns the addresses in the status of a Service.
    pub(crate) fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.cluster.get("services", "shop", name).unwrap_or_default();
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        ingress.iter().filter_map(|entry| Some(entry["ip"].as_str()?.to_owned())).collect()
    }

    /// Returns a controller's answer to `GET PATH`.
    pub(crate) fn http(&self, path: &str) -> String {
        let log = fs::read_to_string(self.files.path().join("log")).unwrap();
        let address = log.rsplit("metrics at http://").next().unwrap().split('/').next().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Returns all events that the controller has written for owners of Services.
    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.cluster.all("events");
        events.iter().map(|event| format!("{}: {}", event["reason"], event["message"])).collect()
    }

    /// Sets the pods of a Service, each `ready`, `unready` or `terminating`.
    pub(crate) fn pods(&self, service: &str, pods: &[(u8, &str)]) {
        self.cluster.put("endpointslices", slice(service, pods));
    }
}

pub(crate) fn slice(service: &str, pods: &[(u8, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(number, state)| {
            json!({"addresses": [format!("10.0.0.{number}")], "targetRef": {"kind": "Pod", "uid": format!("u{number}")},
                "conditions": {"ready": *state == "ready", "serving": *state != "unready",
                    "terminating": *state == "terminating"}})
        })
        .collect();
    json!({"metadata": {"namespace": "shop", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

pub(crate) fn service(name: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "annotations": {}},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp", "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}
