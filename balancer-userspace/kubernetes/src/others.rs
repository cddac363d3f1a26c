//! Services of the balancer that do not belong to this program.

use std::{collections::BTreeMap, net::IpAddr};

use balancer_api::model::ServiceView;
use balancer_config::listeners::Listener;

use crate::drop_in;

/// The addresses of services that do not belong to this program, each with the name of a service that has it; `actual`
/// contains all services of the balancer.
#[must_use]
pub fn addresses(actual: &[ServiceView]) -> BTreeMap<IpAddr, String> {
    let mut addresses = BTreeMap::new();
    for service in actual.iter().filter(|service| !drop_in::has(service)) {
        for listener in &service.listeners {
            if let Ok(listener) = listener.listener.parse::<Listener>() {
                addresses.insert(listener.address, service.name.clone());
            }
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_others_have_services_then_their_addresses_are_known() {
        let view = |name: &str, drop_in: Option<&str>, listeners: &[&str]| -> ServiceView {
            let listeners: Vec<_> = listeners.iter().map(|at| serde_json::json!({"listener": at})).collect();
            serde_json::from_value(serde_json::json!({"name": name, "address": "", "protocol": "tcp", "backends": [],
                "forwarding": "nat", "table_size": 1, "table_generation": 0, "drop_in": drop_in, "listeners": listeners}))
            .unwrap()
        };
        let own = view("k8s.shop.web", Some("kubernetes"), &["198.51.100.9:80/tcp"]);
        let web = view("web", None, &["198.51.100.1:80/tcp", "[2001:db8::1]:443/udp"]);
        let addresses = addresses(&[own, web, view("more", Some("mine"), &["198.51.100.2:1-9/udp"])]);
        let addresses: Vec<String> = addresses.keys().map(ToString::to_string).collect();
        assert_eq!(addresses, ["198.51.100.1", "198.51.100.2", "2001:db8::1"]);
    }
}
