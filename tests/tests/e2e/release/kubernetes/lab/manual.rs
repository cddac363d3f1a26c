//! Runs the commands of the book's chapter about Kubernetes, and tests what the API server itself reports about a
//! Service.

use std::{env, fs, path::PathBuf};

use balancer_testkit::{namespace::run, topology::Family};
use serde_json::json;

use super::World;

const LONE: &[&str] = &["--lease", "none"];

/// Returns the chapter's code blocks that begin with `mark`.
fn blocks(mark: &str) -> Vec<String> {
    let path = format!("{}/../docs/src/kubernetes.md", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let begin = format!("```{mark}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

impl World {
    /// Returns the events of the Service, as `kubectl` shows them.
    fn events(&self, service: &str) -> String {
        self.api.kubectl(&["describe", "service", service, "-n", "shop"]).unwrap()
    }
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_the_commands_of_the_book_are_typed_then_the_service_of_the_book_is_served() {
    let mut world = World::start();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = format!("{}:{}", env::var("KUBERNETES_PROGRAMS").unwrap(), env::var("PATH").unwrap());
    let mut typed = 0;
    for block in blocks("sh") {
        let mut command = world.api.client();
        let kubeconfig =
            command.get_envs().find_map(|(name, value)| (name == "KUBECONFIG").then(|| value.unwrap().to_owned()));
        command = world.api.namespace().command("sh");
        command.args(["-ec", &block]).env("KUBECONFIG", kubeconfig.unwrap()).env("PATH", &path).current_dir(&root);
        println!("{}", run(&mut command).unwrap());
        typed += 1;
    }
    assert!(typed > 0);
    // The lab's version of Kubernetes does not know `loadBalancerClass`, and drops the field.
    let service = blocks("yaml").remove(0);
    world.api.kubectl_with(&["apply", "--validate=false", "-f", "-"], &service).unwrap();
    world.controller("one", LONE);
    let vip = world.site.topology().vip(Family::V4).to_string();
    world.wait("it has an address", |world| {
        let service = world.api.get("service", "shop", "shop-web").unwrap().unwrap();
        service["status"]["loadBalancer"]["ingress"][0]["ip"] == vip.as_str()
    });
    let services = world.site.status().unwrap().services;
    assert!(services.iter().any(|service| service.name == "k8s.shop.shop-web"));
    assert!(!world.events("shop-web").contains("Warning"), "{}", world.events("shop-web"));
    let wide = world.api.kubectl(&["get", "service", "shop-web", "-n", "shop"]).unwrap();
    assert!(wide.contains(&vip), "{wide}");
    world.assert_nothing_was_refused();
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_a_service_is_wrong_or_changes_its_type_then_kubectl_says_so_and_no_address_is_left_over() {
    let mut world = World::start();
    world.controller("one", LONE);
    world.service();
    world.pods(&[1, 2], &[]);
    world.wait_pods("two pods are up", &[("up", &[1, 2])]);
    world.api.kubectl(&["annotate", "service", "web", "-n", "shop", "sticky.balancer/drian=2m"]).unwrap();
    world.wait("the owner is told", |world| world.events("web").contains("did you mean drain?"));

    // When a second Service asks for an address, the pool is empty.
    let other = |kind: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "other"},
            "spec": {"type": kind, "ports": [{"name": "http", "port": 80}]}})
    };
    world.api.apply(&other("LoadBalancer")).unwrap();
    world.wait("the owner is told of the pool", |world| world.events("other").contains("NoAddressLeft"));
    // The second Service gets the address as soon as the first Service gives the address up.
    world.api.kubectl(&["patch", "service", "web", "-n", "shop", "-p", r#"{"spec": {"type": "ClusterIP"}}"#]).unwrap();
    let vip = world.site.topology().vip(Family::V4).to_string();
    world.wait("the address is free again", |world| {
        let other = world.api.get("service", "shop", "other").unwrap().unwrap();
        other["status"]["loadBalancer"]["ingress"][0]["ip"] == vip.as_str()
    });
    world.wait("the first one is let go", |world| {
        let service = world.shown().unwrap();
        service["metadata"]["finalizers"].is_null() && service["status"]["loadBalancer"]["ingress"].is_null()
    });
    world.api.kubectl(&["delete", "service", "other", "-n", "shop", "--wait=false"]).unwrap();
    world.wait("the other is gone", |world| world.api.get("service", "shop", "other").unwrap().is_none());
    world.assert_nothing_was_refused();
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_a_service_has_both_families_and_both_protocols_then_it_is_one_service_with_all_listeners() {
    let mut world = World::start();
    world.controller("one", &["--lease", "none", "--pool", "2001:db8:77::/126"]);
    world
        .api
        .apply(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"sticky.balancer/check": "none"}},
            "spec": {"type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8::/32"],
                "ports": [{"name": "http", "port": 80}, {"name": "quic", "port": 80, "protocol": "UDP"}]}}))
        .unwrap();
    world.wait("it has both addresses", |world| {
        let service = world.shown().unwrap();
        service["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|ingress| ingress.len() == 2)
    });
    let drop_in = world.site.cli(&["drop-in", "show", "kubernetes"]).unwrap();
    let vip = world.site.topology().vip(Family::V4);
    let listen =
        format!("listen = [\"{vip}:80\", \"{vip}:80/udp\", \"[2001:db8:77::]:80\", \"[2001:db8:77::]:80/udp\"]");
    assert!(drop_in.contains(&listen) && drop_in.contains("remember = \"10800s\""), "{drop_in}");
    world.delete();
    world.wait_gone();
    world.assert_nothing_was_refused();
}
