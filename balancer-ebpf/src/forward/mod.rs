//! Sends packets to their backends, and `nat` replies to their clients.

mod dsr;
pub(crate) mod encapsulate;
mod local;
pub(crate) mod mark;
pub(crate) mod nat;
pub(crate) mod neighbour;
mod next_hop_cache;
pub mod rewrite;
mod sent;
pub(crate) mod sockets;
pub(crate) mod tunnel;
mod waiting;

use balancer_common::{
    features::Features,
    map_types::{BackendRow, Forwarding},
    verdict::DropReason,
};

use crate::{
    backends::{Reachable, reachable},
    devices, features,
    found::Found,
    fragments::{self, Way},
    ingress::Ingress,
    packet::Packet,
    parse::Ip,
    signs,
    step::{Answerable, Carries, Choice, Encapsulate, ErrorToBackend, IcmpError, Packed, Step, ToBackend, Watch},
};
pub(crate) use local::is_from_peer;
pub(crate) use sent::decided;
use sent::{Sender, finish, finish_by_any, no_next_hop};

/// The features whose packets to backends get another destination address.
const TRANSLATES: Features = Features::NAT.and(Features::SNAT);

/// Drops a packet whose backend has no next hop.
#[inline(always)]
pub(crate) fn no_way_to(choice: Choice) -> Step {
    decided(choice, no_next_hop(choice))
}

/// Rewrites a whole packet for its backend and sends it. `port` is the backend's port for the packet's listener
/// (network order); 0: the packet keeps its own port.
#[inline(always)]
pub(crate) fn to_backend(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    choice: Choice,
    backend: Reachable,
    port: u16,
) -> Step {
    match rewritten(ingress, frame, ip, choice, backend, port) {
        Ok(step) => step,
        Err(end) => decided(choice, end),
    }
}

#[inline(always)]
fn rewritten(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    choice: Choice,
    backend: Reachable,
    port: u16,
) -> Result<Step, Step> {
    let row = backend.row;
    let carries = Carries::Header;
    let added = if !is_tunnel(row) {
        if row.forwarding > Forwarding::Nat as u8 && devices::must_be_asked(ingress, ip, row) {
            return Ok(Step::to(ToBackend { choice, carries, port }));
        }
        write(ingress, frame, ip, carries, backend, port)?;
        0
    } else if !features::uses(Features::TUNNEL) {
        return Err(no_next_hop(choice));
    } else {
        match tunnel::wrap_plain(ingress, &ip.again(ingress.frame()), backend) {
            Some(wrapped) => wrapped?,
            None => return Ok(Step::to(Encapsulate { choice, answerable: Answerable::Yes })),
        }
    };
    Ok(finish(ingress, ip, backend, choice, Sender::Client { added }))
}

/// Rewrites a packet for a backend that is reached without a tunnel.
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
    let is_dsr = row.mode() == Forwarding::Dsr as u8;
    let written = if is_dsr {
        dsr::to_backend(frame, ip, row)
    } else if features::any(TRANSLATES) {
        nat::to_backend(frame, ip, carries, backend, port)
    } else {
        Err(DropReason::NoNextHop)
    };
    written.map_err(Step::drop)
}

#[inline(always)]
fn is_tunnel(row: &BackendRow) -> bool {
    row.mode() > Forwarding::Snat as u8
}

/// Like [`to_backend`], for a packet whose layer-4 header may be anywhere and which the kernel may have to send. Stores
/// the destination of a first fragment, so that later fragments follow it.
#[inline(always)]
pub(crate) fn any_to_backend(found: &Found, packed: Packed<ToBackend>) -> Step {
    if found.ip.fragment.is_first() {
        fragments::remember(&found.ip, Way::Backend(packed.get().choice.backend));
    }
    if packed.get().carries == Carries::Header {
        signs::watch_any(found, packed.get().choice.backend);
    }
    match sent_by_any(found, packed) {
        Ok(step) => step,
        Err(end) => decided(packed.get().choice, end),
    }
}

