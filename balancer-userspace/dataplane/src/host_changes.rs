//! Changes that a controller made on its machine beyond maps and programs, noted so that they can be put back later.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Changes to be put back when the balancer is taken off its interfaces. It is bounded by the number of interfaces,
/// because it must fit into the notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChanges {
    /// Switches of the kernel's forwarding, in the order made.
    pub forwarding: Vec<SwitchChange>,
    /// Interfaces on which addresses with the balancer's mark may be.
    #[serde(default)]
    pub vips_on: BTreeSet<u32>,
    /// Interfaces whose generic receive offload was switched off.
    pub receive_offload: Vec<String>,
    /// Interfaces that were told to leave VLAN tags where they are.
    #[serde(default)]
    pub tag_stripping: Vec<String>,
    /// Which counters are an interface's as well, by index: see [`Attachment::counted`](super::Attachment::counted).
    #[serde(default)]
    pub counted: BTreeMap<u32, BTreeSet<u32>>,
}

/// A switch that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchChange {
    /// Below `/proc/sys`, e.g. `net/ipv4/conf/eth0/forwarding`.
    pub key: String,
    /// The value before the change.
    pub before: String,
    /// The value that was set.
    pub after: String,
}
