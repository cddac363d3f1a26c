//! Network address translation without state: the way there by the backend's row, the way back by the return table.

use balancer_common::{
    map_types::{BACKEND_PORT_CHANGES, BackendRow, ReturnRow},
    verdict::DropReason,
};

use crate::{
    forward::{
        neighbour::{self, Route},
        rewrite::{self, End, Translation},
    },
    outcome::Outcome,
    packet::Packet,
    parse::Ip,
    path::Ingress,
};

#[inline(always)]
pub(crate) fn to_backend(frame: Packet<'_>, ip: &Ip<'_>, row: &BackendRow) -> Result<(), DropReason> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let new = Translation {
        end: End::Destination,
        address: row.address,
        port: (row.flags & BACKEND_PORT_CHANGES != 0).then_some(row.port),
        address_delta: row.address_delta,
        l4_delta: row.l4_delta,
    };
    rewrite::translate(ip, &new)
        .and_then(|()| rewrite::macs(frame, row.destination_mac, row.source_mac))
        .ok_or(DropReason::Malformed)
}

/// Turns a backend's reply into the VIP's and sends it to the client, where the kernel's routes say. A packet for this
/// machine itself (the answer to a health check) passes unchanged, so the way is looked up before anything is written.
#[inline(always)]
pub(crate) fn to_client(ingress: &impl Ingress, frame: Packet<'_>, ip: &Ip<'_>, row: &ReturnRow) -> Outcome {
    let hop = match neighbour::route(ingress, ip, &row.vip) {
        Route::Hop(hop) => hop,
        Route::Local => return Outcome::Pass,
        Route::None(reason) => return Outcome::Drop(reason),
    };
    if ip.ttl <= 1 {
        return Outcome::Drop(DropReason::TtlExceeded);
    }
    let new = Translation {
        end: End::Source,
        address: row.vip,
        port: (row.vip_port != 0).then_some(row.vip_port),
        address_delta: row.address_delta,
        l4_delta: row.l4_delta,
    };
    let written = rewrite::translate(ip, &new).and_then(|()| rewrite::macs(frame, hop.destination_mac, hop.source_mac));
    match written {
        Some(()) => Outcome::send(ingress.ifindex(), hop.ifindex),
        None => Outcome::Drop(DropReason::Malformed),
    }
}
