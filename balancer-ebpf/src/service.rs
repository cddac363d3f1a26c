//! Which service owns a packet.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    map_types::{CONTROL_PORT_WILDCARD, Control, ServiceKey, ServiceRow},
    service_table::TableView,
};

use crate::{parse::Ip, probe::find};

/// Two halves, one of them active. The controller sets the real size when it loads the program.
#[map]
static SERVICES: Array<ServiceRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The service of `ip`'s destination and `port`, an exact one before one for every port.
#[inline(always)]
pub(crate) fn of_port(
    control: &'static Control,
    view: TableView,
    ip: &Ip<'_>,
    port: u16,
) -> Option<&'static ServiceRow> {
    of_key(control, view, &ServiceKey { address: ip.destination, port, protocol: ip.protocol, family: ip.family })
}

/// The service of `key`, an exact one before one for every port.
#[inline(always)]
pub(crate) fn of_key(control: &'static Control, view: TableView, key: &ServiceKey) -> Option<&'static ServiceRow> {
    if let Some(row) = find(&SERVICES, view, key) {
        return Some(row);
    }
    if control.flags & CONTROL_PORT_WILDCARD == 0 {
        return None;
    }
    find(&SERVICES, view, &ServiceKey { port: 0, ..*key })
}

/// The marker of `ip`'s destination, if that is the address of a service.
#[inline(always)]
pub(crate) fn vip(view: TableView, ip: &Ip<'_>) -> Option<&'static ServiceRow> {
    marker(view, &ServiceKey { address: ip.destination, port: 0, protocol: 0, family: ip.family })
}

/// The marker of a VIP, if `key`, which is a marker's, has one.
#[inline(always)]
pub(crate) fn marker(view: TableView, key: &ServiceKey) -> Option<&'static ServiceRow> {
    find(&SERVICES, view, key)
}
