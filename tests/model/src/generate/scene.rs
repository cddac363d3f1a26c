//! Makes random services, backends, tables and client tables.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use balancer_common::{
    client::HashKey,
    client_table::{self, BUCKET_ENTRIES, Entry, TICK_MASK},
    features::Features,
    map_types::{ALL_DOWN, Forwarding, LISTENER_COUNTERS, Mac, NO_BACKEND, SLOT_EXCEPTIONS, SLOT_REFILLED, TableSlot},
    share::Share,
    verdict::MoveCause,
};
use balancer_config::{
    config::{Failback, Protocol},
    listeners::{Family, Listener, PortRange},
};
use balancer_control::io::{BackendId, BackendSpec, ListenerId, ListenerSpec, NextHop, ServiceId, ServiceSpec};
use fastrand::Rng;

use super::{clients, once_in, one_of, quic, rules};
use crate::model::{BUCKETS, Newcomers, Routes, SEEN_WORDS, Seen, Service, State, client_hash};
use balancer_testkit::rig::{IN_MAC, OUT_MAC, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6};

/// The number of rows in the map of backends. The scenes use some of the lowest and some of the highest ids; the
/// highest ids have the highest bit set.
pub const BACKEND_ROWS: u32 = 49_152;
const ESTABLISHED: u64 = 1 << 14;
const AWAY: u64 = 1 << 15;

/// The indexes of the interfaces on which frames arrive.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces {
    /// The interface on which most packets arrive.
    pub usual: u32,
    /// The interface on which all other packets arrive.
    pub other: u32,
}

/// The state of program and model before the first packet.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Services with their tables and clocks.
    pub services: Vec<Service>,
    pub backends: Vec<BackendSpec>,
    pub clients: Vec<[u64; BUCKET_ENTRIES]>,
    /// The filter of recently seen clients.
    pub seen: Seen,
    /// The limits on recording new clients.
    pub newcomers: Newcomers,
    interfaces: Interfaces,
    /// The features that services may need.
    features: Features,
}

impl Scene {
    pub(super) fn random(rng: &mut Rng, interfaces: Interfaces, features: Features) -> Self {
        let newcomers =
            Newcomers::new(one_of(rng, &[0, 2, 1000, 1 << 20, 1 << 20]), one_of(rng, &[0, 5, 1000, 1 << 20]));
        let mut scene = Self {
            services: Vec::new(),
            backends: Vec::new(),
            clients: Vec::new(),
            seen: random_seen(rng),
            newcomers,
            interfaces,
            features,
        };
        let clock = rng.bool().then(|| rng.u16(..) & TICK_MASK);
        let mut taken = HashSet::new();
        let mut ways_taken = HashMap::new();
        for id in 1..=rng.u16(4..=12) {
            let listeners = random_listeners(rng, id, features, &mut taken);
            if !listeners.is_empty() {
                scene.add_service(rng, ServiceId(id), listeners, &mut ways_taken);
                if let (Some(clock), Some(service)) = (clock, scene.services.last_mut()) {
                    service.tick = clock;
                }
            }
        }
        scene.clients = scene.random_clients(rng);
        scene
    }

