//! What services listen on.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use balancer_common::map_types::Forwarding;
use serde::{Deserialize, Serialize};

use crate::{
    config::{BackendConfig, Protocol, ServiceConfig},
    value,
};

/// Listeners of one service, at most.
pub const MAX_LISTENERS_OF_SERVICE: usize = 64;

/// An address family. Clients of either are clients of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The ports of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// The first one; 0 with every port.
    pub first: u16,
    /// The last one, not below the first.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const EVERY: Self = Self { first: 0, last: u16::MAX };

    /// `port` alone; 0: every port.
    #[must_use]
    pub const fn of(port: u16) -> Self {
        if port == 0 { Self::EVERY } else { Self { first: port, last: port } }
    }

    /// The only port, if there is one.
    #[must_use]
    pub const fn single(self) -> Option<u16> {
        if self.first == self.last { Some(self.first) } else { None }
    }

    /// Whether `port` is in it.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// How many ports there are in it, less one: the fewer, the more exact.
    #[must_use]
    pub const fn width(self) -> u16 {
        self.last - self.first
    }
}

/// `80`, `10000-10100`, `0` for every port.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => port.fmt(f),
            None if *self == Self::EVERY => f.write_str("0"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Where a service is reached: a virtual IP, ports, and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    /// The virtual IP.
    pub address: IpAddr,
    /// Its ports.
    pub ports: PortRange,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl Listener {
    /// One at `address`, port 0 being every port.
    #[must_use]
    pub const fn at(address: SocketAddr, protocol: Protocol) -> Self {
        Self { address: address.ip(), ports: PortRange::of(address.port()), protocol }
    }

    /// The family of its clients.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// The address with the port; port 0 for every port and for ranges.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.single().unwrap_or(0))
    }

    /// The address with its ports, without the protocol: `198.51.100.10:80`, `[2001:db8::10]:5000-5010`.
    #[must_use]
    pub fn place(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{address}:{}", self.ports),
            IpAddr::V6(address) => format!("[{address}]:{}", self.ports),
        }
    }
}

/// `198.51.100.10:443/udp`.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place(), self.protocol)
    }
}

/// The same; without a protocol it is TCP.
impl FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        value::listener(text)
    }
}

impl Serialize for Listener {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listener {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl ServiceConfig {
    /// The first listener, which a service has at least.
    #[must_use]
    pub fn first(&self) -> Listener {
        let nowhere = Listener {
            address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            ports: PortRange::EVERY,
            protocol: Protocol::Tcp,
        };
        self.listen.first().copied().unwrap_or(nowhere)
    }

    /// Its listeners of one family.
    pub fn listeners(&self, family: Family) -> impl Iterator<Item = Listener> {
        self.listen.iter().copied().filter(move |listener| listener.family() == family)
    }

    /// The families of its clients, that of its first listener first.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let first = self.first().family();
        let other = self.listen.iter().map(Listener::family).find(|&family| family != first);
        std::iter::once(first).chain(other).collect()
    }

    /// How many ids its backends take: each has one for each family.
    #[must_use]
    pub fn backend_ids(&self) -> usize {
        self.backends.len() * self.families().len()
    }

    /// The port that a backend without one of its own has for a listener; 0: the packet's own.
    #[must_use]
    pub fn backend_port(&self, listener: Listener) -> u16 {
        backend_port(&self.ports, listener)
    }

    /// The port that a check connects to which has none, at a backend that has none: that of the first TCP listener with
    /// one port, else of the first listener with one; 0: there is none.
    #[must_use]
    pub fn implied_check_port(&self, family: Family) -> u16 {
        implied_check_port(&self.listen, &self.ports, family)
    }

    /// Where a backend is reached by packets of a family. Without a port of its own it has that of the only listener, or 0
    /// where there are several. `None`: it has no address that `forwarding` could use.
    #[must_use]
    pub fn backend_address(&self, backend: &BackendConfig, family: Family) -> Option<SocketAddr> {
        let address = backend.address_for(family, self.forwarding)?;
        let port = match (address.port(), self.listen.as_slice()) {
            (0, [only]) => self.backend_port(*only),
            (port, _) => port,
        };
        Some(SocketAddr::new(address.ip(), port))
    }

    /// Itself with the ports of backends left out where they are the only listener's anyway.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        let mut backends = std::mem::take(&mut self.backends);
        for backend in &mut backends {
            backend.address = self.without_implied_port(backend.address);
            backend.address6 = backend.address6.map(|address| self.without_implied_port(address));
        }
        Self { backends, ..self }
    }

