//! Connections of `snat` services: settings for the kernel program, and functions that read its table of connections.

mod former;
mod ports;
mod sweep;

use std::{
    mem::offset_of,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
};

use aya::Ebpf;
use balancer_common::{
    flows::{FlowWord, IdleTicks, ticks},
    map_types::{FLOWS_PER_LINE, FlowControl, FlowLine, FlowPool, FlowReturns, FlowRow, Forwarding, MAX_POOL},
};
use balancer_control::io::{FlowSpec, ServiceSpec};
use bytemuck::Zeroable as _;

pub(super) use self::former::FormerFlows;
pub use self::sweep::{FlowCounts, KnownFlow};
use self::sweep::{FlowTimes, Limits};
use super::{capacity::Capacity, mapped::MappedArray, object::take, rows::address_words};

/// The names of the pinned maps for flows.
const FLOW_MAPS: [&str; 3] = ["FLOW_LINES", "FLOWS", "FLOW_RETURNS"];

/// The maps that contain flows.
pub(super) struct FlowMaps {
    pools: MappedArray<FlowPool>,
    control: MappedArray<FlowControl>,
    table: Arc<FlowTable>,
}

/// The table of flows, which other threads also read.
pub struct FlowTable {
    lines: MappedArray<FlowLine>,
    rows: MappedArray<FlowRow>,
    returns: MappedArray<FlowReturns>,
    /// The number of connections for which the table is sized; 0: there is no table.
    capacity: u32,
    times: RwLock<FlowTimes>,
}

impl FlowMaps {
    pub(super) fn new(ebpf: &mut Ebpf, capacity: &Capacity) -> anyhow::Result<Self> {
        let table = FlowTable {
            lines: MappedArray::new(take(ebpf, "FLOW_LINES")?)?,
            rows: MappedArray::new(take(ebpf, "FLOWS")?)?,
            returns: MappedArray::new(take(ebpf, "FLOW_RETURNS")?)?,
            capacity: capacity.flows,
            times: RwLock::default(),
        };
        let pools = MappedArray::new(take(ebpf, "FLOW_POOLS")?)?;
        let mut control = MappedArray::new(take(ebpf, "FLOW_CONTROL")?)?;
        let first = FlowControl {
            first_port: u32::MAX,
            last_port: 0,
            lines: u32::try_from(table.lines.len()).unwrap_or(u32::MAX),
            returns: u32::try_from(table.returns.len()).unwrap_or(u32::MAX),
            ..FlowControl::zeroed()
        };
        control.store(0, first);
        Ok(Self { pools, control, table: Arc::new(table) })
    }

    pub(super) fn table(&self) -> Arc<FlowTable> {
        Arc::clone(&self.table)
    }

    /// Writes the address pools of these services for the program. Returns whether one of the services is a `snat`
    /// service.
    ///
    /// # Errors
    /// Fails if there is no table for flows, or if no range of ports is available.
    pub(super) fn publish(&mut self, services: &[ServiceSpec]) -> anyhow::Result<bool> {
        let snat: Vec<_> = services.iter().filter(|spec| spec.forwarding == Forwarding::Snat).collect();
        anyhow::ensure!(
            snat.is_empty() || self.table.capacity > 0,
            "there is no table for connections, because no service was snat at the start; a restart makes one"
        );
        let mut all = FlowControl { first_port: u32::MAX, last_port: 0, ..FlowControl::zeroed() };
        let mut times = FlowTimes::default();
        for spec in snat {
            let pool = pool(&spec.flows)?;
            all.first_port = all.first_port.min(pool.first_port.into());
            all.last_port = all.last_port.max(pool.last_port.into());
            all.idle = longest(all.idle, pool.idle);
            let ports = u32::from(pool.last_port - pool.first_port) + 1;
            times.add(spec.id, Limits { idle: pool.idle, ports });
            self.write_pool(usize::from(spec.id.0), &pool);
        }
        self.write_control(&all);
        *self.table.times.write().unwrap_or_else(PoisonError::into_inner) = times;
        Ok(all.last_port > 0)
    }

    /// Writes the pool word by word, because the program reads it at the same time. The function writes the number of
    /// addresses after the addresses.
    fn write_pool(&self, index: usize, pool: &FlowPool) {
        const COUNTS: usize = offset_of!(FlowPool, count);
        let words = bytemuck::bytes_of(pool).chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_ne_bytes(bytes)
        });
        let (counts, others): (Vec<_>, Vec<_>) =
            words.enumerate().map(|(place, word)| (place * 8, word)).partition(|&(place, _)| place == COUNTS);
        for (place, word) in others.into_iter().chain(counts) {
            self.pools.word64(index, place).store(word, Ordering::Release);
        }
    }

    fn write_control(&self, all: &FlowControl) {
        let put = |offset, value| self.control.word32(0, offset).store(value, Ordering::Release);
        let idle = offset_of!(FlowControl, idle);
        put(idle + offset_of!(IdleTicks, tcp), all.idle.tcp);
        put(idle + offset_of!(IdleTicks, udp), all.idle.udp);
        put(idle + offset_of!(IdleTicks, half_open), all.idle.half_open);
        put(idle + offset_of!(IdleTicks, closing), all.idle.closing);
        put(offset_of!(FlowControl, first_port), all.first_port);
        put(offset_of!(FlowControl, last_port), all.last_port);
    }
}

/// Returns the addresses, ports and idle times that the flows of a service may use.
fn pool(spec: &FlowSpec) -> anyhow::Result<FlowPool> {
    let (first_port, last_port) = match spec.ports {
        Some(ports) => ports,
        None => ports::not_given_by_the_kernel()?,
    };
    let mut pool = FlowPool { first_port, last_port, idle: idle_ticks(spec), ..FlowPool::zeroed() };
    for family in 0..2 {
        let of_family = spec.addresses.iter().filter(|address| address.is_ipv6() == (family == 1));
        for (place, &address) in pool.addresses[family].iter_mut().zip(of_family.clone()) {
            *place = address_words(address);
        }
        pool.count[family] = u16::try_from(of_family.count().min(MAX_POOL)).unwrap_or(0);
    }
    Ok(pool)
}

fn idle_ticks(spec: &FlowSpec) -> IdleTicks {
    let ticks = |time: std::time::Duration| ticks(time.as_secs().max(1));
    IdleTicks {
        tcp: ticks(spec.idle.tcp),
        udp: ticks(spec.idle.udp),
        half_open: ticks(spec.idle.half_open),
        closing: ticks(spec.idle.closing),
    }
}

fn longest(one: IdleTicks, other: IdleTicks) -> IdleTicks {
    IdleTicks {
        tcp: one.tcp.max(other.tcp),
        udp: one.udp.max(other.udp),
        half_open: one.half_open.max(other.half_open),
        closing: one.closing.max(other.closing),
    }
}

/// An address from a flow's row of this family.
fn address(words: [u32; 4], family: u8) -> IpAddr {
    if family == balancer_common::map_types::FAMILY_V4 {
        IpAddr::from(words[0].to_ne_bytes())
    } else {
        IpAddr::from(bytemuck::cast::<[u32; 4], [u8; 16]>(words))
    }
}

impl FlowTable {
    /// The number of connections for which the table is sized; 0: there is no table.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The state word of the flow in a row.
    fn word(&self, row: usize) -> &std::sync::atomic::AtomicU64 {
        let per_line = FLOWS_PER_LINE as usize;
        self.lines.word64(row / per_line, (row % per_line) * size_of::<FlowWord>())
    }
}
