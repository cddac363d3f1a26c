//! The rows, tables and services that a rig publishes.

use std::{net::SocketAddr, time::Duration};

use balancer_common::{
    client::HashKey,
    features::Features,
    map_types::{ALL_DOWN, Forwarding, NO_BACKEND},
    share::Share,
    verdict::MoveCause,
};
use balancer_config::{
    config::Failback,
    listeners::{Family, Listener},
    snat::SnatConfig,
};
use balancer_control::{
    features,
    io::{BackendId, BackendSpec, ListenerId, ListenerSpec, NextHop, ServiceId, ServiceSpec},
};

use super::{
    IN_MAC, IN_MTU, OUT_MAC, OUT_MTU, Service, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6, Target, backend_id, backend_mac,
};

/// A service as the controller publishes it, with its only backend.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) spec: ServiceSpec,
    pub(super) backend: Option<BackendSpec>,
    /// The value of every slot of the service's table.
    pub(super) slot: u16,
}

impl Plan {
    /// Plans the service with this index; the last argument contains the indexes of the two interfaces.
    ///
    /// # Errors
    /// Fails if an address of the service is none.
    pub(super) fn new(
        index: usize,
        service: &Service,
        snat: &SnatConfig,
        (in_ifindex, out_ifindex): (u32, u32),
    ) -> anyhow::Result<Self> {
        let vip: SocketAddr = service.address.parse()?;
        let hop = |ifindex, source_mac, mtu| NextHop {
            ifindex,
            source_mac,
            destination_mac: backend_mac(index),
            mtu,
            source: None,
            gateway: None,
            local: false,
        };
        let id = backend_id(index);
        let (slot, at) = match service.target {
            Target::SameInterface(at) => (id.0, Some((at, Some(hop(in_ifindex, IN_MAC, IN_MTU))))),
            Target::OtherInterface(at) => (id.0, Some((at, Some(hop(out_ifindex, OUT_MAC, OUT_MTU))))),
            Target::ThisMachine(at) => (id.0, Some((at, Some(NextHop { local: true, ..hop(0, [0; 6], 0) })))),
            Target::Unreachable(at) => (id.0, Some((at, None))),
            Target::NoBackend => (NO_BACKEND, None),
            Target::AllDown => (ALL_DOWN, None),
        };
        let row = |(at, next_hop): (&str, _)| -> anyhow::Result<_> {
            Ok(backend(id, index, service.forwarding, at.parse()?, next_hop))
        };
        let backend = at.map(row).transpose()?;
        let spec = ServiceSpec {
            tick_seconds: 0,
            id: ServiceId(index as u16),
            hash_key: HashKey { k0: 1, k1: 2 },
            family: Family::of(vip.ip()),
            listeners: vec![ListenerSpec {
                id: ListenerId(index as u16),
                listener: Listener::at(vip, service.protocol),
                backend_port: 0,
                counted: false,
            }],
            client_prefix: if vip.is_ipv4() { 32 } else { 64 },
            forwarding: service.forwarding,
            remember: Duration::ZERO,
            failback: Failback::Stay,
            rules: false,
            reject: false,
            flows: snat.clone(),
            quic: None,
            share: Share::ALL,
            backends: backend.iter().map(|row| (row.id, row.address)).collect(),
            local: if matches!(service.target, Target::ThisMachine(_)) { vec![id] } else { Vec::new() },
        };
        Ok(Self { spec, backend, slot })
    }

    /// The features that the program needs for the service, by the functions of the controller.
    pub(super) fn features(&self) -> Features {
        let published = features::of_published(&self.spec);
        self.backend.iter().map(features::of_row).fold(published, |all, one| all | one)
    }
}

pub(super) fn backend(
    id: BackendId,
    service: usize,
    forwarding: Forwarding,
    address: SocketAddr,
    next_hop: Option<NextHop>,
) -> BackendSpec {
    BackendSpec {
        id,
        forwarding,
        address,
        next_hop,
        service: ServiceId(service as u16),
        keeps_known: true,
        cause: MoveCause::Down,
        takes_pinned: true,
        tunnel_source: Some(if address.is_ipv4() { TUNNEL_SOURCE_V4.into() } else { TUNNEL_SOURCE_V6.into() }),
        passive: None,
    }
}
