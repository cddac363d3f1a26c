//! The sweep of the flow table, which counts the flows of each backend and removes flows that have ended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem::offset_of,
    net::SocketAddr,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use balancer_common::{
    flows::{FLOW_RESTS, FLOW_TAKEN, FlowWord, IdleTicks, Phase, ReturnWord, TICK_SHIFT, seconds},
    map_types::{FLOWS_PER_LINE, FlowRow},
};
use balancer_config::config::Protocol;
use balancer_control::io::{BackendId, FlowSpec, ServiceId};
use nix::time::{ClockId, clock_gettime};

use super::{FlowTable, address, idle_ticks};

/// The result of a sweep of the flow table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowCounts {
    /// The number of connections of each backend that has connections. This number does not include closed connections
    /// that are still in the table.
    pub of_backends: BTreeMap<BackendId, u64>,
    /// The number of rows in use, for connections or for ports that are not free yet.
    pub entries: u64,
    /// For each backend, the fraction of ports in use at the pool address with the highest fraction. This fraction does
    /// not include the ports of connections that give way to new ones.
    pub fullest: BTreeMap<BackendId, f64>,
}

/// A connection in the flow table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownFlow {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The address and port to which the client connects.
    pub vip: SocketAddr,
    /// The address and port that the backend sees as the packet's source.
    pub pool: SocketAddr,
    /// The backend's address and port.
    pub at: SocketAddr,
    /// The backend of the connection.
    pub backend: BackendId,
    /// The protocol of the connection.
    pub protocol: Protocol,
    /// The state of the connection: `half_open`, `established` or `closing`.
    pub state: &'static str,
    /// The time since the connection began.
    pub age: Duration,
    /// The time since the connection's last packet.
    pub idle: Duration,
    /// The number of bytes of IP packets to the backend.
    pub bytes_to_backend: u64,
    /// The number of bytes of IP packets to the client.
    pub bytes_to_client: u64,
}

/// The current tick of the kernel's clock.
pub(super) fn now() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    (u64::try_from(now.as_nanos()).unwrap_or(u64::MAX) >> TICK_SHIFT) as u32
}

/// The limits for the flows of each service, by the service's index.
#[derive(Clone, Debug, Default)]
pub(super) struct FlowTimes(BTreeMap<ServiceId, Limits>);

/// The limits for the flows of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) idle: IdleTicks,
    /// The number of ports of each pool address.
    pub(super) ports: u32,
}

impl FlowTimes {
    pub(super) fn add(&mut self, service: ServiceId, limits: Limits) {
        self.0.insert(service, limits);
    }

    fn of_row(&self, row: &FlowRow) -> IdleTicks {
        let known = self.0.get(&ServiceId(row.service)).map(|limits| limits.idle);
        // A removed service has no limits, so its remaining flows end after the default idle times.
        known.unwrap_or_else(|| idle_ticks(&FlowSpec::default()))
    }
}

/// An address of a pool, and the server for whose connections the address's ports are taken.
#[derive(PartialEq, Eq, Hash)]
struct Drawn {
    pool: [u32; 4],
    server: [u32; 4],
    port: u16,
    protocol: u8,
}

impl FlowTable {
    /// Sweeps all flows: removes the flows that have ended, and counts the other flows. A sweep takes about 2 ms for
    /// 100,000 rows.
    #[must_use]
    pub fn sweep(&self) -> FlowCounts {
        let (now, times) = (now(), self.times());
        let mut counts = FlowCounts::default();
        // Connections to one address and port of a server share the ports, whichever service and family they are of.
        let mut pools: HashMap<Drawn, (u32, BTreeSet<(BackendId, ServiceId)>)> = HashMap::new();
        for index in 0..self.lines.len() * FLOWS_PER_LINE as usize {
            let word = self.word(index);
            let seen = FlowWord(word.load(Ordering::Acquire));
            if seen == FlowWord::EMPTY {
                continue;
            }
            let row = self.rows.load(index);
            let idle = times.of_row(&row);
            if seen.may_go(now, &idle) && self.give_up(index, seen, now) {
                continue;
            }
            counts.entries += 1;
            let backend = BackendId(row.backend_id);
            if seen.counts(now, &idle) {
                *counts.of_backends.entry(backend).or_default() += 1;
            }
            if seen.gives_way(now, &idle) {
                continue;
            }
            let drawn = Drawn { pool: row.pool, server: row.backend, port: row.backend_port, protocol: row.protocol };
            let (taken, by) = pools.entry(drawn).or_default();
            *taken += 1;
            by.insert((backend, ServiceId(row.service)));
        }
        for (taken, by) in pools.into_values() {
            for (backend, service) in by {
                let Some(limits) = times.0.get(&service) else { continue };
                let fullest = counts.fullest.entry(backend).or_default();
                *fullest = fullest.max(f64::from(taken) / f64::from(limits.ports.max(1)));
            }
        }
        counts
    }

    fn times(&self) -> FlowTimes {
        self.times.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes a flow, as the kernel program does when it needs the row of the flow. `false`: the program has used the
    /// flow for a packet in the meantime.
    pub(super) fn give_up(&self, index: usize, seen: FlowWord, now: u32) -> bool {
        let word = self.word(index);
        let taken = FlowWord::new(!seen.tag(), FLOW_TAKEN | FLOW_RESTS, now);
        if word.compare_exchange(seen.0, taken.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let place = self.rows.word32(index, offset_of!(FlowRow, returns)).load(Ordering::Relaxed) as usize;
        if let Some(way) = self.returns.words().get(place) {
            let there = way.load(Ordering::Relaxed);
            if there != 0 && ReturnWord(there).row() as usize == index {
                let _ours = way.compare_exchange(there, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        word.store(0, Ordering::Release);
        true
    }

    /// At most `most` flows of a service for which `wanted` returns true.
    #[must_use]
    pub fn list(&self, service: ServiceId, wanted: impl Fn(&KnownFlow) -> bool, most: usize) -> Vec<KnownFlow> {
        let (now, times) = (now(), self.times());
        let rows = 0..self.lines.len() * FLOWS_PER_LINE as usize;
        let lives = |index: usize| {
            let seen = FlowWord(self.word(index).load(Ordering::Acquire));
            if seen == FlowWord::EMPTY {
                return None;
            }
            let row = self.rows.load(index);
            (row.service == service.0 && seen.lives(now, &times.of_row(&row))).then(|| known(&row, seen, now))
        };
        rows.filter_map(lives).filter(wanted).take(most).collect()
    }
}

fn known(row: &FlowRow, seen: FlowWord, now: u32) -> KnownFlow {
    let end = |words, family, port: u16| SocketAddr::new(address(words, family), u16::from_be(port));
    let (family, backend_family) = (row.family, row.backend_family());
    KnownFlow {
        client: end(row.client, family, row.client_port),
        vip: end(row.vip, family, row.vip_port),
        pool: end(row.pool, backend_family, row.pool_port),
        at: end(row.backend, backend_family, row.backend_port),
        backend: BackendId(row.backend_id),
        protocol: if row.protocol == Protocol::Udp.number() { Protocol::Udp } else { Protocol::Tcp },
        state: match seen.phase() {
            Phase::HalfOpen => "half_open",
            Phase::Open => "established",
            Phase::Refused | Phase::Closing | Phase::Rests => "closing",
        },
        age: Duration::from_secs(seconds(now.wrapping_sub(row.begun))),
        idle: Duration::from_secs(seconds(seen.age(now))),
        bytes_to_backend: row.bytes_there,
        bytes_to_client: row.bytes_back,
    }
}
