//! Address pools: the source addresses and ports that backends see.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::map_types::FlowPool;

use crate::flows::table;

/// The address pools of services, by index of the service. The controller sets the real size of this map when it loads
/// the program.
#[map]
static FLOW_POOLS: Array<FlowPool> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The address pool of a service.
#[inline(always)]
pub(super) fn of_service(service: u16) -> Option<&'static FlowPool> {
    FLOW_POOLS.get(service.into())
}

/// Whether a port (network order) can be in the port range of any address pool.
#[inline(always)]
pub(super) fn has(port: u16) -> bool {
    let port = u32::from(u16::from_be(port));
    table::control().is_some_and(|flows| flows.first_port <= port && port <= flows.last_port)
}
