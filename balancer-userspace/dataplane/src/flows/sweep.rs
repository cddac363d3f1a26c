//! The sweep of the flow table, which counts the flows of each backend and removes flows that have ended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem::offset_of,
    net::SocketAddr,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use balancer_common::{
    flows::{FLOW_RESTS, FLOW_TAKEN, FlowWord, IdleTicks, Phase, ReturnWord, TICK_SHIFT, seconds},
    map_types::{FAMILY_V4, FLOWS_PER_LINE, FlowPool, FlowRow, MAX_POOL},
};
use balancer_config::config::Protocol;
use balancer_control::io::{BackendId, FlowSpec, PortsInUse, ServiceId};
use nix::time::{ClockId, clock_gettime};

use super::{FlowTable, address, idle_ticks, with};

/// The result of a sweep of the flow table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowCounts {
    /// The number of connections of each backend that has connections. This number does not include closed connections
    /// that are still in the table.
    pub of_backends: BTreeMap<BackendId, u64>,
    /// The number of rows in use, for connections or for ports that are not free yet.
    pub entries: u64,
    /// The ports that the connections of each backend hold.
    pub ports: BTreeMap<BackendId, PortsInUse>,
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
    pub backend: BackendId,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits(pub(super) Arc<FlowPool>);

impl Limits {
    /// The number of ports of all addresses of the pool for backends of this family.
    fn ports(&self, family: u8) -> u32 {
        let Self(pool) = self;
        let addresses = u32::from(pool.count[usize::from(family != FAMILY_V4)]).max(1);
        addresses * (u32::from(pool.last_port.saturating_sub(pool.first_port)) + 1)
    }

    /// Whether the pool has the address and port of a flow. A pool without addresses has this machine's address towards
    /// the backend.
    fn gives(&self, row: &FlowRow) -> bool {
        let Self(pool) = self;
        let (family, port) = (usize::from(row.backend_family() != FAMILY_V4), u16::from_be(row.pool_port));
        let addresses = &pool.addresses[family][..usize::from(pool.count[family]).min(MAX_POOL)];
        (pool.first_port..=pool.last_port).contains(&port) && (addresses.is_empty() || addresses.contains(&row.pool))
    }
}

impl FlowTimes {
    pub(super) fn add(&mut self, service: ServiceId, limits: Limits) {
        self.0.insert(service, limits);
    }

    fn of_row(&self, row: &FlowRow) -> IdleTicks {
        let known = self.0.get(&ServiceId(row.service)).map(|limits| limits.0.idle);
        // A removed service has no limits, so its remaining flows end after the default idle times.
        known.unwrap_or_else(|| idle_ticks(&FlowSpec::default()))
    }
}

/// The address and port of a server for whose connections ports of a pool are taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Server {
    address: [u32; 4],
    port: u16,
    protocol: u8,
    family: u8,
}

/// The ports of pools' addresses that are taken. Connections to one address and port of a server share the ports of an
/// address, whichever service and family they are of.
#[derive(Default)]
struct Taken(HashMap<(Server, [u32; 4]), TakenOfAddress>);

/// The number of an address's ports that are taken, and the backends whose connections take them.
type TakenOfAddress = (u32, BTreeSet<(BackendId, ServiceId)>);

impl Taken {
    fn add(&mut self, row: &FlowRow) {
        let server = Server {
            address: row.backend,
            port: row.backend_port,
            protocol: row.protocol,
            family: row.backend_family(),
        };
        let (taken, by) = self.0.entry((server, row.pool)).or_default();
        *taken += 1;
        by.insert((BackendId(row.backend_id), ServiceId(row.service)));
    }

    /// The ports that each backend's connections hold.
    fn by_backend(self, times: &FlowTimes) -> BTreeMap<BackendId, PortsInUse> {
        let mut of_servers: HashMap<(BackendId, ServiceId, Server), u32> = HashMap::new();
        for ((server, _), (taken, by)) in self.0 {
            for (backend, service) in by {
                *of_servers.entry((backend, service, server)).or_default() += taken;
            }
        }
        let mut ports = BTreeMap::<BackendId, PortsInUse>::new();
        for ((backend, service, server), taken) in of_servers {
            let Some(limits) = times.0.get(&service) else { continue };
            let of_server = PortsInUse { taken, all: limits.ports(server.family) };
            let most = ports.entry(backend).or_insert(of_server);
            if most.by_part(&of_server).is_lt() {
                *most = of_server;
            }
        }
        ports
    }
}

impl FlowTable {
    /// Sweeps all flows: removes the flows that have ended, and counts the other flows. A sweep takes about 2 ms for
    /// 100,000 rows.
    #[must_use]
    pub fn sweep(&self) -> FlowCounts {
        let (now, times) = (now(), self.times());
        let mut counts = FlowCounts::default();
        let mut taken = Taken::default();
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
            self.repair_held(index, seen, &row);
            counts.entries += 1;
            let backend = BackendId(row.backend_id);
            if seen.counts(now, &idle) {
                *counts.of_backends.entry(backend).or_default() += 1;
            }
            if !seen.gives_way(now, &idle) && times.0.get(&ServiceId(row.service)).is_some_and(|of| of.gives(&row)) {
                taken.add(&row);
            }
        }
        counts.ports = taken.by_backend(&times);
        counts
    }

    /// The ports of all flows, from the lowest to the highest; `None`: there are no flows.
    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        let rows = 0..self.lines.len() * FLOWS_PER_LINE as usize;
        let taken = rows.filter(|&index| FlowWord(self.word(index).load(Ordering::Acquire)) != FlowWord::EMPTY);
        taken
            .map(|index| u16::from_be(self.rows.load(index).pool_port))
            .fold(None, |ports, port| Some(with(ports, (port, port))))
    }

    /// Notes whether the flow in a row holds its port, in case the program has not: the program may have opened the flow
    /// before this controller started, and two changes at once may have been noted in the wrong order.
    fn repair_held(&self, index: usize, seen: FlowWord, row: &FlowRow) {
        self.note_held(row, seen.holds());
        let now = FlowWord(self.word(index).load(Ordering::Acquire));
        if now.holds() != seen.holds() && now.tag() == seen.tag() {
            self.note_held(row, now.holds());
        }
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
        if seen.holds() {
            self.note_held(&self.rows.load(index), false);
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
