//! Tests of Kubernetes Services with web servers as pods, with the real controller for Kubernetes, and with a stand-in
//! for the API server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crossings;
mod lab;

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    ops::RangeInclusive,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    kubernetes::Kubernetes,
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use serde_json::{Value, json};

use crate::support::{requests, under_load, wait};

const SERVICE: &str = "k8s.shop.web";
/// The clients that connect while there are four pods.
const FIRST: RangeInclusive<u16> = 1..=200;
/// The clients that connect while there are eight pods.
const SECOND: RangeInclusive<u16> = 201..=300;

/// The controller for Kubernetes. Dropping the value kills the controller's process.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A balancer with an IPv6 service in its file, and a cluster whose pool contains only the IPv4 VIP.
struct World {
    site: Site,
    cluster: Kubernetes,
}

impl World {
    fn start() -> Self {
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, 8, |settings, _| {
            settings.families = vec![Family::V6];
            settings.on_exit = "keep";
            settings.remember = "10m";
            Ok(())
        })
        .unwrap();
        let cluster = Kubernetes::start().unwrap();
        fs::write(site.files().join("kubeconfig"), cluster.kubeconfig()).unwrap();
        Self { site, cluster }
    }

    fn controller(&self) -> Controller {
        let file = |name: &str| self.site.files().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(file("kubernetes.log")).unwrap();
        let mut command = Command::new(binaries::kubernetes().unwrap());
        command.args(["run", "--lease", "none", "--metrics", "127.0.0.1:0", "--pool"]);
        command.arg(format!("{}/32", self.site.topology().vip(Family::V4)));
        command.arg("--kubeconfig").arg(file("kubeconfig")).arg("--socket").arg(file("balancer.sock"));
        Controller(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn pods(&self, ready: &[u16], terminating: &[u16]) {
        let endpoint = |number: &u16, ready: bool| {
            let address = self.site.backend_address(Family::V4, *number).ip().to_string();
            json!({"addresses": [address], "targetRef": {"kind": "Pod", "uid": format!("pod{number}")},
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        };
        let ready = ready.iter().map(|number| endpoint(number, true));
        let endpoints: Vec<Value> = ready.chain(terminating.iter().map(|number| endpoint(number, false))).collect();
        let port = self.site.backend_address(Family::V4, 1).port();
        self.cluster.put(
            "endpointslices",
            json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": port, "protocol": "TCP"}]}),
        );
    }

    fn service(&self) {
        self.service_with(&[]);
    }

    /// Creates the Service, with the given annotations in addition to the usual ones.
    fn service_with(&self, more: &[(&str, &str)]) {
        let mut annotations = json!({"sticky.balancer/drain": "12s",
            "sticky.balancer/check": "{ type = \"tcp\", interval = \"300ms\", fall = 5, rise = 1 }"});
        for (name, value) in more {
            annotations[format!("sticky.balancer/{name}")] = json!(value);
        }
        self.cluster.put(
            "services",
            json!({"metadata": {"namespace": "shop", "name": "web", "annotations": annotations},
                "spec": {"type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp",
                    "ports": [{"port": 80, "protocol": "TCP"}]}}),
        );
    }

    /// Returns the names of the backends with their states.
    fn states(&self) -> BTreeMap<String, String> {
        let services = self.site.status().unwrap().services;
        let service = services.into_iter().find(|service| service.name == SERVICE);
        let backends = service.into_iter().flat_map(|service| service.backends);
        backends.map(|backend| (backend.name, backend.state)).collect()
    }

    /// Returns the names of the backends with their administrative states.
    fn admins(&self) -> BTreeMap<String, String> {
        let services = self.site.status().unwrap().services;
        let service = services.into_iter().find(|service| service.name == SERVICE);
        let backends = service.into_iter().flat_map(|service| service.backends);
        backends.map(|backend| (backend.name, backend.admin)).collect()
    }

    #[track_caller]
    fn wait_states(&self, what: &str, state: &str, pods: &[u16]) {
        let pods: Vec<String> = pods.iter().map(|number| format!("pod{number}")).collect();
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let states = self.states();
            if pods.iter().all(|name| states.get(name).is_some_and(|of| of == state)) {
                return;
            }
            assert!(Instant::now() < deadline, "not within time: {what}: {states:?}\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.files().join("kubernetes.log")).unwrap_or_default()
    }

    fn homes(&self, clients: RangeInclusive<u16>) -> BTreeMap<u16, String> {
        self.site.homes(Family::V4, clients).unwrap()
    }

    /// Returns the clients whose backend is one of the given pods.
    fn at(homes: &BTreeMap<u16, String>, pods: RangeInclusive<u16>) -> BTreeMap<u16, String> {
        let names: Vec<String> = pods.map(|number| format!("web{number}")).collect();
        homes.iter().filter(|(_, home)| names.contains(home)).map(|(client, home)| (*client, home.clone())).collect()
    }
}

#[test]
fn when_a_deployment_is_rolled_out_then_clients_stay_until_their_pod_ends_whatever_happens_to_the_controller() {
    let mut world = World::start();
    let mut controller = Some(world.controller());
    world.service();
    world.pods(&[1, 2, 3, 4], &[]);
    world.wait_states("four pods are up", "up", &[1, 2, 3, 4]);
    let vip = world.site.topology().vip(Family::V4).to_string();
    wait("the address is in the status", || {
        let service = world.cluster.get("services", "shop", "web").unwrap();
        service["status"]["loadBalancer"]["ingress"][0]["ip"] == vip.as_str()
    });
    let first = world.homes(FIRST);

    let all = requests(world.site.topology(), Family::V4, 80, 1..=300);
    let entrance = world.site.topology().client().entrance();
    let load = under_load(&entrance, &all[..200], || {
        // The number of pods grows from four to eight, and the controller dies at the same time.
        world.pods(&[1, 2, 3, 4, 5, 6, 7, 8], &[]);
        drop(controller.take());
        controller = Some(world.controller());
        world.wait_states("eight pods are up", "up", &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(world.homes(FIRST), first);
        let second = world.homes(SECOND);
        assert!(World::at(&second, 5..=8).len() > 20, "{second:?}");

        // The number of pods shrinks from eight to four: clients at an ending pod stay while the pod drains.
        world.pods(&[5, 6, 7, 8], &[1, 2, 3, 4]);
        world.wait_states("four drain", "draining", &[1, 2, 3, 4]);
        assert_eq!(world.homes(FIRST), first);
        assert_eq!(world.homes(SECOND), second);
        // If users apply the configuration file themselves, the states of the pods do not change.
        let config = world.site.config();
        world.site.cli(&["apply", config.to_str().unwrap(), "--reread"]).unwrap();
        assert_eq!(world.states().values().filter(|state| *state == "draining").count(), 4);
        world.site.cli(&["apply", config.to_str().unwrap(), "--reset"]).unwrap();
        world.wait_states("they drain again", "draining", &[1, 2, 3, 4]);
        assert_eq!((world.homes(FIRST), world.homes(SECOND)), (first.clone(), second.clone()));
        drop(controller.take());
        world.pods(&[5, 6, 7, 8], &[]);
        controller = Some(world.controller());
        wait("the four are removed", || world.states().len() == 4);
        let after = world.homes(SECOND);
        let stay = World::at(&second, 5..=8);
        assert_eq!(after.iter().filter(|(client, _)| stay.contains_key(*client)).count(), stay.len());
        assert!(stay.iter().all(|(client, home)| after[client] == *home), "{stay:?} {after:?}");
    });
    // At the end of the drain, the balancer ends the connections that are still open.
    load.assert_answered_but(10, 500);

    // A pod dies while the API server is unreachable: because of the balancer's own check, exactly the pod's clients
    // move.
    let before = world.homes(1..=300);
    world.cluster.is_away(true);
    world.site.kill_backend(5).unwrap();
    world.wait_states("the dead pod is down", "down", &[5]);
    let moved = world.homes(1..=300);
    assert!(World::at(&before, 6..=8).iter().all(|(client, home)| moved[client] == *home));
    assert!(World::at(&moved, 5..=5).is_empty());
    world.cluster.is_away(false);

    // After a kill, the balancer still has the services of the drop-in.
    world.site.kill_and_restart_with_the_file_as_it_is().unwrap();
    assert_eq!(world.homes(1..=300), moved);

    // The user scales the deployment to zero pods and back.
    world.pods(&[], &[]);
    wait("no pod is left", || world.states().is_empty());
    let refused = world.site.ask(Family::V4, 1..=5, PATIENCE).unwrap();
    assert!(
        refused.iter().all(|reply| reply.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
    );
    world.pods(&[1, 2], &[]);
    world.wait_states("two are back", "up", &[1, 2]);
    world.homes(1..=300);

    // A user deletes the Service while no controller for Kubernetes runs.
    drop(controller.take());
    world.cluster.delete("services", "shop", "web");
    assert!(world.cluster.get("services", "shop", "web").is_some(), "the finalizer keeps it");
    let _controller = world.controller();
    wait("the Service is gone", || world.cluster.get("services", "shop", "web").is_none());
    let left: Vec<String> = world.site.status().unwrap().services.into_iter().map(|service| service.name).collect();
    assert_eq!(left, ["web6"], "the service of the file stays, and no other is left over");
}
