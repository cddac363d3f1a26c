//! Findings about the addresses under which `snat` backends see clients.

use crate::{
    facts::{Facts, Pool},
    finding::{Cure, Finding, Kind},
};

/// Returns a finding for each address of a pool that is on no interface although it lies in the prefix of one: no
/// machine answers ARP for it. Packets for an address outside all prefixes may reach this machine by routes on others.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let examined = |pool: &&Pool| facts.vips.iter().any(|vip| vip.service == pool.service);
    facts.pools.iter().filter(examined).filter_map(|pool| missing(facts, pool)).collect()
}

fn missing(facts: &Facts, Pool { service, address, .. }: &Pool) -> Option<Finding> {
    let link = facts.on_link(*address).and_then(|ifindex| facts.link(ifindex)).filter(|_| !facts.is_own(*address))?;
    let length = if address.is_ipv4() { 32 } else { 128 };
    let place = format!("{address}/{length} dev {}", link.name);
    Some(Finding {
        kind: Kind::Pool,
        service: Some(service.clone()),
        backend: None,
        backends: Vec::new(),
        what: format!("the address {address} of service {service}'s pool (`snat`) is on no interface"),
        seen: format!("`ip address show to {address}` says nothing; backends answer to this address"),
        cure: Cure::fixable(&format!("ip addr add {place}"), &format!("ip addr del {place}")),
    })
}
