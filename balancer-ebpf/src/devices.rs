//! Device properties: whether XDP can send a frame from one interface to another, or whether the kernel has to send the
//! frame.

use core::ptr;

use aya_ebpf::{macros::map, maps::HashMap};
use balancer_common::map_types::{
    ANY_DEVICE, BackendRow, DEVICE_CARRIES_TAGS, DEVICE_TAKES_NO_FRAMES, DEVICE_TAKES_NO_PARTS, FORWARDING_ASKS,
    MAX_DEVICES,
};
use network_types::eth::EthHdr;

use crate::{control, ingress::Ingress, parse::Ip};

#[map]
static DEVICES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_DEVICES, 0);

/// Whether the caller must call [`kernel_sends`] for a frame in a single buffer that goes to a backend.
#[inline(always)]
pub(crate) fn must_be_asked(ingress: Ingress, ip: &Ip<'_>, row: &'static BackendRow) -> bool {
    row.forwarding & FORWARDING_ASKS != 0
        && (row.ifindex != ingress.ifindex() || is_tagged(ip))
        && asks(row, ingress.ifindex(), is_tagged(ip)) != 0
}

/// This is a separate function because the path of most packets has too little stack left for the variables of this
/// function.
#[inline(never)]
extern "C" fn asks(row: &'static BackendRow, ingress: u32, is_tagged: bool) -> u64 {
    row.asks(ingress, is_tagged).into()
}

/// Whether the kernel, and not XDP, must send a frame that leaves by `egress`.
#[inline(always)]
pub(crate) fn kernel_sends(ingress: Ingress, ip: &Ip<'_>, egress: u32) -> bool {
    kernel_sends_whole(ip, ingress.ifindex(), egress)
        || ingress.ifindex() != egress
            && ingress.is_in_parts()
            && (has(egress, DEVICE_TAKES_NO_PARTS) || has(ANY_DEVICE, DEVICE_TAKES_NO_PARTS))
}

/// Whether the kernel, and not XDP, must send a frame in a single buffer that arrived by `ingress` and leaves by
/// `egress`.
#[inline(always)]
pub(crate) fn kernel_sends_whole(ip: &Ip<'_>, ingress: u32, egress: u32) -> bool {
    ingress != egress && is(egress, DEVICE_TAKES_NO_FRAMES) || is_tagged(ip) && is(ingress, DEVICE_CARRIES_TAGS)
}

#[inline(always)]
fn is_tagged(ip: &Ip<'_>) -> bool {
    ip.l3_offset > EthHdr::LEN
}

#[inline(always)]
fn is(ifindex: u32, flag: u32) -> bool {
    let Some(control) = control::words() else { return false };
    // SAFETY: a Rust reference is always valid for reads.
    let some = unsafe { ptr::read_volatile(&raw const control.devices) };
    some >> (ifindex & 63) & 1 != 0 && has(ifindex, flag)
}

#[inline(always)]
fn has(ifindex: u32, flag: u32) -> bool {
    // SAFETY: the pointer points to a map value of one word.
    DEVICES.get_ptr(ifindex).is_some_and(|flags| unsafe { flags.read_volatile() } & flag != 0)
}
