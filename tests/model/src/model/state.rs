//! The state that the controller has written to the kernel program, and the program's own memory.

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
use balancer_config::listeners::{Listener, PortRange};
use balancer_control::io::{BackendSpec, ListenerSpec, RuleSpec, ServiceSpec};

use super::{
    Counters, Routes,
    fragments::{Datagram, Way},
};

/// The number of buckets in the client table: few, so that they become full.
pub const BUCKETS: usize = 16;

/// A service with its live table and its clock.
#[derive(Clone, Debug)]
pub struct Service {
    /// The service's specification for the kernel.
    pub spec: ServiceSpec,
    /// The service's live table.
    pub slots: Vec<TableSlot>,
    /// The current tick of the service's clock.
    pub tick: u16,
    /// The rules of the service.
    pub rules: Vec<RuleSpec>,
}

impl Service {
    /// The clock of the service's memory; `None` if the service remembers no clients.
    #[must_use]
    pub fn clock(&self) -> Option<Clock> {
        let seconds = self.spec.remember.as_secs() as u32;
        (seconds > 0).then(|| Clock::new(seconds))
    }
}

/// The number of words in the filter of seen clients.
pub const SEEN_WORDS: usize = seen::words(BUCKETS as u32) as usize;

/// The clients seen in this period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Decides which bits belong to a client.
    pub salt: u64,
    /// Their bits.
    pub words: [u64; SEEN_WORDS],
}

impl Seen {
    pub(super) const fn contains(&self, hash: u64) -> bool {
        let (word, bits) = seen::place(hash, self.salt, BUCKETS as u32 - 1);
        self.words[word as usize] & bits == bits
    }

    pub(super) const fn insert(&mut self, hash: u64) {
        let (word, bits) = seen::place(hash, self.salt, BUCKETS as u32 - 1);
        self.words[word as usize] |= bits;
    }
}

/// The limits on recording new clients in an epoch.
#[derive(Clone, Debug, Default)]
pub struct Newcomers {
    /// The limit of each service.
    pub own: u32,
    /// The limit of all services together, beyond the limit of each service.
    pub common: u32,
    used_own: BTreeMap<u16, u32>,
    used_common: u32,
}

impl Newcomers {
    /// Creates the limits: `own` for each service, and `common` for all services together beyond that.
    #[must_use]
    pub const fn new(own: u32, common: u32) -> Self {
        Self { own, common, used_own: BTreeMap::new(), used_common: 0 }
    }

    /// Takes one from the limits, if this service may record another client.
    pub(super) fn take(&mut self, service: u16) -> bool {
        let own = self.used_own.entry(service).or_default();
        let (used, limit) = if *own < self.own { (own, self.own) } else { (&mut self.used_common, self.common) };
        let may = *used < limit;
        *used += u32::from(may);
        may
    }
}

/// All state that decisions about packets need.
#[derive(Clone, Debug)]
pub struct State {
    /// Services.
    pub services: Vec<Service>,
    /// Backends by id.
    pub backends: BTreeMap<u16, BackendSpec>,
    /// The client table.
    pub clients: Vec<[u64; BUCKET_ENTRIES]>,
    /// The recently seen clients, whose entries need no lookup.
    pub seen: Seen,
    /// The limits on recording new clients.
    pub newcomers: Newcomers,
    /// The routes to clients.
    pub routes: Routes,
    /// The MAC of each interface.
    pub local_macs: BTreeMap<u32, Mac>,
    /// The earlier interfaces of backends' next hops.
    pub(super) moved_from: BTreeMap<u16, u32>,
    /// The counters since the beginning.
    pub counters: Counters,
    /// The ways of first fragments.
    pub(super) datagrams: HashMap<Datagram, Way>,
    /// The number of outer IPv4 packets sent that may be fragmented.
    pub(super) outer_packets: u16,
}

/// A `nat` reply's way back: its service, and its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WayBack {
    pub(super) service: usize,
    pub(super) listener: usize,
    /// The backend's port; 0: every port, or every port with a listener.
    pub(super) port: u16,
    pub(super) backend: u16,
}

