//! The services of the measured paths, and their backends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use balancer_common::{client::HashKey, map_types::Forwarding};
use balancer_config::{
    config::Protocol,
    quic::{Format, Keyed, QuicConfig, QuicKey},
};
use balancer_control::io::{BackendId, RuleAction, RuleSpec};

/// A service that receives the packets of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// The VIP and the port of the service.
    pub(crate) address: SocketAddr,
    /// The protocol of the service, TCP or UDP.
    pub(crate) protocol: Protocol,
    /// How packets reach the backends.
    pub(crate) forwarding: Forwarding,
    pub(crate) remembers: bool,
    /// Whether backends and clients are behind different interfaces.
    pub(crate) elsewhere: bool,
    /// Whether the backends have addresses of the other family.
    pub(crate) crossed: bool,
    pub(crate) rule: Option<&'static str>,
    /// Whether the rule pins clients to the service's first backend. If this field is false, the rule denies the
    /// clients.
    pub(crate) pins: bool,
    /// The key with which the program hashes clients.
    pub(crate) key: HashKey,
    /// The number of slots of the lookup table.
    pub(crate) slots: u32,
    /// The format of connection IDs that name backends: the length of the nonce after an eight-byte server ID, and
    /// whether the IDs are encrypted.
    pub(crate) quic: Option<(u8, bool)>,
}

impl Service {
    const fn new(address: SocketAddr, protocol: Protocol, forwarding: Forwarding) -> Self {
        let key = HashKey { k0: 11, k1: 12 };
        Self {
            address,
            protocol,
            forwarding,
            remembers: false,
            elsewhere: false,
            crossed: false,
            rule: None,
            pins: false,
            key,
            slots: 65_537,
            quic: None,
        }
    }

    /// Returns a service on TCP port 80.
    pub(crate) const fn tcp(vip: IpAddr, forwarding: Forwarding) -> Self {
        Self::new(SocketAddr::new(vip, 80), Protocol::Tcp, forwarding)
    }

    const fn udp(vip: IpAddr) -> Self {
        Self::new(SocketAddr::new(vip, 53), Protocol::Udp, Forwarding::Dsr)
    }

    const fn quic(vip: IpAddr, nonce: u8, encrypted: bool) -> Self {
        let quic = Some((nonce, encrypted));
        Self { quic, ..Self::new(SocketAddr::new(vip, 443), Protocol::Quic, Forwarding::Dsr).remembering() }
    }

    /// Returns the configuration of connection IDs that name backends.
    pub(crate) fn quic_config(&self) -> Option<QuicConfig> {
        let (nonce_length, encrypted) = self.quic?;
        Some(QuicConfig {
            format: Format::Draft,
            server_id_length: 8,
            nonce_length,
            current: Keyed { config: 1, key: encrypted.then_some(QuicKey([7; 16])) },
            before: None,
            learn: true,
        })
    }

    pub(crate) const fn remembering(self) -> Self {
        Self { remembers: true, ..self }
    }

    const fn denying(self, prefix: &'static str) -> Self {
        Self { rule: Some(prefix), ..self }
    }

    const fn pinning(self, prefix: &'static str) -> Self {
        Self { rule: Some(prefix), pins: true, ..self }
    }

    /// Returns whether the service and its backends use IPv6.
    pub(crate) const fn is_v6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// Returns the rules of this service, if `index` is the index of the service.
    ///
    /// # Errors
    /// Fails if a prefix does not parse.
    pub(crate) fn rules(&self, index: usize) -> Result<Vec<RuleSpec>> {
        let Some(prefix) = self.rule else { return Ok(Vec::new()) };
        let action = if self.pins { RuleAction::Pin(backends(index).next()) } else { RuleAction::Deny };
        Ok(vec![RuleSpec { prefix: prefix.parse()?, action }])
    }
}

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, last))
}

/// The following constants are indexes in [`SERVICES`].
pub(crate) const PLAIN: usize = 0;
pub(crate) const PLAIN_V6: usize = 1;
pub(crate) const MEMORY: usize = 2;
pub(crate) const MEMORY_V6: usize = 3;
pub(crate) const DATAGRAMS: usize = 4;
pub(crate) const REMEMBERED_DATAGRAMS: usize = 5;
pub(crate) const NAT: usize = 6;
pub(crate) const NAT_V6: usize = 7;
pub(crate) const IPIP: usize = 8;
pub(crate) const IPIP_V6: usize = 9;
pub(crate) const GUE: usize = 10;
pub(crate) const GUE_V6: usize = 11;
pub(crate) const ELSEWHERE: usize = 12;
/// The service with a rule for other clients; the rule's prefix differs from the clients' addresses in the first bits.
pub(crate) const RULED: usize = 13;
/// The service with a rule for addresses close to the clients' addresses, so that the program must look up the rule for
/// each packet.
pub(crate) const RULED_NEARBY: usize = 14;
/// The service with a rule that pins the clients to a backend.
pub(crate) const PINNED: usize = 15;
/// The service with memory and a rule that pins other clients; the rule's prefix differs from the clients' addresses in
/// the first bits.
pub(crate) const RULED_MEMORY: usize = 16;
/// The services with connection IDs that name backends: not encrypted, encrypted as one block, and encrypted in four
/// passes. The program decrypts only three of the four passes.
pub(crate) const QUIC: [usize; 3] = [17, 18, 19];

