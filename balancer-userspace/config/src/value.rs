//! Parses single values as users write them in the file, on the command line and in API bodies. Every error is one line
//! that states the problem and its correction.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr as _,
    time::Duration,
};

use balancer_common::client::HashKey;
use ipnet::IpNet;

use crate::names::{BackendName, nearest};

/// The maximum value of a duration.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// The maximum length of a unix socket's path in bytes: the size of `sun_path` without the terminating zero.
const MAX_SOCKET_PATH: usize = 107;

/// The maximum length of an interface name in bytes: `IFNAMSIZ` without the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// The text `text` in quotes on one line, shortened for a message.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Returns `did you mean "…"?` if one of the `known` words is similar to `word`, otherwise all known words under the
/// heading `what`.
pub fn hint(word: &str, known: &[&str], what: &str) -> String {
    match nearest(word, known.iter().copied()) {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => format!("{what}: {}", known.join(", ")),
    }
}

/// Parses one of the words that are valid for a key.
pub fn word<T: Copy>(key: &str, text: &str, words: &[(&str, T)]) -> Result<T, String> {
    if let Some(&(_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(value);
    }
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    Err(format!("{key} = {} is unknown; {}", quoted(text), hint(text, &names, "known values")))
}

/// Parses the name of a service or of a backend.
pub fn name(text: &str) -> Result<String, String> {
    let right = "use 1 to 63 of A-Z a-z 0-9 . _ -";
    if text.is_empty() {
        return Err(format!("a name is empty; {right}"));
    }
    if text.len() > 63 {
        return Err(format!("the name {} has {} bytes; {right}", quoted(text), text.len()));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
        Some(wrong) => Err(format!("the name {text:?} contains {wrong:?}; {right}")),
        None => Ok(text.to_owned()),
    }
}

/// Parses the name or the number of a group of users.
pub fn group(text: &str) -> Result<String, String> {
    let right = "give a name or a number, such as \"balancer\"";
    let usual = |c: char| c.is_ascii_alphanumeric() || "._-$".contains(c);
    if text.is_empty() || text.len() > 32 || text.starts_with('-') || !text.chars().all(usual) {
        return Err(format!("{} is not a group; {right}", quoted(text)));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_err() {
        return Err(format!("{} is not the number of a group; {right}", quoted(text)));
    }
    Ok(text.to_owned())
}

/// Parses `SERVICE/BACKEND`.
pub fn backend_name(text: &str) -> Result<BackendName, String> {
    let Some((service, backend)) = text.split_once('/') else {
        return Err(format!("{} names no backend; write SERVICE/NAME, such as \"web/web1\"", quoted(text)));
    };
    Ok(BackendName { service: name(service)?, backend: name(backend)? })
}

/// Parses a prefix `ADDR/LENGTH` without host bits, or a single address `ADDR`.
pub fn prefix(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().map(IpNet::from);
    let prefix = text.parse::<IpNet>().or_else(|_| one()).map_err(|_| {
        format!("{} is no prefix; write ADDR/LENGTH, such as \"192.0.2.0/24\" or \"2001:db8::/32\"", quoted(text))
    })?;
    if prefix.trunc() == prefix { Ok(prefix) } else { Err(host_bits(prefix)) }
}

/// The error message for a prefix with host bits.
pub fn host_bits(prefix: IpNet) -> String {
    format!(
        "{prefix} has bits set behind its first {}; write {}, or {}/{} for the one address",
        prefix.prefix_len(),
        prefix.trunc(),
        prefix.addr(),
        prefix.max_prefix_len()
    )
}

/// Parses `ADDR`, `ADDR:PORT`, `[ADDR]` or `[ADDR]:PORT`; the address must be one that a single host can have.
pub fn address(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    address_or(text, "host names are not looked up")
}

/// Parses an address in a context where other text is valid as well; `other` describes this other text.
pub(crate) fn address_or(text: &str, other: &str) -> Result<(IpAddr, Option<u16>), String> {
    let bare = |text: &str| {
        let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
        IpAddr::from_str(text).ok().or_else(bracketed)
    };
    let (ip, port) = if let Some(ip) = bare(text) {
        (ip, None)
    } else if let Ok(socket) = SocketAddr::from_str(text) {
        if matches!(socket, SocketAddr::V6(v6) if v6.scope_id() != 0) {
            return Err(format!("the address {} has a scope; write it without the %", quoted(text)));
        }
        (socket.ip(), Some(socket.port()))
    } else if let Some((_, port)) = text.rsplit_once(':').filter(|(ip, _)| bare(ip).is_some()) {
        return Err(format!("{} is not a port; give 0 to 65535", quoted(port)));
    } else {
        return Err(format!(
            "{} is not an address; write \"192.0.2.1:80\" or \"[2001:db8::1]:80\", {other}",
            quoted(text)
        ));
    };
    usable(ip).map(|()| (ip, port))
}

/// Checks that other hosts can send packets to the address `ip`.
pub fn usable(ip: IpAddr) -> Result<(), String> {
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let kind = [
        (ip.is_unspecified(), "the wildcard"),
        (ip.is_multicast(), "multicast"),
        (broadcast, "broadcast"),
        (ip.is_loopback(), "a loopback address"),
        (link_local, "link-local"),
        (mapped, "an IPv4 address in IPv6 form"),
    ]
    .into_iter()
    .find_map(|(is, kind)| is.then_some(kind));
    match kind {
        Some(kind) => Err(format!("the address {ip} is {kind}; give the unicast address of one host")),
        None => Ok(()),
    }
}

/// Parses an IPv6 address without a port.
pub fn ipv6(text: &str) -> Result<IpAddr, String> {
    match address(text)? {
        (address @ IpAddr::V6(_), None) => Ok(address),
        (_, Some(_)) => Err(format!("{} has a port; the one of the IPv4 address holds for both", quoted(text))),
        (IpAddr::V4(_), None) => Err(format!("{} is no IPv6 address", quoted(text))),
    }
}

/// Parses a VIP with a port; port 0 stands for every port.
pub fn service_address(text: &str) -> Result<SocketAddr, String> {
    match address(text)? {
        (ip, Some(port)) => Ok(SocketAddr::new(ip, port)),
        (ip, None) => Err(format!(
            "the address {ip} has no port; write \"{}\", or port 0 for every port",
            SocketAddr::new(ip, 80)
        )),
    }
}

/// Parses an address on which the balancer can listen.
pub fn listen_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        format!("{} is nothing to listen on; write ADDR:PORT, such as \"127.0.0.1:9660\", or \"off\"", quoted(text))
    })
}