/// The possible entries for a packet without ports.
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
    /// Creates a state without any packet.
    #[must_use]
    pub fn new(
        services: Vec<Service>,
        backends: BTreeMap<u16, BackendSpec>,
        newcomers: Newcomers,
        routes: Routes,
        local_macs: BTreeMap<u32, Mac>,
    ) -> Self {
        Self {
            services,
            backends,
            clients: vec![[0; BUCKET_ENTRIES]; BUCKETS],
            seen: Seen::default(),
            newcomers,
            routes,
            local_macs,
            moved_from: BTreeMap::new(),
            counters: Counters::default(),
            datagrams: HashMap::new(),
            outer_packets: 0,
        }
    }

    /// Replaces a backend's row.
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

    /// Whether a reply of this backend may have arrived on `ingress`: the interface of its next hop, if that is known.
    /// A choice: the previous interface also counts for a minute.
    pub(super) fn came_by(&self, way: WayBack, ingress: u32) -> bool {
        let hop = self.backends.get(&way.backend).and_then(|backend| backend.next_hop);
        hop.is_none_or(|hop| hop.ifindex == ingress || self.moved_from.get(&way.backend) == Some(&ingress))
    }

    /// Begins a new epoch.
    pub fn next_epoch(&mut self) {
        self.newcomers.used_own.clear();
        self.newcomers.used_common = 0;
    }

    pub(super) fn is_vip(&self, address: IpAddr) -> bool {
        self.services.iter().flat_map(|service| &service.spec.listeners).any(|of| of.listener.address == address)
    }

    /// Finds the listener for an address, port and protocol: the one with the fewest ports. Returns the indexes of its
    /// service and of the listener.
    pub(super) fn listener(&self, address: IpAddr, port: u16, protocol: u8) -> Option<(usize, usize)> {
        let all = self.services.iter().enumerate().flat_map(|(service, of)| {
            of.spec.listeners.iter().enumerate().map(move |(number, of)| ((service, number), of.listener))
        });
        let here = all.filter(|(_, listener)| {
            listener.address == address && listener.protocol.number() == protocol && listener.ports.contains(port)
        });
        here.min_by_key(|(_, listener)| listener.ports.width()).map(|(place, _)| place)
    }

    /// Finds the service at an address, port and protocol.
    pub(super) fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<usize> {
        self.listener(address, port, protocol).map(|(service, _)| service)
    }

    /// The port of `backend` for packets to a VIP's port; 0 if the port stays unchanged.
    pub(super) fn backend_port(&self, backend: &BackendSpec, address: IpAddr, port: u16, protocol: u8) -> u16 {
        if backend.address.port() != 0 {
            return backend.address.port();
        }
        let listener = self.listener(address, port, protocol);
        listener.map_or(0, |(service, number)| self.services[service].spec.listeners[number].backend_port)
    }

    /// The service of a packet without ports, if it is unambiguous.
    pub(super) fn only_service(&self, address: IpAddr, protocol: u8) -> Portless<usize> {
        let of = |service: &Service| {
            let mut listeners = service.spec.listeners.iter().map(|of| of.listener);
            listeners.any(|of| of.address == address && of.protocol.number() == protocol)
        };
        Portless::of((0..self.services.len()).filter(|&index| of(&self.services[index])))
    }

    fn ways_back(&self, address: IpAddr, protocol: u8) -> impl Iterator<Item = WayBack> {
        let nat =
            (0..self.services.len()).filter(move |&index| self.services[index].spec.forwarding == Forwarding::Nat);
        nat.flat_map(move |service| {
            let spec = &self.services[service].spec;
            let listeners =
                (spec.listeners.iter().enumerate()).filter(move |(_, of)| of.listener.protocol.number() == protocol);
            listeners.flat_map(move |(listener, of)| {
                let backends = spec.backends.iter().filter(move |(_, backend)| backend.ip() == address);
                backends.map(move |(id, backend)| {
                    let port = match (of.listener.ports.single(), backend.port(), of.backend_port) {
                        (None, ..) => 0,
                        (Some(port), 0, 0) => port,
                        (Some(_), 0, port) | (Some(_), port, _) => port,
                    };
                    WayBack { service, listener, port, backend: id.0 }
                })
            })
        })
    }

    /// The `nat` backend that answers from this address, port and protocol. A backend for that port has priority over
    /// one for every port or for all ports of the VIP's listeners.
    pub(super) fn way_back(&self, address: IpAddr, port: u16, protocol: u8) -> Option<WayBack> {
        let at = |port: u16| self.ways_back(address, protocol).find(|way| way.port == port);
        let listened = |way: &WayBack| {
            let spec = &self.services[way.service].spec;
            let vip = spec.listeners[way.listener].listener;
            let every = |of: &ListenerSpec| of.listener == Listener { ports: PortRange::EVERY, ..vip };
            spec.listeners.iter().any(every) || self.listener(vip.address, port, protocol).is_some()
        };
        at(port).or_else(|| at(0).filter(listened))
    }

    /// The way back of a packet without ports. Ways to one VIP count as the same.
    pub(super) fn only_way_back(&self, address: IpAddr, protocol: u8) -> Portless<WayBack> {
        let vip = |way: &WayBack| self.services[way.service].spec.listeners[way.listener].listener.address;
        let mut vips = Vec::new();
        Portless::of(self.ways_back(address, protocol).filter(|way| {
            let new = !vips.contains(&vip(way));
            vips.push(vip(way));
            new
        }))
    }

    /// The backend, if packets can reach it.
    pub(super) fn reachable(&self, id: u16) -> Option<&BackendSpec> {
        let backend = self.backends.get(&id)?;
        backend.next_hop?;
        let tunnel = matches!(backend.forwarding, Forwarding::Ipip | Forwarding::Gue);
        let source = backend.tunnel_source.is_some_and(|source| source.is_ipv4() == backend.address.is_ipv4());
        (!tunnel || source).then_some(backend)
    }
}
