//! The map of backend rows.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    map_types::{
        BACKEND_KEEPS_KNOWN, BACKEND_REACHABLE, BACKEND_SECOND, BACKEND_TAKES_CLIENTS, BackendRow, BackendRows,
        BackendStanding,
    },
    memory::BackendFacts,
    verdict::CauseIndex,
};

use crate::shared::{Shared, word};

/// The controller sets the real number of rows of this map when it loads the program.
#[map]
static BACKENDS: Array<BackendRows> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The facts about a backend that determine whether a known client may stay at it.
#[inline(always)]
pub(crate) fn facts(backend: u16) -> Option<BackendFacts> {
    let BackendStanding { service, cause, flags } = standing(rows(backend)?);
    Some(BackendFacts { service, keeps_known: flags & BACKEND_KEEPS_KNOWN != 0, cause: CauseIndex(cause) })
}

/// Whether a backend takes new clients: whether a rule may pin clients to it, and any QUIC connection ID may open a
/// flow.
#[inline(always)]
pub(crate) fn takes_clients(backend: u16) -> bool {
    rows(backend).is_some_and(|rows| standing(rows).flags & BACKEND_TAKES_CLIENTS != 0)
}

#[inline(always)]
fn rows(backend: u16) -> Option<Shared<BackendRows>> {
    Shared::at(&BACKENDS, u32::from(backend))
}

#[inline(always)]
fn standing(rows: Shared<BackendRows>) -> BackendStanding {
    BackendStanding::from_word(word!(rows, rows[0].standing))
}

/// A reachable backend, with its row as the program read it.
#[derive(Clone, Copy)]
pub(crate) struct Reachable {
    pub(crate) row: &'static BackendRow,
    pub(crate) flags: u8,
    pub(crate) service: u16,
}

#[inline(always)]
pub(crate) fn reachable(backend: u16) -> Option<Reachable> {
    let rows = rows(backend)?;
    let BackendStanding { service, flags, .. } = standing(rows);
    if flags & BACKEND_REACHABLE == 0 {
        return None;
    }
    // SAFETY: the pointer points into a map value, at the start of one of the rows in this value. The controller writes
    // to an unused row only after a grace period, which is longer than the program needs for any packet.
    let row = unsafe { &*rows.pointer().byte_add(usize::from(flags & BACKEND_SECOND)).cast::<BackendRow>() };
    Some(Reachable { row, flags, service })
}
