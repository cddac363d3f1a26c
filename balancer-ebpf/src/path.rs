//! The path of most packets: service → backend → forward. Everything else, rules among it, is behind one branch, in
//! [`crate::steps`].

use balancer_common::{
    map_types::{CONTROL_RETURNS, Control},
    verdict::DropReason,
};

use crate::{
    control, forward,
    ingress::Ingress,
    martian,
    packet::Packet,
    parse::{self, Fragment, Ip, TCP, UDP},
    returns, rules, service, station, steer,
    step::{Carries, Step, ToClient},
    steps,
};

/// Decides about one frame, and rewrites it where it is forwarded.
#[inline(always)]
pub fn process(ingress: Ingress) -> Step {
    if !station::is_ours(ingress) {
        return Step::PASS;
    }
    let step = plain(ingress);
    if step.is_last() { step } else { steps::take(ingress, step) }
}

#[inline(always)]
fn plain(ingress: Ingress) -> Step {
    let frame = ingress.frame();
    match parse::with_ip(
        frame,
        #[inline(always)]
        |ip| Some(packet(ingress, frame, &ip)),
    ) {
        Some(step) => step,
        None => Step::PASS,
    }
}

#[inline(always)]
fn packet(ingress: Ingress, frame: Packet<'_>, ip: &Ip<'_>) -> Step {
    let plain = (ip.protocol == TCP || ip.protocol == UDP)
        && ip.well_formed
        && !ip.fragment.is_part()
        && ingress.holds_all(frame, ip);
    if !plain {
        return Step::RARE;
    }
    // So that nothing of it need be kept.
    let ip = &Ip { fragment: Fragment::NONE, ..*ip };
    let Some(ports) = parse::ports(ip) else { return Step::RARE };
    let Some(control) = control::words() else { return Step::PASS };
    let Some(listener) = service::of_port(control, control::listeners(control), ip, ports.destination) else {
        return not_for_a_service(control, ingress, ip, ports.source);
    };
    let service = listener.service;
    if rules::may_concern(service, ip.family, &ip.source) {
        return Step::RARE;
    }
    listener.count(ports);
    if martian::is_source(ip) || ports.may_open(ip) && martian::is_vip(control, ip) {
        return Step::drop(DropReason::Martian);
    }
    match steer::choose(control, service, ip, ports) {
        Ok(choice) => forward::to_backend(ingress, frame, ip, Carries::Header, choice, listener.listening.port),
        Err(reason) => steer::nobody(service, reason),
    }
}

#[inline(always)]
fn not_for_a_service(control: &'static Control, ingress: Ingress, ip: &Ip<'_>, source_port: u16) -> Step {
    if control.flags & CONTROL_RETURNS == 0 {
        return Step::PASS;
    }
    let Some(row) = returns::find(control, ip, source_port) else { return Step::PASS };
    let step = Step::to(ToClient { port: row.key.port, protocol: ip.protocol, carries: Carries::Header });
    forward::nat::to_client_again(ingress, ip, row, step)
}
