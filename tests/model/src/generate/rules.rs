//! Makes random rules of services.

use std::{collections::BTreeMap, net::IpAddr};

use balancer_config::listeners::Family;
use balancer_control::io::{RuleAction, RuleSpec, ServiceSpec};
use fastrand::Rng;
use ipnet::IpNet;

use super::{clients, once_in, one_of};

/// Rules of a service for the nested prefixes of a few clients.
pub(super) fn random(rng: &mut Rng, service: &ServiceSpec) -> Vec<RuleSpec> {
    let v4 = service.family == Family::V4;
    let lengths: &[u8] =
        if v4 { &[0, 1, 8, 16, 23, 24, 28, 30, 31, 32, 32] } else { &[0, 3, 32, 47, 48, 56, 64, 65, 120, 127, 128] };
    let mut rules = BTreeMap::new();
    for _ in 0..one_of(rng, &[0, 1, 2, 3, 5]) {
        let client = clients::address(rng, v4);
        for _ in 0..rng.u32(1..=3) {
            let Some(prefix) = prefix(client, one_of(rng, lengths)) else { continue };
            rules.insert(prefix, action(rng, service));
        }
    }
    rules.into_iter().map(|(prefix, action)| RuleSpec { prefix, action }).collect()
}

fn prefix(client: IpAddr, length: u8) -> Option<IpNet> {
    Some(IpNet::new(client, length).ok()?.trunc())
}

fn action(rng: &mut Rng, service: &ServiceSpec) -> RuleAction {
    match rng.u32(..8) {
        0 => RuleAction::Deny,
        1..=3 => RuleAction::Spread,
        _ if once_in(rng, 8) => RuleAction::Pin(None),
        _ => RuleAction::Pin(rng.choice(service.backends.iter()).map(|&(id, _)| id)),
    }
}
