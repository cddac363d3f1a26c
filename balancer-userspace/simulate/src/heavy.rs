//! Finds client prefixes with many requests.

use ipnet::IpNet;

use crate::census::Census;

/// A prefix with the numbers of its addresses and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heavy {
    pub(crate) prefix: IpNet,
    pub(crate) addresses: u64,
    pub(crate) requests: u64,
}

/// Returns those prefixes of these lengths that have the most requests: at most `most` prefixes with at least
/// `at_least` requests each.
pub(crate) fn heaviest(census: &Census, (v4, v6): (u8, u8), at_least: u64, most: usize) -> Vec<Heavy> {
    let networks = census.networks(v4, v6);
    let mut all: Vec<Heavy> = networks
        .into_iter()
        .filter(|(_, network)| network.requests >= at_least)
        .filter_map(|(address, network)| {
            let length = if address.is_ipv4() { v4.min(32) } else { v6.min(128) };
            let prefix = IpNet::new(address, length).ok()?;
            Some(Heavy { prefix, addresses: network.addresses, requests: network.requests })
        })
        .collect();
    all.sort_unstable_by_key(|heavy| (std::cmp::Reverse(heavy.requests), heavy.prefix));
    all.truncate(most);
    all
}
