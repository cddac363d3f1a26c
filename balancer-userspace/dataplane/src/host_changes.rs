//! Changes that a controller made to its machine beyond maps and programs, recorded so that they can be undone later.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Changes to undo when the balancer leaves its interfaces. Their number is bounded by the number of interfaces,
/// because they must fit into the notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChanges {
    /// Switches of the kernel's forwarding, in the order made.
    pub forwarding: Vec<SwitchChange>,
    /// Interfaces that may have addresses with the balancer's mark.
    #[serde(default)]
    pub vips_on: BTreeSet<u32>,
    /// Interfaces whose generic receive offload was switched off.
    pub receive_offload: Vec<String>,
    /// Interfaces whose VLAN tag stripping was switched off.
    #[serde(default)]
    pub tag_stripping: Vec<String>,
    /// Additional interfaces whose counters belong to an interface, by index: see
    /// [`Attachment::counted`](super::Attachment::counted).
    #[serde(default)]
    pub counted: BTreeMap<u32, BTreeSet<u32>>,
}

/// A kernel switch that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchChange {
    /// The path below `/proc/sys`, e.g. `net/ipv4/conf/eth0/forwarding`.
    pub key: String,
    /// The value before the change.
    pub before: String,
    /// The value that was set.
    pub after: String,
}
