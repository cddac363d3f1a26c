//! The kernel's routes that replies to clients use.

use std::net::IpAddr;

use balancer_common::map_types::Mac;
use ipnet::IpNet;

/// The next hop of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The egress interface.
    pub ifindex: u32,
    /// The MAC of that interface.
    pub source_mac: Mac,
    /// The neighbour's MAC.
    pub destination_mac: Mac,
    /// The interface's MTU.
    pub mtu: usize,
}

/// The kernel's route to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The packet goes to a neighbour.
    Hop(Hop),
    /// The destination is this machine or has no route: the kernel handles the packet.
    Kernel,
    /// The kernel does not know the neighbour yet.
    NoNeighbour,
    /// The route forbids the destination.
    Forbidden,
}

/// Routes by destination; the longest prefix wins.
#[derive(Clone, Debug, Default)]
pub struct Routes(pub Vec<(IpNet, Route)>);

impl Routes {
    pub(super) fn find(&self, destination: IpAddr) -> Route {
        let matching = self.0.iter().filter(|(prefix, _)| prefix.contains(&destination));
        matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map_or(Route::Kernel, |&(_, route)| route)
    }
}
