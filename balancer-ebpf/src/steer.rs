//! Which backend a client is steered to.

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client,
    map_types::{ALL_DOWN, FAMILY_V4, LiveTable, NO_BACKEND, SLOTS_PER_LINE, ServiceRow, SlotLine},
    verdict::{Decision, DropReason},
};

use crate::parse::Ip;

/// The live tables of all services, each a run of whole lines.
#[map]
static SLOTS: Array<SlotLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A backend and how it was chosen.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) backend: u16,
    pub(crate) decision: Decision,
}

/// The backend of the client that sent `ip`.
#[inline(always)]
pub(crate) fn choose(service: &'static ServiceRow, ip: &Ip<'_>) -> Result<Choice, DropReason> {
    // Read once: the controller swaps the table with one store to this word.
    // SAFETY: a reference is valid for reads.
    let table = LiveTable::from_word(unsafe { ptr::read_volatile(&raw const service.table) });
    let slot = table.first.wrapping_add(client::slot(client_hash(service, ip), table.size));
    let line = SLOTS.get(slot / SLOTS_PER_LINE).ok_or(DropReason::NoBackend)?;
    match line.slots[(slot % SLOTS_PER_LINE) as usize].backend {
        NO_BACKEND => Err(DropReason::NoBackend),
        ALL_DOWN => Err(DropReason::AllDown),
        backend => Ok(Choice { backend, decision: Decision::Stateless }),
    }
}

#[inline(always)]
fn client_hash(service: &ServiceRow, ip: &Ip<'_>) -> u64 {
    if ip.family == FAMILY_V4 {
        client::hash_v4(service.hash_key, ip.source[0] & service.client_mask[0] as u32)
    } else {
        let low = ip.source[0] as u64 | (ip.source[1] as u64) << 32;
        let high = ip.source[2] as u64 | (ip.source[3] as u64) << 32;
        client::hash_v6(service.hash_key, [low & service.client_mask[0], high & service.client_mask[1]])
    }
}
