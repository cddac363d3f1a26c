//! Values that the controller publishes to the kernel program.

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{map_types::Control, service_table::PublishedView};

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[inline(always)]
pub(crate) fn words() -> Option<&'static Control> {
    CONTROL.get(0)
}

/// The active half of the listener table. The program reads this value once per packet, because the controller may
/// activate the other half at any time with one store.
#[inline(always)]
pub(crate) fn listeners(control: &'static Control) -> PublishedView {
    // SAFETY: a Rust reference is always valid for reads.
    PublishedView(unsafe { ptr::read_volatile(&raw const control.listeners) })
}