/// All services of the benchmark; the index of a service is the id of the service. No VIP has the same
/// [`balancer_common::service_table::vip_bit`] as the first client of a path; otherwise, the program would have to look
/// up whether the client is a VIP.
pub(crate) const SERVICES: [Service; 20] = [
    Service::tcp(v4(1), Forwarding::Dsr),
    Service::tcp(v6(1), Forwarding::Dsr),
    Service::tcp(v4(2), Forwarding::Dsr).remembering(),
    Service::tcp(v6(2), Forwarding::Dsr).remembering(),
    Service::udp(v4(1)),
    Service::udp(v4(2)).remembering(),
    Service::tcp(v4(3), Forwarding::Nat),
    Service::tcp(v6(3), Forwarding::Nat),
    Service::tcp(v4(4), Forwarding::Ipip),
    Service::tcp(v6(4), Forwarding::Ipip),
    Service::tcp(v4(5), Forwarding::Gue),
    Service::tcp(v6(6), Forwarding::Gue),
    Service { elsewhere: true, ..Service::tcp(v4(6), Forwarding::Dsr) },
    Service::tcp(v4(7), Forwarding::Dsr).denying("192.0.2.0/24"),
    Service::tcp(v4(8), Forwarding::Dsr).denying("172.16.255.0/24"),
    Service::tcp(v4(10), Forwarding::Dsr).remembering().pinning("172.16.0.0/24"),
    Service::tcp(v4(11), Forwarding::Dsr).remembering().pinning("192.0.2.0/24"),
    Service::quic(v4(12), 8, false),
    Service::quic(v4(13), 8, true),
    Service::quic(v4(14), 10, true),
];

/// The services whose connections have flows, in a separate scene.
pub(crate) const FLOWING: [Service; 3] = [
    Service::tcp(v4(1), Forwarding::Snat),
    Service { crossed: true, ..Service::tcp(v4(2), Forwarding::Snat) },
    Service::tcp(v4(3), Forwarding::Snat).pinning("172.16.0.1/32"),
];
/// The index in [`FLOWING`] of the service with one client. The benchmark knows the backend, address and port of this
/// client's flow.
pub(crate) const REPLYING: usize = 2;
/// The only address and port by which the service [`REPLYING`] presents its client to the backend.
pub(crate) const PRESENTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), 20_000);

/// Returns the source addresses and ports of a service's flows.
pub(crate) fn pool(service: &Service) -> (Vec<IpAddr>, Option<(u16, u16)>) {
    if service.pins {
        return (vec![PRESENTED.ip()], Some((PRESENTED.port(), PRESENTED.port())));
    }
    ((1..=8).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect(), None)
}

/// The number of backends of each service.
pub(crate) const BACKENDS: u16 = 8;

pub(crate) fn backends(service: usize) -> impl Iterator<Item = BackendId> {
    (1..=BACKENDS).map(move |number| BackendId(service as u16 * BACKENDS + number))
}

/// Returns the address on which a backend listens.
pub(crate) fn backend(id: BackendId, v6: bool) -> SocketAddr {
    let ip = if v6 {
        Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(id.0)).into()
    } else {
        Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 0]) | u32::from(id.0)).into()
    };
    SocketAddr::new(ip, 8080)
}

/// Returns the source address of tunnels to a backend.
pub(crate) fn tunnel_source(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from_bits(0xfd00 << 112 | 0xfe).into() } else { Ipv4Addr::new(10, 0, 0, 254).into() }
}

#[cfg(test)]
mod tests {
    use balancer_common::service_table::vip_bit;

    use super::*;

    fn bit(address: IpAddr) -> u64 {
        let bytes = match address {
            IpAddr::V4(address) => [&address.octets()[..], &[0; 12]].concat(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut words = [0; 4];
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(&bytes);
        vip_bit(&words)
    }

    #[test]
    fn when_clients_are_chosen_then_the_first_does_not_look_like_a_vip() {
        let vips = SERVICES.iter().fold(0, |bits, service| bits | bit(service.address.ip()));
        for client in crate::paths::first_clients() {
            assert_eq!(vips & bit(client), 0, "{client}");
        }
    }
}
