//! Parses addresses in the notation of logs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str,
};

/// Parses an address, such as `203.0.113.7`, `2001:db8::7`, `[2001:db8::7]` or `fe80::1%eth0`. The function converts an
/// IPv4-mapped IPv6 address (`::ffff:203.0.113.7`) to the IPv4 address.
pub(crate) fn parse(text: &[u8]) -> Option<IpAddr> {
    if let Some(address) = v4(text) {
        return Some(IpAddr::V4(address.into()));
    }
    let text = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(text);
    let text = text.split(|&byte| byte == b'%').next()?;
    let address: IpAddr = str::from_utf8(text).ok()?.parse().ok()?;
    Some(address.to_canonical())
}

/// Parses an address that may be followed by a port: `203.0.113.7:50000` or `[2001:db8::7]:50000`.
pub(crate) fn with_port(text: &[u8]) -> Option<IpAddr> {
    parse(text).or_else(|| {
        let colon = memchr::memrchr(b':', text)?;
        parse(text.get(..colon)?)
    })
}

/// Masks an address to the prefix length of its address family.
pub(crate) fn masked(address: IpAddr, v4: u8, v6: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

/// Parses a text of exactly four numbers, each of one to three digits.
fn v4(text: &[u8]) -> Option<u32> {
    if text.len() > 15 {
        return None;
    }
    let (mut address, mut number, mut digits, mut dots) = (0u32, 0u32, 0u8, 0u8);
    for &byte in text {
        match byte {
            b'0'..=b'9' => {
                number = number * 10 + u32::from(byte - b'0');
                digits += 1;
                if digits > 3 || number > 255 {
                    return None;
                }
            }
            b'.' if digits > 0 && dots < 3 => {
                address = address << 8 | number;
                (number, digits) = (0, 0);
                dots += 1;
            }
            _ => return None,
        }
    }
    (dots == 3 && digits > 0).then_some(address << 8 | number)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Option<String> {
        parse(text.as_bytes()).map(|address| address.to_string())
    }

    proptest! {
        #[test]
        fn when_an_ipv4_address_is_parsed_then_it_is_read(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(parse(address.to_string().as_bytes()), Some(IpAddr::V4(address)));
        }
    }

    #[test]
    fn when_addresses_are_written_as_in_logs_then_they_are_read() {
        assert_eq!(shown("2001:db8::7").as_deref(), Some("2001:db8::7"));
        assert_eq!(shown("[2001:db8::7]").as_deref(), Some("2001:db8::7"));
        assert_eq!(shown("fe80::1%eth0").as_deref(), Some("fe80::1"));
        assert_eq!(shown("::ffff:203.0.113.7").as_deref(), Some("203.0.113.7"));
        for text in
            ["", "-", "203.0.113", "203.0.113.256", "203.0.113.7.1", "1234.1.1.1", "..1.2", "unix:", "host.example"]
        {
            assert_eq!(shown(text), None, "{text}");
        }
    }

    #[test]
    fn when_an_address_has_a_port_then_the_port_is_left_out() {
        for text in ["203.0.113.7", "203.0.113.7:50000"] {
            assert_eq!(with_port(text.as_bytes()).unwrap().to_string(), "203.0.113.7");
        }
        for text in ["2001:db8::7", "[2001:db8::7]:443", "[2001:db8::7]"] {
            assert_eq!(with_port(text.as_bytes()).unwrap().to_string(), "2001:db8::7");
        }
        assert_eq!(with_port(b"unix:1"), None);
    }
}
