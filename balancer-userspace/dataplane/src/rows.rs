//! What the core says of services and backends, as the rows that the kernel program reads.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use balancer_common::{
    checksum,
    client::{self, mask_v4, mask_v6},
    clock::Clock,
    map_types::{
        BACKEND_KEEPS_KNOWN, BACKEND_PORT_CHANGES, BACKEND_REACHABLE, BACKEND_TAKES_CLIENTS, BACKEND_V6, BackendRow,
        BackendStanding, FAMILY_V4, FAMILY_V6, Forwarding, LiveTable, Portless, ReturnRow, SERVICE_FAILBACK,
        SERVICE_READS_ALWAYS, SERVICE_REJECTS, SERVICE_REMEMBERS, SERVICE_RULES, ServiceKey, ServiceRow,
    },
    seen,
};
use balancer_core::io::{BackendSpec, ServiceSpec};
use balancer_model::config::Failback;
use bytemuck::Zeroable as _;

/// Seconds of silence after which a client's next datagram counts as a new connection.
const IDLE_SECONDS: u32 = 30;

/// An address as the maps hold it: network order, IPv4 in the first word.
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

fn key(address: SocketAddr, protocol: u8) -> ServiceKey {
    ServiceKey {
        address: address_words(address.ip()),
        port: address.port().to_be(),
        protocol,
        family: family(address.ip()),
    }
}

/// The deltas of replacing `old` by `new`: of the address alone, and of address and port. A port of 0 on either side
/// leaves the port alone.
fn deltas(old: SocketAddr, new: SocketAddr) -> (u16, u16) {
    let address = checksum::replace_address(&address_words(old.ip()), &address_words(new.ip()));
    let port = if old.port() == 0 || new.port() == 0 {
        0
    } else {
        checksum::replace_u16(old.port().to_be(), new.port().to_be())
    };
    (checksum::fold(address), checksum::fold(address + port))
}

/// The row of a backend, and what of it is a word of its own.
#[must_use]
pub(super) fn backend(spec: &BackendSpec) -> (BackendStanding, BackendRow) {
    let (address_delta, l4_delta) = deltas(spec.vip, spec.address);
    let port_changes = spec.vip.port() != 0 && spec.address.port() != 0;
    let tunnelled = matches!(spec.forwarding, Forwarding::Ipip | Forwarding::Gue);
    let tunnel_source = spec.tunnel_source.filter(|source| source.is_ipv4() == spec.address.is_ipv4());
    let mut row = BackendRow {
        address: address_words(spec.address.ip()),
        address_delta,
        l4_delta,
        port: spec.address.port().to_be(),
        forwarding: spec.forwarding as u8,
        tunnel_source: tunnel_source.map(address_words).unwrap_or_default(),
        ..BackendRow::zeroed()
    };
    let mut standing = BackendStanding {
        service: spec.service.0,
        cause: spec.cause as u8,
        flags: (u8::from(port_changes) * BACKEND_PORT_CHANGES)
            | (u8::from(spec.keeps_known) * BACKEND_KEEPS_KNOWN)
            | (u8::from(spec.address.is_ipv6()) * BACKEND_V6)
            | (u8::from(spec.takes_pinned) * BACKEND_TAKES_CLIENTS),
    };
    if let Some(hop) = spec.next_hop {
        row.destination_mac = hop.destination_mac;
        row.source_mac = hop.source_mac;
        row.ifindex = hop.ifindex;
        row.mtu = hop.mtu;
        if !tunnelled || tunnel_source.is_some() {
            standing.flags |= BACKEND_REACHABLE;
        }
    }
    (standing, row)
}

/// The row of a service with its live table, at `tick` of its clock.
#[must_use]
pub(super) fn service(spec: &ServiceSpec, table: LiveTable, clock: Option<Clock>, tick: u16) -> ServiceRow {
    let clock = clock.unwrap_or(Clock { tick_seconds: 1, remember: 0 });
    let mut flags = 0;
    if !spec.remember.is_zero() {
        flags |= SERVICE_REMEMBERS;
    }
    if seen_period(spec).is_none() {
        flags |= SERVICE_READS_ALWAYS;
    }
    if spec.failback == Failback::Return {
        flags |= SERVICE_FAILBACK;
    }
    if spec.rules {
        flags |= SERVICE_RULES;
    }
    if spec.reject {
        flags |= SERVICE_REJECTS;
    }
    ServiceRow {
        key: key(spec.address, spec.protocol.number()),
        id: spec.id.0,
        flags,
        tick: u32::from(tick),
        remember: clock.remember,
        idle: idle(clock),
        table: table.to_word(),
        hash_key: spec.hash_key,
        client_mask: match spec.address.ip() {
            IpAddr::V4(_) => [u64::from(mask_v4(spec.client_prefix)), 0],
            IpAddr::V6(_) => mask_v6(spec.client_prefix),
        },
        ..ServiceRow::zeroed()
    }
}

