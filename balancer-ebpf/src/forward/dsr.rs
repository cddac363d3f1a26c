//! Direct server return. The program changes the link-layer addresses and lowers the TTL by one, so that a packet
//! cannot circulate endlessly between two balancers.

use balancer_common::{map_types::BackendRow, verdict::DropReason};

use crate::{forward::rewrite, packet::Packet, parse::Ip};

#[inline(always)]
pub(crate) fn to_backend(frame: Packet<'_>, ip: &Ip<'_>, row: &BackendRow) -> Result<(), DropReason> {
    rewrite::take_hop(ip)?;
    rewrite::macs_to(frame, row).ok_or(DropReason::Malformed)
}
