//! Opens a flow for the first packet of a connection.

use balancer_common::{
    map_types::{BACKEND_V6, Control, FAMILY_V4, FAMILY_V6, ServiceRow},
    verdict::DropReason,
};

use crate::{
    backends, control,
    flows::{find, named, place, stamp, table},
    forward::decided,
    found::Found,
    fragments::{self, Way},
    parse::{self, Ip, Ports},
    service,
    share::{self, Treated},
    signs, steer,
    step::{Carries, FlowPort, Going, OpenFlow, Packed, Step, ToBackend},
    words::by_words,
};

/// Chooses the backend of a new flow by the same rules as in services of other modes. If the host serves the client, or
/// if the packet opens no flow, the packet passes to the host.
#[inline(always)]
pub(crate) fn choose(found: &Found) -> Step {
    let ip = &found.ip;
    let Some(control) = control::words() else { return Step::PASS };
    let Some(ports) = parse::ports(ip) else { return Step::drop(DropReason::Malformed) };
    let listeners = control::listeners(control);
    let Some(listener) = service::of_port(control, listeners, ip, ports.destination()) else { return Step::PASS };
    let treated = Treated::of(listener.service, ip.family, &ip.source);
    if share::is_shared(listener.service)
        && let Some(step) = pass(control, listener.service, ip, ports, treated)
    {
        return step;
    }
    let step = OpenFlow::unchosen(listener.listening.port, false);
    steer::choose_later(control, listener.service, ip, ports, treated, step)
}

/// Passes a packet that belongs to no flow to the host, if the host serves the client or has the packet's connection.
#[inline(always)]
fn pass(
    control: &'static Control,
    service: &'static ServiceRow,
    ip: &Ip<'_>,
    ports: Ports,
    treated: Treated,
) -> Option<Step> {
    if treated.is_steered() {
        if find::may_be_served(service, ports) {
            return None;
        }
        if ip.fragment.is_first() {
            fragments::remember(ip, Way::Passed);
        }
        return Some(share::host_connection(service.id));
    }
    if ports.may_open()
        && let Some(ended) = find::find(service, ip, ports)
    {
        // The segments that follow belong to the host's connection.
        ended.rest(table::now());
    }
    // A segment of a client that has left may belong to a connection to this machine as a backend, which has no flow.
    let may_be_local = treated.has_left() && !ports.may_open() && find::may_be_served(service, ports);
    if treated.is_watched() || may_be_local { None } else { Some(steer::pass_unsteered(control, service, ip, ports)) }
}

/// Takes a free row for a new flow to the chosen backend. If this machine itself is the backend, the program translates
/// the packets as in `nat` mode, without a flow.
#[inline(always)]
pub(crate) fn begin(found: &Found, packed: Packed<OpenFlow>) -> Step {
    let OpenFlow { choice, port, .. } = packed.get();
    if backends::reachable(choice.backend).is_some_and(|backend| backend.row.is_local()) {
        return Step::to(ToBackend { choice, carries: Carries::Header, port });
    }
    match begun(found, packed) {
        Ok(flow) => Step::to(FlowPort(Going { flow, decision: packed.get().choice.decision })),
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
        if share::is_shared(service) {
            return Err(share::host_connection(service.id));
        }
        return Err(find::rejected());
    }
    let hash = find::hash(service, &ip.source, &ip.destination, ports.ends(), ip.family, ip.protocol);
    let hash = named::hash(service, hash, packed);
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
    row.numbers = stamp::opening(found.ingress, &ip);
    row.begun = now;
    row.bytes_there = 0;
    row.bytes_back = 0;
    let OpenFlow { choice, port, .. } = packed.get();
    row.backend_id = choice.backend;
    let Some(backend) = backends::reachable(choice.backend) else {
        place::give_up(index);
        return Err(Step::drop(DropReason::NoNextHop));
    };
    row.backend = by_words(&backend.row.address);
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
