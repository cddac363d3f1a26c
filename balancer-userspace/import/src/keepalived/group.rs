//! Reads the addresses that keepalived's `virtual_server`, or a line of the group that it names, selects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{address::unspecified, ipvsadm::MARK, notes::Conversion, place::Place, service::Listener, tree::Directive};

/// The maximum number of listeners of a service.
const MOST: u128 = 64;

/// Returns the listeners for `ADDRESS[-ADDRESS] [PORT]`, `ADDRESS/LENGTH [PORT]` or `fwmark N`.
pub(super) fn listeners(
    conversion: &mut Conversion,
    place: &Place,
    words: &[String],
    udp: bool,
    is_v4: bool,
) -> Vec<Listener> {
    let text = words.join(" ");
    let (address, port) = match words {
        [word, mark, family @ ..] if word == "fwmark" => {
            conversion.needs_you(place, format!("fwmark {mark}"), MARK);
            let is_v4 = is_v4 && family.first().is_none_or(|family| family != "inet6");
            return vec![Listener { address: unspecified(is_v4), first: 0, last: 0, udp }];
        }
        [address] => (address, Ok(0)),
        [address, port] => (address, port.parse::<u16>()),
        _ => {
            conversion.needs_you(place, text, "this is no address and port; write both");
            return Vec::new();
        }
    };
    match (addresses(address), port) {
        (Ok(addresses), Ok(port)) => {
            addresses.into_iter().map(|address| Listener { address, first: port, last: port, udp }).collect()
        }
        (Err(why), _) => {
            conversion.needs_you(place, text, why);
            Vec::new()
        }
        (_, Err(_)) => {
            conversion.needs_you(place, text, "this is no port; write one, 1 to 65535");
            Vec::new()
        }
    }
}

/// The addresses in a `local_address_group` of DPVS, whose lines are `ADDRESS[-LAST] [DEVICE]`.
pub(super) fn own_addresses(lines: &[Directive]) -> Vec<IpAddr> {
    lines.iter().filter_map(|line| addresses(line.name()).ok()).flatten().collect()
}

/// Parses an address, or a range of addresses.
fn addresses(text: &str) -> Result<Vec<IpAddr>, &'static str> {
    const WRONG: &str = "this is no numeric address or range; write one";
    if let Ok(address) = text.parse::<IpAddr>() {
        return if address.is_unspecified() {
            Err("this is no address that clients connect to; write one")
        } else {
            Ok(vec![address])
        };
    }
    let (first, last) = if let Some((first, length)) = text.split_once('/') {
        let first: IpAddr = first.parse().map_err(|_| WRONG)?;
        let (bits, all) = (number(first), if first.is_ipv4() { 32 } else { 128 });
        let length: u32 = length.parse().ok().filter(|length| *length <= all).ok_or(WRONG)?;
        (first, bits | 1_u128.checked_shl(all - length).map_or(u128::MAX, |hosts| hosts - 1))
    } else {
        let (first, last) = text.split_once('-').ok_or(WRONG)?;
        let (first, start) = (first.parse::<IpAddr>().map_err(|_| WRONG)?, first);
        (first, self::last(start, last).ok_or(WRONG)?)
    };
    let start = number(first);
    match last.checked_sub(start) {
        None => Err(WRONG),
        Some(more) if more >= MOST => Err("a service has up to 64 listeners; make several services of it"),
        Some(_) => Ok((start..=last).filter_map(|number| address(number, first.is_ipv4())).collect()),
    }
}

/// Parses the end of an address range: a whole address, or only the last number of an address.
fn last(first: &str, last: &str) -> Option<u128> {
    if let Ok(address) = last.parse::<IpAddr>() {
        return Some(number(address));
    }
    let separator = if first.contains(':') { ':' } else { '.' };
    let (start, _) = first.rsplit_once(separator)?;
    format!("{start}{separator}{last}").parse().ok().map(number)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, is_v4: bool) -> Option<IpAddr> {
    if is_v4 {
        u32::try_from(number).ok().map(|number| Ipv4Addr::from(number).into())
    } else {
        Some(Ipv6Addr::from(number).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_line_of_a_group_is_a_range_then_each_address_is_meant() {
        let ends = |text: &str| {
            addresses(text)
                .map(|all| (all.len(), all.first().map(ToString::to_string), all.last().map(ToString::to_string)))
        };
        for (text, count, first, last) in [
            ("192.0.2.1", 1, "192.0.2.1", "192.0.2.1"),
            ("192.0.2.1-10", 10, "192.0.2.1", "192.0.2.10"),
            ("192.0.2.250-192.0.3.3", 10, "192.0.2.250", "192.0.3.3"),
            ("192.0.2.8/29", 8, "192.0.2.8", "192.0.2.15"),
            ("2001:db8::1-f", 15, "2001:db8::1", "2001:db8::f"),
            ("2001:db8::10/128", 1, "2001:db8::10", "2001:db8::10"),
        ] {
            assert_eq!(ends(text), Ok((count, Some(first.to_owned()), Some(last.to_owned()))), "{text}");
        }
        for text in ["", "web", "192.0.2.0/24", "192.0.2.9-1", "192.0.2.1/33", "::/0", "0.0.0.0", "::1-192.0.2.1"] {
            assert!(addresses(text).is_err(), "{text}");
        }
    }
}