/// Parses a duration such as `2s`, `100ms`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| {
        format!(
            "{} is not a duration ({error}); write a number and a unit, such as \"2s\", \"100ms\", \"5m\"",
            quoted(text)
        )
    })?;
    if duration > MAX_DURATION {
        return Err(format!("{} is longer than a year; give at most \"365days\"", quoted(text)));
    }
    Ok(duration)
}

/// Parses the name of a network interface.
pub fn interface(text: &str) -> Result<String, String> {
    let right = "give a name that `ip link` shows, such as \"eth0\"";
    if text.is_empty() {
        return Err(format!("an interface name is empty; {right}"));
    }
    if text.len() > MAX_INTERFACE_NAME {
        return Err(format!(
            "the interface name {} has {} bytes, more than the kernel's {MAX_INTERFACE_NAME}; {right}",
            quoted(text),
            text.len()
        ));
    }
    if text == "." || text == ".." || text.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
        return Err(format!("{} cannot be the name of an interface; {right}", quoted(text)));
    }
    Ok(text.to_owned())
}

/// Parses `hex:` and 32 hexadecimal digits.
pub fn hash_key(text: &str) -> Result<HashKey, String> {
    let parse = || {
        let digits = text.strip_prefix("hex:")?;
        (digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(())?;
        u128::from_str_radix(digits, 16).ok()
    };
    parse().map(|key| HashKey::from_bytes(key.to_be_bytes())).ok_or_else(|| {
        // The error message must not repeat the key, which is secret.
        "the hash key is not \"hex:\" and 32 hexadecimal digits; make one with: echo hex:$(openssl rand -hex 16)"
            .to_owned()
    })
}

/// Parses pairs of hexadecimal digits.
pub fn hex_bytes(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

/// Parses an absolute path.
pub fn absolute_path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        return Err(format!("the path {} contains a zero byte; remove it", quoted(text)));
    }
    if !text.starts_with('/') || text.ends_with('/') {
        return Err(format!("the path {} is not the absolute path of a file; begin it with /", quoted(text)));
    }
    Ok(PathBuf::from(text))
}

