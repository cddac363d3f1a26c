//! Pods as backends, which `EndpointSlice`s describe.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Candidates, Port};
use crate::{
    names,
    slices::{Eligibility, EndpointSlice},
};

/// Returns the pods of a Service. A pod in several slices is only one candidate, which is as eligible as the slices
/// allow at most. If no pod is ready, those that answer while they terminate are eligible.
pub fn candidates<'a>(
    (namespace, name): (&str, &str),
    ports: &[Port],
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Candidates {
    let is_of =
        |slice: &EndpointSlice| slice.metadata.namespace.as_deref() == Some(namespace) && slice.service() == Some(name);
    let (mut pods, mut eligible) = (Candidates::new(), BTreeMap::new());
    for slice in slices.into_iter().filter(|slice| is_of(slice)) {
        for endpoint in &slice.endpoints {
            let (Some(address), Some(identity)) = (endpoint.address(), endpoint.identity()) else { continue };
            if !is_address_of_a_pod(address) {
                continue;
            }
            let name = names::fitting(&identity);
            let pod = pods.entry(name.clone()).or_default();
            pod.at(address);
            pod.ports.extend(mapping(slice, ports));
            let most = eligible.entry(name).or_insert(Eligibility::Never);
            *most = endpoint.conditions.eligibility().max(*most);
        }
    }
    let best = eligible.values().copied().max().filter(|best| *best > Eligibility::Never);
    for (name, pod) in &mut pods {
        pod.eligible = best.is_some() && eligible.get(name).copied() == best;
    }
    pods
}

fn is_address_of_a_pod(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

fn mapping<'a>(slice: &'a EndpointSlice, ports: &'a [Port]) -> impl Iterator<Item = (u16, u16)> + 'a {
    ports.iter().filter_map(move |port| {
        let found = slice.ports.iter().find(|of| {
            of.name.as_deref().unwrap_or_default() == port.name
                && of.protocol.as_deref().unwrap_or("TCP") == port.protocol
        })?;
        Some((port.port, found.port.unwrap_or(port.port)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(family: &str, endpoints: &[(&str, &str, bool)]) -> EndpointSlice {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(uid, address, ready)| {
                serde_json::json!({"addresses": [address], "targetRef": {"uid": uid}, "conditions": {"ready": ready}})
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
        }))
        .unwrap()
    }

    fn ports() -> Vec<Port> {
        let port = |name: &str, protocol: &str, port| Port {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            port,
            node_port: None,
        };
        vec![port("http", "TCP", 80), port("dns", "UDP", 53)]
    }

    #[test]
    fn when_a_pod_is_in_slices_of_both_families_then_it_is_one_backend_with_both_addresses() {
        let slices = [slice("IPv4", &[("u1", "10.0.0.1", true)]), slice("IPv6", &[("u1", "fd00::1", true)])];
        let pods = candidates(("shop", "web"), &ports(), &slices);
        assert_eq!(pods.len(), 1);
        let pod = &pods["u1"];
        assert_eq!((pod.v4, pod.v6), ("10.0.0.1".parse().ok(), "fd00::1".parse().ok()));
        assert_eq!(pod.ports, [(80, 8080), (53, 5353)].into());
    }

    #[test]
    fn when_a_pod_moves_from_one_slice_to_another_then_it_stays_eligible() {
        let slices = [slice("IPv4", &[("u1", "10.0.0.1", false)]), slice("IPv4", &[("u1", "10.0.0.1", true)])];
        assert!(candidates(("shop", "web"), &ports(), &slices)["u1"].eligible);
        assert!(!candidates(("shop", "web"), &ports(), &slices[..1])["u1"].eligible);
    }

    #[test]
    fn when_no_pod_is_ready_then_those_that_answer_while_they_terminate_are_eligible() {
        let mut slices =
            [slice("IPv4", &[("u1", "10.0.0.1", false), ("u2", "10.0.0.2", false), ("u3", "10.0.0.3", true)])];
        slices[0].endpoints[0].conditions.terminating = Some(true);
        let eligible = |slices: &[EndpointSlice]| {
            let pods = candidates(("shop", "web"), &ports(), slices);
            pods.into_iter().filter(|(_, pod)| pod.eligible).map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(eligible(&slices), ["u3"]);
        slices[0].endpoints[2].conditions.ready = Some(false);
        assert_eq!(eligible(&slices), ["u1"]);
        slices[0].endpoints[0].conditions.serving = Some(false);
        assert_eq!(eligible(&slices), [""; 0]);
    }

    #[test]
    fn when_slices_are_of_another_service_or_have_no_address_of_a_pod_then_they_count_for_nothing() {
        let slices = [slice("IPv4", &[("u1", "127.0.0.1", true), ("u2", "pod.example", true)])];
        assert!(candidates(("shop", "web"), &ports(), &slices).is_empty());
        let slices = [slice("IPv4", &[("u1", "10.0.0.1", true)])];
        assert!(candidates(("shop", "api"), &ports(), &slices).is_empty());
        assert!(candidates(("other", "web"), &ports(), &slices).is_empty());
    }
}
