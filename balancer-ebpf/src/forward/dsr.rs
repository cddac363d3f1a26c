//! Direct server return: only the link-layer addresses change.

use balancer_common::{map_types::BackendRow, verdict::DropReason};

use crate::{forward::rewrite, packet::Packet};

#[inline(always)]
pub(crate) fn to_backend(frame: Packet<'_>, row: &BackendRow) -> Result<(), DropReason> {
    rewrite::macs_to(frame, row).ok_or(DropReason::Malformed)
}
