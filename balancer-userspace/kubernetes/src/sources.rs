//! Converts the allowed prefixes of `loadBalancerSourceRanges` into denied prefixes.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The smallest set of prefixes that covers exactly the addresses of one family outside the given ranges.
#[must_use]
pub fn denied(ranges: &[IpNet], ipv6: bool) -> Vec<IpNet> {
    let everybody = if ipv6 { IpNet::V6(Ipv6Net::default()) } else { IpNet::V4(Ipv4Net::default()) };
    let mut denied = Vec::new();
    outside(everybody, ranges, &mut denied);
    denied
}

fn outside(prefix: IpNet, ranges: &[IpNet], denied: &mut Vec<IpNet>) {
    if ranges.iter().any(|range| range.contains(&prefix)) {
        return;
    }
    let within: Vec<IpNet> = ranges.iter().filter(|range| prefix.contains(*range)).copied().collect();
    let halves = prefix.subnets(prefix.prefix_len() + 1);
    match halves {
        Ok(halves) if !within.is_empty() => halves.for_each(|half| outside(half, &within, denied)),
        _ => denied.push(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ranges: &[&str], ipv6: bool) -> Vec<String> {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        denied(&ranges, ipv6).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn when_ranges_are_allowed_then_all_others_are_denied() {
        assert_eq!(texts(&["128.0.0.0/1"], false), ["0.0.0.0/1"]);
        assert_eq!(texts(&["0.0.0.0/2", "192.0.0.0/2"], false), ["64.0.0.0/2", "128.0.0.0/2"]);
        assert_eq!(texts(&["0.0.0.0/0"], false), Vec::<String>::new());
        assert_eq!(texts(&["192.0.2.7/32"], false).len(), 32);
        assert_eq!(texts(&["2001:db8::/32"], true).len(), 32);
    }

    #[test]
    fn when_no_range_is_of_a_family_then_the_whole_family_is_denied() {
        assert_eq!(texts(&["192.0.2.0/24"], true), ["::/0"]);
    }

    #[test]
    fn when_an_address_is_looked_up_then_either_a_range_or_a_denied_prefix_has_it() {
        let ranges: Vec<IpNet> =
            ["10.0.0.0/8", "10.1.0.0/16", "203.0.113.128/25"].iter().map(|range| range.parse().unwrap()).collect();
        let denied = denied(&ranges, false);
        for address in ["9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0", "203.0.113.127", "203.0.113.128"] {
            let address: std::net::IpAddr = address.parse().unwrap();
            let allowed = ranges.iter().any(|range| range.contains(&address));
            let times = denied.iter().filter(|prefix| prefix.contains(&address)).count();
            assert_eq!(times, usize::from(!allowed), "{address}");
        }
    }
}
