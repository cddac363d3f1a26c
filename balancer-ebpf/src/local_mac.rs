//! Checks by the destination MAC whether a frame is for this machine. Frames that a switch floods, or that an interface
//! in promiscuous mode receives, belong to other machines.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_md},
    macros::map,
    maps::Array,
};
use balancer_common::map_types::{InterfaceRow, LOCAL_MACS, MAC_GROUP, MAC_MASK, MAX_INTERFACES};

use crate::{
    ingress::Ingress,
    packet::Packet,
    shared::{Shared, word},
    stats,
};

/// The MACs that each interface accepts. The controller writes this map one word at a time.
#[map]
static INTERFACES: Array<InterfaceRow> = Array::with_max_entries(MAX_INTERFACES, BPF_F_MMAPABLE);

/// Whether a frame's destination MAC is one of this machine or a group address.
#[inline(always)]
pub(crate) fn is_ours(ingress: Ingress, frame: Packet<'_>) -> bool {
    let Some(destination) = destination(frame) else { return true };
    let Some(row) = Shared::at(&INTERFACES, ingress.row()) else { return true };
    destination == word!(row, local_macs[0]) || balancer_is_ours(ingress.context()) != 0
}

#[inline(always)]
fn destination(frame: Packet<'_>) -> Option<u64> {
    Some(frame.load::<u64>(0)? & MAC_MASK)
}

/// Checks a frame that is not addressed to the interface's own MAC. This is a global function because frames to other
/// MACs are rare.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_is_ours(context: *mut xdp_md) -> u64 {
    // SAFETY: `is_ours` passes the program's context on.
    let ingress = unsafe { Ingress::new(context) };
    let Some(destination) = destination(ingress.frame()) else { return 1 };
    if destination & MAC_GROUP != 0 {
        return 1;
    }
    let Some(row) = known(ingress) else { return 1 };
    for index in 1..LOCAL_MACS {
        if destination == word!(row, local_macs[index]) {
            return 1;
        }
    }
    0
}

/// Whether the program runs on an interface, according to the controller.
#[inline(always)]
pub(crate) fn is_attached(ifindex: u32) -> bool {
    Shared::at(&INTERFACES, stats::row(ifindex)).is_some_and(|row| word!(row, ifindex) == ifindex)
}

/// The ingress interface's row in the map of accepted MACs. `None`: the controller has not written a row for this
/// interface.
#[inline(always)]
fn known(ingress: Ingress) -> Option<Shared<InterfaceRow>> {
    let row = Shared::at(&INTERFACES, ingress.row())?;
    (word!(row, ifindex) == ingress.ifindex()).then_some(row)
}

/// Whether the frame arrived by one of `interfaces`, a mask with one bit for each interface row. The result is true if
/// `interfaces` is 0 or the ingress interface is unknown.
#[inline(always)]
pub(crate) fn came_by(ingress: Ingress, interfaces: u64) -> bool {
    interfaces == 0 || known(ingress).is_none() || interfaces >> (ingress.row() & 63) & 1 != 0
}
