//! Address pools: the source addresses and ports that backends see.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::map_types::{FAMILY_V4, FlowPool, FlowRow, MAX_POOL};

use crate::{
    backends,
    flows::{compare::differ, table},
};

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

/// Whether the pool has the address and port of a flow.
#[inline(always)]
pub(super) fn gives(pool: &FlowPool, row: &FlowRow) -> bool {
    let port = u16::from_be(row.pool_port);
    if port < pool.first_port || port > pool.last_port {
        return false;
    }
    let family = usize::from(row.backend_family() != FAMILY_V4);
    let (count, index) = (pool.count[family & 1], usize::from(row.pool_index));
    if count == 0 {
        return backends::reachable(row.backend_id).is_some_and(|to| differ(&row.pool, &to.row.tunnel_source) == 0);
    }
    index < usize::from(count) && differ(&row.pool, &pool.addresses[family & 1][index & (MAX_POOL - 1)]) == 0
}
