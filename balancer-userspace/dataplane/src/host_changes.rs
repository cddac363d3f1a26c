//! Changes that a controller has made to its machine outside of maps and programs, recorded so that a later process can
//! undo them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Changes that a process must undo when the balancer leaves its interfaces. These changes must fit into the notes;
/// their number is bounded by the number of interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChanges {
    /// The changed kernel switches for forwarding, in the order of the changes.
    pub forwarding: Vec<SwitchChange>,
    /// The interfaces that may have addresses with the balancer's mark.
    pub vips_on: BTreeSet<u32>,
    /// The interfaces whose generic receive offload was switched off.
    pub receive_offload: Vec<String>,
    /// The interfaces whose VLAN tag stripping was switched off.
    pub tag_stripping: Vec<String>,
    /// The additional interfaces whose counters belong to an interface, by index: see
    /// [`Attachment::counted`](super::Attachment::counted).
    pub counted: BTreeMap<u32, BTreeSet<u32>>,
}

/// A kernel switch that the balancer has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchChange {
    /// The path of the switch below `/proc/sys`, e.g. `net/ipv4/conf/eth0/forwarding`.
    pub key: String,
    pub before: String,
    pub after: String,
}