    fn add_service(
        &mut self,
        rng: &mut Rng,
        id: ServiceId,
        mut listeners: Vec<ListenerSpec>,
        taken: &mut HashMap<(SocketAddr, u8), (u16, IpAddr)>,
    ) {
        let forwarding = one_of(rng, &modes(self.features));
        let v4 = listeners[0].listener.address.is_ipv4();
        if forwarding != Forwarding::Nat {
            listeners.iter_mut().for_each(|of| of.backend_port = 0);
        }
        let mut backends = Vec::new();
        for _ in 0..one_of(rng, &[0, 1, 1, 2, 2, 2, 3, 3, 4, 5]) {
            let Some(row) = u16::try_from(self.backends.len() + 1).ok() else { continue };
            let target = backend_address(rng, v4, forwarding, row, &listeners);
            if forwarding == Forwarding::Nat && !take_ways(target, row, &listeners, taken) {
                continue;
            }
            let own = backend_id(row);
            backends.push((own, target));
            let tunnel_source = match target {
                _ if once_in(rng, 12) => None,
                SocketAddr::V4(_) => Some(TUNNEL_SOURCE_V4.into()),
                SocketAddr::V6(_) => Some(TUNNEL_SOURCE_V6.into()),
            };
            let spec = BackendSpec {
                id: own,
                forwarding,
                address: target,
                next_hop: None,
                service: id,
                keeps_known: true,
                cause: MoveCause::Down,
                tunnel_source,
                passive: None,
                takes_pinned: false,
            };
            self.backends.push(self.change_of(rng, &spec));
        }
        let v4_prefixes = [32, 32, 32, 24, 30, 8, 0];
        let v6_prefixes = [64, 64, 64, 128, 48, 127, 0];
        let is_quic = listeners.iter().any(|of| of.listener.protocol == Protocol::Quic);
        let quic = is_quic.then(|| quic::random(rng, &backends));
        let spec = ServiceSpec {
            tick_seconds: 0,
            id,
            hash_key: HashKey { k0: rng.u64(..), k1: rng.u64(..) },
            family: if v4 { Family::V4 } else { Family::V6 },
            listeners,
            client_prefix: one_of(rng, if v4 { &v4_prefixes } else { &v6_prefixes }),
            forwarding,
            remember: Duration::from_secs(one_of(rng, &[0, 0, 1, 16, 60, 3600, 10_800, 864_000])),
            failback: one_of(rng, &[Failback::Stay, Failback::Return]),
            backends: backends.into(),
            rules: rng.bool(),
            reject: rng.bool(),
            flows: balancer_control::io::FlowSpec::default(),
            quic,
            share: random_share(rng),
            local: Vec::new(),
        };
        let spec = restricted(spec, self.features);
        let size = one_of(rng, &[1, 7, 31, 251]);
        let slots = table(rng, &spec, size);
        let rules = if spec.rules { rules::random(rng, &spec) } else { Vec::new() };
        self.services.push(Service { spec, slots, tick: rng.u16(..) & TICK_MASK, rules });
    }

    /// Returns the MAC addresses of the interfaces.
    pub(super) fn local_macs(&self) -> BTreeMap<u32, Mac> {
        BTreeMap::from([(self.interfaces.usual, IN_MAC), (self.interfaces.other, OUT_MAC)])
    }

    /// Returns the backend in a new random state.
    pub(super) fn change_of(&self, rng: &mut Rng, backend: &BackendSpec) -> BackendSpec {
        let usual = !once_in(rng, 3);
        let (ifindex, source_mac) =
            if usual { (self.interfaces.usual, IN_MAC) } else { (self.interfaces.other, OUT_MAC) };
        let mtu = one_of(rng, &[1500, 1500, 1500, 1500, 1500, 1500, 1300, 1280, 576, 68, 9000, 70_000]);
        let destination_mac = [2, 0, 0, 0, 1, backend.id.0 as u8];
        let hop = NextHop { ifindex, source_mac, destination_mac, mtu, source: None, gateway: None, local: false };
        BackendSpec {
            next_hop: (!once_in(rng, 12)).then_some(hop),
            keeps_known: !once_in(rng, 3),
            cause: one_of(rng, &[MoveCause::Down, MoveCause::Drain, MoveCause::Maint, MoveCause::Removed]),
            takes_pinned: !once_in(rng, 4),
            ..backend.clone()
        }
    }

    /// A random client table: empty, full of clients that have been known for a long time, or anything in between.
    pub(super) fn random_clients(&self, rng: &mut Rng) -> Vec<[u64; BUCKET_ENTRIES]> {
        let mut buckets = vec![[0; BUCKET_ENTRIES]; BUCKETS];
        let crowded = once_in(rng, 4);
        for _ in 0..if crowded { 1000 } else { one_of(rng, &[0, 40, 150, 600]) } {
            self.add_client(rng, &mut buckets, crowded);
        }
        buckets
    }

