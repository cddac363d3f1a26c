//! Opens a flow for the first packet of a connection.

use balancer_common::{
    map_types::{BACKEND_V6, FAMILY_V4, FAMILY_V6, LISTENER_QUIC},
    verdict::DropReason,
};

use crate::{
    backends, control,
    flows::{find, place, table},
    forward::decided,
    found::Found,
    parse, service,
    share::Treated,
    signs, steer,
    step::{Carries, FlowPort, Going, OpenFlow, Packed, Quic, Step, ToBackend},
};

/// Chooses the backend of a new flow by the same rules as in services of other modes.
#[inline(always)]
pub(crate) fn choose(found: &Found) -> Step {
    let ip = &found.ip;
    let Some(control) = control::words() else { return Step::PASS };
    let Some(ports) = parse::ports(ip) else { return Step::drop(DropReason::Malformed) };
    let listeners = control::listeners(control);
    let Some(listener) = service::of_port(control, listeners, ip, ports.destination()) else { return Step::PASS };
    let step = OpenFlow::unchosen(listener.listening.port);
    if listener.listening.flags & LISTENER_QUIC != 0 {
        return Step::to(Quic::of(listener));
    }
    steer::choose_later(control, listener.service, ip, ports, Treated::STEERED, step)
}

/// Takes a free row for a new flow to the chosen backend. If this machine itself is the backend, the program translates
/// the packets as in `nat` mode, without a flow.
#[inline(always)]
pub(crate) fn begin(found: &Found, packed: Packed<OpenFlow>) -> Step {
    let OpenFlow { choice, port } = packed.get();
    if backends::reachable(choice.backend).is_some_and(|backend| backend.row.is_local()) {
        return Step::to(ToBackend { choice, carries: Carries::Header, port });
    }
    match begun(found, packed) {
        Ok(row) => Step::to(FlowPort(Going { row, decision: packed.get().choice.decision })),
        Err(end) => decided(packed.get().choice, end),
    }
}

#[inline(always)]
fn begun(found: &Found, packed: Packed<OpenFlow>) -> Result<u32, Step> {
    let ip = &found.ip;
    let control = control::words().ok_or(Step::drop(DropReason::NoNextHop))?;
    let ports = parse::ports(ip).ok_or(Step::drop(DropReason::Malformed))?;
    let listeners = control::listeners(control);
    let listener = service::of_port(control, listeners, ip, ports.destination());
    let service = listener.ok_or(Step::drop(DropReason::NoNextHop))?.service;
    if !ports.may_open() {
        return Err(steer::nobody(service, DropReason::FlowUnknown));
    }
    let hash = find::hash(service, &ip.source, &ip.destination, ports.ends(), ip.family, ip.protocol);
    let now = table::now();
    let index = place::take(hash, now).map_err(Step::drop)?;
    // The headers are read again, so that they take no stack during the search for a row.
    let Some(Found { ip, .. }) = Found::again(found.ingress) else {
        place::give_up(index);
        return Err(Step::drop(DropReason::Malformed));
    };
    let pointer = table::pointer(index).ok_or(Step::drop(DropReason::FlowTableFull))?;
    // SAFETY: the pointer points to a map value; only this CPU uses the row, because no packet can find the row yet.
    let row = unsafe { &mut *pointer };
    row.client = ip.source;
    row.vip = ip.destination;
    row.client_port = ports.source();
    row.vip_port = ports.destination();
    row.protocol = ip.protocol;
    row.family = ip.family;
    row.service = service.id;
    row.ends = hash;
    row.hash = steer::client_hash(service, ip.family, &ip.source);
    row.begun = now;
    row.bytes_there = 0;
    row.bytes_back = 0;
    let OpenFlow { choice, port } = packed.get();
    row.backend_id = choice.backend;
    let Some(backend) = backends::reachable(choice.backend) else {
        place::give_up(index);
        return Err(Step::drop(DropReason::NoNextHop));
    };
    row.backend = backend.row.address;
    row.crosses = row.family ^ if backend.flags & BACKEND_V6 == 0 { FAMILY_V4 } else { FAMILY_V6 };
    row.backend_port = match (backend.row.port, port) {
        (0, 0) => ports.destination(),
        (0, port) | (port, _) => port,
    };
    if signs::watches(control, ports) {
        signs::watch(&ip, ports, choice.backend);
    }
    Ok(index)
}
