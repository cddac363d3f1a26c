//! The requirements of a Kubernetes Service, apart from its backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use toml::Value;

use crate::{
    annotations::{self, Settings},
    args::Target,
    candidates::{self, Port},
    drop_in::{RuleText, ServiceText},
    names,
    pools::{Claim, Family, Grant},
    sources,
};

/// The time for which the balancer remembers clients of Services without affinity, which is about the duration of a
/// rollout.
const WITHOUT_AFFINITY: &str = "10m";

/// The time in seconds for which the balancer remembers clients of Services with affinity, unless the Service sets a
/// time.
const AFFINITY_SECONDS: i32 = 10_800;

/// The settings that determine which Services the program serves, and how it serves them.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The loadBalancerClass of the Services that the program serves.
    pub class: String,
    /// Whether the program also serves Services without a loadBalancerClass.
    pub default: bool,
    /// The kind of backends: pods or nodes.
    pub target: Target,
    /// The value of the key `assign_vip` for all services.
    pub assign_vip: Option<String>,
    /// The pools of addresses for the Services.
    pub pools: Vec<IpNet>,
}

/// The requirements of a Kubernetes Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub name: String,
    /// The ports that clients connect to.
    pub ports: Vec<Port>,
    /// The settings that annotations request.
    pub settings: Settings,
    /// The addresses that the Service needs.
    pub claim: Claim,
    /// The prefixes of allowed clients; empty if all clients are allowed.
    pub ranges: Vec<IpNet>,
    /// Descriptions of the mistakes in the Service; the program ignores fields with mistakes.
    pub wrong: Vec<String>,
}

impl Terms {
    /// Whether this program serves a Service.
    #[must_use]
    pub fn include(&self, service: &Service) -> bool {
        let Some(spec) = &service.spec else { return false };
        let is_ours = match &spec.load_balancer_class {
            Some(class) => *class == self.class,
            None => self.default,
        };
        spec.type_.as_deref() == Some("LoadBalancer") && is_ours && service.metadata.deletion_timestamp.is_none()
    }

    /// Reads the requirements of a Service.
    #[must_use]
    pub fn wanted(&self, service: &Service) -> Wanted {
        let (namespace, name) = key(service);
        let spec = service.spec.clone().unwrap_or_default();
        let (settings, mut wrong) = annotations::read(service.metadata.annotations.as_ref(), self.target);
        let (ports, strange) = candidates::ports(service);
        wrong.extend(strange);
        let mut asked = settings.addresses.clone();
        if let Some(text) = spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty() && asked.is_empty()) {
            match annotations::addresses(text) {
                Ok(addresses) => asked = addresses,
                Err(error) => wrong.push(format!("loadBalancerIP: {error}")),
            }
        }
        let claim = Claim {
            name: format!("{namespace}/{name}"),
            families: families(&spec),
            asked,
            held: held(service),
            ports: ports.iter().map(|port| (port.protocol.clone(), port.port)).collect(),
            namespace: namespace.clone(),
        };
        let ranges = ranges(&spec, &mut wrong);
        Wanted { name: names::service(&namespace, &name), ports, settings, claim, ranges, wrong }
    }

    /// The forwarding mode of the balancer's service.
    #[must_use]
    pub fn forwarding<'a>(&self, wanted: &'a Wanted) -> &'a str {
        wanted.settings.forwarding.as_deref().unwrap_or("nat")
    }

    /// Returns the balancer's service in the form of the drop-in, without backends.
    #[must_use]
    pub fn text(&self, service: &Service, wanted: &Wanted, grant: &Grant) -> ServiceText {
        let mut keys = self.usual(service);
        keys.extend(wanted.settings.keys.clone());
        ServiceText {
            name: wanted.name.clone(),
            listen: listen(grant, &wanted.ports),
            forwarding: self.forwarding(wanted).to_owned(),
            settings: keys,
            rules: rules(wanted, grant),
            ..ServiceText::default()
        }
    }

    /// Returns the keys that follow from the Service and that annotations may override.
    fn usual(&self, service: &Service) -> toml::Table {
        let spec = service.spec.clone().unwrap_or_default();
        let mut keys = toml::Table::new();
        keys.insert("remember".to_owned(), remember(&spec).into());
        // If a Service has no endpoints, the balancer rejects packets, as kube-proxy does.
        keys.insert("reject".to_owned(), true.into());
        if let Some(assign) = &self.assign_vip {
            let value = if assign == "true" { Value::Boolean(true) } else { assign.as_str().into() };
            keys.insert("assign_vip".to_owned(), value);
        }
        if let Some(port) = spec.health_check_node_port.filter(|port| *port > 0 && self.target == Target::Node) {
            // If a node has no pod of the Service, its check answers 503, which is a soft failure and drains the node.
            let check = toml::toml! { type = "http" path = "/healthz" };
            let mut check = check;
            check.insert("port".to_owned(), Value::Integer(port.into()));
            keys.insert("check".to_owned(), check.into());
            keys.insert("start_down".to_owned(), true.into());
        }
        keys
    }
}

