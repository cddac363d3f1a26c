//! Getting a packet to its backend, and a `nat` reply to its client.

mod dsr;
pub(crate) mod nat;
pub(crate) mod neighbour;
pub mod rewrite;
pub(crate) mod tunnel;
mod waiting;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    handover::Handed,
    map_types::{
        BACKEND_KEEPS_KNOWN, BACKEND_REACHABLE, BACKEND_SECOND, BACKEND_TAKES_CLIENTS, BackendRow, BackendRows,
        BackendStanding, FORWARDING_ASKS, Forwarding,
    },
    memory::BackendFacts,
    verdict::{CauseIndex, DropReason},
};

use crate::{
    devices,
    fragments::{self, Way},
    handover,
    icmp::errors,
    ingress::Ingress,
    packet::Packet,
    parse::Ip,
    puzzles::{self, Puzzle},
    samples,
    shared::{Shared, word},
    stats,
    step::{Answerable, Carries, Choice, Encapsulate, ErrorToBackend, IcmpError, Step, ToBackend, Told},
    steps::Found,
};

/// The controller sets the real number of rows when it loads the program.
#[map]
static BACKENDS: Array<BackendRows> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rewrites a packet for its backend and sends it there. `port` is the backend's for the packet's listener (network
/// order); 0: the packet's own.
#[inline(always)]
pub(crate) fn to_backend(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    carries: Carries,
    choice: Choice,
    port: u16,
) -> Step {
    match sent(ingress, frame, ip, carries, choice, port) {
        Ok(step) => step,
        Err(end) => decided(choice, end),
    }
}

/// The `end` of a packet that does not reach the backend chosen for it. The choice is counted all the same.
#[inline(always)]
fn decided(choice: Choice, end: Step) -> Step {
    stats::count_decided(choice.backend, choice.decision);
    end
}

#[inline(always)]
fn sent(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    carries: Carries,
    choice: Choice,
    port: u16,
) -> Result<Step, Step> {
    let backend = reachable(choice.backend).ok_or_else(|| no_next_hop(choice))?;
    let row = backend.row;
    let added = if row.forwarding <= Forwarding::Nat as u8 {
        write(ingress, frame, ip, carries, backend, port)?;
        0
    } else if !is_tunnel(row) {
        return Ok(Step::to(ToBackend { choice, carries, port }));
    } else {
        match tunnel::wrap_plain(ingress, &ip.again(ingress.frame()), backend) {
            Some(wrapped) => wrapped?,
            None => return Ok(Step::to(Encapsulate { choice, answerable: Answerable::Yes })),
        }
    };
    Ok(finish(ingress, ip, backend, choice, Sender::Client { added }))
}

/// Rewrites a packet for its backend, which is reached without a tunnel.
#[inline(always)]
fn write(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    carries: Carries,
    backend: Reachable,
    port: u16,
) -> Result<(), Step> {
    let row = backend.row;
    if !fits(ingress, ip, row) {
        return Err(Step::to(IcmpError::TooBig(row.mtu)));
    }
    let written = if row.mode() == Forwarding::Dsr as u8 {
        dsr::to_backend(frame, row)
    } else {
        nat::to_backend(frame, ip, carries, backend, port)
    };
    written.map_err(Step::drop)
}

#[inline(always)]
fn is_tunnel(row: &BackendRow) -> bool {
    row.mode() > Forwarding::Nat as u8
}

/// The same as [`to_backend`] for a packet with its layer-4 header anywhere, which the kernel may have to send. A first
/// fragment's way is remembered.
#[inline(always)]
pub(crate) fn any_to_backend(found: &Found, told: Told<ToBackend>) -> Step {
    if found.ip.fragment.is_first() {
        fragments::remember(&found.ip, Way::Backend(told.get().choice.backend));
    }
    match sent_by_any(found, told) {
        Ok(step) => step,
        Err(end) => decided(told.get().choice, end),
    }
}

#[inline(always)]
fn sent_by_any(found: &Found, told: Told<ToBackend>) -> Result<Step, Step> {
    let Found { ingress, frame, ip } = found;
    let choice = || told.get().choice;
    let backend = reachable(choice().backend).ok_or_else(|| no_next_hop(choice()))?;
    if is_tunnel(backend.row) {
        return Ok(Step::to(Encapsulate { choice: choice(), answerable: Answerable::Yes }));
    }
    write(*ingress, *frame, ip, told.get().carries, backend, told.get().port)?;
    Ok(finish_by_any(*ingress, *frame, ip, backend, choice(), Sender::Client { added: 0 }))
}

/// Sends an ICMP error about a packet from a VIP to the backend that the packet came from.
#[inline(always)]
pub(crate) fn error_to_backend(found: &Found, told: Told<ErrorToBackend>) -> Step {
    let Found { ingress, frame, ip } = found;
    let ErrorToBackend { choice, port } = told.get();
    let Some(inner) = errors::quoted(*frame, ip) else { return Step::PASS };
    let Some(backend) = reachable(choice.backend) else { return no_next_hop(choice) };
    let row = backend.row;
    if is_tunnel(row) {
        return Step::to(Encapsulate { choice, answerable: Answerable::No });
    }
    if !fits(*ingress, ip, row) {
        return Step::drop(DropReason::TooBig);
    }
    let written = if row.mode() == Forwarding::Dsr as u8 {
        dsr::to_backend(*frame, row)
    } else {
        nat::error_to_backend(*frame, ip, &inner, backend, port)
    };
    match written {
        Ok(()) => finish_by_any(*ingress, *frame, ip, backend, choice, Sender::Other),
        Err(reason) => Step::drop(reason),
    }
}

/// Whose address a packet's source is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// A client, whose packet is behind so many bytes of outer headers.
    Client { added: usize },
    /// A router that says something about the packet of a backend.
    Other,
}

