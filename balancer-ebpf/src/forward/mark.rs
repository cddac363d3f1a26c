//! Marks frames that the kernel must send: see [`crate::handover`].

use aya_ebpf::Global;
use balancer_common::{
    handover::{self, Handed},
    map_types::Mac,
};

use crate::{forward::rewrite, packet::Packet};

/// The key of the mark, chosen at random when the controller loads the program.
#[unsafe(no_mangle)]
static HANDOVER_KEY: Global<u64> = Global::new(0);

/// Marks a frame, so that the kernel sends this frame. The program has already rewritten the frame's headers, beginning
/// with the IP header.
#[inline(always)]
pub(crate) fn put(frame: Packet<'_>, handed: Handed) -> Option<()> {
    rewrite::macs(frame, handed.destination(), own_source())
}

/// The source MAC of a frame that the program hands to the kernel.
#[inline(always)]
pub(crate) fn own_source() -> Mac {
    handover::source(HANDOVER_KEY.load())
}
