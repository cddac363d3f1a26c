//! The simulated network: an interface, and a router behind the interface.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result, anyhow};
use balancer_config::listeners::Family;
use balancer_control::default_hop::{DefaultHop, Egress, Gateway, Route, Rule, TABLE_LOCAL, TABLE_MAIN, default_route};
use balancer_testkit::{namespace::Namespace, prog_run};

use crate::scene::OWN_MAC;

/// The index of the ingress interface.
pub(crate) const INTERFACE: u32 = 7;
/// The index of a second interface, whose properties the program does not know.
pub(crate) const OTHER_INTERFACE: u32 = 8;
/// The index of an interface that has VLAN interfaces, but neither clients nor backends.
pub(crate) const TAGGED_INTERFACE: u32 = 9;

/// Moves the calling thread into a new namespace, which disappears when the thread ends.
pub(crate) fn enter() -> Result<()> {
    let namespace = Namespace::new("path")?;
    namespace.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let mac = OWN_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let (near, far) = (format!("link add name near index {INTERFACE} address {mac} type veth"), "peer name far");
    namespace.ip(&format!("{near} {far}"))?;
    for line in [
        "link set near up",
        "link set far up",
        "addr add 10.0.0.254/24 dev near",
        "addr add fd00::fe/64 dev near nodad",
        "route add default via 10.0.0.253",
        "-6 route add default via fd00::fd",
    ] {
        namespace.ip(line)?;
    }
    // The kernel program's output for the router is the next input of the kernel program, so the router has the MAC
    // address of the balancer.
    for router in ["10.0.0.253", "fd00::fd"] {
        namespace.ip(&format!("neigh add {router} lladdr {mac} dev near nud permanent"))?;
    }
    namespace.enter()
}

/// The next hop of the default route, as the controller publishes it.
pub(crate) fn default_hop(family: Family) -> Result<DefaultHop> {
    let (default, router, others) = match family {
        Family::V4 => ("0.0.0.0/0", "10.0.0.253", ["10.0.0.0/24", "127.0.0.0/8", "198.51.100.20/32", "203.0.113.0/24"]),
        Family::V6 => ("::/0", "fd00::fd", ["fd00::/64", "::1/128", "fe80::/64", "ff00::/8"]),
    };
    let rules = [(0, TABLE_LOCAL), (32_766, TABLE_MAIN)].map(|(priority, table)| Rule { priority, table: Some(table) });
    let gateway = Gateway { ifindex: INTERFACE, address: router.parse()?, lifetime: None };
    let mut routes = vec![Route { table: TABLE_MAIN, destination: default.parse()?, gateway: Some(gateway) }];
    for other in others {
        routes.push(Route { table: TABLE_LOCAL, destination: other.parse()?, gateway: None });
    }
    let route = default_route(&rules, &routes).map_err(|obstacle| anyhow!("{obstacle}"))?;
    Ok(DefaultHop::new(&route, Egress { mac: OWN_MAC, mtu: 1500 }, OWN_MAC, !0))
}

/// Runs the program `repeat` times on `frame`, as if the frame arrived on [`INTERFACE`]. Each run gets the frame that
/// the previous run returned.
///
/// # Errors
/// Fails if the kernel refuses to run the program.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<prog_run::Ran> {
    prog_run::run(program, frame, INTERFACE, repeat).context("running a program on packets in memory")
}
