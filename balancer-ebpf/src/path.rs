//! The path of most packets: find the service, choose the backend, forward the packet. One branch leads to all other
//! cases, such as services with rules; [`crate::steps`] handles them.

use balancer_common::{
    features::Features,
    map_types::{
        CONTROL_FLOWS, CONTROL_RETURNS, Control, LISTENER_QUIC, SERVICE_FLOWS, SERVICE_LOCAL, SERVICE_QUIC,
        SERVICE_RULES, SERVICE_SHARED,
    },
    verdict::DropReason,
};

use crate::{
    backends, control, features, flows, forward, found,
    ingress::Ingress,
    local_mac, martian, opaque,
    packet::Packet,
    parse::{self, Ip, Ports},
    returns, rules, service, signs, steer,
    step::{Carries, Quic, Step, ToClient},
    steps,
};

/// The features of services whose packets need more than the plain path.
const APART: Features =
    Features::RULES.and(Features::SHARE).and(Features::SNAT).and(Features::LOCAL).and(Features::QUIC);

/// Decides about a frame, and rewrites the frame if the program forwards it.
#[inline(always)]
pub fn process(ingress: Ingress) -> Step {
    let frame = ingress.frame();
    if !local_mac::is_ours(ingress, frame) {
        return Step::PASS;
    }
    let step = plain(ingress, frame);
    // In this branch, the compiler knows that the result is a constant.
    if step == Step::TX {
        return Step::TX;
    }
    if step.is_last() {
        return step;
    }
    if step != Step::RARE {
        found::keep_plain(ingress);
    }
    steps::take(ingress, step)
}

#[inline(always)]
fn plain(ingress: Ingress, frame: Packet<'static>) -> Step {
    let plain = parse::with_plain_ip(
        frame,
        opaque::offset,
        #[inline(always)]
        |ip| if features::family(ip.family) { packet(ingress, frame, &ip) } else { Step::PASS },
        Step::RARE,
    );
    plain.unwrap_or(Step::PASS)
}

#[inline(always)]
fn packet(ingress: Ingress, frame: Packet<'_>, ip: &Ip<'_>) -> Step {
    let Some(ports) = parse::ports(ip) else { return Step::RARE };
    let Some(control) = control::words() else { return Step::PASS };
    let Some(listener) = service::of_port(control, control::listeners(control), ip, ports.destination()) else {
        return if is_whole(ip) { not_for_a_service(control, ingress, ip, ports) } else { Step::RARE };
    };
    // If this test came earlier, the function would need more stack than Linux 6.1 allows.
    if !is_whole(ip) {
        return Step::RARE;
    }
    let service = listener.service;
    if service.flags & (SERVICE_RULES | SERVICE_SHARED | SERVICE_FLOWS | SERVICE_LOCAL | SERVICE_QUIC) != 0
        && features::any(APART)
    {
        let is_quic = features::uses(Features::QUIC) && listener.listening.flags & LISTENER_QUIC != 0;
        if features::uses(Features::SNAT) && service.flags & SERVICE_FLOWS != 0 && !is_quic {
            return flows::path::to_backend(ingress, ip, listener);
        }
        if rules::may_concern(service, ip.family, &ip.source) {
            return Step::PORTED;
        }
        if is_quic {
            listener.count(ports);
            return Step::to(Quic::unchecked(listener));
        }
    }
    listener.count(ports);
    if martian::is_source(ip) || ports.may_open() && martian::is_vip(control, ip) {
        return Step::drop(DropReason::Martian);
    }
    match steer::choose(control, service, ip, ports) {
        Ok(choice) => {
            if signs::watches(control, ports) {
                signs::watch(ip, ports, choice.backend);
            }
            match backends::reachable(choice.backend) {
                Some(backend) => forward::to_backend(ingress, frame, ip, choice, backend, listener.listening.port),
                None => steer::unreachable(service, choice),
            }
        }
        Err(reason) => steer::nobody(service, reason),
    }
}

/// Whether the packet is unfragmented and its frame is in one buffer. Frames in several buffers are few and large, and
/// some interfaces do not accept them, so the steps for rare packets send these frames.
#[inline(always)]
fn is_whole(ip: &Ip<'_>) -> bool {
    ip.header.holds(ip.length)
}

#[inline(always)]
fn not_for_a_service(control: &'static Control, ingress: Ingress, ip: &Ip<'_>, ports: Ports) -> Step {
    if !features::any(Features::NAT.and(Features::SNAT)) {
        return Step::PASS;
    }
    if control.flags & (CONTROL_RETURNS | CONTROL_FLOWS) != CONTROL_RETURNS {
        if !features::uses(Features::SNAT) || control.flags & CONTROL_FLOWS == 0 {
            return Step::PASS;
        }
        let step = flows::path::to_client(ingress, ip);
        if step != Step::PASS || control.flags & CONTROL_RETURNS == 0 {
            return step;
        }
    }
    if !features::uses(Features::NAT) {
        return Step::PASS;
    }
    let Some(row) = returns::find(control, ip, ports.source()) else {
        return if ports.may_open() { Step::unserved() } else { Step::PASS };
    };
    let step = Step::to(ToClient { port: row.key.port, protocol: ip.protocol, carries: Carries::Header });
    // The program may have to withhold a reset, so a reset takes the longer path.
    if ports.resets() { step } else { forward::nat::to_client_again(ingress, ip, row, step) }
}
