//! The filter that shows which clients rules may match. The controller updates this filter whenever it adds or removes
//! a rule.

use std::sync::atomic::Ordering;

use balancer_common::{
    map_types::{FAMILY_V4, FAMILY_V6},
    rule_filter::{PLACES, PREFIX_V4, PREFIX_V6, bit, every, place},
};
use balancer_control::io::ServiceId;
use ipnet::IpNet;

use super::{mapped::MappedArray, rows::address_words};

/// The filter mapped into memory, and the number of rules that need each of its bits.
pub(super) struct RuleFilter {
    words: MappedArray<u64>,
    rules: Vec<u32>,
}

impl RuleFilter {
    /// A filter without any rules.
    pub(super) fn new(words: MappedArray<u64>) -> Self {
        Self { words, rules: vec![0; 2 * PLACES as usize] }
    }

    /// Adds a rule of `service` to the filter, before the controller writes the rule itself. `None`: the prefix of the
    /// rule is unknown.
    pub(super) fn add(&mut self, service: ServiceId, prefix: Option<IpNet>) {
        for place in places(service, prefix) {
            if let Some(rules) = self.rules.get_mut(place as usize) {
                *rules += 1;
            }
            let (word, bit) = bit(place);
            if let Some(word) = self.words.words().get(word as usize) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Removes from the filter a rule that was added with the same arguments.
    pub(super) fn remove(&mut self, service: ServiceId, prefix: Option<IpNet>) {
        for place in places(service, prefix) {
            let Some(rules) = self.rules.get_mut(place as usize) else { continue };
            *rules = rules.saturating_sub(1);
            let (word, bit) = bit(place);
            if *rules == 0
                && let Some(word) = self.words.words().get(word as usize)
            {
                word.fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }
}

/// The places in the filter for a rule's clients; the bit for all clients of a service counts as one place.
fn places(service: ServiceId, prefix: Option<IpNet>) -> Vec<u32> {
    match prefix {
        Some(IpNet::V4(net)) => {
            let net = net.trunc();
            let first = u32::from(net.addr()) >> (32 - PREFIX_V4);
            let count = 1u32 << PREFIX_V4.saturating_sub(net.prefix_len());
            let words = (first..first + count).map(|place| [(place << (32 - PREFIX_V4)).to_be(), 0, 0, 0]);
            words.map(|words| place(service.0, FAMILY_V4, &words)).collect()
        }
        Some(IpNet::V6(net)) if net.prefix_len() >= PREFIX_V6 => {
            vec![place(service.0, FAMILY_V6, &address_words(net.addr().into()))]
        }
        Some(IpNet::V6(_)) | None => {
            let (word, bit) = every(service.0);
            vec![word * u64::BITS + bit.trailing_zeros()]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn when_a_rule_has_a_prefix_then_every_client_of_it_has_a_place() {
        let service = ServiceId(300);
        for (prefix, inside, outside) in [
            ("10.1.2.0/24", "10.1.2.200", Some("10.2.2.200")),
            ("10.1.2.3/32", "10.1.2.3", Some("11.1.2.3")),
            ("172.16.0.0/12", "172.31.255.255", Some("172.32.0.0")),
            ("0.0.0.0/0", "255.255.255.255", None),
            ("2001:db8:5::/48", "2001:db8:5:ffff::1", Some("2001:db8:6::1")),
            ("2001:db8:5:6::/64", "2001:db8:5:6::9", Some("2001:db8:7::1")),
        ] {
            let places = places(service, Some(prefix.parse().unwrap()));
            let has = |address: &str| {
                let address: IpAddr = address.parse().unwrap();
                let family = if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
                places.contains(&place(service.0, family, &address_words(address)))
            };
            assert!(has(inside), "{prefix}");
            assert!(!outside.is_some_and(has), "{prefix}");
        }
        for prefix in [None, Some("2001:db8::/32".parse().unwrap())] {
            assert_eq!(places(service, prefix), [PLACES + 300]);
        }
    }
}
