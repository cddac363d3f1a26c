//! The wanted and the actual state of this machine.

use std::{collections::BTreeSet, net::IpAddr};

use balancer_common::features::Features;
use balancer_config::config::XdpMode;
use balancer_dataplane::Attachment;

/// The wanted state of this machine, as far as [`Machine`](super::Machine) keeps it. Each VIP has an explicit interface,
/// so that two targets can be combined.
#[derive(Clone, Debug)]
pub struct MachineTarget {
    pub interfaces: Vec<String>,
    pub mode: XdpMode,
    pub features: Features,
    pub v4: bool,
    pub v6: bool,
    pub vips: BTreeSet<WantedVip>,
    /// The addresses of which services take every port.
    pub whole: BTreeSet<IpAddr>,
    /// The port ranges that the kernel must not assign to its own sockets.
    pub reserved: BTreeSet<(u16, u16)>,
    /// Whether the helper removes the VIPs, however the process ends.
    pub guarded: bool,
}

/// An address that an interface should have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedVip {
    pub interface: String,
    pub address: IpAddr,
    /// Whether the balancer announces the address to neighbours.
    pub announced: bool,
}

impl MachineTarget {
    /// Returns the combination of two targets, with the mode of `self`.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        let more = other.interfaces.iter().filter(|name| !self.interfaces.contains(name)).cloned().collect::<Vec<_>>();
        self.interfaces.extend(more);
        self.features |= other.features;
        self.v4 |= other.v4;
        self.v6 |= other.v6;
        self.guarded |= other.guarded;
        self.vips.extend(other.vips.iter().cloned());
        self.whole.extend(&other.whole);
        self.reserved.extend(&other.reserved);
        self
    }
}

/// The actual state of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    /// The features of the attached program.
    pub features: Features,
    /// The attachments of the program.
    pub attached: Vec<Attachment>,
    /// VIPs that a balancer has added, with the names of their interfaces.
    pub vips: BTreeSet<(IpAddr, String)>,
    /// Problems that prevent the wanted state, as one sentence each.
    pub troubles: Vec<String>,
}