#[inline(always)]
fn finish(ingress: Ingress, ip: &Ip<'_>, backend: Reachable, choice: Choice, sender: Sender) -> Step {
    let bytes = ip.l3_offset + ip.length;
    let due = stats::count_forwarded(choice.backend, bytes, choice.decision);
    if due && let Sender::Client { added } = sender {
        samples::take(ingress, added + ip.l3_offset, ip.family, backend.service, choice.backend, bytes);
    }
    Step::send(ingress.ifindex(), backend.row.ifindex)
}

/// The same where the kernel may have to send the packet.
#[inline(always)]
fn finish_by_any(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    backend: Reachable,
    choice: Choice,
    sender: Sender,
) -> Step {
    let step = finish(ingress, ip, backend, choice, sender);
    let row = backend.row;
    if row.forwarding & FORWARDING_ASKS == 0 || !devices::kernel_sends(ip, ingress.ifindex(), row.ifindex) {
        return step;
    }
    match handover::mark(frame, Handed::Backend(choice.backend)) {
        Some(()) => Step::HANDED,
        None => Step::drop(DropReason::Malformed),
    }
}

/// What the rule of memory needs to know of a backend.
#[inline(always)]
pub(crate) fn facts(backend: u16) -> Option<BackendFacts> {
    let BackendStanding { service, cause, flags } = standing(rows(backend)?);
    Some(BackendFacts { service, keeps_known: flags & BACKEND_KEEPS_KNOWN != 0, cause: CauseIndex(cause) })
}

/// Whether a rule may pin clients to a backend.
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

/// A backend that packets can be sent to, as it was when it was looked at.
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
    let second = usize::from(flags & BACKEND_SECOND != 0) & 1;
    // SAFETY: a map value. The controller writes to a row only after it was out of use for a grace period, which a packet
    // does not outlast.
    let row = unsafe { &(*rows.pointer()).rows[second] };
    Some(Reachable { row, flags, service })
}

#[inline(always)]
fn no_next_hop(choice: Choice) -> Step {
    puzzles::tell(Puzzle::NoNextHop, u32::from(choice.backend));
    Step::drop(DropReason::NoNextHop)
}

/// Whether a packet that keeps its length fits the interface it leaves by. By the one it came in by it always does (it
/// may be longer only where the kernel has merged segments).
#[inline(always)]
fn fits(ingress: Ingress, ip: &Ip<'_>, row: &BackendRow) -> bool {
    row.ifindex == ingress.ifindex() || ip.length <= row.mtu as usize
}
