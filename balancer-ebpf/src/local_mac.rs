//! The check whether a frame is for this machine, by its destination MAC. Frames that a switch floods, or that an
//! interface in promiscuous mode receives, belong to others.

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

/// The accepted MACs of each interface. The controller writes the map one word at a time.
#[map]
static INTERFACES: Array<InterfaceRow> = Array::with_max_entries(MAX_INTERFACES, BPF_F_MMAPABLE);

/// Whether a frame is for this machine, or for a group.
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

/// Checks a frame that is not for the interface's own MAC. It is a global function because such frames are rare.
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

/// The row of the ingress interface. `None`: the controller has not written this row.
#[inline(always)]
fn known(ingress: Ingress) -> Option<Shared<InterfaceRow>> {
    let row = Shared::at(&INTERFACES, ingress.row())?;
    (word!(row, ifindex) == ingress.ifindex()).then_some(row)
}

/// Whether the frame arrived by one of `interfaces`, which has a bit for each row. The result is true if `interfaces`
/// is 0 or the ingress interface is unknown.
#[inline(always)]
pub(crate) fn came_by(ingress: Ingress, interfaces: u64) -> bool {
    interfaces == 0 || known(ingress).is_none() || interfaces >> (ingress.row() & 63) & 1 != 0
}
