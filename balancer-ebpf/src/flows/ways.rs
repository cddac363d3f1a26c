//! The interfaces by which the replies of `snat` backends may arrive.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::map_types::FlowRow;

use crate::{ingress::Ingress, local_mac};

/// By backend id: one bit for each interface, as in
/// [`ReturnRow::interfaces`](balancer_common::map_types::ReturnRow::interfaces). The controller sets the real size of
/// this map when it loads the program, and replaces each word in one store.
#[map]
static FLOW_WAYS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Whether a frame arrived by an interface that leads to the backend of a flow.
#[inline(always)]
pub(super) fn lead_to_backend(ingress: Ingress, row: &FlowRow) -> bool {
    let Some(word) = FLOW_WAYS.get_ptr(row.backend_id.into()) else { return true };
    // SAFETY: the pointer points to a map value.
    let ways = unsafe { word.read_volatile() };
    ways >> (ingress.row() & 63) & 1 != 0 || local_mac::came_by(ingress, ways)
}
