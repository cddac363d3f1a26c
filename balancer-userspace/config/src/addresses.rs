//! The addresses of services and their backends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use balancer_common::map_types::Forwarding;

use crate::{
    check::{CheckConfig, Via},
    listeners::{Family, Listener, PortRange},
    protocol::Protocol,
    service::{BackendConfig, ServiceConfig},
};

impl ServiceConfig {
    /// The first listener of the service; every service has at least one listener.
    #[must_use]
    pub fn first(&self) -> Listener {
        let nowhere = Listener {
            address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            ports: PortRange::EVERY,
            protocol: Protocol::Tcp,
        };
        self.listen.first().copied().unwrap_or(nowhere)
    }

    /// The service's listeners whose address has the given family.
    pub fn listeners(&self, family: Family) -> impl Iterator<Item = Listener> {
        self.listen.iter().copied().filter(move |listener| listener.family() == family)
    }

    /// The families of the service's clients, beginning with the family of its first listener.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let first = self.first().family();
        let other = self.listen.iter().map(Listener::family).find(|&family| family != first);
        std::iter::once(first).chain(other).collect()
    }

    /// The number of ids that the service's backends need: one for each family of each backend.
    #[must_use]
    pub fn backend_ids(&self) -> usize {
        self.backends.len() * self.families().len()
    }

    /// The port of a backend that has no port of its own, for a listener; 0: the port of the packet.
    #[must_use]
    pub fn backend_port(&self, listener: Listener) -> u16 {
        backend_port(&self.ports, listener)
    }

    /// The address of a backend for packets of an address family. A backend that has no port of its own has the port of
    /// the only listener, or port 0 if there are several listeners. `None`: the backend has no address that
    /// `forwarding` could use.
    #[must_use]
    pub fn backend_address(&self, backend: &BackendConfig, family: Family) -> Option<SocketAddr> {
        let address = backend.address_for(family, self.forwarding)?;
        let port = match (address.port(), self.listen.as_slice()) {
            (0, [only]) => self.backend_port(*only),
            (port, _) => port,
        };
        Some(SocketAddr::new(address.ip(), port))
    }

    /// The address to which `check` (the check of the backend or of the service) connects, for clients of `family`. The
    /// port is 0 if neither the check nor any listener that accepts connections has a port.
    #[must_use]
    pub fn check_target(&self, backend: &BackendConfig, check: &CheckConfig, family: Family) -> Option<SocketAddr> {
        let address = backend.address_for(family, self.forwarding)?;
        let vip = self.listeners(family).next()?.address;
        let host = match check.via {
            Via::Backend => address.ip(),
            Via::Service => vip,
        };
        let port = check.kind.port().or((address.port() != 0).then_some(address.port()));
        Some(SocketAddr::new(
            host,
            port.unwrap_or_else(|| implied_check_port(&self.listen, &self.ports, family, check.kind.protocol())),
        ))
    }

    /// The same configuration, in which backends have no port of their own if it equals the only listener's port.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        let mut backends = std::mem::take(&mut self.backends);
        for backend in &mut backends {
            backend.address = self.without_implied_port(backend.address);
            backend.address6 = backend.address6.map(|address| self.without_implied_port(address));
        }
        Self { backends, ..self }
    }

    /// Returns `address`; its port becomes 0 if it equals the port of the only listener.
    #[must_use]
    pub fn without_implied_port(&self, address: SocketAddr) -> SocketAddr {
        let implied = match self.listen.as_slice() {
            [only] => self.backend_port(*only),
            _ => 0,
        };
        let port = if address.port() == implied { 0 } else { address.port() };
        SocketAddr::new(address.ip(), port)
    }

    /// Whether clients reach a backend at this port without a port of the backend's own, because the forwarding mode
    /// keeps the port of a listener.
    #[must_use]
    pub fn keeps_port(&self, port: u16) -> bool {
        match self.forwarding {
            Forwarding::Nat | Forwarding::Snat => false,
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => {
                self.listen.iter().any(|listener| listener.ports.contains(port))
            }
        }
    }

    /// Checks the port that a user specifies for the backend `name`.
    ///
    /// # Errors
    /// Fails if the port is 0 and some listener is not for every port.
    pub fn port_of(&self, name: &str, port: Option<u16>) -> Result<u16, String> {
        let every = self.listen.iter().all(|listener| listener.ports == PortRange::EVERY);
        match port {
            Some(0) if !every => Err(port_zero(name)),
            port => Ok(port.unwrap_or(0)),
        }
    }

    /// The address of a backend in the form that users see: with a port only if the backend has one port for all
    /// listeners, or if the listener is for every port.
    #[must_use]
    pub fn shown_address(&self, backend: &BackendConfig) -> String {
        let address = self.backend_address(backend, Family::of(backend.address.ip())).unwrap_or(backend.address);
        if address.port() == 0 && self.listen.len() > 1 { address.ip().to_string() } else { address.to_string() }
    }
}

/// The error message for a backend with port 0 if the listener is not for every port.
pub(crate) fn port_zero(name: &str) -> String {
    format!("backend {name:?} has port 0, and the service has one port; leave the port out, or give 1 to 65535")
}

fn backend_port(ports: &BTreeMap<u16, u16>, listener: Listener) -> u16 {
    match listener.ports.single() {
        Some(port) => ports.get(&port).copied().unwrap_or(port),
        None => 0,
    }
}

/// The port for a check if neither the check nor the backend has a port: the port of the first listener of `protocol`
/// with a single port, or else of the first listener with a single port, or else 0.
pub(crate) fn implied_check_port(
    listen: &[Listener],
    ports: &BTreeMap<u16, u16>,
    family: Family,
    protocol: Protocol,
) -> u16 {
    let single = |listener: &&Listener| listener.ports.single().is_some();
    let fits = |listener: &&Listener| listener.protocol.transport() == protocol && single(listener);
    let of_family = || listen.iter().filter(|listener| listener.family() == family);
    let listener = of_family().find(fits).or_else(|| listen.iter().find(fits)).or_else(|| of_family().find(single));
    listener.map_or(0, |listener| backend_port(ports, *listener))
}

/// Whether packets of either address family can reach a backend of the other family: a tunnel carries packets of both
/// families, and `snat` translates between the families.
#[must_use]
pub const fn crosses_families(forwarding: Forwarding) -> bool {
    match forwarding {
        Forwarding::Dsr | Forwarding::Nat => false,
        Forwarding::Snat | Forwarding::Ipip | Forwarding::Gue => true,
    }
}

impl BackendConfig {
    /// The backend's address (port 0: the listener's port) for packets of an address family. If packets of either
    /// family can reach any address, the function prefers an address of the packets' own family.
    #[must_use]
    pub fn address_for(&self, family: Family, forwarding: Forwarding) -> Option<SocketAddr> {
        let all = [Some(self.address), self.address6];
        let own = all.into_iter().flatten().find(|address| Family::of(address.ip()) == family);
        own.or(crosses_families(forwarding).then_some(self.address))
    }
}
