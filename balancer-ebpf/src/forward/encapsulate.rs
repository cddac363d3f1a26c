//! Tunnels for packets that the path of most packets cannot handle.

use balancer_common::verdict::DropReason;

use crate::{
    backends::reachable,
    forward::{
        sent::{Sender, decided, finish_by_any},
        tunnel::{MALFORMED, Tunnel, wrap},
    },
    found::Found,
    step::{Answerable, Encapsulate, IcmpError, Packed, Step},
};

/// Wraps a packet in an outer packet to the backend, and sends the outer packet.
#[inline(always)]
pub(crate) fn to_backend(found: &Found, packed: Packed<Encapsulate>) -> Step {
    match sent(found, packed) {
        Ok(step) => step,
        Err(end) => decided(packed.get().choice, end),
    }
}

#[inline(always)]
fn sent(found: &Found, packed: Packed<Encapsulate>) -> Result<Step, Step> {
    let Found { ingress, ip, .. } = *found;
    let Encapsulate { choice, answerable } = packed.get();
    let backend = reachable(choice.backend).ok_or(Step::drop(DropReason::NoNextHop))?;
    let row = backend.row;
    if ip.ttl() <= 1 {
        return Err(Step::drop(DropReason::TtlExceeded));
    }
    let tunnel = Tunnel::of(backend);
    let mtu = row.mtu.min(u32::from(u16::MAX));
    if ip.length + tunnel.overhead() > mtu as usize {
        return Err(match answerable {
            Answerable::Yes => Step::to(IcmpError::TooBig(mtu.saturating_sub(tunnel.overhead() as u32))),
            Answerable::No => Step::drop(DropReason::TooBig),
        });
    }
    let family = ip.version().ok_or(MALFORMED)?;
    let added = wrap(ingress, &ip, family, row, tunnel)?;
    let sender = if answerable == Answerable::Yes { Sender::Client { added } } else { Sender::Other };
    Ok(finish_by_any(ingress, ingress.frame(), &ip, backend, choice, sender))
}
