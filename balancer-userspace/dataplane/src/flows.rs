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
    flows::{FlowWord, IdleTicks, held, ticks},
    map_types::{
        FLOWS_PER_LINE, FlowControl, FlowLine, FlowPool, FlowReturns, FlowRow, Forwarding, HeldLine, MAX_POOL,
    },
};
use balancer_control::io::{BackendId, FlowSpec, ServiceSpec};
use bytemuck::Zeroable as _;

pub(super) use self::former::FormerFlows;
pub use self::sweep::{FlowCounts, KnownFlow};
use self::sweep::{FlowTimes, Limits};
use super::{capacity::Capacity, mapped::MappedArray, mirrored::Mirrored, object::take, rows::address_words};

/// The names of the pinned maps for flows.
const FLOW_MAPS: [&str; 3] = ["FLOW_LINES", "FLOWS", "FLOW_RETURNS"];

pub(super) struct FlowMaps {
    pub(super) pools: Mirrored<FlowPool>,
    /// The interfaces by which backends' replies may arrive, by backend id.
    ways: MappedArray<u64>,
    control: MappedArray<FlowControl>,
    /// The ports of all pools until now, from the lowest to the highest, and those of connections that were in the table
    /// when the first pools were published; `None`: no pools were published.
    ports: Option<Option<(u16, u16)>>,
    table: Arc<FlowTable>,
}

/// The table of flows, which other threads also read.
pub struct FlowTable {
    lines: MappedArray<FlowLine>,
    rows: MappedArray<FlowRow>,
    returns: MappedArray<FlowReturns>,
    held: MappedArray<HeldLine>,
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
            held: MappedArray::new(take(ebpf, "FLOW_HELD")?)?,
            capacity: capacity.flows,
            times: RwLock::default(),
        };
        let pools = Mirrored::new(MappedArray::new(take(ebpf, "FLOW_POOLS")?)?);
        let ways = MappedArray::new(take(ebpf, "FLOW_WAYS")?)?;
        let mut control = MappedArray::new(take(ebpf, "FLOW_CONTROL")?)?;
        let first = FlowControl {
            first_port: u32::MAX,
            last_port: 0,
            lines: u32::try_from(table.lines.len()).unwrap_or(u32::MAX),
            returns: u32::try_from(table.returns.len()).unwrap_or(u32::MAX),
            held_blocks: table.held_blocks(),
            ..FlowControl::zeroed()
        };
        control.store(0, first);
        Ok(Self { pools, ways, control, ports: None, table: Arc::new(table) })
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
        let (mut times, mut ports) = (FlowTimes::default(), self.ports.unwrap_or_else(|| self.table.ports()));
        for spec in &snat {
            let pool = pool(&spec.flows)?;
            ports = Some(with(ports, (pool.first_port, pool.last_port)));
            all.idle = longest(all.idle, pool.idle);
            let index = usize::from(spec.id.0);
            anyhow::ensure!(index < self.pools.len(), "no room for the addresses of service {index}");
            self.write_pool(index, &pool);
            times.add(spec.id, Limits(Arc::new(pool)));
        }
        // Connections keep their ports, also those that no pool has any more.
        self.ports = Some(ports);
        if let Some((first, last)) = ports.filter(|_| !snat.is_empty()) {
            (all.first_port, all.last_port) = (first.into(), last.into());
        }
        self.write_control(&all);
        *self.table.times.write().unwrap_or_else(PoisonError::into_inner) = times;
        Ok(!snat.is_empty())
    }

    /// Sets the interfaces by which replies of a backend may arrive: see
    /// [`ReturnRow::interfaces`](balancer_common::map_types::ReturnRow::interfaces).
    pub(super) fn set_ways_in(&self, backend: BackendId, interfaces: u64) {
        if let Some(word) = self.ways.words().get(usize::from(backend.0)) {
            word.store(interfaces, Ordering::Release);
        }
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
            self.pools.store64(index, place, word);
        }
    }

    fn write_control(&self, all: &FlowControl) {
        let put = |offset, value| self.control.word32(0, offset).store(value, Ordering::Release);
        let idle = offset_of!(FlowControl, idle);
        put(idle + offset_of!(IdleTicks, tcp), all.idle.tcp);
        put(idle + offset_of!(IdleTicks, udp), all.idle.udp);
        put(idle + offset_of!(IdleTicks, udp_once), all.idle.udp_once);
        put(idle + offset_of!(IdleTicks, half_open), all.idle.half_open);
        put(idle + offset_of!(IdleTicks, closing), all.idle.closing);
        put(offset_of!(FlowControl, first_port), all.first_port);
        put(offset_of!(FlowControl, last_port), all.last_port);
    }
}

/// The smallest range that contains both ranges of ports.
fn with(ports: Option<(u16, u16)>, (first, last): (u16, u16)) -> (u16, u16) {
    ports.map_or((first, last), |(least, most)| (least.min(first), most.max(last)))
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
        udp_once: ticks(spec.idle.udp_once.min(spec.idle.udp)),
        half_open: ticks(spec.idle.half_open),
        closing: ticks(spec.idle.closing),
    }
}

fn longest(one: IdleTicks, other: IdleTicks) -> IdleTicks {
    IdleTicks {
        tcp: one.tcp.max(other.tcp),
        udp: one.udp.max(other.udp),
        udp_once: one.udp_once.max(other.udp_once),
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

    /// The number of blocks that say which ports open connections hold.
    fn held_blocks(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX) / held::LINES_PER_BLOCK
    }

    /// Notes whether the flow with this row holds its port.
    fn note_held(&self, row: &FlowRow, holds: bool) {
        let block = held::block(row.backend_id, row.pool_index.into(), self.held_blocks());
        let held::Bit { line, word, mask } = held::bit(block, u16::from_be(row.pool_port));
        let word = self.held.word64(line as usize, word as usize * size_of::<u64>());
        if (word.load(Ordering::Relaxed) & mask != 0) == holds {
            return;
        }
        if holds {
            word.fetch_or(mask, Ordering::AcqRel);
        } else {
            word.fetch_and(!mask, Ordering::AcqRel);
        }
    }

    /// The state word of the flow in a row.
    fn word(&self, row: usize) -> &std::sync::atomic::AtomicU64 {
        let per_line = FLOWS_PER_LINE as usize;
        self.lines.word64(row / per_line, (row % per_line) * size_of::<FlowWord>())
    }
}
