//! What the balancer changed on its machine beyond its own maps and programs.

use serde::{Deserialize, Serialize};

use super::{
    dataplane::offload,
    forwarding::{self, IpForwarding},
    vips::{self, Assigned},
};

/// Changes to be put back when the balancer is taken off its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChanges {
    /// Switches of the kernel's forwarding, in the order made.
    pub forwarding: Vec<forwarding::Change>,
    /// VIPs that were added to an interface.
    #[serde(default)]
    pub vips: Vec<Assigned>,
    /// Interfaces whose generic receive offload was switched off.
    pub receive_offload: Vec<String>,
}

impl HostChanges {
    /// These and later ones.
    #[must_use]
    pub fn and(mut self, forwarding: &[forwarding::Change], receive_offload: Vec<String>, vips: Vec<Assigned>) -> Self {
        self.forwarding.extend_from_slice(forwarding);
        self.vips.extend(vips);
        self.receive_offload.extend(receive_offload);
        self
    }

    /// Puts everything back. What somebody else has changed since stays.
    pub fn put_back(self) {
        if !self.vips.is_empty() {
            vips::remove_left(self.vips);
        }
        drop(IpForwarding::inherited(self.forwarding));
        self.receive_offload.into_iter().for_each(offload::switch_on);
    }
}
