//! Destinations of first fragments; later fragments have no ports and follow their first fragment.

use aya_ebpf::{
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use balancer_common::map_types::{
    FAMILY_V4, FRAGMENT_BACK_OF_FLOW, FRAGMENT_LIFETIME, FRAGMENT_OF_FLOW, FRAGMENT_PASSED, FRAGMENT_TO_BACKEND,
    FRAGMENT_TO_CLIENT, FragmentKey, FragmentRow, MAX_FRAGMENTS,
};

use crate::{
    budget,
    debug_log::{self, Oddity},
    parse::Ip,
    stats,
};

#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentRow> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);

/// A key and a row for the map of fragments. Key and row are in a scratch map, because the callers leave little room on
/// the stack.
#[repr(C)]
struct Noted {
    key: FragmentKey,
    row: FragmentRow,
}

#[map]
static NOTED: PerCpuArray<Noted> = PerCpuArray::with_max_entries(1, 0);

/// The destination of a datagram's fragments.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// The fragments pass to the kernel.
    Passed,
    /// The fragments go to the backend with this id.
    Backend(u16),
    /// The fragments go from a `nat` backend to its client; the numbers are the port and the protocol of the backend's
    /// row in the return table.
    Client(u16, u8),
    /// The fragments go to the backend of the flow with this name.
    Flow(u32),
    /// The fragments go to the client of the flow with this name.
    FlowBack(u32),
}

#[inline(always)]
fn key(ip: &Ip<'_>) -> FragmentKey {
    FragmentKey {
        source: ip.source,
        destination: ip.destination,
        id: ip.fragment.id,
        protocol: if ip.family == FAMILY_V4 { ip.protocol } else { 0 },
        family: ip.family,
        reserved: 0,
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no pointer.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Stores the destination of `ip`, a first fragment. If the map has no room, the program treats the later fragments of
/// the datagram as unknown. The program also does so if too many first fragments arrive at once, because each store
/// takes a lock that all CPUs share.
#[inline(always)]
pub(crate) fn remember(ip: &Ip<'_>, way: Way) {
    if !budget::may_remember_fragment() {
        stats::count_not_remembered();
        return;
    }
    let (way, value) = match way {
        Way::Passed => (FRAGMENT_PASSED, 0),
        Way::Backend(backend) => (FRAGMENT_TO_BACKEND, u32::from(backend)),
        Way::Client(port, _) => (FRAGMENT_TO_CLIENT, u32::from(port)),
        Way::Flow(row) => (FRAGMENT_OF_FLOW, row),
        Way::FlowBack(row) => (FRAGMENT_BACK_OF_FLOW, row),
    };
    let Some(noted) = NOTED.get_ptr_mut(0) else { return };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let noted = unsafe { &mut *noted };
    noted.key = key(ip);
    noted.row = FragmentRow { seen: now(), way, value, protocol: ip.protocol, reserved: 0 };
    #[expect(clippy::needless_borrows_for_generic_args, reason = "copies would lie on the stack")]
    let inserted = FRAGMENTS.insert(&noted.key, &noted.row, 0);
    if let Err(error) = inserted {
        debug_log::tell(Oddity::Fragment, error.unsigned_abs());
    }
}

/// The destination of the first fragment of the datagram to which `ip` belongs. `None`: the program has not seen the
/// first fragment.
#[inline(always)]
pub(crate) fn recall(ip: &Ip<'_>) -> Option<Way> {
    let row = FRAGMENTS.get_ptr(key(ip))?;
    // SAFETY: the pointer points to a map value; if another CPU replaces the row at the same time, the new row belongs
    // to the same datagram.
    let FragmentRow { seen, way, value, protocol, .. } = unsafe { row.read() };
    if now().wrapping_sub(seen) > FRAGMENT_LIFETIME {
        return None;
    }
    match way {
        FRAGMENT_PASSED => Some(Way::Passed),
        FRAGMENT_TO_BACKEND => Some(Way::Backend(value as u16)),
        FRAGMENT_TO_CLIENT => Some(Way::Client(value as u16, protocol)),
        FRAGMENT_OF_FLOW => Some(Way::Flow(value)),
        FRAGMENT_BACK_OF_FLOW => Some(Way::FlowBack(value)),
        _ => None,
    }
}
