//! The rows that the kernel program reads, computed from the core's descriptions of services and backends.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use balancer_common::{
    checksum,
    client::{self, mask_v4, mask_v6},
    clock::Clock,
    map_types::{
        BACKEND_KEEPS_KNOWN, BACKEND_REACHABLE, BACKEND_TAKES_CLIENTS, BACKEND_V6, BackendRow, BackendStanding,
        FAMILY_V4, FAMILY_V6, FORWARDING_ASKS, Forwarding, LiveTable, Portless, ReturnRow, SERVICE_FAILBACK,
        SERVICE_FLOWS, SERVICE_LOCAL, SERVICE_QUIC, SERVICE_READS_ALWAYS, SERVICE_REJECTS, SERVICE_REMEMBERS,
        SERVICE_RULES, ServiceKey, ServiceRow,
    },
    seen,
};
use balancer_config::{
    config::{Failback, Protocol},
    listeners::{Family, Listener, PortRange},
};
use balancer_control::io::{BackendId, BackendSpec, ListenerSpec, ServiceSpec};
use bytemuck::Zeroable as _;

/// The number of seconds of silence after which a client's next datagram counts as a new connection.
const IDLE_SECONDS: u32 = 30;

/// An address as the maps store it: in network order, with an IPv4 address in the first word.
#[must_use]
pub(super) fn address_words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => bytemuck::cast(address.octets()),
    }
}

pub(super) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

pub(super) fn key(address: SocketAddr, protocol: u8) -> ServiceKey {
    ServiceKey {
        address: address_words(address.ip()),
        port: address.port().to_be(),
        protocol,
        family: family(address.ip()),
    }
}

/// The checksum differences that replacing `old` by `new` makes: for the address alone, and for address and port. If
/// the port in `old` or `new` is 0, the port stays unchanged.
fn deltas(old: SocketAddr, new: SocketAddr) -> (u16, u16) {
    let address = checksum::replace_address(&address_words(old.ip()), &address_words(new.ip()));
    let port = if old.port() == 0 || new.port() == 0 {
        0
    } else {
        checksum::replace_u16(old.port().to_be(), new.port().to_be())
    };
    (checksum::fold(address), checksum::fold(address + port))
}

/// The forwarding mode that the kernel program uses for a backend. Packets to this machine itself need no tunnel, and
/// connections to it need no address of the pool.
fn forwarding(spec: &BackendSpec) -> Forwarding {
    if !spec.next_hop.is_some_and(|hop| hop.local) {
        return spec.forwarding;
    }
    match spec.forwarding {
        Forwarding::Nat | Forwarding::Snat => Forwarding::Nat,
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => Forwarding::Dsr,
    }
}

/// The row of a backend, and the word with its state, which is stored separately.
#[must_use]
pub(super) fn backend(spec: &BackendSpec) -> (BackendStanding, BackendRow) {
    let forwarding = forwarding(spec);
    let tunnelled = matches!(forwarding, Forwarding::Ipip | Forwarding::Gue);
    let needs_source = tunnelled || forwarding == Forwarding::Snat;
    let tunnel_source = spec.tunnel_source.filter(|source| source.is_ipv4() == spec.address.is_ipv4());
    let mut row = BackendRow {
        address: address_words(spec.address.ip()),
        address_sum: checksum::fold(checksum::sum_address(&address_words(spec.address.ip()))),
        port: spec.address.port().to_be(),
        forwarding: forwarding as u8,
        tunnel_source: tunnel_source.map(address_words).unwrap_or_default(),
        ..BackendRow::zeroed()
    };
    if tunnelled {
        row.address_sum =
            checksum::fold(checksum::sum_address(&row.tunnel_source) + checksum::sum_address(&row.address));
    }
    let mut standing = BackendStanding {
        service: spec.service.0,
        cause: spec.cause as u8,
        flags: (u8::from(spec.keeps_known) * BACKEND_KEEPS_KNOWN)
            | (u8::from(spec.address.is_ipv6()) * BACKEND_V6)
            | (u8::from(spec.takes_pinned) * BACKEND_TAKES_CLIENTS),
    };
    if let Some(hop) = spec.next_hop {
        row.set_macs(hop.destination_mac, hop.source_mac);
        if hop.local {
            row.forwarding |= FORWARDING_ASKS;
            row.mtu = u32::MAX;
        } else {
            row.ifindex = hop.ifindex;
            row.mtu = hop.mtu;
        }
        if !needs_source || tunnel_source.is_some() {
            standing.flags |= BACKEND_REACHABLE;
        }
    }
    (standing, row)
}

