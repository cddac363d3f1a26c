//! Getting a packet to its backend, and a `nat` reply to its client.

mod dsr;
mod nat;
mod neighbour;
pub mod rewrite;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client_table::BackendFacts,
    map_types::{BACKEND_KEEPS_KNOWN, BACKEND_REACHABLE, BackendRow, Forwarding, MAX_BACKENDS},
    verdict::{CauseIndex, DropReason},
};

use crate::{outcome::Outcome, packet::Packet, parse::Ip, path::Ingress};

pub(crate) use nat::to_client;

#[map]
static BACKENDS: Array<BackendRow> = Array::with_max_entries(MAX_BACKENDS, BPF_F_MMAPABLE);

/// Rewrites a packet for its backend and sends it there.
#[inline(always)]
pub(crate) fn to_backend(ingress: &impl Ingress, frame: Packet<'_>, ip: &Ip<'_>, backend: u16) -> Outcome {
    let Some(row) = BACKENDS.get(u32::from(backend)) else { return Outcome::Drop(DropReason::NoNextHop) };
    if row.flags & BACKEND_REACHABLE == 0 {
        return Outcome::Drop(DropReason::NoNextHop);
    }
    let sent = if row.forwarding == Forwarding::Nat as u8 {
        nat::to_backend(frame, ip, row)
    } else {
        dsr::to_backend(frame, row)
    };
    match sent {
        Ok(()) => Outcome::send(ingress.ifindex(), row.ifindex),
        Err(reason) => Outcome::Drop(reason),
    }
}

/// What the rule of memory needs to know of a backend.
#[inline(always)]
pub(crate) fn facts(backend: u16) -> Option<BackendFacts> {
    let row = BACKENDS.get(u32::from(backend))?;
    Some(BackendFacts {
        service: row.service,
        keeps_known: row.flags & BACKEND_KEEPS_KNOWN != 0,
        cause: CauseIndex(row.cause),
    })
}