    /// `address` with port 0, if its port is the only listener's anyway.
    #[must_use]
    pub fn without_implied_port(&self, address: SocketAddr) -> SocketAddr {
        let implied = match self.listen.as_slice() {
            [only] => self.backend_port(*only),
            _ => 0,
        };
        let port = if address.port() == implied { 0 } else { address.port() };
        SocketAddr::new(address.ip(), port)
    }

    /// What is wrong with a port that somebody gave a backend called `name`.
    ///
    /// # Errors
    /// When it is 0 and a listener is not for every port.
    pub fn port_of(&self, name: &str, port: Option<u16>) -> Result<u16, String> {
        let every = self.listen.iter().all(|listener| listener.ports == PortRange::EVERY);
        match port {
            Some(0) if !every => Err(port_zero(name)),
            port => Ok(port.unwrap_or(0)),
        }
    }

    /// A backend's address as it is shown: with a port only where it has one for all listeners, or the listener has every
    /// port.
    #[must_use]
    pub fn shown_address(&self, backend: &BackendConfig) -> String {
        let address = self.backend_address(backend, Family::of(backend.address.ip())).unwrap_or(backend.address);
        if address.port() == 0 && self.listen.len() > 1 { address.ip().to_string() } else { address.to_string() }
    }
}

/// What to say of a backend with port 0 where the listener has not every port.
pub(crate) fn port_zero(name: &str) -> String {
    format!("backend {name:?} has port 0, and the service has one port; leave the port out, or give 1 to 65535")
}

fn backend_port(ports: &BTreeMap<u16, u16>, listener: Listener) -> u16 {
    match listener.ports.single() {
        Some(port) => ports.get(&port).copied().unwrap_or(port),
        None => 0,
    }
}

/// [`ServiceConfig::implied_check_port`].
pub(crate) fn implied_check_port(listen: &[Listener], ports: &BTreeMap<u16, u16>, family: Family) -> u16 {
    let single = |listener: &&Listener| listener.ports.single().is_some();
    let tcp = |listener: &&Listener| listener.protocol == Protocol::Tcp && single(listener);
    let of_family = || listen.iter().filter(|listener| listener.family() == family);
    let listener = of_family().find(tcp).or_else(|| listen.iter().find(tcp)).or_else(|| of_family().find(single));
    listener.map_or(0, |listener| backend_port(ports, *listener))
}

impl BackendConfig {
    /// The address (port 0: the listener's) that packets of a family are sent to. Tunnels carry either family to any
    /// address; where there is one of the packets' own family, they prefer it.
    #[must_use]
    pub fn address_for(&self, family: Family, forwarding: Forwarding) -> Option<SocketAddr> {
        let all = [Some(self.address), self.address6];
        let own = all.into_iter().flatten().find(|address| Family::of(address.ip()) == family);
        let tunnel = matches!(forwarding, Forwarding::Ipip | Forwarding::Gue);
        own.or(tunnel.then_some(self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_survive_their_text() {
        for text in [
            "198.51.100.10:80/tcp",
            "198.51.100.10:443/udp",
            "[2001:db8::10]:443/tcp",
            "198.51.100.10:10000-10100/udp",
            "198.51.100.10:0/tcp",
        ] {
            assert_eq!(text.parse::<Listener>().unwrap().to_string(), text);
        }
        assert_eq!("198.51.100.10:80".parse::<Listener>().unwrap().to_string(), "198.51.100.10:80/tcp");
    }

    #[test]
    fn what_is_no_listener_is_refused_with_what_would_be_right() {
        for (text, expected) in [
            ("198.51.100.10", "has no port"),
            ("198.51.100.10:80/sctp", "\"sctp\" is no protocol"),
            ("198.51.100.10:90-80", "ends before it begins"),
            ("198.51.100.10:0-80", "begins with port 0"),
            ("198.51.100.10:80-80", "write \"80\""),
            ("198.51.100.10:80-65536", "is not a port"),
            ("198.51.100.10:x", "is not a port"),
            ("2001:db8::10:80-90", "brackets"),
            ("shop.example:80", "host names are not looked up"),
            ("224.0.0.1:80", "multicast"),
        ] {
            let refusal = text.parse::<Listener>().unwrap_err();
            assert!(refusal.contains(expected) && !refusal.contains('\n'), "{text}: {refusal}");
        }
    }
}
