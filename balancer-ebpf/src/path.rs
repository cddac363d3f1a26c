//! The path of a packet: service → backend → forward, or a `nat` reply on its way back.

use core::ptr;

use balancer_common::{
    map_types::{CONTROL_RETURNS, Control},
    service_table::TableView,
    verdict::DropReason,
};

use crate::{
    control, forward,
    outcome::Outcome,
    packet::Packet,
    parse::{self, Ip, TCP, UDP},
    returns, service, stats, steer,
};

/// What the path needs of the driver's context.
pub trait Ingress {
    /// The interface the packet came in by.
    fn ifindex(&self) -> u32;
    /// Bytes of the whole frame, beyond the linear part that the view holds.
    fn frame_length(&self) -> usize;
    /// The context for helper functions.
    fn context(&self) -> *mut core::ffi::c_void;
}

/// Decides about one frame, and rewrites it where it is forwarded.
#[inline(always)]
pub fn process(ingress: &impl Ingress, frame: Packet<'_>) -> Outcome {
    let Some(ip) = parse::ip(frame) else { return Outcome::Pass };
    let Some(control) = control::words() else { return Outcome::Pass };
    // Read once: the controller makes the other half active with one store to this word.
    // SAFETY: a reference is valid for reads.
    let view = TableView::from_word(unsafe { ptr::read_volatile(&raw const control.services) });

    if ip.protocol != TCP && ip.protocol != UDP {
        return if ip.well_formed { Outcome::Pass } else { malformed(view, &ip) };
    }
    if !ip.well_formed || beyond_frame(ingress, frame, &ip) {
        return malformed(view, &ip);
    }
    if ip.later_fragment {
        return if service::is_vip(view, &ip) { Outcome::Drop(DropReason::FragmentUnknown) } else { Outcome::Pass };
    }
    let Some(ports) = parse::ports(&ip) else { return malformed(view, &ip) };

    let Some(service) = service::of_port(control, view, &ip, ports.destination) else {
        return not_for_a_service(ingress, frame, control, &ip, ports.source);
    };
    let choice = match steer::choose(control, service, &ip, ports) {
        Ok(choice) => choice,
        Err(reason) => return Outcome::Drop(reason),
    };
    let outcome = forward::to_backend(ingress, frame, &ip, choice.backend);
    if let Outcome::Tx | Outcome::Redirect { .. } = outcome {
        stats::count_forwarded(choice.backend, ip.l3_offset + ip.length, choice.decision);
    }
    outcome
}

#[inline(always)]
fn not_for_a_service(
    ingress: &impl Ingress,
    frame: Packet<'_>,
    control: &'static Control,
    ip: &Ip<'_>,
    source_port: u16,
) -> Outcome {
    if control.flags & CONTROL_RETURNS == 0 {
        return Outcome::Pass;
    }
    match returns::find(control, ip, source_port) {
        Some(row) => forward::to_client(ingress, frame, ip, row),
        None => Outcome::Pass,
    }
}

/// Whether the IP header promises more than the frame holds.
#[inline(always)]
fn beyond_frame(ingress: &impl Ingress, frame: Packet<'_>, ip: &Ip<'_>) -> bool {
    let promised = ip.l3_offset + ip.length;
    promised > frame.len() && promised > ingress.frame_length()
}

#[inline(always)]
fn malformed(view: TableView, ip: &Ip<'_>) -> Outcome {
    if service::is_vip(view, ip) { Outcome::Drop(DropReason::Malformed) } else { Outcome::Pass }
}
