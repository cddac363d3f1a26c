//! Marking frames for the kernel to send: see [`crate::handover`].

use aya_ebpf::Global;
use balancer_common::{
    handover::{self, Handed},
    map_types::Mac,
};

use crate::{forward::rewrite, packet::Packet};

/// The key, chosen at random at load.
#[unsafe(no_mangle)]
static HANDOVER_KEY: Global<u64> = Global::new(0);

/// Marks a frame so that the kernel sends it. The frame has already been rewritten from the IP header on.
#[inline(always)]
pub(crate) fn put(frame: Packet<'_>, handed: Handed) -> Option<()> {
    rewrite::macs(frame, handed.destination(), own_source())
}

/// The source MAC of a frame that is handed over.
#[inline(always)]
pub(crate) fn own_source() -> Mac {
    handover::source(HANDOVER_KEY.load())
}
