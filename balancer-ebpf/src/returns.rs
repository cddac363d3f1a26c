//! Which `nat` backend sent a packet.

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    map_types::{CONTROL_RETURN_WILDCARD, Control, ReturnRow, ServiceKey},
    service_table::TableView,
};

use crate::{parse::Ip, probe};

/// Two halves, one of them active. The controller sets the real size when it loads the program.
#[map]
static RETURNS: Array<ReturnRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The way back of a packet from `ip`'s source and `port`, if that is a `nat` backend.
#[inline(always)]
pub(crate) fn find(control: &'static Control, ip: &Ip<'_>, port: u16) -> Option<&'static ReturnRow> {
    // SAFETY: a reference is valid for reads. Read once: the controller makes the other half active with one store.
    let view = TableView::from_word(unsafe { ptr::read_volatile(&raw const control.returns) });
    let key = ServiceKey { address: ip.source, port, protocol: ip.protocol, family: ip.family };
    if let Some(row) = probe::find(&RETURNS, view, &key) {
        return Some(row);
    }
    if control.flags & CONTROL_RETURN_WILDCARD == 0 {
        return None;
    }
    probe::find(&RETURNS, view, &ServiceKey { port: 0, ..key })
}
