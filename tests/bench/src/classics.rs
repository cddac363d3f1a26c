//! Proxies that benchmarks compare with the balancer.

use std::{net::SocketAddr, path::Path};

use anyhow::{Result, ensure};
use balancer_common::map_types::Forwarding;
pub use balancer_lab::proxy::{Proxy, Rule, Server};

use balancer_testkit::{
    site::{PORT, backend_port},
    topology::{Family, Topology},
};

/// Returns the elements of `all` whose titles contain `only`.
///
/// # Errors
/// Fails if no title contains `only`.
pub fn chosen<T, S: AsRef<str>>(
    all: impl IntoIterator<Item = T>,
    only: &str,
    title: impl Fn(&T) -> S,
) -> Result<Vec<T>> {
    let chosen: Vec<T> = all.into_iter().filter(|contender| title(contender).as_ref().contains(only)).collect();
    ensure!(!chosen.is_empty(), "nothing to compare has {only:?} in its name; without --only the table has all");
    Ok(chosen)
}

/// The path that health checks of proxies request from servers.
const HEALTH: &str = "/healthz";

/// Returns the address at which a proxy reaches server `number`, counted from 1, on hosts that are set up for `nat`.
#[must_use]
pub fn server(topology: &Topology, number: u16) -> Server {
    let address = SocketAddr::new(topology.backend_address(Family::V4, number - 1), backend_port(Forwarding::Nat));
    Server::new(format!("web{number}"), address)
}

/// Starts a proxy for the servers `1..=servers` on the balancer's host, at the service's address.
///
/// # Errors
/// Fails if the proxy does not start.
pub fn start(topology: &Topology, rule: Rule, servers: u16, files: &Path) -> Result<Proxy> {
    let servers = (1..=servers).map(|number| server(topology, number)).collect();
    Proxy::start(topology.balancer(), rule, servers, SocketAddr::new(topology.vip(Family::V4), PORT), HEALTH, files)
}
