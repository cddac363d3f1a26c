//! Packets for no service whose destination is the own address of a `nat` or `snat` backend on this machine: the sender
//! connects to the backend directly, not through the VIP.

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    direct::Event,
    map_types::{CONTROL_DIRECT, PortlessMatch, ServiceKey},
};

use crate::{
    backends, control, forward,
    forward::sockets::{self, HostSocket},
    found::Found,
    ingress::Ingress,
    own_connections,
    parse::{self, TCP},
    returns,
    step::Step,
};

/// Passes a packet to the host. If the packet may open a connection to a backend that is this machine, the program
/// records the connection, so that the backend's packets keep their source.
#[inline(always)]
pub(crate) fn pass(found: &Found) -> Step {
    if own_connections::may_exist()
        && let Some(event) = event(found)
    {
        own_connections::arrives(found.ingress, event);
    }
    Step::PASS
}

/// A flag of the result of [`balancer_direct_service`].
const LOCAL: u64 = 1 << 16;

/// The id of the service whose backend, which is this machine, has the packet's destination, with the flag [`LOCAL`]; 0:
/// there is no such backend. This is a global function, so that the verifier checks the code after it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_direct_service(context: *mut xdp_md) -> u64 {
    if !own_connections::may_exist() {
        return 0;
    }
    // SAFETY: `event` passes the program's context.
    Found::again(unsafe { Ingress::new(context) }).and_then(|found| service(&found)).unwrap_or(0)
}

#[inline(always)]
fn service(found: &Found) -> Option<u64> {
    let ip = &found.ip;
    let (control, ports) = (control::words()?, parse::ports(ip)?);
    if !ports.may_open() || control.flags & CONTROL_DIRECT == 0 {
        return None;
    }
    let (address, protocol, family) = (ip.destination, ip.protocol, ip.family);
    let row = returns::of_key(control, &ServiceKey { address, port: ports.destination(), protocol, family })?;
    let backend = backends::reachable(row.backend)?;
    backend.row.is_local().then_some(u64::from(backend.service) | LOCAL)
}

#[inline(always)]
fn event(found: &Found) -> Option<Event> {
    let service = balancer_direct_service(found.ingress.context());
    if service & LOCAL == 0 {
        return None;
    }
    let ip = &found.ip;
    let is_segment = ip.protocol == TCP;
    // A peer's balancer has sent the packet of a client to this backend, and the client waits for packets of the VIP.
    // Packets with a backend's address as their source are the peer's own.
    if forward::is_from_peer(found, service as u16)
        && returns::portless(control::words()?, &ip.source, ip.family, ip.protocol) == PortlessMatch::None
    {
        return Some(if is_segment { Event::Segment } else { Event::Datagram });
    }
    if !is_segment {
        return Some(Event::DirectDatagram);
    }
    // The source of the segment may be forged. If a socket has the connection, the connection is older than the segment.
    (sockets::of_host(found.ingress) != HostSocket::Connection).then_some(Event::DirectSegment)
}
