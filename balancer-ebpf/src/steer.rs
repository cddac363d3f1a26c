//! Which backend a client is steered to: the gate over the client table.
//!
//! A slot without exceptions is steered from the live table alone, whoever the client is; nothing per client is read.

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client,
    client_table::{Query, due},
    map_types::{
        ALL_DOWN, Control, FAMILY_V4, LiveTable, NO_BACKEND, SERVICE_FAILBACK, SERVICE_REMEMBERS, SLOT_EXCEPTIONS,
        SLOT_REFILLED, SLOTS_PER_LINE, ServiceRow, SlotLine, TableSlot,
    },
    verdict::{Decision, DropReason},
};

use crate::{
    memory,
    parse::{Ip, Ports, UDP},
};

/// The live tables of all services, each a run of whole lines.
#[map]
static SLOTS: Array<SlotLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A backend and how it was chosen, if the packet opens a connection.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) backend: u16,
    pub(crate) decision: Option<Decision>,
}

/// The backend of the client that sent `ip`.
#[inline(always)]
pub(crate) fn choose(
    control: &'static Control,
    service: &'static ServiceRow,
    ip: &Ip<'_>,
    ports: Ports,
) -> Result<Choice, DropReason> {
    let hash = client_hash(service, ip);
    let slot = live_slot(service, hash).ok_or(DropReason::NoBackend)?;
    let live = match slot.backend {
        NO_BACKEND | ALL_DOWN => None,
        backend => Some(backend),
    };
    let nobody = if slot.backend == NO_BACKEND { DropReason::NoBackend } else { DropReason::AllDown };
    if service.flags & SERVICE_REMEMBERS == 0 {
        let decision = ports.opens.then_some(Decision::Stateless);
        return live.map(|backend| Choice { backend, decision }).ok_or(nobody);
    }
    // SAFETY: a reference is valid for reads; the controller advances the clock with one store.
    let now = unsafe { ptr::read_volatile(&raw const service.tick) } as u16;
    let datagram = ip.protocol == UDP;
    if slot.flags & SLOT_EXCEPTIONS == 0 && !ports.opens && !datagram && !due(hash, now, service.due_mask) {
        return live.map(|backend| Choice { backend, decision: None }).ok_or(nobody);
    }
    let query = Query {
        tag: (hash >> 32) as u32,
        service: service.id,
        live,
        live_is_home: slot.flags & SLOT_REFILLED == 0,
        opens: ports.opens,
        datagram,
        failback: service.flags & SERVICE_FAILBACK != 0,
        now,
        remember: service.remember,
        idle: service.idle,
    };
    memory::consult(control, hash, &query).ok_or(nobody)
}

#[inline(always)]
fn live_slot(service: &'static ServiceRow, hash: u64) -> Option<TableSlot> {
    // Read once: the controller swaps the table with one store to this word.
    // SAFETY: a reference is valid for reads.
    let table = LiveTable::from_word(unsafe { ptr::read_volatile(&raw const service.table) });
    let slot = table.first.wrapping_add(client::slot(hash, table.size));
    let line = SLOTS.get(slot / SLOTS_PER_LINE)?;
    // SAFETY: as above. Backend and flags are one word, which the controller replaces in one piece.
    let word = unsafe { (&raw const line.slots[(slot % SLOTS_PER_LINE) as usize]).cast::<u32>().read_volatile() };
    Some(bytemuck::cast(word))
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
