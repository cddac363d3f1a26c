//! A real API server, Debian's, built by `cargo xtask lab kubernetes`: it knows what a stand-in may have wrong.
//!
//! Pods are web servers in namespaces; the tests write endpoints and nodes as Kubernetes' own controllers do.
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

/// A pod's view of its service account, its user and its group, and then the program.
const AS_A_POD: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && \
     ln -s \"$ACCOUNT\" /run/secrets/kubernetes.io/serviceaccount && exec setpriv --reuid 65534 --regid 65534 \
     --groups 0 --no-new-privs --inh-caps=-all --bounding-set=-all --pdeathsig SIGKILL \"$@\"";

/// A cluster, and a balancer with a service of its own file.
struct World {
    controllers: BTreeMap<String, Process>,
    site: Site,
    api: ApiServer,
}

impl World {
    /// The manifests are applied, no controller runs yet.
    fn start() -> Self {
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, 8, |settings, _| {
            settings.families = vec![Family::V6];
            settings.on_exit = "keep";
            settings.remember = "10m";
            Ok(())
        })
        .unwrap();
        // As the machine's group `balancer` may write them.
        fs::set_permissions(site.files(), fs::Permissions::from_mode(0o770)).unwrap();
        let api = ApiServer::start().unwrap();
        for file in ["rbac", "deployment"] {
            let path = format!("{}/../contrib/kubernetes/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
            api.kubectl(&["apply", "-f", &path]).unwrap();
        }
        api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).unwrap();
        api.service_account(&site.files().join("account")).unwrap();
        Self { controllers: BTreeMap::new(), site, api }
    }

    /// Starts a controller as the Deployment does: by its service account, without root and without capabilities.
    fn controller(&mut self, name: &str, more: &[&str]) {
        let file = |name: &str| self.site.files().join(name);
        let mut command = self.api.namespace().command("unshare");
        command.args(["--mount", "sh", "-ec", AS_A_POD, "sh"]).arg(binaries::kubernetes().unwrap());
        command.args(["run", "--default", "--metrics", "127.0.0.1:0", "--identity", name, "--pool"]);
        command.arg(format!("{}/32", self.site.topology().vip(Family::V4)));
        command.arg("--socket").arg(file("balancer.sock")).arg("--configuration").arg(self.site.config()).args(more);
        command.env("ACCOUNT", file("account")).envs(ApiServer::variables());
        let process = Process::spawn(name, &mut command, &file(&format!("{name}.log"))).unwrap();
        self.controllers.insert(name.to_owned(), process);
    }

    /// Kills a controller without a farewell.
    fn kill(&mut self, name: &str) {
        self.controllers.remove(name).unwrap().kill().unwrap();
    }

    /// Kills a controller after so long, and starts it again.
    fn kill_after(&mut self, name: &str, pause: Duration, more: &[&str]) {
        thread::sleep(pause);
        self.kill(name);
        self.controller(name, more);
    }

    /// The endpoints of the Service, as the controller of endpoint slices writes them.
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

    /// The Service as the server has it.
    fn shown(&self) -> Option<Value> {
        self.api.get("service", "shop", "web").unwrap()
    }

    /// The first address that the Service says.
    fn address(&self) -> Option<String> {
        self.shown()?["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    }

    /// The names of backends with their states.
    fn states(&self) -> BTreeMap<String, String> {
        let services = self.site.status().unwrap().services;
        let service = services.into_iter().find(|service| service.name == SERVICE);
        let backends = service.into_iter().flat_map(|service| service.backends);
        backends.map(|backend| (backend.name, backend.state)).collect()
    }

    /// Waits until exactly these pods have these states.
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

    /// All that controllers have said.
    fn log(&self) -> String {
        let files = fs::read_dir(self.site.files()).unwrap().flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let logs = logs.filter(|path| !path.ends_with("balancer.log"));
        logs.map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>().join("\n")
    }

    fn homes(&self, clients: RangeInclusive<u16>) -> BTreeMap<u16, String> {
        self.site.homes(Family::V4, clients).unwrap()
    }

    /// Does the work while clients of these numbers connect all the time; says what they saw. At most so many may fail.
    fn under_load(&mut self, clients: RangeInclusive<u16>, may_fail: usize, work: impl FnOnce(&mut Self)) {
        let requests = requests(self.site.topology(), Family::V4, 80, clients.clone());
        let entrance = self.site.topology().client().entrance();
        let load = under_load(&entrance, &requests, || work(self));
        println!("{} clients: {load}", clients.count());
        load.assert_answered_but(may_fail, requests.len());
    }

    /// No request of a controller was refused for want of a right, and none was wrong.
    #[track_caller]
    fn assert_nothing_was_refused(&self) {
        let refused = |code| (400..500).contains(&code) && ![404, 409, 410].contains(&code);
        let requests = self.api.audited(ACCOUNT).unwrap();
        let wrong: Vec<_> = requests.iter().filter(|request| refused(request.code)).collect();
        assert!(wrong.is_empty() && !requests.is_empty(), "{wrong:?} of {requests:?}");
    }

    /// Deletes the Service. Its finalizer keeps it until the controller has seen it.
    fn delete(&self) {
        self.api.kubectl(&["delete", "service", "web", "-n", "shop", "--wait=false"]).unwrap();
    }

    /// Waits until the Service is gone; nothing of it is left then.
    #[track_caller]
    fn wait_gone(&self) {
        self.wait("the Service is gone", |world| world.shown().is_none());
        let left: Vec<String> = self.site.status().unwrap().services.into_iter().map(|service| service.name).collect();
        assert_eq!(left, ["web6"], "the service of the file stays, and no other is left over");
    }
}

/// The clients that are at one of these web servers.
fn at(homes: &BTreeMap<u16, String>, pods: RangeInclusive<u16>) -> BTreeMap<u16, String> {
    let names: Vec<String> = pods.map(|number| format!("web{number}")).collect();
    homes.iter().filter(|(_, home)| names.contains(home)).map(|(client, home)| (*client, home.clone())).collect()
}

/// A number of the environment.
fn number(variable: &str, usual: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// How many clients connect all the time.
fn clients() -> u16 {
    u16::try_from(number("LAB_CLIENTS", 2_000)).unwrap()
}
