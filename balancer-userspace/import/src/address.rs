//! Addresses in the notation of other programs' configurations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use balancer_config::dns::host_name;

const LOCALHOST: &str = "localhost";

/// The host part of a backend's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    At(IpAddr),
    /// The DNS name of a host.
    Named(String),
}

impl Host {
    /// The address of the host, if the configuration contains an address and not a name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::At(address) => Some(*address),
            Self::Named(_) => None,
        }
    }

    /// Formats the host in the notation of the configuration, with the port if there is one.
    pub(crate) fn shown(&self, port: Option<u16>) -> String {
        match (self, port) {
            (Self::At(address), port) => shown(*address, port),
            (Self::Named(name), Some(port)) => format!("{name}:{port}"),
            (Self::Named(name), None) => name.clone(),
        }
    }
}

/// Splits `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT` or a bare IPv6 address into host and port.
pub(crate) fn split(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

/// Parses a host, which is an address or a DNS name, with an optional port.
pub(crate) fn host(text: &str) -> Option<(Host, Option<u16>)> {
    if let Some((address, port)) = numeric(text) {
        return Some((Host::At(address), port));
    }
    let (name, port) = split(text);
    let name = host_name(name).ok().filter(|name| is_name(name) && name != LOCALHOST)?;
    Some((Host::Named(name), port.map(number).transpose().ok()?))
}

/// Whether the last label of a name has a letter, as names of hosts have.
fn is_name(text: &str) -> bool {
    text.rsplit('.').next().is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()))
}

/// Parses a numeric address with an optional port.
pub(crate) fn numeric(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let (host, port) = split(text);
    Some((host.parse().ok()?, port.map(number).transpose().ok()?))
}

/// Parses a port number. The function refuses `+1000`, which Rust would parse as a number: in HAProxy, such a port is
/// relative to the client's port.
fn number(port: &str) -> Result<u16, ()> {
    if port.starts_with('+') { Err(()) } else { port.parse().map_err(drop) }
}

/// The client prefix lengths (IPv4, IPv6) that correspond to a mask in dotted notation or to an IPv6 prefix length.
pub(crate) fn mask(text: &str) -> Option<(u8, u8)> {
    if let Ok(length) = text.parse::<u8>() {
        return (1..=128).contains(&length).then_some((32, length));
    }
    let bits = u32::from(text.parse::<Ipv4Addr>().ok()?);
    let ones = bits.leading_ones();
    (ones > 0 && ones == bits.count_ones()).then_some((u8::try_from(ones).ok()?, 64))
}

/// The unspecified address of an address family, which stands for every address.
pub(crate) fn unspecified(is_v4: bool) -> IpAddr {
    if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Makes the name of a server from the server's address.
pub(crate) fn as_name(text: &str) -> String {
    text.replace(['[', ']'], "").replace(':', "-")
}

/// The reason why the importer cannot use this address.
pub(crate) fn refusal(text: &str) -> &'static str {
    if text.starts_with("unix:") || text.starts_with('/') || text.starts_with('@') || text.starts_with("abns@") {
        "the balancer cannot send packets to a unix socket; let the server listen on an address"
    } else if text.contains('$') {
        "its address is in a variable; write the address"
    } else if split(text).0.eq_ignore_ascii_case(LOCALHOST) {
        "a loopback address cannot get clients' packets; let the server listen on another address of this machine, \
         and write that one"
    } else {
        "this is no address or whole name of DNS such as `web.internal`, with the number of a port; write one"
    }
}

/// Formats an address in the balancer's notation, with the port if there is one.
pub(crate) fn shown(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_mask_is_contiguous_then_it_is_a_length() {
        let cases = [
            ("255.255.255.255", Some((32, 64))),
            ("255.255.254.0", Some((23, 64))),
            ("64", Some((32, 64))),
            ("0", None),
            ("129", None),
            ("0.0.0.0", None),
            ("255.0.255.0", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(mask(text), expected, "{text}");
        }
    }

    #[test]
    fn when_an_address_is_numeric_then_host_and_port_are_told_apart() {
        let cases = [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("[fd00::1]:80", Some("[fd00::1]:80")),
            ("fd00::1", Some("fd00::1")),
            ("web.example:80", None),
            ("10.0.0.1:$port", None),
            ("10.0.0.1:", None),
            ("10.0.0.1:+1000", None),
        ];
        for (text, expected) in cases {
            assert_eq!(numeric(text).map(|(host, port)| shown(host, port)).as_deref(), expected, "{text}");
        }
    }
}
