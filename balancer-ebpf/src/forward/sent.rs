//! The last step of a packet, which counts the packet whether or not the packet reaches its backend.

use balancer_common::{handover::Handed, verdict::DropReason};

use crate::{
    backends::Reachable,
    debug_log::{self, Oddity},
    devices,
    forward::mark,
    ingress::Ingress,
    packet::Packet,
    parse::Ip,
    samples, stats,
    step::{Choice, Step},
};

/// The last step, which is `end`, of a packet that does not reach its chosen backend. The program counts the choice of
/// the backend nevertheless.
#[inline(always)]
pub(crate) fn decided(choice: Choice, end: Step) -> Step {
    stats::count_decided(choice.backend, choice.decision);
    end
}

/// The kind of host that sent a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// The sender is a client; `added` is the number of bytes of outer headers before the client's packet.
    Client { added: usize },
    /// The sender is a router that reports an error about a packet of a backend.
    Other,
}

#[inline(always)]
pub(super) fn finish(ingress: Ingress, ip: &Ip<'_>, backend: Reachable, choice: Choice, sender: Sender) -> Step {
    count(ingress, ip, backend, choice, sender);
    Step::send(ingress.ifindex(), backend.row.ifindex)
}

/// Counts a packet for its backend, and samples the packet if the packet is next in the sampling sequence.
#[inline(always)]
pub(super) fn count(ingress: Ingress, ip: &Ip<'_>, backend: Reachable, choice: Choice, sender: Sender) {
    let bytes = ip.l3_offset + ip.length;
    let due = stats::count_forwarded(choice.backend, bytes, choice.decision);
    if due && let Sender::Client { added } = sender {
        samples::take(ingress, added + ip.l3_offset, ip.family, backend.service, choice.backend, bytes);
    }
}

/// Finishes a packet that the kernel may have to send.
#[inline(always)]
pub(super) fn finish_by_any(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    backend: Reachable,
    choice: Choice,
    sender: Sender,
) -> Step {
    let step = finish(ingress, ip, backend, choice, sender);
    by_kernel_perhaps(ingress, frame, ip, backend, choice, step)
}

/// Returns `step`, or hands the packet to the kernel if only the kernel can send this packet.
#[inline(always)]
pub(super) fn by_kernel_perhaps(
    ingress: Ingress,
    frame: Packet<'_>,
    ip: &Ip<'_>,
    backend: Reachable,
    choice: Choice,
    step: Step,
) -> Step {
    let row = backend.row;
    if !row.asks_of_some() || !devices::kernel_sends(ingress, ip, row.ifindex) {
        return step;
    }
    match mark::put(frame, Handed::Backend(choice.backend)) {
        Some(()) => Step::HANDED,
        None => Step::drop(DropReason::Malformed),
    }
}

#[inline(always)]
pub(super) fn no_next_hop(choice: Choice) -> Step {
    debug_log::tell(Oddity::NoNextHop, u32::from(choice.backend));
    Step::drop(DropReason::NoNextHop)
}
