//! What the controller has told the kernel program, and what the kernel program remembers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use balancer_common::{
    client_table::BUCKET_ENTRIES,
    clock::Clock,
    map_types::{Forwarding, Mac, TableSlot},
    seen,
};
use balancer_core::io::{BackendSpec, RuleSpec, ServiceSpec};

use super::{
    Counters, Routes,
    fragments::{Datagram, Way},
};

/// Buckets of the client table: few, so that they are full.
pub const BUCKETS: usize = 16;

/// A service with its live table and its clock.
#[derive(Clone, Debug)]
pub struct Service {
    /// As the kernel is told it.
    pub spec: ServiceSpec,
    /// Its live table.
    pub slots: Vec<TableSlot>,
    /// Its clock.
    pub tick: u16,
    /// Its rules.
    pub rules: Vec<RuleSpec>,
}

impl Service {
    /// The clock of its memory. `None`: it remembers nothing.
    #[must_use]
    pub fn clock(&self) -> Option<Clock> {
        let seconds = self.spec.remember.as_secs() as u32;
        (seconds > 0).then(|| Clock::new(seconds))
    }
}

/// Words of the filter of clients that have been seen.
pub const SEEN_WORDS: usize = seen::words(BUCKETS as u32) as usize;

/// The clients that have been seen in this period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Which bit is whose.
    pub salt: u64,
    /// Their bits.
    pub words: [u64; SEEN_WORDS],
}

impl Seen {
    pub(super) const fn contains(&self, hash: u64) -> bool {
        let (word, bit) = seen::place(hash, self.salt, BUCKETS as u32 - 1);
        self.words[word as usize] & bit != 0
    }

    pub(super) const fn insert(&mut self, hash: u64) {
        let (word, bit) = seen::place(hash, self.salt, BUCKETS as u32 - 1);
        self.words[word as usize] |= bit;
    }
}

/// How many newcomers may be recorded in an epoch.
#[derive(Clone, Debug, Default)]
pub struct Newcomers {
    /// Of each service.
    pub own: u32,
    /// Of all, beyond those.
    pub common: u32,
    used_own: BTreeMap<u16, u32>,
    used_common: u32,
}

impl Newcomers {
    /// So many of each service, and so many beyond.
    #[must_use]
    pub const fn new(own: u32, common: u32) -> Self {
        Self { own, common, used_own: BTreeMap::new(), used_common: 0 }
    }

    /// Whether one more may, of this service.
    pub(super) fn take(&mut self, service: u16) -> bool {
        let own = self.used_own.entry(service).or_default();
        let (used, limit) = if *own < self.own { (own, self.own) } else { (&mut self.used_common, self.common) };
        let may = *used < limit;
        *used += u32::from(may);
        may
    }
}

/// Everything that decides about a packet.
#[derive(Clone, Debug)]
pub struct State {
    /// Services.
    pub services: Vec<Service>,
    /// Backends by id.
    pub backends: BTreeMap<u16, BackendSpec>,
    /// The client table.
    pub clients: Vec<[u64; BUCKET_ENTRIES]>,
    /// Those of them that need not be looked up.
    pub seen: Seen,
    /// Newcomers that may be recorded.
    pub newcomers: Newcomers,
    /// Ways to clients.
    pub routes: Routes,
    /// The MAC of each interface.
    pub stations: BTreeMap<u32, Mac>,
    /// Where backends' next hops were before they were where they are.
    pub(super) moved_from: BTreeMap<u16, u32>,
    /// What was counted.
    pub counters: Counters,
    /// Where first fragments went.
    pub(super) datagrams: HashMap<Datagram, Way>,
    /// Outer IPv4 packets sent that may be fragmented.
    pub(super) outer_packets: u16,
}

/// The way back of a `nat` reply: which service it is from, and as which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WayBack {
    pub(super) service: usize,
    /// The backend's port as configured; 0: every port.
    pub(super) port: u16,
    pub(super) backend: u16,
}

/// What a packet without ports may belong to.
pub(super) enum Portless<T> {
    Nothing,
    Only(T),
    Several,
}

impl<T> Portless<T> {
    fn of(mut all: impl Iterator<Item = T>) -> Self {
        match (all.next(), all.next()) {
            (None, _) => Self::Nothing,
            (Some(only), None) => Self::Only(only),
            (Some(_), Some(_)) => Self::Several,
        }
    }
}

