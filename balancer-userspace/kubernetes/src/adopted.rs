//! Backends that another controller has added to the balancer and that this controller's file lacks, because the other
//! controller's file is on another machine or is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use balancer_api::model::{BackendView, ServiceView};

use crate::{
    block::{BackendText, Block},
    changes::{full, is_ours},
};

/// Backends that the balancer has in this program's services, but that this program's section of the configuration file
/// lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The missing backends, by the name of their service.
    pub backends: BTreeMap<String, Vec<BackendText>>,
    /// Those of the missing backends that are drained, as `SERVICE/BACKEND`.
    pub drained: BTreeSet<String>,
}

/// Finds the backends that are in `actual` and not in `block`, except those that an operator has `added` at run time.
#[must_use]
pub fn adopted(block: &Block, actual: &[ServiceView], added: &BTreeSet<String>) -> Adopted {
    let mut adopted = Adopted::default();
    for service in actual.iter().filter(|service| is_ours(&service.name)) {
        let known = block.service(&service.name).map(|text| text.backends.as_slice()).unwrap_or_default();
        for backend in &service.backends {
            let name = full(&service.name, &backend.name);
            if known.iter().any(|text| text.name == backend.name) || added.contains(&name) {
                continue;
            }
            let Some(text) = text(backend) else { continue };
            adopted.backends.entry(service.name.clone()).or_default().push(text);
            adopted.drained.extend((backend.admin == "drain").then_some(name));
        }
    }
    adopted
}

/// Converts a backend to its form in the configuration file.
fn text(backend: &BackendView) -> Option<BackendText> {
    let (first, second) = match backend.families.as_slice() {
        [first, second] => (&first.address, Some(&second.address)),
        _ => (&backend.address, None),
    };
    let address6 = second.filter(|second| *second != first).and_then(|second| ip(second)).map(|ip| ip.to_string());
    ip(first)?;
    Some(BackendText { name: backend.name.clone(), address: first.clone(), address6 })
}

fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<SocketAddr>().map(|place| place.ip()).or_else(|_| text.parse()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, admin: &str, address: &str, families: &serde_json::Value) -> serde_json::Value {
        serde_json::json!({"name": name, "address": address, "weight": 100, "backup": false, "admin": admin,
            "health": "up", "state": "up", "reason": "", "slots": 0, "known_clients": 0, "connections": 0,
            "packets": 0, "bytes": 0, "families": families})
    }

    fn view(name: &str, backends: &[serde_json::Value]) -> ServiceView {
        serde_json::from_value(serde_json::json!({"name": name, "address": "", "protocol": "tcp", "forwarding": "nat",
            "table_size": 1, "table_generation": 0, "backends": backends}))
        .unwrap()
    }

    #[test]
    fn when_another_controller_has_put_backends_there_then_they_are_known_and_those_of_others_are_not() {
        let family = |family: &str, address: &str| {
            serde_json::json!({"family": family, "address": address, "health": "up", "state": "up", "reason": "",
                "slots": 0, "known_clients": 0})
        };
        let both = serde_json::json!([family("IPv4", "10.0.0.1:80"), family("IPv6", "[fd00::1]:80")]);
        let none = serde_json::json!([]);
        let actual = [
            view(
                "k8s.shop.web",
                &[
                    backend("u1", "drain", "10.0.0.1:80", &both),
                    backend("u2", "ready", "10.0.0.2:80", &none),
                    backend("mine", "ready", "10.0.0.3:80", &none),
                ],
            ),
            view("web", &[backend("web1", "ready", "10.0.0.4:80", &none)]),
        ];
        let found = adopted(&Block::default(), &actual, &["k8s.shop.web/mine".to_owned()].into());
        let text = |name: &str, address: &str, address6: Option<&str>| BackendText {
            name: name.to_owned(),
            address: address.to_owned(),
            address6: address6.map(str::to_owned),
        };
        assert_eq!(
            found.backends,
            [(
                "k8s.shop.web".to_owned(),
                vec![text("u1", "10.0.0.1:80", Some("fd00::1")), text("u2", "10.0.0.2:80", None)]
            )]
            .into()
        );
        assert_eq!(found.drained, ["k8s.shop.web/u1".to_owned()].into());
    }
}
