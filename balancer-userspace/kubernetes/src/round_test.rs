//! Tests of comparisons between clusters and balancers.

use super::*;

fn terms() -> Terms {
    Terms {
        class: "sticky.balancer/xdp".to_owned(),
        default: false,
        target: Target::Pod,
        assign_vip: None,
        pools: vec!["198.51.100.0/30".parse().unwrap()],
    }
}

fn service(name: &str, more: &[(&str, serde_json::Value)]) -> Service {
    let mut service = serde_json::json!({
        "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "7", "finalizers": [FINALIZER]},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp", "ports": [{"port": 80}]},
    });
    for (pointer, value) in more {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        service.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    serde_json::from_value(service).unwrap()
}

fn slice(service: &str, pods: &[(&str, bool)]) -> EndpointSlice {
    let endpoints: Vec<_> = (1..)
        .zip(pods)
        .map(|(number, (uid, ready))| {
            serde_json::json!({"addresses": [format!("10.0.0.{number}")], "targetRef": {"uid": uid},
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        })
        .collect();
    serde_json::from_value(serde_json::json!({"metadata": {"namespace": "shop",
        "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"port": 8080}]}))
    .unwrap()
}

fn round(terms: &Terms, drop_in: &DropIn, services: &[Service], slices: &[EndpointSlice]) -> Round {
    let web = serde_json::json!({"name": "web", "address": "", "protocol": "tcp", "forwarding": "ipip", "table_size": 1,
        "table_generation": 0, "backends": [], "listeners": [{"listener": "198.51.100.0:80/tcp"}]});
    let (actual, refused) = (&[serde_json::from_value(web).unwrap()], &BTreeMap::new());
    terms.round(World { services, slices, nodes: &[], drop_in, actual, refused })
}

fn nothing() -> DropIn {
    DropIn::default()
}

#[test]
fn when_a_service_is_new_then_it_gets_its_finalizer_before_anything_is_served() {
    let new = service("new", &[("/metadata/finalizers", serde_json::json!([]))]);
    let round = round(&terms(), &nothing(), &[new], &[slice("new", &[("u1", true)])]);
    assert_eq!(round.drop_in, nothing());
    assert_eq!(round.outcomes[0].step, Step::Finalize);
}

#[test]
fn when_a_service_is_served_then_its_address_and_backends_are_in_the_drop_in_and_its_status_follows() {
    let round = round(&terms(), &nothing(), &[service("web", &[])], &[slice("web", &[("u1", true), ("u2", false)])]);
    let text = &round.drop_in.services[0];
    assert_eq!((text.name.as_str(), &*text.listen), ("k8s.shop.web", &["198.51.100.1:80".to_owned()][..]));
    assert_eq!(text.backends.iter().map(|backend| backend.name.as_str()).collect::<Vec<_>>(), ["u1"]);
    assert_eq!(round.outcomes[0].step, Step::Publish(vec!["198.51.100.1".parse().unwrap()]));
    assert_eq!(round.left[&Family::V4], 3.0);
}

#[test]
fn when_the_controller_died_before_it_wrote_the_status_then_the_address_is_the_one_that_is_served() {
    let served = round(&terms(), &nothing(), &[service("a", &[]), service("b", &[])], &[]).drop_in;
    let again = round(&terms(), &served, &[service("b", &[])], &[]);
    assert_eq!(again.drop_in.services[0].listen, ["198.51.100.2:80"]);
}

#[test]
fn when_a_service_is_deleted_or_becomes_another_type_then_it_leaves_the_drop_in_and_is_released() {
    let served = round(&terms(), &nothing(), &[service("web", &[])], &[]).drop_in;
    for change in [
        ("/metadata/deletionTimestamp", serde_json::json!("2026-01-01T00:00:00Z")),
        ("/spec/type", serde_json::json!("ClusterIP")),
    ] {
        let round = round(&terms(), &served, &[service("web", &[change])], &[]);
        assert_eq!((round.drop_in.services.len(), &round.outcomes[0].step), (0, &Step::Release));
    }
    let round = round(&terms(), &served, &[], &[]);
    assert_eq!((round.drop_in.services.len(), round.outcomes.len()), (0, 0), "deleted without its finalizer");
}

#[test]
fn when_no_address_is_left_then_the_service_is_told_and_the_others_are_served() {
    let services: Vec<Service> = ["a", "b", "c", "d"].map(|name| service(name, &[])).into();
    let round = round(&terms(), &nothing(), &services, &[]);
    assert_eq!(round.drop_in.services.len(), 3, "the fourth address of the pool is another service's");
    let told: Vec<_> = round.outcomes.iter().flat_map(|outcome| &outcome.notices).collect();
    assert_eq!((told.len(), told[0].reason), (1, "NoAddressLeft"));
    assert!(told[0].message.starts_with("no IPv4 address is left in the pool: 198.51.100.0/30"), "{told:?}");
}

#[test]
fn when_an_annotation_is_refused_by_the_balancer_then_the_service_stays_as_it_was_and_is_told() {
    let annotated =
        |text: &str| service("web", &[("/metadata/annotations", serde_json::json!({"sticky.balancer/drain": text}))]);
    let before = round(&terms(), &nothing(), &[annotated("2m")], &[]).drop_in;
    let round = round(&terms(), &before, &[annotated("2 eons")], &[slice("web", &[("u1", true)])]);
    let service = &round.drop_in.services[0];
    assert_eq!(service.settings["drain"], before.services[0].settings["drain"]);
    assert_eq!(service.backends.len(), 1, "pods go on to come and go");
    assert_eq!(round.outcomes[0].notices[0].reason, "Refused");
}

#[test]
fn when_the_pods_ports_are_named_then_a_service_of_two_protocols_maps_both() {
    let ports = serde_json::json!([{"name": "a", "port": 80}, {"name": "b", "port": 443, "protocol": "UDP"}]);
    let service = service("web", &[("/spec/ports", ports)]);
    let mut slice = slice("web", &[("u1", true)]);
    slice.ports =
        serde_json::from_str(r#"[{"name": "b", "port": 8443, "protocol": "UDP"}, {"name": "a", "port": 8080}]"#)
            .unwrap();
    let round = round(&terms(), &nothing(), &[service], &[slice]);
    let text = &round.drop_in.services[0];
    assert_eq!(text.listen, ["198.51.100.1:80", "198.51.100.1:443/udp"]);
    assert_eq!(text.ports, [("80".to_owned(), 8080), ("443".to_owned(), 8443)].into());
    assert_eq!(round.outcomes[0].notices, []);
}
