//! Tests of how the controller behaves when the cluster or the balancer fails.

use crate::support::{FINALIZER, World, service, slice};
use serde_json::json;

const WEB: &str = "k8s.shop.shop-web";

/// Makes a cluster with one Service, for which the balancer serves the pods 1 and 2.
fn served() -> World {
    let world = World::with_controller();
    world.cluster.put("services", service("shop-web"));
    world.pods("shop-web", &[(1, "ready"), (2, "ready")]);
    world.wait("the Service is served", |world| {
        world.balancer.backends(WEB).len() == 2 && world.addresses("shop-web") == ["198.51.100.1"]
    });
    world
}

fn admins(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, admin)| ((*name).to_owned(), (*admin).to_owned())).collect()
}

#[test]
fn when_a_service_comes_then_it_is_served_and_when_it_goes_then_nothing_of_it_is_left() {
    let world = served();
    let object = world.cluster.get("services", "shop", "shop-web").unwrap();
    assert_eq!(object["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(world.balancer.backends(WEB)["u1"].address, "10.0.0.1:8080");
    assert!(world.balancer.drop_in().contains(WEB), "{}", world.balancer.drop_in());

    world.cluster.delete("services", "shop", "shop-web");
    world.wait("it is gone", |world| world.cluster.get("services", "shop", "shop-web").is_none());
    assert_eq!(world.balancer.services(), ["web"]);
    assert_eq!(world.balancer.drop_in(), "");
}

#[test]
fn when_pods_terminate_then_they_drain_and_are_removed_once_they_are_gone_and_drained() {
    let world = served();
    world.pods("shop-web", &[(1, "terminating"), (2, "ready"), (3, "ready"), (4, "unready")]);
    let expected = admins(&[("u1", "drain"), ("u2", "ready"), ("u3", "ready")]);
    world.wait("one drains, one came", |world| world.balancer.admins(WEB) == expected);
    world.pods("shop-web", &[(2, "unready"), (3, "ready"), (4, "ready")]);
    let expected = admins(&[("u1", "drain"), ("u2", "drain"), ("u3", "ready"), ("u4", "ready")]);
    world.wait("the one that is gone stays while it drains", |world| world.balancer.admins(WEB) == expected);
    world.pods("shop-web", &[(2, "ready"), (3, "ready"), (4, "ready")]);
    let expected = admins(&[("u1", "drain"), ("u2", "ready"), ("u3", "ready"), ("u4", "ready")]);
    world.wait("it is ready again", |world| world.balancer.admins(WEB) == expected);
    world.balancer.change(WEB, "u1", |backend| backend.state = Some("drained".to_owned()));
    world.wait("it is removed", |world| !world.balancer.backends(WEB).contains_key("u1"));
}

#[test]
fn when_an_operator_drains_removes_or_resets_then_only_what_is_the_clusters_is_put_right() {
    let world = served();
    world.balancer.change(WEB, "u1", |backend| backend.admin = "drain".to_owned());
    world.balancer.remove(WEB, "u2");
    world.pods("shop-web", &[(1, "ready"), (2, "ready"), (3, "terminating")]);
    world.cluster.put("services", service("another"));
    let expected = admins(&[("u1", "drain"), ("u2", "ready")]);
    world.wait("the removed one is back, the drained one stays", |world| world.balancer.admins(WEB) == expected);
    world.wait("the other is served", |world| world.addresses("another").len() == 1);
    assert_eq!(world.balancer.admins(WEB), expected);
}

#[test]
fn when_the_controller_is_killed_then_the_next_one_goes_on_with_the_same_addresses_and_drains() {
    let mut world = served();
    world.cluster.put("services", service("another"));
    world.wait("the other is served", |world| world.addresses("another") == ["198.51.100.2"]);
    world.pods("shop-web", &[(1, "terminating"), (2, "ready")]);
    world.wait("it drains", |world| world.balancer.admins(WEB)[0].1 == "drain");
    world.kill();
    world.pods("shop-web", &[(1, "ready"), (2, "ready"), (3, "ready")]);
    world.cluster.delete("services", "shop", "another");
    assert!(world.cluster.get("services", "shop", "another").is_some(), "the finalizer keeps it");
    world.start(&[]);
    world.wait("the deleted one is let go", |world| world.cluster.get("services", "shop", "another").is_none());
    assert_eq!(world.balancer.services(), [WEB, "web"]);
    let expected = admins(&[("u1", "ready"), ("u2", "ready"), ("u3", "ready")]);
    world.wait("the drain ends", |world| world.balancer.admins(WEB) == expected);
    assert_eq!(world.addresses("shop-web"), ["198.51.100.1"]);
}

#[test]
fn when_the_api_server_cuts_forgets_repeats_conflicts_and_is_away_then_the_end_is_the_same() {
    let world = served();
    world.cluster.repeats_events(true);
    world.cluster.cut_watches();
    world.pods("shop-web", &[(2, "ready"), (3, "ready")]);
    world.wait("after a cut watch", |world| world.balancer.backends(WEB).contains_key("u3"));

    world.cluster.compact();
    world.pods("shop-web", &[(2, "ready"), (3, "ready"), (4, "ready")]);
    world.wait("after 410", |world| world.balancer.backends(WEB).contains_key("u4"));

    world.cluster.drops_events(true);
    world.pods("shop-web", &[(2, "ready"), (3, "ready"), (4, "ready"), (6, "ready")]);
    world.cluster.drops_events(false);
    world.cluster.compact();
    world.wait("the next list has what no event told", |world| world.balancer.backends(WEB).contains_key("u6"));

    world.cluster.refuses_writes(3);
    world.cluster.put("services", service("another"));
    world.wait("after conflicts", |world| world.addresses("another").len() == 1);

    world.cluster.is_away(true);
    let before = world.balancer.told();
    world.pods("shop-web", &[(5, "ready")]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(world.balancer.told(), before, "nothing is done on no knowledge");
    world.cluster.is_away(false);
    world.wait("it is back", |world| world.balancer.backends(WEB).contains_key("u5"));
}

#[test]
fn when_the_balancer_is_away_then_a_deleted_service_waits_for_it() {
    let world = served();
    world.balancer.is_away(true);
    world.cluster.delete("services", "shop", "shop-web");
    world.wait("it is missed", |world| world.log().contains("no proper answer"));
    assert!(world.cluster.get("services", "shop", "shop-web").is_some(), "its address may still be served");
    world.balancer.is_away(false);
    world.wait("it is let go", |world| world.cluster.get("services", "shop", "shop-web").is_none());
    assert_eq!(world.balancer.services(), ["web"]);
}

#[test]
fn when_the_pool_is_empty_or_an_annotation_is_wrong_then_the_owner_is_told_once() {
    let world = World::with_controller();
    for name in ["a", "b", "c", "d"] {
        let mut service = service(name);
        service["metadata"]["annotations"] = json!({"sticky.balancer/drian": "2m"});
        world.cluster.put("services", service);
    }
    world.wait("three are served", |world| ["a", "b", "c"].iter().all(|name| world.addresses(name).len() == 1));
    world.wait("all are told", |world| world.events().len() == 5);
    let events = world.events().join("\n");
    assert!(events.contains("\"NoAddressLeft\": \"no IPv4 address is left in the pool: 198.51.100.0/30"), "{events}");
    assert!(
        events.contains("annotation sticky.balancer/drian: there is none of that name; did you mean drain?"),
        "{events}"
    );
    world.cluster.delete("services", "shop", "a");
    world.wait("the fourth gets its address", |world| world.addresses("d") == ["198.51.100.1"]);
    assert_eq!(world.events().len(), 5);
}

#[test]
fn when_the_api_server_comes_back_and_denies_everything_at_first_then_nothing_changes_and_that_is_said_once() {
    let world = served();
    let before = world.balancer.applied();
    world.cluster.is_away(true);
    world.wait("it is missed", |world| world.log().contains("what was known stays in force"));
    world.cluster.denies_requests(6);
    world.cluster.compact();
    world.cluster.is_away(false);
    world.pods("shop-web", &[(1, "ready"), (2, "ready"), (3, "ready"), (4, "ready")]);
    world.wait("the pod is there in the end", |world| world.balancer.backends(WEB).len() == 4);
    let said = |world: &World, part: &str| {
        world.log().lines().filter(|line| line.contains("/services") && line.contains(part)).count()
    };
    world.wait("services are read again", |world| said(world, "the API server answers again") > 0);
    assert_eq!(world.balancer.applied(), before + 1);
    let log = world.log();
    assert!(said(&world, "the API server says 403") <= 1, "{log}");
    assert_eq!(said(&world, "the API server answers again"), 1, "{log}");
}

#[test]
fn when_a_service_is_replaced_by_another_of_its_name_then_the_new_one_is_served() {
    let world = served();
    for _ in 0..5 {
        let finalizers = world.cluster.get("services", "shop", "shop-web").unwrap()["metadata"]["finalizers"].clone();
        assert_ne!(finalizers, json!([]));
        world.cluster.delete("services", "shop", "shop-web");
        world.wait("it is gone", |world| world.cluster.get("services", "shop", "shop-web").is_none());
        world.cluster.put("services", service("shop-web"));
        world.wait("the new one is served", |world| world.addresses("shop-web").len() == 1);
    }
    // The time at the beginning of a line may contain any digits.
    let log = world.log();
    let said = |line: &str| line.split_once("Z ").map_or(line, |(_, said)| said).contains("422");
    assert!(!log.lines().any(said), "{log}");
}

#[test]
fn when_slices_are_of_the_old_version_then_they_are_found() {
    let mut world = World::new();
    world.cluster.is_old();
    world.start(&[]);
    world.cluster.put("services", service("shop-web"));
    world.pods("shop-web", &[(1, "ready")]);
    world.wait("it is served", |world| world.balancer.backends(WEB).len() == 1);
    world.pods("shop-web", &[(1, "ready"), (2, "ready")]);
    world.wait("they are watched", |world| world.balancer.backends(WEB).len() == 2);
}

#[test]
fn when_two_controllers_run_then_one_acts_and_the_other_takes_over_when_it_ends() {
    let mut world = World::new();
    for identity in ["one", "two"] {
        world.start(&["--lease", "kube-system/it", "--identity", identity]);
        world.wait("there is a Lease", |world| world.cluster.get("leases", "kube-system", "it").is_some());
    }
    world.cluster.put("services", service("shop-web"));
    world.pods("shop-web", &[(1, "ready")]);
    world.wait("it is served", |world| world.addresses("shop-web").len() == 1);
    let holder =
        |world: &World| world.cluster.get("leases", "kube-system", "it").unwrap()["spec"]["holderIdentity"].clone();
    assert_eq!(holder(&world), "one");
    let applied = world.balancer.applied();
    drop(world.controllers.remove(0));
    world.pods("shop-web", &[(1, "ready"), (2, "ready")]);
    world.wait("the other takes over", |world| world.balancer.backends(WEB).len() == 2);
    assert_eq!(holder(&world), "two");
    assert!(world.balancer.applied() > applied);
}

#[test]
fn when_others_have_services_then_these_stay_and_keep_their_addresses() {
    let world = served();
    world.balancer.add_service("new", "198.51.100.2:443/tcp");
    world.cluster.put("services", service("another"));
    world.wait("it gets an address that is free", |world| world.addresses("another") == ["198.51.100.3"]);
    assert_eq!(world.balancer.services(), ["k8s.shop.another", WEB, "new", "web"]);
}

#[test]
fn when_somebody_removes_the_drop_in_then_it_comes_back_with_the_same_addresses() {
    let mut world = served();
    world.cluster.put("services", service("another"));
    world.wait("the other is served", |world| world.addresses("another") == ["198.51.100.2"]);
    world.kill();
    world.balancer.remove_drop_in();
    world.start(&[]);
    world.wait("both are served", |world| world.balancer.services() == ["k8s.shop.another", WEB, "web"]);
    assert_eq!(world.addresses("another"), ["198.51.100.2"]);
    assert_eq!(world.balancer.admins(WEB), admins(&[("u1", "ready"), ("u2", "ready")]));
}

#[test]
fn when_a_service_becomes_an_inner_one_then_its_address_is_taken_away() {
    let world = served();
    let mut inner = world.cluster.get("services", "shop", "shop-web").unwrap();
    inner["spec"]["type"] = json!("ClusterIP");
    world.cluster.put("services", inner);
    world.wait("it is let go", |world| {
        let service = world.cluster.get("services", "shop", "shop-web").unwrap();
        service["metadata"]["finalizers"] == json!([]) && world.addresses("shop-web").is_empty()
    });
    assert_eq!(world.balancer.services(), ["web"]);
}

#[test]
fn when_a_service_has_both_families_then_pods_have_both_addresses() {
    let world = World::with_controller();
    let mut both = service("shop-web");
    both["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    world.cluster.put("services", both);
    world.pods("shop-web", &[(1, "ready")]);
    world.wait("it has both addresses", |world| world.addresses("shop-web") == ["198.51.100.1", "2001:db8:1::"]);
    assert_eq!(world.balancer.backends(WEB).len(), 0, "a pod with one address serves one family only");
    let mut six = slice("shop-web", &[(1, "ready")]);
    six["metadata"]["name"] = json!("shop-web-6");
    six["addressType"] = json!("IPv6");
    six["endpoints"][0]["addresses"] = json!(["fd00::1"]);
    world.cluster.put("endpointslices", six);
    world.wait("it has the pod", |world| world.balancer.backends(WEB).len() == 1);
    assert!(world.balancer.drop_in().contains("address6 = \"fd00::1\""));
}

#[test]
fn when_the_balancer_refuses_one_service_then_its_owner_is_told_and_all_others_are_served() {
    let world = served();
    let mut refused = service("refused");
    refused["metadata"]["annotations"] = json!({"sticky.balancer/forwarding": "snat"});
    world.cluster.put("services", refused);
    world.cluster.put("services", service("another"));
    world.wait("the other is served", |world| world.addresses("another").len() == 1);
    world.wait("the owner is told", |world| {
        world.events().iter().any(|event| event.contains("snat needs a table of connections"))
    });
    assert_eq!(
        (world.balancer.services(), world.addresses("refused").len()),
        (vec!["k8s.shop.another".to_owned(), WEB.to_owned(), "web".to_owned()], 0)
    );
}

fn node(name: &str, address: &str) -> serde_json::Value {
    json!({"metadata": {"name": name}, "spec": {}, "status": {
        "addresses": [{"type": "InternalIP", "address": address}], "conditions": [{"type": "Ready", "status": "True"}]}})
}

#[test]
fn when_nodes_are_backends_then_they_are_asked_whether_they_have_pods_and_drain_when_they_are_cordoned() {
    let mut world = World::new();
    world.start(&["--target", "node"]);
    let mut local = service("shop-web");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["healthCheckNodePort"] = json!(31_000);
    local["spec"]["ports"][0]["nodePort"] = json!(30_080);
    world.cluster.put("services", local);
    for (name, address) in [("node1", "10.0.0.1"), ("node2", "10.0.0.2")] {
        world.cluster.put("nodes", node(name, address));
    }
    world.wait("both serve", |world| world.balancer.admins(WEB) == admins(&[("node1", "ready"), ("node2", "ready")]));
    assert_eq!(world.balancer.backends(WEB)["node1"].address, "10.0.0.1:30080");
    let drop_in = world.balancer.drop_in();
    assert!(drop_in.contains("port = 31000") && drop_in.contains("start_down = true"), "{drop_in}");
    let mut cordoned = node("node1", "10.0.0.1");
    cordoned["spec"]["unschedulable"] = json!(true);
    world.cluster.put("nodes", cordoned);
    world.wait("it drains", |world| world.balancer.admins(WEB) == admins(&[("node1", "drain"), ("node2", "ready")]));
    world.cluster.delete("nodes", "", "node1");
    world.balancer.change(WEB, "node1", |backend| backend.state = Some("drained".to_owned()));
    world.wait("it is gone", |world| world.balancer.admins(WEB) == admins(&[("node2", "ready")]));
}

#[test]
fn when_metrics_are_asked_for_then_they_say_how_it_stands() {
    let world = served();
    world.pods("shop-web", &[(1, "terminating"), (2, "ready")]);
    world.wait("it drains", |world| world.balancer.admins(WEB)[0].1 == "drain");
    world.wait("that is counted", |world| world.http("/metrics").contains("backends{state=\"draining\"} 1"));
    let metrics = world.http("/metrics");
    for line in ["services 1", "addresses_left{family=\"IPv4\"} 3", "addresses_left{family=\"IPv6\"} 4", "leader 1"] {
        assert!(metrics.contains(&format!("\nbalancer_kubernetes_{line}\n")), "{line}: {metrics}");
    }
    assert!(world.http("/healthz").starts_with("HTTP/1.1 200"));
    world.balancer.is_away(true);
    world.pods("shop-web", &[(2, "ready")]);
    world.wait("an error is counted", |world| !world.http("/metrics").contains("errors_total{in=\"balancer\"} 0"));
}

#[test]
fn when_an_operator_has_added_a_backend_then_drains_go_on_under_the_next_controller_and_the_backend_stays() {
    let mut world = served();
    world.balancer.add(WEB, "by-hand", "10.0.0.99:8080");
    world.pods("shop-web", &[(1, "terminating"), (2, "terminating"), (3, "ready")]);
    let expected = admins(&[("by-hand", "ready"), ("u1", "drain"), ("u2", "drain"), ("u3", "ready")]);
    world.wait("two drain", |world| world.balancer.admins(WEB) == expected);
    world.kill();
    world.pods("shop-web", &[(2, "ready"), (3, "ready")]);
    world.start(&[]);
    let expected = admins(&[("by-hand", "ready"), ("u1", "drain"), ("u2", "ready"), ("u3", "ready")]);
    world.wait("one is ready again, the other goes on draining", |world| world.balancer.admins(WEB) == expected);
    assert_eq!(world.addresses("shop-web"), ["198.51.100.1"]);
    world.balancer.change(WEB, "u1", |backend| backend.state = Some("drained".to_owned()));
    world.wait("it is removed", |world| !world.balancer.backends(WEB).contains_key("u1"));
    assert!(world.balancer.backends(WEB).contains_key("by-hand"));
}

#[test]
fn when_the_balancer_has_no_room_for_all_services_then_it_serves_as_many_as_it_can_and_the_owner_is_told() {
    let world = served();
    world.balancer.has_room_for(2);
    world.cluster.put("services", service("another"));
    world.cluster.put("services", service("one-too-many"));
    world.wait("one more is served", |world| world.balancer.services().len() == 3);
    world
        .wait("the owner is told", |world| world.events().iter().any(|event| event.contains("no room for 3 services")));
    world.pods("shop-web", &[(2, "ready"), (3, "ready")]);
    world.wait("pods go on to come and go", |world| world.balancer.backends(WEB).contains_key("u3"));
    world.balancer.has_room_for(3);
    world.cluster.delete("services", "shop", "another");
    world.wait("deleted ones are let go", |world| world.cluster.get("services", "shop", "another").is_none());
}