#[inline(always)]
fn sent_by_any(found: &Found, packed: Packed<ToBackend>) -> Result<Step, Step> {
    let Found { ingress, frame, ip } = found;
    let choice = || packed.get().choice;
    let backend = reachable(choice().backend).ok_or_else(|| no_next_hop(choice()))?;
    if features::uses(Features::LOCAL) && backend.row.is_local() {
        return local::pass(found, backend, choice(), packed.get().carries, packed.get().port);
    }
    if is_tunnel(backend.row) {
        return Ok(Step::to(Encapsulate { choice: choice(), answerable: Answerable::Yes }));
    }
    if features::uses(Features::LOCAL)
        && backend.row.mode() == Forwarding::Dsr as u8
        && let Some(step) = local::from_peer(found, backend, choice())
    {
        return Ok(step);
    }
    write(*ingress, *frame, ip, packed.get().carries, backend, packed.get().port)?;
    Ok(finish_by_any(*ingress, *frame, ip, backend, choice(), Sender::Client { added: 0 }))
}

/// Sends an ICMP error about a packet from a VIP to the backend that sent this packet.
#[inline(always)]
pub(crate) fn error_to_backend(found: &Found, packed: Packed<ErrorToBackend>) -> Step {
    let Found { ingress, frame, ip } = found;
    let ErrorToBackend { choice, port } = packed.get();
    let Some(inner) = found.quoted() else { return Step::PASS };
    let Some(backend) = reachable(choice.backend) else { return no_next_hop(choice) };
    let row = backend.row;
    if is_tunnel(row) {
        return Step::to(Encapsulate { choice, answerable: Answerable::No });
    }
    let is_dsr = row.mode() == Forwarding::Dsr as u8;
    let is_local = features::uses(Features::LOCAL) && row.is_local();
    if is_dsr && is_local {
        return local::passed(found, backend, choice, Sender::Other);
    }
    if !fits(*ingress, ip, row) {
        return Step::drop(DropReason::TooBig);
    }
    let written = if features::uses(Features::DSR) && is_dsr {
        dsr::to_backend(*frame, ip, row)
    } else if features::any(TRANSLATES) && !is_dsr {
        nat::error_to_backend(*frame, ip, &inner, backend, port)
    } else {
        Err(DropReason::NoNextHop)
    };
    if let Err(reason) = written {
        return Step::drop(reason);
    }
    if is_local {
        return local::passed(found, backend, choice, Sender::Other);
    }
    finish_by_any(*ingress, *frame, ip, backend, choice, Sender::Other)
}

/// Counts a flow's packet before the program rewrites it, so that a sample shows the client's address.
#[inline(always)]
pub(crate) fn finish_flow(ingress: Ingress, ip: &Ip<'_>, backend: Reachable, choice: Choice) -> Step {
    finish(ingress, ip, backend, choice, Sender::Client { added: 0 })
}

/// Finishes a flow's packet whose IP header and ports have been rewritten.
#[inline(always)]
pub(crate) fn hand_flow(found: &Found, backend: Reachable, choice: Choice, step: Step) -> Step {
    match rewrite::macs_to(found.frame, backend.row) {
        Some(()) => sent::by_kernel_perhaps(found.ingress, found.frame, &found.ip, backend, choice, step),
        None => Step::drop(DropReason::Malformed),
    }
}

/// Finishes an ICMP error about a flow's packet.
#[inline(always)]
pub(crate) fn send_error(found: &Found, backend: Reachable, choice: Choice) -> Step {
    hand_flow(found, backend, choice, count_error(found, backend, choice))
}

/// Counts an ICMP error about a flow's packet for the flow's backend, and returns the step that sends the error.
#[inline(always)]
pub(crate) fn count_error(found: &Found, backend: Reachable, choice: Choice) -> Step {
    finish(found.ingress, &found.ip, backend, choice, Sender::Other)
}

/// Passes a packet to the host in a service that is only watched, and counts the packet as if the program had forwarded
/// it to its backend.
#[inline(always)]
pub(crate) fn watch(found: &Found, packed: Packed<Watch>) -> Step {
    let Found { ingress, ip, .. } = found;
    let Watch { choice } = packed.get();
    if ip.fragment.is_first() {
        fragments::remember(ip, Way::Passed);
    }
    match reachable(choice.backend) {
        Some(backend) => sent::count(*ingress, ip, backend, choice, Sender::Client { added: 0 }),
        None => return decided(choice, Step::PASS),
    }
    Step::PASS
}

/// Whether a packet that does not change its length fits the MTU of the egress interface. A packet always fits the
/// interface by which it arrived, unless the interface has merged segments into a longer packet.
#[inline(always)]
pub(crate) fn fits(ingress: Ingress, ip: &Ip<'_>, row: &BackendRow) -> bool {
    row.ifindex == ingress.ifindex() || ip.length <= row.mtu as usize
}