/// Parses the absolute path of a unix socket.
pub fn socket_path(text: &str) -> Result<PathBuf, String> {
    socket_path_length(text).and_then(absolute_path)
}

/// Returns `text` if it is short enough for the path of a unix socket.
pub fn socket_path_length(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        return Err("the socket path is empty; give one, such as \"/run/balancer/balancer.sock\"".to_owned());
    }
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "the socket path {} has {} bytes; the kernel takes at most {MAX_SOCKET_PATH}",
            quoted(text),
            text.len()
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_address_is_parsed_then_its_port_and_family_are_found() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(address("192.0.2.1"), Ok((v4, None)));
        assert_eq!(address("192.0.2.1:80"), Ok((v4, Some(80))));
        assert_eq!(address("2001:db8::1"), Ok((v6, None)));
        assert_eq!(address("[2001:db8::1]"), Ok((v6, None)));
        assert_eq!(address("[2001:db8::1]:443"), Ok((v6, Some(443))));
        for wrong in [
            "",
            "web1",
            "192.0.2.1:",
            "192.0.2.1:65536",
            "192.0.2.256",
            "[192.0.2.1]:80",
            "[2001:db8::1",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255",
            "127.0.0.1:80",
            "[::1]:80",
            "[fe80::1]:80",
            "[fe80::1%2]:80",
            "[::ffff:192.0.2.1]:80",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn when_a_name_is_parsed_then_only_allowed_characters_and_lengths_pass() {
        assert!(name("web-1.example_2").is_ok());
        assert!(name(&"a".repeat(63)).is_ok());
        for wrong in ["", "web/1", "we b", "wéb", "a\n", &"a".repeat(64)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
        assert!(backend_name("web").is_err());
        assert!(backend_name("web/web1/x").is_err());
        assert_eq!(backend_name("web/web1").unwrap().to_string(), "web/web1");
    }

    #[test]
    fn when_a_duration_is_parsed_then_units_are_added_up() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "2", "-1s", "2 parsecs", "100000years", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn when_a_hash_key_is_parsed_then_its_bytes_are_in_order() {
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(hash_key("hex:000102030405060708090a0b0c0d0e0f"), Ok(HashKey::from_bytes(bytes)));
        for wrong in ["", "000102030405060708090a0b0c0d0e0f", "hex:00", "hex:+00102030405060708090a0b0c0d0e0f"] {
            assert!(hash_key(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn when_a_word_is_unknown_then_the_hint_names_a_similar_one_or_all() {
        let known = ["forwarding", "name", "address"];
        assert_eq!(hint("forwardng", &known, "known keys"), "did you mean \"forwarding\"?");
        assert_eq!(hint("Name", &known, "known keys"), "did you mean \"name\"?");
        assert_eq!(hint("colour", &known, "known keys"), "known keys: forwarding, name, address");
    }

    #[test]
    fn when_a_text_is_quoted_then_it_is_one_short_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"é".repeat(100)), format!("\"{}\"…", "é".repeat(60)));
    }
}
