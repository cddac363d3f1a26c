//! Packets that are not plain TCP or UDP (broken packets, IPv6 extension headers, fragments, ICMP), and packets for
//! services with rules.

use balancer_common::{
    map_types::{CONTROL_FLOWS, CONTROL_RETURNS, Control, FAMILY_V6, LISTENER_QUIC, PortlessMatch, SERVICE_FLOWS},
    service_table::PublishedView,
    verdict::{DecisionIndex, DropReason},
};

use crate::{
    control, found,
    fragments::{self, Way},
    ingress::Ingress,
    martian, opaque,
    parse::{self, DESTINATION_OPTIONS, ICMP, ICMP_V6, Ip, Ports, Stopped, TCP, UDP},
    returns, service,
    share::{self, Treated},
    steer,
    step::{Carries, Choice, FlowPart, Quic, Step, ToBackend, ToClient, Toward},
};

/// The data that every decision about a packet needs.
struct Tables {
    control: &'static Control,
}

impl Tables {
    /// The active half of the listener table. The program reads this value again for each lookup because the stack is
    /// small; the controller does not write to a half that the program may still read.
    #[inline(always)]
    fn listeners(&self) -> PublishedView {
        control::listeners(self.control)
    }
}

/// Decides about a frame that the path of most packets cannot handle.
#[inline(always)]
pub(crate) fn decide(ingress: Ingress) -> Step {
    let bytes = ingress.frame();
    let Some(mut ip) = parse::ip(bytes) else { return Step::PASS };
    let Some(control) = control::words() else { return Step::PASS };
    let tables = Tables { control };
    if !ip.well_formed || !ingress.holds_all(&ip) {
        return malformed(tables.listeners(), &ip);
    }
    match opaque::follow(bytes, &mut ip) {
        Ok(()) => {}
        Err(Stopped::Malformed) => return malformed(tables.listeners(), &ip),
        Err(Stopped::Waypoint) => return Step::PASS,
    }
    let ip = ip.again(ingress.frame());
    found::keep(&ip);
    match ip.protocol {
        TCP | UDP if ip.fragment.is_later() => later_fragment(&tables, &ip),
        DESTINATION_OPTIONS if ip.fragment.is_later() && ip.family == FAMILY_V6 => later_fragment(&tables, &ip),
        TCP | UDP => steered(&tables, &ip),
        ICMP | ICMP_V6 if !ip.fragment.is_part() => Step::ICMP,
        _ => Step::PASS,
    }
}

/// Decides about a malformed packet: the program drops the packet if its destination is a VIP.
#[inline(always)]
pub(crate) fn malformed(listeners: PublishedView, ip: &Ip<'_>) -> Step {
    match service::vip(listeners, ip) {
        Some(marker) => share::refused(marker, DropReason::Malformed),
        None => Step::PASS,
    }
}

/// Decides about a packet that has ports.
#[inline(always)]
fn steered(tables: &Tables, ip: &Ip<'_>) -> Step {
    let Some(ports) = parse::ports(ip) else { return malformed(tables.listeners(), ip) };
    let Some(listener) = service::of_port(tables.control, tables.listeners(), ip, ports.destination()) else {
        return not_for_a_service(tables, ip, ports);
    };
    if listener.service.flags & SERVICE_FLOWS != 0 {
        return Step::FLOW;
    }
    listener.count(ports);
    let treated = Treated::of(listener.service, ip.family, &ip.source);
    // A packet of a connection that is still open at a backend goes to that backend.
    if treated.is_hosts() || treated.has_left() && (ports.opens() || ip.protocol == UDP) {
        if ip.fragment.is_first() {
            fragments::remember(ip, Way::Passed);
        }
        return share::unsteered(listener.service.id);
    }
    if martian::is_source(ip) || ports.may_open() && martian::is_vip(tables.control, ip) {
        return if treated.is_steered() { Step::drop(DropReason::Martian) } else { Step::PASS };
    }
    if listener.listening.flags & LISTENER_QUIC != 0 {
        return Step::to(Quic::of(listener));
    }
    steer::choose_later(
        tables.control,
        listener.service,
        ip,
        ports,
        treated,
        ToBackend::unchosen(Carries::Header, listener.listening.port),
    )
}