/// The namespace and name of a Service.
#[must_use]
pub fn key(service: &Service) -> (String, String) {
    let metadata = &service.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// Returns the addresses in the status of a Service.
#[must_use]
pub fn held(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    entries.filter_map(|entry| entry.ip.as_deref()?.parse().ok()).collect()
}

fn families(spec: &ServiceSpec) -> BTreeSet<Family> {
    let words = spec.ip_families.iter().flatten();
    let families: BTreeSet<Family> = words.map(|word| if word == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if families.is_empty() { [Family::V4].into() } else { families }
}

fn remember(spec: &ServiceSpec) -> String {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return WITHOUT_AFFINITY.to_owned();
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    format!("{}s", client_ip.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(AFFINITY_SECONDS))
}

fn ranges(spec: &ServiceSpec, wrong: &mut Vec<String>) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for text in spec.load_balancer_source_ranges.iter().flatten() {
        match text.trim().parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => wrong.push(format!("loadBalancerSourceRanges: {text:?} is not a prefix such as 192.0.2.0/24")),
        }
    }
    if ranges.is_empty() && spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty()) {
        wrong.push("loadBalancerSourceRanges has no prefix that makes sense: all clients are denied".to_owned());
        // The range contains only a documentation address, which no client has.
        ranges.extend("192.0.2.0/32".parse::<IpNet>());
    }
    ranges
}

fn listen(grant: &Grant, ports: &[Port]) -> Vec<String> {
    let ending = |port: &Port| if port.protocol == "UDP" { "/udp" } else { "" };
    let of = |address: IpAddr| {
        ports.iter().map(move |port| format!("{}{}", SocketAddr::new(address, port.port), ending(port)))
    };
    grant.addresses.values().flat_map(|address| of(*address)).collect()
}

fn rules(wanted: &Wanted, grant: &Grant) -> Vec<RuleText> {
    if wanted.ranges.is_empty() {
        return Vec::new();
    }
    let rule = |prefix: IpNet| RuleText { prefix: prefix.to_string(), action: "deny".to_owned() };
    let families = grant.addresses.keys();
    families.flat_map(|family| sources::denied(&wanted.ranges, *family == Family::V6)).map(rule).collect()
}

