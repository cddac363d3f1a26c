//! The backends of a service: candidates that may serve now, and former backends that are draining.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use balancer_api::model::ServiceView;

use crate::{
    candidates::{Candidate, Candidates},
    drop_in::BackendText,
    pools::Family,
};

/// The backends that a service should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The backends, in the order of their names.
    pub backends: Vec<BackendText>,
    /// The names of the backends that must not take new clients.
    pub draining: BTreeSet<String>,
    /// The port on which backends without their own port listen, by the port of the Service.
    pub ports: BTreeMap<u16, u16>,
    /// The reasons why candidates were left out.
    pub wrong: Vec<String>,
}

/// The state of a service before the comparison.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'a> {
    /// The backends that the service had before.
    pub backends: &'a [BackendText],
    /// The balancer's view of the service; `None` if the balancer does not have the service.
    pub actual: Option<&'a ServiceView>,
}

/// Returns the backends of a service with this forwarding mode and with listeners of the address families `families`.
#[must_use]
pub fn members(candidates: &Candidates, families: &BTreeSet<Family>, forwarding: &str, before: Before<'_>) -> Members {
    let tunnel = forwarding == "ipip";
    let ports = usual_ports(candidates);
    // If the Service has only one port, each backend gets its own port.
    let own_ports = !tunnel && ports.len() == 1;
    let mut members = Members::default();
    for (name, candidate) in candidates {
        let kept = before.backends.iter().find(|backend| backend.name == *name);
        if kept.is_none() && !candidate.eligible {
            continue;
        }
        if let Some(wrong) = strange_ports(candidate, &ports, tunnel, own_ports) {
            members.wrong.push(format!("backend {name} is left out: {wrong}"));
            continue;
        }
        let port = candidate.ports.values().next().filter(|_| own_ports);
        let Some(backend) = written(name, candidate, families, tunnel, port.copied()).or(kept.cloned()) else {
            continue;
        };
        members.draining.extend((!candidate.eligible).then(|| name.clone()));
        members.backends.push(backend);
    }
    let gone = before.backends.iter().filter(|backend| !candidates.contains_key(&backend.name));
    for backend in gone.filter(|backend| is_still_needed(&backend.name, before)) {
        members.draining.insert(backend.name.clone());
        members.backends.push(backend.clone());
    }
    members.backends.sort();
    if !tunnel && !own_ports {
        members.ports = ports.into_iter().filter(|(port, to)| port != to).collect();
    }
    members
}

/// The port on which most candidates listen, by the port of the Service.
fn usual_ports(candidates: &Candidates) -> BTreeMap<u16, u16> {
    let mut votes: BTreeMap<&BTreeMap<u16, u16>, usize> = BTreeMap::new();
    for candidate in candidates.values() {
        *votes.entry(&candidate.ports).or_default() += 1;
    }
    let most = votes.into_iter().max_by(|one, other| one.1.cmp(&other.1).then(other.0.cmp(one.0)));
    most.map(|(ports, _)| ports.clone()).unwrap_or_default()
}

fn strange_ports(candidate: &Candidate, usual: &BTreeMap<u16, u16>, tunnel: bool, own: bool) -> Option<String> {
    if candidate.ports.is_empty() {
        return Some("it has none of the Service's ports".to_owned());
    }
    if tunnel {
        let (port, to) = candidate.ports.iter().find(|(port, to)| port != to)?;
        return Some(format!(
            "it listens on {to} for {port}, and ipip leaves ports as they are; set targetPort: {port}"
        ));
    }
    (!own && candidate.ports != *usual)
        .then(|| "it listens on other ports than most, which is possible for Services with one port only".to_owned())
}

/// Returns a backend in the form of the drop-in; `None` while the backend lacks an address in a family that
/// the service needs.
fn written(
    name: &str,
    candidate: &Candidate,
    families: &BTreeSet<Family>,
    tunnel: bool,
    port: Option<u16>,
) -> Option<BackendText> {
    let place = |address: IpAddr| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let (v4, v6) = (families.contains(&Family::V4), families.contains(&Family::V6));
    let (address, address6) = match (v4, v6) {
        _ if tunnel => (candidate.v4.or(candidate.v6)?, None),
        (true, true) => (candidate.v4?, Some(candidate.v6?)),
        (true, false) => (candidate.v4?, None),
        (false, _) => (candidate.v6?, None),
    };
    Some(BackendText {
        name: name.to_owned(),
        address: place(address),
        address6: address6.map(|address| address.to_string()),
    })
}

