//! Findings about packets that are too large for the path to a backend.

use std::net::IpAddr;

use crate::{
    facts::{Backend, Facts},
    finding::{Cure, Kind},
    judge::cases::{Case, HOST, OWN},
};

/// The cure is on the narrow side. A smaller MTU of this machine's own interface would also drop large packets for all
/// other backends; a route's MTU concerns one backend alone.
pub(super) fn path<'a>(facts: &Facts, backend: &'a Backend, (ifindex, next_hop): (u32, IpAddr)) -> Option<Case<'a>> {
    let path = backend.path.filter(|path| path.passed < path.wanted)?;
    let address = backend.address.ip();
    let interface = facts.link(ifindex).map_or("INTERFACE", |link| link.name.as_str());
    let length = if address.is_ipv4() { 32 } else { 128 };
    let via = if next_hop == address { String::new() } else { format!(" via {next_hop}") };
    let here = format!("ip route replace {OWN}/{length}{via} dev {interface} mtu {}", path.passed);
    let there = format!("ip link set dev INTERFACE mtu {}", path.wanted);
    let (what, commands) = if path.segment == Some(false) {
        let here = format!("# or, if the smaller MTU is wanted, on this machine: {here}");
        ("large packets do not arrive", vec![there, here])
    } else {
        let looks = [
            "# most likely first: a link on the path has a smaller MTU: ip link show, on the backend and on routers"
                .to_owned(),
            format!("#   then, there: {there}; or, on this machine: {here}"),
            "# or a firewall drops large pings, and nothing is wrong: nft list ruleset".to_owned(),
        ];
        ("large pings are not answered", looks.to_vec())
    };
    Some(Case::new(
        backend,
        Kind::Mtu,
        format!("{what}: {} bytes are lost, {} bytes arrive", path.wanted, path.passed),
        match path.segment {
            Some(false) => {
                format!("pings and requests to connect of these sizes to {OWN}, which must not be fragmented")
            }
            _ => format!("pings of these sizes to {OWN}, which must not be fragmented"),
        },
        Cure::elsewhere(&format!("{HOST}, or on a router before it"), &commands),
    ))
}
