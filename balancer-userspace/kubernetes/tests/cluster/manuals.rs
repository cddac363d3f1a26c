//! Tests of statements in the book and of the manifests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::{self, World};
use serde_json::{Value, json};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)).unwrap()
}

/// Parses the documents in a manifest file.
fn manifest(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).unwrap()
}

/// Returns the Service in the example of the book.
fn shown() -> Value {
    let book = read("docs/src/kubernetes.md");
    let block = book.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    serde_saphyr::from_str(block).unwrap()
}

/// Returns the rights that the manifest grants, as `VERB GROUP/RESOURCE`.
fn granted() -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    for document in manifest("contrib/kubernetes/rbac.yaml") {
        for rule in document["rules"].as_array().into_iter().flatten() {
            let texts = |key: &str| rule[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    granted.extend(texts("verbs").map(|verb| format!("{verb} {group}/{resource}")));
                }
            }
        }
    }
    granted
}

/// Returns the right that a request to the API server needs.
fn needed(method: &str, path: &str, watch: bool) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, rest) = if parts[0] == "api" { ("", &parts[2..]) } else { (parts[1], &parts[3..]) };
    let rest = if rest[0] == "namespaces" { &rest[2..] } else { rest };
    let verb = match (method, rest.len()) {
        ("GET", 1) if watch => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        _ => "patch",
    };
    let part = rest.get(2).map(|part| format!("/{part}")).unwrap_or_default();
    format!("{verb} {group}/{}{part}", rest[0])
}

#[test]
fn when_the_service_of_the_book_is_served_then_it_is_as_the_book_says_and_no_right_is_missing_or_idle() {
    let mut world = World::new();
    world.start(&["--lease", "kube-system/balancer-kubernetes", "--identity", "one"]);
    let mut service = shown();
    for port in service["spec"]["ports"].as_array_mut().unwrap() {
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
    }
    world.cluster.put("services", service);
    world.pods("shop-web", &[(1, "ready")]);
    world.wait("it is served", |world| world.addresses("shop-web") == ["198.51.100.1"]);
    assert_eq!(world.events(), Vec::<String>::new());
    let drop_in = world.balancer.drop_in();
    for line in [
        "listen = [\"198.51.100.1:80\", \"198.51.100.1:443/udp\"]",
        "remember = \"10800s\"",
        "timeout = \"2m\"",
        "path = \"/healthz\"",
        "prefix = \"203.0.112.0/24\"",
    ] {
        assert!(drop_in.contains(line), "{line}: {drop_in}");
    }
    let mut other = support::service("other");
    other["spec"]["loadBalancerIP"] = json!("203.0.113.1");
    world.cluster.put("services", other);
    world.wait("an event says that this is no address of the pool", |world| world.events().len() == 1);
    world.cluster.delete("services", "shop", "shop-web");
    world.wait("it is gone", |world| world.cluster.get("services", "shop", "shop-web").is_none());
    world.wait("the Lease is renewed", |world| world.cluster.requests("PUT", "/leases/") > 0);
    world.controllers.clear();
    world.start(&["--target", "node", "--default"]);
    world.wait("nodes are watched", |world| world.cluster.watches("/nodes") > 0);

    let mut used: BTreeSet<String> =
        world.cluster.paths().iter().map(|(method, path)| needed(method, path, false)).collect();
    used.extend(world.cluster.watched().iter().map(|path| needed("GET", path, true)));
    assert_eq!(used, granted());
}

#[test]
fn when_the_deployment_is_read_then_its_arguments_are_taken_and_its_account_exists() {
    for (file, servers) in [("deployment", 0), ("remote", 2)] {
        let deployment = manifest(&format!("contrib/kubernetes/{file}.yaml")).remove(0);
        is_well_formed(&deployment, servers);
    }
}

fn is_well_formed(deployment: &Value, servers: usize) {
    let pod = &deployment["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    let parsed = <balancer_kubernetes::args::Cli as clap::Parser>::try_parse_from(["x"].into_iter().chain(arguments));
    let balancer_kubernetes::args::Verb::Run(run) = parsed.unwrap().verb;
    assert_eq!((run.pools.len(), run.metrics.port(), run.servers().unwrap().len()), (2, 9662, servers));
    let account = &manifest("contrib/kubernetes/rbac.yaml")[0];
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(deployment["spec"]["replicas"], 2);
}

#[test]
fn when_the_book_lists_options_and_annotations_then_it_lists_them_all() {
    let book = read("docs/src/kubernetes.md");
    let command = <balancer_kubernetes::args::Cli as clap::CommandFactory>::command();
    let run = command.find_subcommand("run").unwrap();
    for option in run
        .get_opts()
        .filter(|option| !option.is_hide_set())
        .filter_map(clap::Arg::get_long)
        .filter(|option| *option != "identity")
    {
        assert!(book.contains(&format!("`--{option}")), "--{option}");
    }
    for key in balancer_kubernetes::annotations::KEYS {
        assert!(book.contains(&format!("`{key}`")) || book.contains(&format!("sticky.balancer/{key}`")), "{key}");
    }
}