    fn add_client(&self, rng: &mut Rng, buckets: &mut [[u64; BUCKET_ENTRIES]], crowded: bool) {
        let Some(service) = rng.choice(&self.services) else { return };
        let source = clients::address(rng, service.spec.family == Family::V4);
        let hash = if once_in(rng, if crowded { 2 } else { 4 }) { rng.u64(..) } else { client_hash(service, source) };
        let backend = match rng.u32(..10) {
            0 => rng.choice(&self.backends).map_or(NO_BACKEND, |backend| backend.id.0),
            1 => rng.u16(BACKEND_ROWS as u16..),
            _ => rng.choice(service.spec.backends.iter()).map_or(u16::MAX, |(id, _)| id.0),
        };
        let ages = [0, 0, 1, 2, 30, 650, 700, 700, 700, 800, 800, 1000, 4096, 4097, 9000, 16_380];
        let age = one_of(rng, if crowded { &ages[..3] } else { &ages });
        let mut entry = Entry::new((hash >> 32) as u32, backend, service.tick.wrapping_sub(age)).0;
        // A connection ID moves only a silent client that is not established.
        let is_established = rng.bool() && rng.bool();
        for (flag, has) in [(ESTABLISHED, is_established || crowded), (AWAY, rng.bool())] {
            entry |= if has { flag } else { 0 };
        }
        let bucket = &mut buckets[client_table::bucket(hash, BUCKETS as u32 - 1) as usize];
        let tag = |entry: u64| Entry(entry).tag();
        let place = bucket.iter().position(|&other| other != 0 && tag(other) == tag(entry));
        bucket[place.unwrap_or_else(|| rng.usize(..BUCKET_ENTRIES))] = entry;
    }

    /// Returns the scene's state in the form that the model uses.
    #[must_use]
    pub fn state(&self, routes: Routes) -> State {
        let backends: BTreeMap<_, _> = self.backends.iter().map(|backend| (backend.id.0, backend.clone())).collect();
        let mut state = State::new(self.services.clone(), backends, self.newcomers.clone(), routes, self.local_macs());
        state.clients.clone_from(&self.clients);
        state.seen = self.seen;
        state
    }
}

/// The modes that services with these features may have, the most frequent one twice.
fn modes(features: Features) -> Vec<Forwarding> {
    let modes = [
        (Forwarding::Dsr, Features::DSR),
        (Forwarding::Nat, Features::NAT),
        (Forwarding::Nat, Features::NAT),
        (Forwarding::Ipip, Features::TUNNEL),
        (Forwarding::Gue, Features::TUNNEL),
    ];
    modes.into_iter().filter(|(_, feature)| features.has(*feature)).map(|(mode, _)| mode).collect()
}

/// The service without what needs other features.
fn restricted(spec: ServiceSpec, features: Features) -> ServiceSpec {
    ServiceSpec {
        remember: if features.has(Features::MEMORY) { spec.remember } else { Duration::ZERO },
        rules: spec.rules && features.has(Features::RULES),
        reject: spec.reject && features.has(Features::REJECT),
        share: if features.has(Features::SHARE) { spec.share } else { Share::ALL },
        ..spec
    }
}

/// A random share of steered clients; usually all clients are steered.
fn random_share(rng: &mut Rng) -> Share {
    if !once_in(rng, 4) {
        return Share::ALL;
    }
    let percents = [0, 0, 30, 50, 70, 100];
    let before = Share::always(one_of(rng, &percents));
    if rng.bool() { before } else { before.changed(one_of(rng, &percents)) }
}

/// Random listeners of one family that are not yet in `taken`. The returned list may be empty.
fn random_listeners(
    rng: &mut Rng,
    service: u16,
    features: Features,
    taken: &mut HashSet<Listener>,
) -> Vec<ListenerSpec> {
    let (v4, mapped) = (rng.bool(), once_in(rng, 3));
    let v4 = if v4 { features.has(Features::V4) } else { !features.has(Features::V6) };
    let mut listeners = Vec::new();
    for number in 0..one_of(rng, &[1, 1, 1, 2, 2, 3, 5]) {
        let range = |first, last| PortRange { first, last };
        // Two ranges of ports are separate, or one range lies within the other.
        let wide = [range(8000, 8099), range(8080, 8090), range(5000, 60_000), PortRange::EVERY, PortRange::EVERY];
        let single = PortRange::of(one_of(rng, &[80, 80, 53, 443, 8080]));
        let ports = if once_in(rng, 3) { one_of(rng, &wide) } else { single };
        let datagrams = if features.has(Features::QUIC) { Protocol::Quic } else { Protocol::Udp };
        let protocol = one_of(rng, &[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, datagrams]);
        let listener = Listener { address: vip(rng, v4), ports, protocol };
        if taken.insert(listener.taken()) {
            let backend_port = if mapped && ports.single().is_some() { 9000 + service * 10 + number } else { 0 };
            // All CPUs share the counters for the listeners of every second service.
            let id = ListenerId(service * 10 + number + service % 2 * LISTENER_COUNTERS as u16);
            listeners.push(ListenerSpec { id, listener, backend_port, counted: false });
        }
    }
    let counted = listeners.len() > 1;
    listeners.iter_mut().for_each(|of| of.counted = counted);
    listeners
}