/// Converts `ports` to the form of the drop-in.
#[must_use]
pub fn port_keys(ports: &BTreeMap<u16, u16>) -> BTreeMap<String, u16> {
    ports.iter().map(|(port, to)| (port.to_string(), *to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            class: "sticky.balancer/xdp".to_owned(),
            default: false,
            target: Target::Pod,
            assign_vip: None,
            pools: vec!["198.51.100.0/28".parse().unwrap()],
        }
    }

    fn service(spec: serde_json::Value) -> Service {
        let mut whole = serde_json::json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "sticky.balancer/xdp",
            "ports": [{"name": "http", "port": 80}, {"name": "quic", "port": 443, "protocol": "UDP"}]}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    fn text(spec: serde_json::Value) -> ServiceText {
        let service = service(spec);
        let wanted = terms().wanted(&service);
        let addresses = [(Family::V4, "198.51.100.2".parse().unwrap()), (Family::V6, "2001:db8::2".parse().unwrap())];
        terms().text(&service, &wanted, &Grant { addresses: addresses.into(), problems: Vec::new() })
    }

    #[test]
    fn when_a_service_is_of_another_class_or_type_or_is_deleted_then_it_is_not_served() {
        let others = [
            serde_json::json!({"loadBalancerClass": "other/class"}),
            serde_json::json!({"loadBalancerClass": null}),
            serde_json::json!({"type": "ClusterIP"}),
        ];
        assert!(terms().include(&service(serde_json::json!({}))));
        for spec in others {
            assert!(!terms().include(&service(spec.clone())), "{spec}");
        }
        let everything = Terms { default: true, ..terms() };
        assert!(everything.include(&service(serde_json::json!({"loadBalancerClass": null}))));
        assert!(!everything.include(&service(serde_json::json!({"loadBalancerClass": "other/class"}))));
        let mut deleted = service(serde_json::json!({}));
        deleted.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap();
        assert!(!terms().include(&deleted));
    }

    #[test]
    fn when_a_service_has_tcp_and_udp_and_both_families_then_they_are_listeners_of_one_service() {
        let text = text(serde_json::json!({}));
        assert_eq!(text.name, "k8s.shop.web");
        assert_eq!(
            text.listen,
            ["198.51.100.2:80", "198.51.100.2:443/udp", "[2001:db8::2]:80", "[2001:db8::2]:443/udp"]
        );
        balancer_config::file::parse_drop_in("x", "x".as_ref(), text.alone().as_bytes()).unwrap();
    }

    #[test]
    fn when_affinity_is_asked_for_then_clients_are_remembered_for_its_time() {
        let remember = |spec| text(spec).settings["remember"].as_str().unwrap().to_owned();
        assert_eq!(remember(serde_json::json!({})), "10m");
        assert_eq!(remember(serde_json::json!({"sessionAffinity": "None"})), "10m");
        assert_eq!(remember(serde_json::json!({"sessionAffinity": "ClientIP"})), "10800s");
        let config = serde_json::json!({"clientIP": {"timeoutSeconds": 600}});
        let affine = serde_json::json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
        assert_eq!(remember(affine), "600s");
    }

    #[test]
    fn when_sources_are_limited_then_all_others_are_denied_in_both_families() {
        let text = text(serde_json::json!({"loadBalancerSourceRanges": ["128.0.0.0/1"]}));
        let rules: Vec<&str> = text.rules.iter().map(|rule| rule.prefix.as_str()).collect();
        assert_eq!(rules, ["0.0.0.0/1", "::/0"]);
        balancer_config::file::parse_drop_in("x", "x".as_ref(), text.alone().as_bytes()).unwrap();
    }

    #[test]
    fn when_no_source_range_makes_sense_then_nobody_is_let_in_and_that_is_told() {
        let service = service(serde_json::json!({"loadBalancerSourceRanges": ["everybody"]}));
        let wanted = terms().wanted(&service);
        assert!(!wanted.ranges.is_empty() && wanted.wrong.len() == 2, "{wanted:?}");
    }

    #[test]
    fn when_nodes_are_backends_of_a_local_service_then_the_port_for_health_checks_is_asked() {
        let service = service(serde_json::json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 31_000}));
        let terms = Terms { target: Target::Node, assign_vip: Some("lo".to_owned()), ..terms() };
        let wanted = terms.wanted(&service);
        let addresses = [(Family::V4, "198.51.100.2".parse().unwrap())].into();
        let text = terms.text(&service, &wanted, &Grant { addresses, problems: Vec::new() });
        assert_eq!(text.settings["check"]["port"].as_integer(), Some(31_000));
        assert_eq!(text.settings["assign_vip"].as_str(), Some("lo"));
        balancer_config::file::parse_drop_in("x", "x".as_ref(), text.alone().as_bytes()).unwrap();
    }
}
