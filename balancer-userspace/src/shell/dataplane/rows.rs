//! What the core says of services and backends, as the rows that the kernel program reads.

use std::net::{IpAddr, SocketAddr};

use balancer_common::{
    checksum,
    client::{mask_v4, mask_v6},
    map_types::{
        BACKEND_PORT_CHANGES, BACKEND_REACHABLE, BackendRow, FAMILY_V4, FAMILY_V6, Forwarding, LiveTable, ReturnRow,
        ServiceKey, ServiceRow,
    },
};
use bytemuck::Zeroable as _;

use crate::core::io::{BackendSpec, ServiceSpec};

/// An address as the maps hold it: network order, IPv4 in the first word.
#[must_use]
pub(super) fn address_words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => bytemuck::cast(address.octets()),
    }
}

fn family(address: IpAddr) -> u8 {
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

/// The row of a backend.
#[must_use]
pub(super) fn backend(spec: &BackendSpec) -> BackendRow {
    let (address_delta, l4_delta) = deltas(spec.vip, spec.address);
    let port_changes = spec.vip.port() != 0 && spec.address.port() != 0;
    let mut row = BackendRow {
        address: address_words(spec.address.ip()),
        address_delta,
        l4_delta,
        port: spec.address.port().to_be(),
        forwarding: spec.forwarding as u8,
        flags: if port_changes { BACKEND_PORT_CHANGES } else { 0 },
        ..BackendRow::zeroed()
    };
    if let Some(hop) = spec.next_hop {
        row.destination_mac = hop.destination_mac;
        row.source_mac = hop.source_mac;
        row.ifindex = hop.ifindex;
        row.mtu = hop.mtu;
        row.flags |= BACKEND_REACHABLE;
    }
    row
}

/// The row of a service with its live table.
#[must_use]
pub(super) fn service(spec: &ServiceSpec, table: LiveTable) -> ServiceRow {
    ServiceRow {
        key: key(spec.address, spec.protocol.number()),
        id: spec.id.0,
        table: table.to_word(),
        hash_key: spec.hash_key,
        client_mask: match spec.address.ip() {
            IpAddr::V4(_) => [u64::from(mask_v4(spec.client_prefix)), 0],
            IpAddr::V6(_) => mask_v6(spec.client_prefix),
        },
        ..ServiceRow::zeroed()
    }
}

/// The row that marks an address as a VIP.
#[must_use]
pub(super) fn vip_marker(address: IpAddr) -> ServiceRow {
    ServiceRow { key: key(SocketAddr::new(address, 0), 0), id: u16::MAX, ..ServiceRow::zeroed() }
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
                reserved: [0; 5],
            }
        })
        .collect()
}
