//! The state that the controller has written to the kernel program, and the state that the program itself keeps.

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

use super::{Counters, Routes, parse::Packet};

/// The number of buckets in the client table: few, so that buckets become full.
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
    pub rules: Vec<RuleSpec>,
}

impl Service {
    /// The clock of the service's client memory; `None` if the service remembers no clients.
    #[must_use]
    pub fn clock(&self) -> Option<Clock> {
        let seconds = self.spec.remember.as_secs() as u32;
        (seconds > 0).then(|| Clock::new(seconds))
    }
}

/// The number of words in the filter of seen clients.
pub const SEEN_WORDS: usize = seen::words(BUCKETS as u32) as usize;

/// The filter of the clients seen in the current period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The random value that determines the bits of each client in the filter.
    pub salt: u64,
    /// The words of the filter, which contain the bits of the clients.
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

/// The limits on recording new clients in one period.
#[derive(Clone, Debug, Default)]
pub struct Newcomers {
    /// The limit for each service.
    pub own: u32,
    /// The limit of all services together for clients beyond the limits of the single services.
    pub common: u32,
    used_own: BTreeMap<u16, u32>,
    used_common: u32,
}

impl Newcomers {
    /// Creates limits: each service may record `own` clients, and all services together may record `common` additional
    /// clients.
    #[must_use]
    pub const fn new(own: u32, common: u32) -> Self {
        Self { own, common, used_own: BTreeMap::new(), used_common: 0 }
    }

    /// If the service may record another client, counts the client against the limits and returns true.
    pub(super) fn take(&mut self, service: u16) -> bool {
        let own = self.used_own.entry(service).or_default();
        let (used, limit) = if *own < self.own { (own, self.own) } else { (&mut self.used_common, self.common) };
        let may = *used < limit;
        *used += u32::from(may);
        may
    }
}

/// All state that the model's decisions about packets need.
#[derive(Clone, Debug)]
pub struct State {
    pub services: Vec<Service>,
    /// The backends, by backend id.
    pub backends: BTreeMap<u16, BackendSpec>,
    /// The filter of recently seen clients, for which the program does not read the client table.
    pub clients: Vec<[u64; BUCKET_ENTRIES]>,
    /// The filter of recently seen clients, whose entries the program does not look up.
    pub seen: Seen,
    /// The limits on recording new clients.
    pub newcomers: Newcomers,
    pub routes: Routes,
    /// The MAC address of each interface.
    pub local_macs: BTreeMap<u32, Mac>,
    /// The previous interface of each backend's next hop.
    pub(super) moved_from: BTreeMap<u16, u32>,
    /// The counters since the scene began.
    pub counters: Counters,
    /// The direction that each datagram's first fragment took.
    pub(super) datagrams: HashMap<Datagram, FragmentWay>,
    /// The number of sent IPv4 tunnel packets that routers may fragment.
    pub(super) outer_packets: u16,
}

/// The fields that all fragments of a datagram share. In IPv6, fragments may differ in their protocol (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: Option<u8>,
}

impl Datagram {
    pub(super) fn of(packet: &Packet) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            id: packet.id,
            protocol: (!packet.v6).then_some(packet.protocol),
        }
    }
}

/// The direction in which a first fragment went.
#[derive(Clone, Copy, Debug)]
pub(super) enum FragmentWay {
    Kernel,
    Backend(u16),
    Client(WayBack),
}

/// The service, the listener and the backend to which a `nat` reply belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WayBack {
    pub(super) service: usize,
    pub(super) listener: usize,
    /// The port on which the backend listens. The port in an entry; 0 stands for every port, or for every port that has
    /// a listener.
    pub(super) port: u16,
    pub(super) backend: u16,
}

/// The entries that may apply to a packet whose ports are unknown.
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
    /// Creates the state before the first packet.
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

    /// Returns whether the program accepts a reply of the backend on the interface `ingress`. If the next hop is known,
    /// the reply must arrive on the next hop's interface. The program's choice: for a minute after the interface
    /// changes, the program also accepts replies on the previous interface.
    pub(super) fn came_by(&self, way: WayBack, ingress: u32) -> bool {
        let hop = self.backends.get(&way.backend).and_then(|backend| backend.next_hop);
        hop.is_none_or(|hop| hop.ifindex == ingress || self.moved_from.get(&way.backend) == Some(&ingress))
    }

    /// Begins a new period, with new limits.
    pub fn next_epoch(&mut self) {
        self.newcomers.used_own.clear();
        self.newcomers.used_common = 0;
    }

    pub(super) fn is_vip(&self, address: IpAddr) -> bool {
        self.services.iter().flat_map(|service| &service.spec.listeners).any(|of| of.listener.address == address)
    }

    /// Finds the listener with the narrowest range of ports for an address, port and protocol. Returns the index of the
    /// listener's service and the index of the listener.
    pub(super) fn listener(&self, address: IpAddr, port: u16, protocol: u8) -> Option<(usize, usize)> {
        let all = self.services.iter().enumerate().flat_map(|(service, of)| {
            of.spec.listeners.iter().enumerate().map(move |(number, of)| ((service, number), of.listener))
        });
        let here = all.filter(|(_, listener)| {
            listener.address == address && listener.protocol.number() == protocol && listener.ports.contains(port)
        });
        here.min_by_key(|(_, listener)| listener.ports.width()).map(|(place, _)| place)
    }

    pub(super) fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<usize> {
        self.listener(address, port, protocol).map(|(service, _)| service)
    }

    /// Returns the port on which `backend` receives packets to a VIP's port; 0 if the program does not change the port.
    pub(super) fn backend_port(&self, backend: &BackendSpec, address: IpAddr, port: u16, protocol: u8) -> u16 {
        if backend.address.port() != 0 {
            return backend.address.port();
        }
        let listener = self.listener(address, port, protocol);
        listener.map_or(0, |(service, number)| self.services[service].spec.listeners[number].backend_port)
    }

    /// Returns the service of a packet whose ports are unknown, if only one service is possible.
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

    /// Finds the `nat` backend that replies from the given address, port and protocol. An entry for exactly that port
    /// has priority over an entry for every port or for all ports of the VIP's listeners.
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

    /// Finds the service and backend of a reply whose ports are unknown. A packet is not ambiguous if all matching
    /// entries have the same VIP.
    pub(super) fn only_way_back(&self, address: IpAddr, protocol: u8) -> Portless<WayBack> {
        let vip = |way: &WayBack| self.services[way.service].spec.listeners[way.listener].listener.address;
        let mut vips = Vec::new();
        Portless::of(self.ways_back(address, protocol).filter(|way| {
            let new = !vips.contains(&vip(way));
            vips.push(vip(way));
            new
        }))
    }

    /// Returns the backend, if packets can reach the backend.
    pub(super) fn reachable(&self, id: u16) -> Option<&BackendSpec> {
        let backend = self.backends.get(&id)?;
        backend.next_hop?;
        let tunnel = matches!(backend.forwarding, Forwarding::Ipip | Forwarding::Gue);
        let source = backend.tunnel_source.is_some_and(|source| source.is_ipv4() == backend.address.is_ipv4());
        (!tunnel || source).then_some(backend)
    }
}
