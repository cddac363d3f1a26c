//! Finds the `nat` backend that sent a packet.

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    map_types::{CONTROL_RETURN_WILDCARD, Control, PortlessMatch, ReturnRow, ServiceKey},
    service_table::PublishedView,
};

use crate::{
    control,
    parse::Ip,
    probe::{self, Keyed},
    service,
};

/// The return table in two halves, one of which is active. The controller sets the real size of the return table when
/// it loads the program.
#[map]
static RETURNS: Array<ReturnRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

impl Keyed for ReturnRow {
    #[inline(always)]
    fn rows() -> &'static Array<Self> {
        &RETURNS
    }

    #[inline(always)]
    fn key(&self) -> &ServiceKey {
        &self.key
    }

    #[inline(always)]
    fn apart(home: u64, low: u64, high: u64, rest: u64) -> u64 {
        balancer_find_return(home, low, high, rest)
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_find_return(home: u64, low: u64, high: u64, rest: u64) -> u64 {
    probe::index_apart::<ReturnRow>(home, low, high, rest)
}

/// The return table's row for a packet from the source of `ip` and `port`, if a `nat` backend has this address and
/// port.
#[inline(always)]
pub(crate) fn find(control: &'static Control, ip: &Ip<'_>, port: u16) -> Option<&'static ReturnRow> {
    of_key(control, &ServiceKey { address: ip.source, port, protocol: ip.protocol, family: ip.family })
}

/// The return table's row for `key`; an exact match takes precedence over a row for every port.
#[inline(always)]
pub(crate) fn of_key(control: &'static Control, key: &ServiceKey) -> Option<&'static ReturnRow> {
    if let Some(row) = exact(control, key) {
        return Some(row);
    }
    if control.flags & CONTROL_RETURN_WILDCARD == 0 {
        return None;
    }
    let row = probe::find_apart::<ReturnRow>(view(control), &ServiceKey { port: 0, ..*key })?;
    // Other ports of this backend belong to services on the backend itself.
    if row.listeners_only != 0
        && service::of_key(control, control::listeners(control), ServiceKey { address: row.vip, ..*key }).is_none()
    {
        return None;
    }
    Some(row)
}

/// The return table's row that matches `key` exactly. If the port in `key` is 0, the result is a row for every port.
#[inline(always)]
pub(crate) fn exact(control: &'static Control, key: &ServiceKey) -> Option<&'static ReturnRow> {
    probe::find(view(control), key)
}

/// The active half of the return table. Each lookup reads the view of the table once, because the controller may
/// activate the other half at any time with one store.
#[inline(always)]
fn view(control: &'static Control) -> PublishedView {
    // SAFETY: a Rust reference is always valid for reads.
    PublishedView(unsafe { ptr::read_volatile(&raw const control.returns) })
}

/// The VIPs that a fragment without ports from the backend's `address` may belong to.
#[inline(always)]
pub(crate) fn portless(control: &'static Control, address: &[u32; 4], family: u8, protocol: u8) -> PortlessMatch {
    let marker = ServiceKey { address: *address, port: 0, protocol: 0, family };
    exact(control, &marker).map_or(PortlessMatch::None, |row| row.portless.find(protocol))
}
