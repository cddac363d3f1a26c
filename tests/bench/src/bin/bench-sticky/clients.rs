//! The clients, each of which has an address in a different network, like most distant clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use balancer_testkit::{
    http_client::{Request, send_all},
    site::{PATIENCE, PORT, WORKERS},
    topology::{Family, Topology},
};

/// The number of clients whose moves the benchmark counts.
const CLIENTS: u16 = 4_000;
/// The prefix that contains all clients' addresses.
const NETWORKS: &str = "10.16.0.0/12";

/// Adds routes from all hosts to the clients' addresses, and assigns the addresses to the clients' host.
pub(crate) fn connect(topology: &Topology) -> Result<()> {
    topology.client().ip(&format!("route add local {NETWORKS} dev lo"))?;
    let router = Topology::router_address(Family::V4);
    topology.balancer().ip(&format!("route add {NETWORKS} via {router}"))?;
    let (balancer, _) = Topology::balancer_address(Family::V4);
    topology.backends().iter().try_for_each(|backend| {
        backend.ip(&format!("route add {NETWORKS} via {balancer}"))?;
        Ok(())
    })
}

/// Returns the server that answers each client, in the order of the clients.
pub(crate) fn all(topology: &Topology) -> Result<Vec<String>> {
    // The last byte of the address also differs between clients, because some rules of proxies use the whole address.
    homes(topology, (0..CLIENTS).map(|number| address(number, 1 + number.wrapping_mul(37) % 250)))
}

/// Returns the server that answers each address of one network.
pub(crate) fn of_one_network(topology: &Topology) -> Result<Vec<String>> {
    homes(topology, (1..=254).map(|host| address(0, host)))
}

fn address(network: u16, host: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 16, 0, 0).to_bits() + (u32::from(network) << 8) + u32::from(host))
}

fn homes(topology: &Topology, clients: impl Iterator<Item = Ipv4Addr>) -> Result<Vec<String>> {
    let vip = SocketAddr::new(topology.vip(Family::V4), PORT);
    let request = |client| Request::new(SocketAddr::new(IpAddr::V4(client), 0), vip);
    let requests: Vec<Request> = clients.map(|client| Request { timeout: PATIENCE, ..request(client) }).collect();
    let replies = send_all(topology.client(), &requests, WORKERS)?;
    let named = |(request, reply): (&Request, std::io::Result<balancer_testkit::http_client::Reply>)| {
        let client = request.source.ip();
        let reply = reply.with_context(|| format!("client {client}"))?;
        ensure!(!reply.backend.is_empty(), "client {client} was answered by no server (status {})", reply.status);
        Ok(reply.backend)
    };
    requests.iter().zip(replies).map(named).collect()
}