impl State {
    /// A state in which no packet has been seen.
    #[must_use]
    pub fn new(
        services: Vec<Service>,
        backends: BTreeMap<u16, BackendSpec>,
        newcomers: Newcomers,
        routes: Routes,
        stations: BTreeMap<u32, Mac>,
    ) -> Self {
        Self {
            services,
            backends,
            clients: vec![[0; BUCKET_ENTRIES]; BUCKETS],
            seen: Seen::default(),
            newcomers,
            routes,
            stations,
            moved_from: BTreeMap::new(),
            counters: Counters::default(),
            datagrams: HashMap::new(),
            outer_packets: 0,
        }
    }

    /// A backend's row is replaced.
    pub fn set_backend(&mut self, backend: BackendSpec) {
        let id = backend.id.0;
        let egress = |backend: &BackendSpec| backend.next_hop.map(|hop| hop.ifindex);
        let now = egress(&backend);
        if let Some(before) =
            self.backends.insert(id, backend).as_ref().and_then(egress).filter(|&old| Some(old) != now)
        {
            self.moved_from.insert(id, before);
        }
    }

    /// Whether a reply of this backend may have come in by `ingress`: by the interface of its next hop, if that is known.
    /// A choice: for a minute by the one before as well.
    pub(super) fn came_by(&self, way: WayBack, ingress: u32) -> bool {
        let hop = self.backends.get(&way.backend).and_then(|backend| backend.next_hop);
        hop.is_none_or(|hop| hop.ifindex == ingress || self.moved_from.get(&way.backend) == Some(&ingress))
    }

    /// A new epoch begins.
    pub fn next_epoch(&mut self) {
        self.newcomers.used_own.clear();
        self.newcomers.used_common = 0;
    }

    pub(super) fn is_vip(&self, address: IpAddr) -> bool {
        self.services.iter().any(|service| service.spec.address.ip() == address)
    }

    /// The service at an address, port and protocol: one for that port comes before one for every port.
    pub(super) fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<usize> {
        let at = |port: u16| {
            self.services.iter().position(|Service { spec, .. }| {
                spec.address.ip() == address && spec.address.port() == port && spec.protocol.number() == protocol
            })
        };
        at(port).or_else(|| at(0))
    }

    /// The service that a packet without ports must be for.
    pub(super) fn only_service(&self, address: IpAddr, protocol: u8) -> Portless<usize> {
        let of = |service: &Service| service.spec.address.ip() == address && service.spec.protocol.number() == protocol;
        Portless::of((0..self.services.len()).filter(|&index| of(&self.services[index])))
    }

    fn ways_back(&self, address: IpAddr, protocol: u8) -> impl Iterator<Item = WayBack> {
        let nat = (0..self.services.len()).filter(move |&index| {
            let spec = &self.services[index].spec;
            spec.forwarding == Forwarding::Nat && spec.protocol.number() == protocol
        });
        nat.flat_map(move |service| {
            let spec = &self.services[service].spec;
            let backends = spec.backends.iter().filter(move |(_, backend)| backend.ip() == address);
            backends.map(move |(id, backend)| {
                let port = if spec.address.port() == 0 { 0 } else { backend.port() };
                WayBack { service, port, backend: id.0 }
            })
        })
    }

    /// Whether a `nat` backend answers from this address, port and protocol: one for that port comes before one for every
    /// port.
    pub(super) fn way_back(&self, address: IpAddr, port: u16, protocol: u8) -> Option<WayBack> {
        let at = |port: u16| self.ways_back(address, protocol).find(|way| way.port == port);
        at(port).or_else(|| at(0))
    }

    /// The way back of a packet without ports.
    pub(super) fn only_way_back(&self, address: IpAddr, protocol: u8) -> Portless<WayBack> {
        Portless::of(self.ways_back(address, protocol))
    }

    /// A backend that packets can be sent to.
    pub(super) fn reachable(&self, id: u16) -> Option<&BackendSpec> {
        let backend = self.backends.get(&id)?;
        backend.next_hop?;
        let tunnel = matches!(backend.forwarding, Forwarding::Ipip | Forwarding::Gue);
        let source = backend.tunnel_source.is_some_and(|source| source.is_ipv4() == backend.address.is_ipv4());
        (!tunnel || source).then_some(backend)
    }
}
