//! What becomes of a packet.

use balancer_common::verdict::DropReason;

/// The decision about one packet; `main.rs` turns it into an XDP action and its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To the kernel, unchanged.
    Pass,
    /// Out of the interface it came in by.
    Tx,
    /// Out of another interface.
    Redirect {
        /// Which.
        ifindex: u32,
    },
    /// Dropped.
    Drop(DropReason),
}

impl Outcome {
    /// Out of `egress`, for a packet that came in by `ingress`.
    #[inline(always)]
    #[must_use]
    pub const fn send(ingress: u32, egress: u32) -> Self {
        if ingress == egress { Self::Tx } else { Self::Redirect { ifindex: egress } }
    }
}