/// The row of a service that has a live table, at `tick` of the service's clock.
#[must_use]
pub(super) fn service(
    spec: &ServiceSpec,
    table: LiveTable,
    quic: u8,
    (clock, tick): (Option<Clock>, u16),
) -> ServiceRow {
    let clock = clock.unwrap_or(Clock { tick_seconds: 1, remember: 0 });
    let mut flags = 0;
    if !spec.remember.is_zero() {
        flags |= SERVICE_REMEMBERS;
    }
    // For a new `snat` connection, the program must find the entry of a known client whether or not its slot is
    // flagged, because the program reads no slot for later packets of the flow.
    if seen_period(spec).is_none() || spec.forwarding == Forwarding::Snat {
        flags |= SERVICE_READS_ALWAYS;
    }
    if spec.failback == Failback::Return {
        flags |= SERVICE_FAILBACK;
    }
    if spec.forwarding == Forwarding::Snat {
        flags |= SERVICE_FLOWS;
    }
    if is_local(spec) {
        flags |= SERVICE_LOCAL;
    }
    if spec.rules {
        flags |= SERVICE_RULES;
    }
    if spec.reject {
        flags |= SERVICE_REJECTS;
    }
    if quic != 0 {
        flags |= SERVICE_QUIC;
    }
    let mut row = ServiceRow {
        id: spec.id.0,
        flags,
        tick: u32::from(tick),
        remember: clock.remember,
        idle: idle(clock),
        table: table.to_word(),
        hash: spec.hash_key.begun(),
        quic,
        ..ServiceRow::zeroed()
    };
    row.set_share(spec.share);
    row.set_client_mask(match spec.family {
        Family::V4 => [u64::from(mask_v4(spec.client_prefix)), 0],
        Family::V6 => mask_v6(spec.client_prefix),
    });
    row
}

/// The number of seconds in which the program reads a client's entry only once, in slots without exceptions. `None`:
/// the program reads the entry for every packet, or for none.
#[must_use]
pub(super) fn seen_period(spec: &ServiceSpec) -> Option<u32> {
    seen::period_seconds(u32::try_from(spec.remember.as_secs()).unwrap_or(u32::MAX), has_only_openers(spec))
}

/// Whether every connection to any of these services begins with a packet that opens the connection.
#[must_use]
pub(super) fn only_openers(services: &[ServiceSpec]) -> bool {
    services.iter().all(has_only_openers)
}

fn has_only_openers(spec: &ServiceSpec) -> bool {
    spec.listeners.iter().all(|listener| listener.listener.protocol == Protocol::Tcp)
}

/// The number of ticks after which a datagram counts as a new connection.
#[must_use]
pub(super) fn idle(clock: Clock) -> u16 {
    IDLE_SECONDS.div_ceil(clock.tick_seconds).max(1) as u16
}

/// The hash of a client, which determines the client's slot and bucket. `None`: the address does not belong to the
/// service's family.
#[must_use]
pub(super) fn client_hash(spec: &ServiceSpec, address: IpAddr) -> Option<u64> {
    match (spec.family, address) {
        (Family::V4, IpAddr::V4(address)) => {
            let address = u32::from_ne_bytes(address.octets()) & mask_v4(spec.client_prefix);
            Some(client::hash_v4(spec.hash_key, address))
        }
        (Family::V6, IpAddr::V6(address)) => {
            let [high, low]: [u64; 2] = bytemuck::cast(address.octets());
            let [high_mask, low_mask] = mask_v6(spec.client_prefix);
            Some(client::hash_v6(spec.hash_key, [high & high_mask, low & low_mask]))
        }
        _ => None,
    }
}

