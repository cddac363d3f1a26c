//! Packets that are not plain TCP or UDP (broken packets, IPv6 extension headers, fragments, ICMP), and packets for
//! services with rules.

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    features::Features,
    map_types::{CONTROL_FLOWS, CONTROL_RETURNS, Control, FAMILY_V6, LISTENER_QUIC, PortlessMatch, SERVICE_FLOWS},
    service_table::PublishedView,
    verdict::{DecisionIndex, DropReason},
};

use crate::{
    control, features,
    found::{Found, Unfound},
    fragments::{self, Way},
    ingress::Ingress,
    martian,
    parse::{self, DESTINATION_OPTIONS, ICMP, ICMP_V6, Ip, TCP, UDP},
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
    let Found { ip, .. } = match Found::of(ingress) {
        Ok(found) => found,
        Err(Unfound::Malformed) => return malformed(ingress),
        Err(Unfound::Passes) => return Step::PASS,
    };
    match ip.protocol {
        TCP | UDP if ip.fragment.is_later() => Step::PART,
        DESTINATION_OPTIONS if ip.fragment.is_later() && ip.family == FAMILY_V6 => Step::PART,
        TCP | UDP => Step::PORTED,
        ICMP | ICMP_V6 if !ip.fragment.is_part() => Step::ICMP,
        _ => Step::PASS,
    }
}

/// Decides about a malformed packet: the program drops the packet if its destination is a VIP.
#[inline(always)]
pub(crate) fn malformed(ingress: Ingress) -> Step {
    Step::of_word(balancer_malformed(ingress.context()))
}

/// This is a separate function, so that a malformed header takes no stack in its callers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_malformed(context: *mut xdp_md) -> u64 {
    // SAFETY: `malformed` passes the program's context.
    let frame = unsafe { Ingress::new(context) }.frame();
    let (Some(ip), Some(control)) = (parse::ip(frame), control::words()) else { return Step::PASS.word() };
    match service::vip(control::listeners(control), &ip) {
        Some(marker) => share::refused(marker, DropReason::Malformed).word(),
        None => Step::PASS.word(),
    }
}

/// Decides about a packet that has ports.
#[inline(always)]
pub(crate) fn steered(found: &Found) -> Step {
    let Found { ingress, ip, .. } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let tables = &Tables { control };
    let Some(ports) = parse::ports(ip) else { return malformed(*ingress) };
    let Some(listener) = service::of_port(tables.control, tables.listeners(), ip, ports.destination()) else {
        return Step::UNSERVED;
    };
    let is_quic = features::uses(Features::QUIC) && listener.listening.flags & LISTENER_QUIC != 0;
    if features::uses(Features::SNAT) && listener.service.flags & SERVICE_FLOWS != 0 {
        if !is_quic {
            return Step::FLOW;
        }
        listener.count(ports);
        return Step::to(Quic::unchecked(listener));
    }
    listener.count(ports);
    let treated = Treated::of(listener.service, ip.family, &ip.source);
    // A packet of a connection that is still open at a backend goes to that backend.
    if treated.is_hosts() || treated.has_left() && (ports.opens() || ip.protocol == UDP) {
        return steer::pass_unsteered(tables.control, listener.service, ip, ports);
    }
    if martian::is_source(ip) || ports.may_open() && martian::is_vip(tables.control, ip) {
        return if treated.is_steered() { Step::drop(DropReason::Martian) } else { Step::PASS };
    }
    if is_quic {
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

/// Decides about a packet that has ports and is for no service.
#[inline(always)]
pub(crate) fn not_for_a_service(found: &Found) -> Step {
    let Found { ip, .. } = found;
    let (Some(control), Some(ports)) = (control::words(), parse::ports(ip)) else { return Step::PASS };
    let tables = &Tables { control };
    let replies = features::uses(Features::NAT) && tables.control.flags & CONTROL_RETURNS != 0;
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
    if features::uses(Features::SNAT) && tables.control.flags & CONTROL_FLOWS != 0 {
        Step::FLOW_BACK
    } else {
        Step::unserved()
    }
}

/// Decides about a packet that has no ports. The packet follows its first fragment, or goes to the only service of its
/// address and protocol.
#[inline(always)]
pub(crate) fn later_fragment(found: &Found) -> Step {
    let Found { ip, .. } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let tables = &Tables { control };
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
                    let treated = Treated::of(listener.service, ip.family, &ip.source);
                    return if treated.is_steered() { Step::drop(DropReason::FragmentUnknown) } else { Step::PASS };
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
    if !features::uses(Features::NAT) || tables.control.flags & CONTROL_RETURNS == 0 {
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
