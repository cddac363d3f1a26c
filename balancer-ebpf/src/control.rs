//! The words that the controller publishes.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::map_types::Control;

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[inline(always)]
pub(crate) fn words() -> Option<&'static Control> {
    CONTROL.get(0)
}
