//! Tests with a real API server, which `cargo xtask lab kubernetes` builds from Debian's sources. These tests exist
//! because the stand-in may differ from the real API server.
//!
//! Pods are web servers in namespaces. The tests write endpoints and nodes as Kubernetes' own controllers would.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod away;
mod leases;
mod manual;
mod nodes;
mod rollout;

use std::{
    collections::BTreeMap,
    env, fs,
    ops::RangeInclusive,
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    kubernetes::real::{ACCOUNT, ApiServer},
    process::Process,
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use serde_json::{Value, json};

use crate::support::{requests, under_load};

const SERVICE: &str = "k8s.shop.web";

/// Runs a program as in a pod: with the files of the service account, as another user and group, and without
/// capabilities.
const AS_A_POD: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && \
     ln -s \"$ACCOUNT\" /run/secrets/kubernetes.io/serviceaccount && exec setpriv --reuid 65534 --regid 65534 \
     --groups 0 --no-new-privs --inh-caps=-all --bounding-set=-all --pdeathsig SIGKILL \"$@\"";

/// A cluster, and a balancer with an IPv6 service in its file.
struct World {
    controllers: BTreeMap<String, Process>,
    site: Site,
    api: ApiServer,
}

impl World {
    /// Applies the Kubernetes manifests, but starts no controller.
    fn start() -> Self {
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, 8, |settings, _| {
            settings.families = vec![Family::V6];
            settings.on_exit = "keep";
            settings.remember = "10m";
            Ok(())
        })
        .unwrap();
        // The group may use the control socket, like the group `balancer` on a real machine.
        fs::set_permissions(site.files(), fs::Permissions::from_mode(0o750)).unwrap();
        let api = ApiServer::start().unwrap();
        for file in ["rbac", "deployment", "remote"] {
            let path = format!("{}/../contrib/kubernetes/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
            api.kubectl(&["apply", "-f", &path]).unwrap();
        }
        api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).unwrap();
        api.service_account(&site.files().join("account")).unwrap();
        Self { controllers: BTreeMap::new(), site, api }
    }

    /// Starts a controller as the Deployment does: with the service account, without root, and without capabilities.
    fn controller(&mut self, name: &str, more: &[&str]) {
        let file = |name: &str| self.site.files().join(name);
        let mut command = self.api.namespace().command("unshare");
        command.args(["--mount", "sh", "-ec", AS_A_POD, "sh"]).arg(binaries::kubernetes().unwrap());
        command.args(["run", "--default", "--metrics", "127.0.0.1:0", "--identity", name, "--pool"]);
        command.arg(format!("{}/32", self.site.topology().vip(Family::V4)));
        command.arg("--socket").arg(file("balancer.sock")).args(more);
        command.env("ACCOUNT", file("account")).envs(ApiServer::variables());
        let process = Process::spawn(name, &mut command, &file(&format!("{name}.log"))).unwrap();
        self.controllers.insert(name.to_owned(), process);
    }

    /// Kills a controller, so that the controller does not give up the Lease.
    fn kill(&mut self, name: &str) {
        self.controllers.remove(name).unwrap().kill().unwrap();
    }

    /// Waits for `pause`, kills a controller, and starts the same controller again.
    fn kill_after(&mut self, name: &str, pause: Duration, more: &[&str]) {
        thread::sleep(pause);
        self.kill(name);
        self.controller(name, more);
    }

    /// Writes the endpoints of the Service as the controller of endpoint slices would.
    fn pods(&self, ready: &[u16], terminating: &[u16]) {
        let endpoint = |number: &u16, ready: bool| {
            let address = self.site.backend_address(Family::V4, *number).ip().to_string();
            json!({"addresses": [address], "targetRef": {"kind": "Pod", "uid": format!("pod{number}")},
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        };
        let ready = ready.iter().map(|number| endpoint(number, true));
        let endpoints: Vec<Value> = ready.chain(terminating.iter().map(|number| endpoint(number, false))).collect();
        let port = self.site.backend_address(Family::V4, 1).port();
        self.api
            .apply(&json!({"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice",
                "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": port, "protocol": "TCP"}]}))
            .unwrap();
    }

    fn service(&self) {
        self.api
            .apply(&json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": "shop", "name": "web", "annotations": {
                    "sticky.balancer/drain": "12s",
                    "sticky.balancer/check": "{ type = \"tcp\", interval = \"300ms\", fall = 5, rise = 1 }"}},
                "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}))
            .unwrap();
    }

    /// Returns the Service as the API server stores it.
    fn shown(&self) -> Option<Value> {
        self.api.get("service", "shop", "web").unwrap()
    }

    /// Returns the first address in the Service's status.
    fn address(&self) -> Option<String> {
        self.shown()?["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    }

    /// Returns the names of the backends with their states.
    fn states(&self) -> BTreeMap<String, String> {
        let services = self.site.status().unwrap().services;
        let service = services.into_iter().find(|service| service.name == SERVICE);
        let backends = service.into_iter().flat_map(|service| service.backends);
        backends.map(|backend| (backend.name, backend.state)).collect()
    }

    /// Waits until exactly the given pods exist and have the given states.
    #[track_caller]
    fn wait_pods(&self, what: &str, expected: &[(&str, &[u16])]) {
        let states = |(state, pods): &(&str, &[u16])| {
            let pods: Vec<_> = pods.iter().map(|number| (format!("pod{number}"), (*state).to_owned())).collect();
            pods
        };
        let expected: BTreeMap<String, String> = expected.iter().flat_map(states).collect();
        self.wait(what, |world| world.states() == expected);
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + 3 * PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not within time: {what}: {:?}\n{}", self.states(), self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the log output of all controllers.
    fn log(&self) -> String {
        let files = fs::read_dir(self.site.files()).unwrap().flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let logs = logs.filter(|path| !path.ends_with("balancer.log"));
        logs.map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>().join("\n")
    }

    fn homes(&self, clients: RangeInclusive<u16>) -> BTreeMap<u16, String> {
        self.site.homes(Family::V4, clients).unwrap()
    }

    /// Runs `work` while the given clients keep connecting, and prints the clients' results. At most `may_fail` of the
    /// requests may fail.
    fn under_load(&mut self, clients: RangeInclusive<u16>, may_fail: usize, work: impl FnOnce(&mut Self)) {
        let requests = requests(self.site.topology(), Family::V4, 80, clients.clone());
        let entrance = self.site.topology().client().entrance();
        let load = under_load(&entrance, &requests, || work(self));
        println!("{} clients: {load}", clients.count());
        load.assert_answered_but(may_fail, requests.len());
    }

    /// Checks that the API server refused no request of a controller, neither for a missing right nor as malformed.
    #[track_caller]
    fn assert_nothing_was_refused(&self) {
        let refused = |code| (400..500).contains(&code) && ![404, 409, 410].contains(&code);
        let requests = self.api.audited(ACCOUNT).unwrap();
        let wrong: Vec<_> = requests.iter().filter(|request| refused(request.code)).collect();
        assert!(wrong.is_empty() && !requests.is_empty(), "{wrong:?} of {requests:?}");
    }

    /// Deletes the Service that the tests use. The finalizer keeps the Service until the controller has noticed the
    /// deletion.
    fn delete(&self) {
        self.api.kubectl(&["delete", "service", "web", "-n", "shop", "--wait=false"]).unwrap();
    }

    /// Waits until the Service is gone, and checks that the balancer has no remains of the Service.
    #[track_caller]
    fn wait_gone(&self) {
        self.wait("the Service is gone", |world| world.shown().is_none());
        let left: Vec<String> = self.site.status().unwrap().services.into_iter().map(|service| service.name).collect();
        assert_eq!(left, ["web6"], "the service of the file stays, and no other is left over");
    }
}

/// Returns the clients whose backend is one of the given web servers.
fn at(homes: &BTreeMap<u16, String>, pods: RangeInclusive<u16>) -> BTreeMap<u16, String> {
    let names: Vec<String> = pods.map(|number| format!("web{number}")).collect();
    homes.iter().filter(|(_, home)| names.contains(home)).map(|(client, home)| (*client, home.clone())).collect()
}

/// Returns the number in the environment variable `variable`, or `usual`.
fn number(variable: &str, usual: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Returns the number of clients that connect all the time.
fn clients() -> u16 {
    u16::try_from(number("LAB_CLIENTS", 2_000)).unwrap()
}