/// Whether a former backend may still have clients, and therefore must stay.
fn is_still_needed(name: &str, before: Before<'_>) -> bool {
    let backends = before.actual.into_iter().flat_map(|service| &service.backends);
    let found = backends.into_iter().find(|backend| backend.name == name);
    found.is_some_and(|backend| !["drained", "down", "maint"].contains(&backend.state.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u8, eligible: bool, ports: &[(u16, u16)]) -> (String, Candidate) {
        let candidate = Candidate {
            v4: format!("10.0.0.{number}").parse().ok(),
            v6: format!("fd00::{number}").parse().ok(),
            ports: ports.iter().copied().collect(),
            eligible,
        };
        (format!("u{number}"), candidate)
    }

    fn view(backends: &[(&str, &str)]) -> ServiceView {
        let backends: Vec<_> = backends
            .iter()
            .map(|(name, state)| {
                serde_json::json!({"name": name, "address": "", "weight": 100, "backup": false, "admin": "ready",
                    "health": "up", "state": state, "reason": "", "slots": 0, "known_clients": 0, "connections": 0,
                    "packets": 0, "bytes": 0})
            })
            .collect();
        serde_json::from_value(serde_json::json!({"name": "k8s.shop.web", "address": "", "protocol": "tcp",
            "forwarding": "nat", "table_size": 1, "table_generation": 0, "backends": backends}))
        .unwrap()
    }

    fn v4() -> BTreeSet<Family> {
        [Family::V4].into()
    }

    fn names(members: &Members) -> Vec<&str> {
        members.backends.iter().map(|backend| backend.name.as_str()).collect()
    }

    #[test]
    fn when_pods_are_ready_then_they_are_backends_and_one_that_never_was_is_not() {
        let pods = [pod(1, true, &[(80, 8080)]), pod(2, false, &[(80, 8080)])].into();
        let members = members(&pods, &v4(), "nat", Before::default());
        assert_eq!((names(&members), members.draining.len()), (vec!["u1"], 0));
        assert_eq!(members.backends[0].address, "10.0.0.1:8080");
        assert!(members.ports.is_empty());
    }

    #[test]
    fn when_a_pod_is_no_longer_ready_then_it_drains_and_when_it_is_gone_it_stays_until_it_is_drained() {
        let pods: Candidates = [pod(1, true, &[(80, 8080)])].into();
        let backends = members(&pods, &v4(), "nat", Before::default()).backends;
        let unready = [pod(1, false, &[(80, 8080)])].into();
        let members_of = |pods: &Candidates, actual: Option<&[(&str, &str)]>| {
            let actual = actual.map(view);
            let before = Before { backends: &backends, actual: actual.as_ref() };
            let members = members(pods, &v4(), "nat", before);
            (members.backends.len(), members.draining.len())
        };
        let nobody = Candidates::new();
        assert_eq!(members_of(&unready, Some(&[("u1", "up")])), (1, 1));
        for (state, stays) in [("up", 1), ("draining", 1), ("drained", 0), ("down", 0), ("maint", 0)] {
            assert_eq!(members_of(&nobody, Some(&[("u1", state)])), (stays, stays), "{state}");
        }
        assert_eq!(members_of(&nobody, None), (0, 0), "the balancer does not have it");
        assert_eq!(members_of(&unready, Some(&[("u1", "drained")])), (1, 1), "it may become ready again");
    }

    #[test]
    fn when_a_service_has_several_ports_then_they_are_mapped_for_all_and_a_pod_with_others_is_left_out() {
        let several = &[(80, 8080), (443, 443), (53, 5353)];
        let pods =
            [pod(1, true, several), pod(2, true, several), pod(3, true, &[(80, 9090), (443, 443), (53, 5353)])].into();
        let both = [Family::V4, Family::V6].into();
        let members = members(&pods, &both, "nat", Before::default());
        assert_eq!(names(&members), ["u1", "u2"]);
        assert_eq!(members.ports, [(80, 8080), (53, 5353)].into());
        assert_eq!(members.backends[0].address, "10.0.0.1");
        assert_eq!(members.backends[0].address6.as_deref(), Some("fd00::1"));
        assert!(
            members.wrong[0].starts_with("backend u3 is left out: it listens on other ports"),
            "{:?}",
            members.wrong
        );
    }

    #[test]
    fn when_packets_are_tunneled_then_ports_stay_and_one_address_serves_both_families() {
        let both = [Family::V4, Family::V6].into();
        let pods = [pod(1, true, &[(80, 80)]), pod(2, true, &[(80, 8080)])].into();
        let members = members(&pods, &both, "ipip", Before::default());
        assert_eq!(names(&members), ["u1"]);
        assert_eq!((members.backends[0].address.as_str(), &members.backends[0].address6), ("10.0.0.1", &None));
        assert!(members.wrong[0].contains("set targetPort: 80"), "{:?}", members.wrong);
    }

    #[test]
    fn when_a_pod_has_lost_one_of_its_addresses_then_it_stays_as_it_was() {
        let both = [Family::V4, Family::V6].into();
        let pods: Candidates = [pod(1, true, &[(80, 80)])].into();
        let backends = members(&pods, &both, "nat", Before::default()).backends;
        let mut half = pods;
        half.values_mut().for_each(|pod| pod.v6 = None);
        assert_eq!(members(&half, &both, "nat", Before::default()).backends, []);
        let before = Before { backends: &backends, ..Before::default() };
        assert_eq!(members(&half, &both, "nat", before).backends, backends);
    }
}
