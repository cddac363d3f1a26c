//! Listeners of services: an address, ports and a protocol.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    protocol::Protocol,
    value::{address, quoted, service_address},
};

/// The maximum number of listeners that a service can have.
pub const MAX_LISTENERS_OF_SERVICE: usize = 64;

/// An address family, IPv4 or IPv6. Two addresses of different families always count as two clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// The family of IPv4 addresses.
    #[serde(rename = "IPv4")]
    V4,
    /// The family of IPv6 addresses.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The address family of an IP address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The name of the family: `IPv4` or `IPv6`.
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
    /// The first port of the range; 0 stands for every port.
    pub first: u16,
    /// The last port of the range, not below the first port.
    pub last: u16,
}

impl PortRange {
    /// The range that contains all ports.
    pub const EVERY: Self = Self { first: 0, last: u16::MAX };

    /// The range that contains only `port`; 0 stands for every port.
    #[must_use]
    pub const fn of(port: u16) -> Self {
        if port == 0 { Self::EVERY } else { Self { first: port, last: port } }
    }

    /// The only port of the range, if the range contains just one port.
    #[must_use]
    pub const fn single(self) -> Option<u16> {
        if self.first == self.last { Some(self.first) } else { None }
    }

    /// Whether the range contains `port`.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether two ranges overlap although neither range contains the other.
    #[must_use]
    pub const fn crosses(self, other: Self) -> bool {
        let apart = self.last < other.first || other.last < self.first;
        let within = self.first >= other.first && self.last <= other.last;
        let around = self.first <= other.first && self.last >= other.last;
        !apart && !within && !around
    }

    /// The number of ports minus one; a range with a smaller number is more specific.
    #[must_use]
    pub const fn width(self) -> u16 {
        self.last - self.first
    }
}

/// Formats the ports as `80`, `10000-10100`, or `0` for every port.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => port.fmt(f),
            None if *self == Self::EVERY => f.write_str("0"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// A listener of a service: a virtual IP, ports, and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    /// The virtual IP of the listener.
    pub address: IpAddr,
    /// The ports of the listener.
    pub ports: PortRange,
    /// The protocol of the listener: TCP, UDP or QUIC.
    pub protocol: Protocol,
}

impl Listener {
    /// A listener at `address`; port 0 stands for every port.
    #[must_use]
    pub const fn at(address: SocketAddr, protocol: Protocol) -> Self {
        Self { address: address.ip(), ports: PortRange::of(address.port()), protocol }
    }

    /// The family of the listener's clients.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// The key that no two listeners may share; in this key, UDP and QUIC count as the same protocol.
    #[must_use]
    pub const fn taken(self) -> Self {
        Self { protocol: self.protocol.transport(), ..self }
    }

    /// The address of the listener with its port; the port is 0 for every port and for ranges.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.single().unwrap_or(0))
    }

    /// The address of the listener with its ports, without the protocol: `198.51.100.10:80`,
    /// `[2001:db8::10]:5000-5010`.
    #[must_use]
    pub fn place(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{address}:{}", self.ports),
            IpAddr::V6(address) => format!("[{address}]:{}", self.ports),
        }
    }
}

/// Formats the listener as `198.51.100.10:443/udp`.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place(), self.protocol)
    }
}

/// Parses `ADDR:PORT` or `ADDR:FIRST-LAST`, followed by `/tcp` (the default), `/udp` or `/quic`; port 0 stands for
/// every port.
impl FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((place, "tcp")) => (place, Protocol::Tcp),
            Some((place, "udp")) => (place, Protocol::Udp),
            Some((place, "quic")) => (place, Protocol::Quic),
            Some((_, other)) => {
                return Err(format!("{} is no protocol; write \"tcp\", \"udp\" or \"quic\"", quoted(other)));
            }
        };
        if let Some((address, ports)) = place.rsplit_once(':')
            && let Some((first, last)) = ports.split_once('-')
        {
            let port = |text: &str| {
                text.parse::<u16>().map_err(|_| format!("{} is not a port; give 1 to 65535", quoted(text)))
            };
            let (first, last) = (port(first)?, port(last)?);
            let (ip, _) = address_in_brackets(address)?;
            return match (first, last) {
                (0, _) => Err(format!(
                    "the range {ports} begins with port 0; give 1 to 65535, or port 0 alone for every port"
                )),
                _ if first == last => Err(format!("the range {ports} has one port; write \"{first}\"")),
                _ if first > last => Err(format!("the range {ports} ends before it begins; write \"{last}-{first}\"")),
                _ => Ok(Self { address: ip, ports: PortRange { first, last }, protocol }),
            };
        }
        service_address(place).map(|address| Self::at(address, protocol))
    }
}

/// Parses the address that precedes a port.
fn address_in_brackets(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    match address(text)? {
        (IpAddr::V6(_), None) if !text.starts_with('[') => {
            Err(format!("the address {} has no brackets; write \"[{text}]\" in front of ports", quoted(text)))
        }
        (_, Some(_)) => Err(format!("{} has two ports; write \"ADDR:FIRST-LAST\"", quoted(text))),
        address => Ok(address),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_listener_is_written_then_it_can_be_read_back() {
        for text in [
            "198.51.100.10:80/tcp",
            "198.51.100.10:443/udp",
            "198.51.100.10:443/quic",
            "[2001:db8::10]:443/tcp",
            "198.51.100.10:10000-10100/udp",
            "198.51.100.10:0/tcp",
        ] {
            assert_eq!(text.parse::<Listener>().unwrap().to_string(), text);
        }
        assert_eq!("198.51.100.10:80".parse::<Listener>().unwrap().to_string(), "198.51.100.10:80/tcp");
    }

    #[test]
    fn when_a_text_is_no_listener_then_the_error_says_what_would_be_right() {
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