/// The marker rows for the source addresses in `returns`.
#[must_use]
pub(super) fn return_markers(returns: &[ReturnRow]) -> Vec<ReturnRow> {
    let mut backends: HashMap<ServiceKey, Portless> = HashMap::new();
    let mut known = HashSet::new();
    for row in returns {
        let address = ServiceKey { port: 0, protocol: 0, ..row.key };
        let portless = backends.entry(address).or_default();
        // In a fragment without ports, the program changes only the address.
        if known.insert((address, row.key.protocol, row.vip)) {
            portless.add(row.key.protocol, row.key.port);
        }
    }
    backends.into_iter().map(|(key, portless)| ReturnRow { key, portless, ..ReturnRow::zeroed() }).collect()
}

/// Whether the kernel program must know that this machine is one of the service's backends before it chooses a backend.
#[must_use]
pub(super) fn is_local(spec: &ServiceSpec) -> bool {
    matches!(spec.forwarding, Forwarding::Dsr | Forwarding::Snat) && !spec.local.is_empty()
}

/// Whether clients of a service's VIP reach this machine as a backend whose packets have another source than the VIP.
#[must_use]
pub(super) fn has_direct_connections(spec: &ServiceSpec) -> bool {
    matches!(spec.forwarding, Forwarding::Nat | Forwarding::Snat) && !spec.local.is_empty()
}

/// The return rows for a service's backends: for all backends in `nat` mode, and for this machine in `snat` mode.
#[must_use]
pub(super) fn returns(spec: &ServiceSpec) -> Vec<ReturnRow> {
    let mut rows: Vec<ReturnRow> = Vec::new();
    let mut whole = HashSet::new();
    let comes_back = |id: &BackendId| match spec.forwarding {
        Forwarding::Nat => true,
        Forwarding::Snat => spec.local.contains(id),
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => false,
    };
    for &(id, address) in spec.backends.iter().filter(|(id, _)| comes_back(id)) {
        for listener in &spec.listeners {
            let place = listener.listener;
            let is_range = place.ports.single().is_none();
            if is_range && !whole.insert((id, place.address, place.protocol)) {
                continue;
            }
            let every = |other: &ListenerSpec| other.listener == Listener { ports: PortRange::EVERY, ..place };
            let port = match (address.port(), listener.backend_port) {
                (0, 0) => place.socket().port(),
                (0, port) | (port, _) => port,
            };
            let from = SocketAddr::new(address.ip(), if is_range { 0 } else { port });
            let (address_delta, l4_delta) = deltas(from, place.socket());
            rows.push(ReturnRow {
                key: key(from, place.protocol.number()),
                vip: address_words(place.address),
                vip_port: place.socket().port().to_be(),
                backend: id.0,
                address_delta,
                l4_delta,
                listeners_only: u32::from(is_range && !spec.listeners.iter().any(every)),
                ..ReturnRow::zeroed()
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use balancer_common::verdict::MoveCause;
    use balancer_control::io::{NextHop, ServiceId};

    use super::*;

    fn tunnelled(tunnel_source: Option<&str>) -> BackendStanding {
        let (standing, _) = backend(&BackendSpec {
            id: BackendId(1),
            forwarding: Forwarding::Ipip,
            address: "[fd00::11]:80".parse().unwrap(),
            next_hop: Some(NextHop {
                ifindex: 1,
                source_mac: [2; 6],
                destination_mac: [4; 6],
                mtu: 1500,
                source: None,
                gateway: None,
                local: false,
            }),
            service: ServiceId(0),
            keeps_known: false,
            cause: MoveCause::Down,
            takes_pinned: false,
            passive: None,
            tunnel_source: tunnel_source.map(|source| source.parse().unwrap()),
        });
        standing
    }

    #[test]
    fn when_a_backend_is_reached_by_a_tunnel_then_it_needs_a_source_of_its_family() {
        for (source, flags) in
            [(None, BACKEND_V6), (Some("10.0.0.1"), BACKEND_V6), (Some("fd00::1"), BACKEND_V6 | BACKEND_REACHABLE)]
        {
            assert_eq!(tunnelled(source).flags & (BACKEND_V6 | BACKEND_REACHABLE), flags, "{source:?}");
        }
    }
}
