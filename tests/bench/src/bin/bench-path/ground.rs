//! The simulated network: an interface, and a router behind the interface.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
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

/// Runs the program `repeat` times on `frame`, as if the frame arrived on [`INTERFACE`]. Each run gets the frame that
/// the previous run returned.
///
/// # Errors
/// Fails if the kernel refuses to run the program.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<prog_run::Ran> {
    prog_run::run(program, frame, INTERFACE, repeat).context("running a program on packets in memory")
}