fn backend_id(row: u16) -> BackendId {
    BackendId(if row.is_multiple_of(2) { row } else { BACKEND_ROWS as u16 - row })
}

/// Reserves the addresses and ports from which a backend sends replies. Returns whether no other backend has the same
/// source addresses and ports.
fn take_ways(
    target: SocketAddr,
    row: u16,
    listeners: &[ListenerSpec],
    taken: &mut HashMap<(SocketAddr, u8), (u16, IpAddr)>,
) -> bool {
    let mut ways = HashMap::new();
    for of in listeners {
        let port = match (of.listener.ports.single(), target.port(), of.backend_port) {
            (None, ..) => 0,
            (Some(port), 0, 0) => port,
            (Some(_), 0, port) | (Some(_), port, _) => port,
        };
        let key = (SocketAddr::new(target.ip(), port), of.listener.protocol.number());
        let way = (row, of.listener.address);
        let before = ways.insert(key, way);
        if taken.contains_key(&key) || before.is_some_and(|before| port != 0 || before != way) {
            return false;
        }
    }
    taken.extend(ways);
    true
}

fn vip(rng: &mut Rng, v4: bool) -> IpAddr {
    let host = one_of(rng, &[10, 20, 30]);
    if v4 {
        Ipv4Addr::new(198, 51, 100, host).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)).into()
    }
}

/// Returns a backend's address. `nat` backends share hosts, so that their ports matter.
fn backend_address(
    rng: &mut Rng,
    v4: bool,
    forwarding: Forwarding,
    row: u16,
    listeners: &[ListenerSpec],
) -> SocketAddr {
    let every_port = listeners.iter().any(|of| of.listener.ports.single().is_none());
    let (v4, host, port) = match forwarding {
        Forwarding::Nat if every_port || once_in(rng, 3) => (v4, rng.u16(21..27), 0),
        Forwarding::Nat | Forwarding::Snat => (v4, rng.u16(21..27), 8000 + row),
        Forwarding::Dsr => (v4, 100 + row, 0),
        Forwarding::Ipip | Forwarding::Gue => (rng.bool(), 100 + row, 0),
    };
    let ip = if v4 {
        Ipv4Addr::new(10, 0, 0, host as u8).into()
    } else {
        IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host))
    };
    SocketAddr::new(ip, port)
}

/// A random filter of seen clients: it contains no clients, all clients, or some.
pub(super) fn random_seen(rng: &mut Rng) -> Seen {
    let words = match rng.u32(..4) {
        0 | 1 => [0; SEEN_WORDS],
        2 => [u64::MAX; SEEN_WORDS],
        _ => std::array::from_fn(|_| rng.u64(..) & rng.u64(..)),
    };
    Seen { salt: balancer_common::seen::salt(rng.u64(..)), words }
}

/// Returns a random live table of a service.
pub(super) fn table(rng: &mut Rng, service: &ServiceSpec, size: usize) -> Vec<TableSlot> {
    let nobody = once_in(rng, 25);
    let slot = |_| TableSlot {
        backend: match rng.choice(service.backends.iter()) {
            Some((id, _)) if !nobody && !once_in(rng, 30) => id.0,
            _ => one_of(rng, &[NO_BACKEND, ALL_DOWN]),
        },
        flags: u64::from(rng.bool()) * SLOT_EXCEPTIONS + u64::from(rng.bool()) * SLOT_REFILLED,
    };
    (0..size).map(slot).collect()
}
