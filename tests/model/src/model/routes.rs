//! The routes of the kernel for replies to clients.

use std::net::IpAddr;

use balancer_common::map_types::Mac;
use ipnet::IpNet;

/// The next hop on the route to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The index of the interface that sends the packet.
    pub ifindex: u32,
    /// The MAC address of the sending interface.
    pub source_mac: Mac,
    /// The MAC address of the neighbour.
    pub destination_mac: Mac,
    /// The MTU of the sending interface.
    pub mtu: usize,
}

/// The kernel's route to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The packet goes to a neighbour on the interface.
    Hop(Hop),
    /// The destination is an address of the balancer's machine or has no route, so the kernel handles the packet.
    Kernel,
    /// The kernel does not yet know the MAC address of the neighbour.
    NoNeighbour,
    /// The kernel's route forbids packets to the destination.
    Forbidden,
}

/// The routes by destination; the longest matching prefix applies.
#[derive(Clone, Debug, Default)]
pub struct Routes(pub Vec<(IpNet, Route)>);

impl Routes {
    pub(super) fn find(&self, destination: IpAddr) -> Route {
        let matching = self.0.iter().filter(|(prefix, _)| prefix.contains(&destination));
        matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map_or(Route::Kernel, |&(_, route)| route)
    }
}