/// Seconds in which a client's entry is read once, in slots without exceptions. `None`: with every packet, or never.
#[must_use]
pub(super) fn seen_period(spec: &ServiceSpec) -> Option<u32> {
    seen::period_seconds(u32::try_from(spec.remember.as_secs()).unwrap_or(u32::MAX))
}

/// Ticks after which a datagram counts as a new connection.
#[must_use]
pub(super) fn idle(clock: Clock) -> u16 {
    IDLE_SECONDS.div_ceil(clock.tick_seconds).max(1) as u16
}

/// The hash of a client of a service, which names its slot and its bucket. `None`: not of the service's family.
#[must_use]
pub(super) fn client_hash(spec: &ServiceSpec, address: IpAddr) -> Option<u64> {
    match (spec.address.ip(), address) {
        (IpAddr::V4(_), IpAddr::V4(address)) => {
            let address = u32::from_ne_bytes(address.octets()) & mask_v4(spec.client_prefix);
            Some(client::hash_v4(spec.hash_key, address))
        }
        (IpAddr::V6(_), IpAddr::V6(address)) => {
            let [high, low]: [u64; 2] = bytemuck::cast(address.octets());
            let [high_mask, low_mask] = mask_v6(spec.client_prefix);
            Some(client::hash_v6(spec.hash_key, [high & high_mask, low & low_mask]))
        }
        _ => None,
    }
}

/// The rows that mark the addresses of `services` as VIPs.
#[must_use]
pub(super) fn vip_markers(services: &[ServiceSpec]) -> Vec<ServiceRow> {
    let mut vips: BTreeMap<IpAddr, Portless> = BTreeMap::new();
    for spec in services {
        vips.entry(spec.address.ip()).or_default().add(spec.protocol.number(), spec.address.port().to_be());
    }
    vips.into_iter()
        .map(|(address, portless)| ServiceRow { key: marker(address), id: u16::MAX, portless, ..ServiceRow::zeroed() })
        .collect()
}

/// The rows that mark the addresses that `returns` come from.
#[must_use]
pub(super) fn return_markers(returns: &[ReturnRow]) -> Vec<ReturnRow> {
    let mut backends: HashMap<ServiceKey, Portless> = HashMap::new();
    for row in returns {
        let address = ServiceKey { port: 0, protocol: 0, ..row.key };
        backends.entry(address).or_default().add(row.key.protocol, row.key.port);
    }
    backends.into_iter().map(|(key, portless)| ReturnRow { key, portless, ..ReturnRow::zeroed() }).collect()
}

fn marker(address: IpAddr) -> ServiceKey {
    key(SocketAddr::new(address, 0), 0)
}

/// The ways back of a service's backends: none unless it is `nat`.
#[must_use]
pub(super) fn returns(spec: &ServiceSpec) -> Vec<ReturnRow> {
    if spec.forwarding != Forwarding::Nat {
        return Vec::new();
    }
    spec.backends
        .iter()
        .map(|&(id, address)| {
            let every_port = spec.address.port() == 0 || address.port() == 0;
            let from = if every_port { SocketAddr::new(address.ip(), 0) } else { address };
            let (address_delta, l4_delta) = deltas(from, spec.address);
            ReturnRow {
                key: key(from, spec.protocol.number()),
                vip: address_words(spec.address.ip()),
                vip_port: if every_port { 0 } else { spec.address.port().to_be() },
                backend: id.0,
                address_delta,
                l4_delta,
                ..ReturnRow::zeroed()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use balancer_common::verdict::MoveCause;
    use balancer_core::io::{BackendId, NextHop, ServiceId};

    use super::*;

    fn tunnelled(tunnel_source: Option<&str>) -> BackendStanding {
        let (standing, _) = backend(&BackendSpec {
            id: BackendId(1),
            forwarding: Forwarding::Ipip,
            vip: "198.51.100.10:80".parse().unwrap(),
            address: "[fd00::11]:80".parse().unwrap(),
            next_hop: Some(NextHop {
                ifindex: 1,
                source_mac: [2; 6],
                destination_mac: [4; 6],
                mtu: 1500,
                source: None,
                gateway: None,
            }),
            service: ServiceId(0),
            keeps_known: false,
            cause: MoveCause::Down,
            takes_pinned: false,
            tunnel_source: tunnel_source.map(|source| source.parse().unwrap()),
        });
        standing
    }

    #[test]
    fn a_tunnel_needs_a_source_of_the_backends_family() {
        for (source, flags) in
            [(None, BACKEND_V6), (Some("10.0.0.1"), BACKEND_V6), (Some("fd00::1"), BACKEND_V6 | BACKEND_REACHABLE)]
        {
            assert_eq!(tunnelled(source).flags & (BACKEND_V6 | BACKEND_REACHABLE), flags, "{source:?}");
        }
    }
}