#[inline(always)]
fn not_for_a_service(tables: &Tables, ip: &Ip<'_>, ports: Ports) -> Step {
    let replies = tables.control.flags & CONTROL_RETURNS != 0;
    if replies && let Some(row) = returns::find(tables.control, ip, ports.source()) {
        if ip.fragment.is_first() {
            fragments::remember(ip, Way::Client(row.key.port, ip.protocol));
        }
        return to_client(row.key.port, ip.protocol, Carries::Header);
    }
    // The later fragments of this packet must not go to another service with the same address.
    let mistakable = service::vip(tables.listeners(), ip).is_some()
        || replies && returns::portless(tables.control, &ip.source, ip.family, ip.protocol) != PortlessMatch::None;
    if ip.fragment.is_first() && mistakable {
        fragments::remember(ip, Way::Passed);
    }
    if tables.control.flags & CONTROL_FLOWS == 0 { Step::PASS } else { Step::FLOW_BACK }
}

/// Decides about a packet that has no ports. The packet follows its first fragment, or goes to the only service of its
/// address and protocol.
#[inline(always)]
fn later_fragment(tables: &Tables, ip: &Ip<'_>) -> Step {
    match fragments::recall(ip) {
        Some(Way::Passed) => Step::PASS,
        Some(Way::Backend(backend)) => {
            let choice = Choice { backend, decision: DecisionIndex::NONE };
            Step::to(ToBackend { choice, carries: Carries::Nothing, port: 0 })
        }
        Some(Way::Client(port, protocol)) => to_client(port, protocol, Carries::Nothing),
        Some(Way::Flow(flow)) => Step::to(FlowPart { flow, toward: Toward::Backend }),
        Some(Way::FlowBack(flow)) => Step::to(FlowPart { flow, toward: Toward::Client }),
        None => first_not_seen(tables, ip),
    }
}

#[inline(always)]
fn first_not_seen(tables: &Tables, ip: &Ip<'_>) -> Step {
    if let Some(marker) = service::vip(tables.listeners(), ip) {
        if ip.protocol == DESTINATION_OPTIONS {
            return share::refused(marker, DropReason::FragmentUnknown);
        }
        return match marker.portless().find(ip.protocol) {
            PortlessMatch::None => Step::PASS,
            PortlessMatch::Ambiguous => share::refused(marker, DropReason::FragmentUnknown),
            PortlessMatch::Only(port) => {
                let Some(listener) = service::of_port(tables.control, tables.listeners(), ip, port) else {
                    return Step::drop(DropReason::FragmentUnknown);
                };
                if listener.service.flags & SERVICE_FLOWS != 0 {
                    return Step::drop(DropReason::FragmentUnknown);
                }
                if martian::is_source(ip) {
                    return share::refused(marker, DropReason::Martian);
                }
                steer::peek_later(
                    tables.control,
                    listener.service,
                    (ip.family, &ip.source),
                    None,
                    false,
                    ToBackend::unchosen(Carries::Nothing, 0),
                )
            }
        };
    }
    if tables.control.flags & CONTROL_RETURNS == 0 {
        return Step::PASS;
    }
    // A backend also sends packets that are no replies, so the program translates only packets that are clearly
    // replies.
    match returns::portless(tables.control, &ip.source, ip.family, ip.protocol) {
        PortlessMatch::Only(port) => to_client(port, ip.protocol, Carries::Nothing),
        PortlessMatch::None | PortlessMatch::Ambiguous => Step::PASS,
    }
}

#[inline(always)]
fn to_client(port: u16, protocol: u8, carries: Carries) -> Step {
    Step::to(ToClient { port, protocol, carries })
}
