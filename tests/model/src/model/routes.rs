//! The kernel's routes, as far as replies to clients go by them.

use std::net::IpAddr;

use balancer_common::map_types::Mac;
use ipnet::IpNet;

/// How frames leave for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The interface.
    pub ifindex: u32,
    /// The MAC of that interface.
    pub source_mac: Mac,
    /// The neighbour's MAC.
    pub destination_mac: Mac,
    /// The interface's MTU.
    pub mtu: usize,
}

/// Where the kernel would send something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a neighbour.
    Hop(Hop),
    /// To itself, or nowhere: the packet is the kernel's business.
    Kernel,
    /// To a neighbour that it does not know yet.
    NoNeighbour,
    /// The route forbids it.
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
