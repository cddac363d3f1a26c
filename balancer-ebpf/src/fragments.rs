//! Where the first fragment of a datagram went, so that the rest, which has no ports, can follow.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, macros::map, maps::LruHashMap};
use balancer_common::map_types::{
    FAMILY_V4, FRAGMENT_LIFETIME, FRAGMENT_PASSED, FRAGMENT_TO_BACKEND, FRAGMENT_TO_CLIENT, FragmentKey, FragmentRow,
    MAX_FRAGMENTS,
};

use crate::{
    budget,
    parse::Ip,
    puzzles::{self, Puzzle},
    stats,
};

#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentRow> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);

/// Where a datagram goes.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// To the kernel.
    Passed,
    /// To a backend.
    Backend(u16),
    /// From a `nat` backend to its client; port and protocol of its row in the return table.
    Client(u16, u8),
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
    // SAFETY: a plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Remembers where `ip`, a first fragment, went. Without room, or where there are too many at once (each takes a lock that
/// all CPUs share), the rest counts as not seen before.
#[inline(always)]
pub(crate) fn remember(ip: &Ip<'_>, way: Way) {
    if !budget::may_remember_fragment() {
        stats::count_not_remembered();
        return;
    }
    let (way, value) = match way {
        Way::Passed => (FRAGMENT_PASSED, 0),
        Way::Backend(backend) => (FRAGMENT_TO_BACKEND, backend),
        Way::Client(port, _) => (FRAGMENT_TO_CLIENT, port),
    };
    let row = FragmentRow { seen: now(), way, value, protocol: ip.protocol, reserved: [0; 3] };
    if let Err(error) = FRAGMENTS.insert(key(ip), row, 0) {
        puzzles::tell(Puzzle::Fragment, error.unsigned_abs());
    }
}

/// Where the first fragment of `ip`'s datagram went. `None`: it was not seen.
#[inline(always)]
pub(crate) fn recall(ip: &Ip<'_>) -> Option<Way> {
    let row = FRAGMENTS.get_ptr(key(ip))?;
    // SAFETY: a map value; a row that another CPU replaces meanwhile is of the same datagram.
    let FragmentRow { seen, way, value, protocol, .. } = unsafe { row.read() };
    if now().wrapping_sub(seen) > FRAGMENT_LIFETIME {
        return None;
    }
    match way {
        FRAGMENT_PASSED => Some(Way::Passed),
        FRAGMENT_TO_BACKEND => Some(Way::Backend(value)),
        FRAGMENT_TO_CLIENT => Some(Way::Client(value, protocol)),
        _ => None,
    }
}
