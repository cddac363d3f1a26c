//! ICMP and ICMPv6: errors about flows of services, echo requests to VIPs, and errors that the program sends.

mod echo;
mod errors;
pub(crate) mod too_big;

use balancer_common::{
    features::Features,
    map_types::{CONTROL_FLOWS, CONTROL_RETURNS, FAMILY_V4},
    verdict::DropReason,
};

use crate::{
    control, features,
    found::{self, Found},
    ingress::Ingress,
    parse::{ICMP, ICMP_HEADER_LEN, ICMP_V6},
    rare, service, share,
    step::Step,
};

/// How the program treats an ICMP message.
enum Kind {
    EchoRequest,
    Error,
    Other,
}

/// The errors of RFC 792 are destination unreachable, time exceeded and parameter problem; RFC 4443 adds packet too
/// big.
#[inline(always)]
const fn kind(family: u8, message: u8) -> Kind {
    if family == FAMILY_V4 {
        match message {
            8 => Kind::EchoRequest,
            3 | 11 | 12 => Kind::Error,
            _ => Kind::Other,
        }
    } else {
        match message {
            128 => Kind::EchoRequest,
            1..=4 => Kind::Error,
            _ => Kind::Other,
        }
    }
}

/// Decides about an unfragmented ICMP message.
#[inline(always)]
pub(crate) fn decide(found: &Found) -> Step {
    let Found { ingress, ip, .. } = found;
    let Some(control) = control::words() else { return Step::PASS };
    let listeners = control::listeners(control);
    let expected = if ip.family == FAMILY_V4 { ICMP } else { ICMP_V6 };
    if ip.protocol != expected {
        return Step::PASS;
    }
    let marker = service::vip(listeners, ip);
    let Some([message, _code]) = ip.l4.load::<[u8; 2]>(0).filter(|_| ip.l4_length() >= ICMP_HEADER_LEN) else {
        return marker.map_or(Step::PASS, |marker| share::refused(marker, DropReason::Malformed));
    };
    match kind(ip.family, message) {
        Kind::EchoRequest if marker.is_some_and(|marker| !marker.is_shared()) => echo::answer(ingress.frame(), ip),
        Kind::Error => Step::QUOTE,
        Kind::EchoRequest | Kind::Other => Step::PASS,
    }
}

/// Finds the packet that an ICMP error quotes.
#[inline(always)]
pub(crate) fn find_quoted(ingress: Ingress) -> Step {
    if found::find_quoted(ingress) { Step::QUOTED } else { rare::malformed(ingress) }
}

/// Decides about an ICMP error whose quoted packet has been found.
#[inline(always)]
pub(crate) fn about_quoted(found: &Found) -> Step {
    let (Some(control), Some(inner)) = (control::words(), found.quoted()) else { return Step::PASS };
    let listeners = control::listeners(control);
    match service::vip(listeners, &found.ip) {
        Some(marker) => errors::about_vip(found, &inner, control, listeners, marker),
        None if features::any(Features::NAT.and(Features::SNAT))
            && control.flags & (CONTROL_RETURNS | CONTROL_FLOWS) != 0 =>
        {
            errors::about_translated(found, &inner, control)
        }
        None => Step::PASS,
    }
}
