//! Finds the addresses of the clients in entries of the client table. An entry contains no address, so the search
//! hashes one address after the other until it has found the clients of all entries.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive, time::Duration};

use balancer_common::{
    client::{HashKey, hash_v4, hash_v6},
    client_table::{Entry, bucket},
};
use balancer_config::listeners::Family;
use ipnet::IpNet;

use crate::io::BackendId;

/// The maximum number of addresses that one search examines: about a tenth of a second of work, so that the balancer
/// answers the request even on a loaded machine.
pub const MOST: u128 = 1 << 24;

/// The number of tag bits that the search compares first.
const FIRST_BITS: u32 = 24;

/// The parameters by which a service distinguishes clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// The key of the hash of the service's clients.
    pub key: HashKey,
    /// The address family of the service's clients.
    pub family: Family,
    /// The client prefix length.
    pub prefix: u8,
}

/// A known client that the search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The first address of the client's prefix.
    pub address: IpAddr,
    /// The backend at which the client is recorded.
    pub backend: BackendId,
    /// The time since the client's last recorded packet.
    pub seen: Duration,
}

/// The entries of one service for which the search must find the clients.
#[derive(Debug)]
pub struct Sought {
    hashing: Hashing,
    bucket_mask: u32,
    first: Vec<u64>,
    entries: HashMap<(u32, u32), (BackendId, Duration)>,
}

impl Sought {
    /// An empty set of entries, for a client table with this number of buckets, a power of two.
    #[must_use]
    pub fn new(hashing: Hashing, buckets: u32) -> Self {
        let first = vec![0; (1 << FIRST_BITS) / u64::BITS as usize];
        Self { hashing, bucket_mask: buckets.wrapping_sub(1), first, entries: HashMap::new() }
    }

    pub fn add(&mut self, bucket: u32, entry: Entry, seen: Duration) {
        let place = entry.tag() >> (u32::BITS - FIRST_BITS);
        if let Some(word) = self.first.get_mut((place / u64::BITS) as usize) {
            *word |= 1 << (place % u64::BITS);
        }
        self.entries.insert((entry.tag(), bucket), (BackendId(entry.backend()), seen));
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the set contains no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The clients of these entries whose addresses are `within` these prefixes. The search examines each address once,
    /// and at most [`MOST`] addresses.
    #[must_use]
    pub fn within(&self, within: &[IpNet]) -> Vec<Found> {
        let own = |net: &&IpNet| Family::of(net.addr()) == self.hashing.family;
        let mut all = Vec::new();
        let mut left = MOST;
        for net in IpNet::aggregate(&within.iter().filter(own).copied().collect()) {
            let clients = clients_of(net, self.hashing.prefix);
            for place in clients.take(usize::try_from(left).unwrap_or(usize::MAX)) {
                left -= 1;
                all.extend(self.look_up(place));
            }
        }
        all
    }

    fn look_up(&self, place: u128) -> Option<Found> {
        let Hashing { key, family, prefix } = self.hashing;
        let (hash, address): (u64, IpAddr) = match family {
            Family::V4 => {
                let address = (place as u32).checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                (hash_v4(key, address.to_be()), address.to_be_bytes().into())
            }
            Family::V6 => {
                let address = place.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                (hash_v6(key, bytemuck::cast(address.to_be_bytes())), address.to_be_bytes().into())
            }
        };
        let tag = (hash >> 32) as u32;
        let first = tag >> (u32::BITS - FIRST_BITS);
        if self.first.get((first / u64::BITS) as usize)? >> (first % u64::BITS) & 1 == 0 {
            return None;
        }
        let &(backend, seen) = self.entries.get(&(tag, bucket(hash, self.bucket_mask)))?;
        Some(Found { address, backend, seen })
    }
}

/// The number of clients whose addresses are within a prefix.
#[must_use]
pub fn count(net: IpNet, prefix: u8) -> u128 {
    let clients = clients_of(net, prefix);
    (clients.end() - clients.start()).saturating_add(1)
}

/// The clients whose addresses are within a prefix, as the numbers that distinguish these addresses.
fn clients_of(net: IpNet, prefix: u8) -> RangeInclusive<u128> {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32 - u32::from(prefix.min(32))),
        IpAddr::V6(address) => (u128::from(address), 128 - u32::from(prefix)),
    };
    let place = |address: IpAddr| {
        let (address, beyond) = bits(address);
        address.checked_shr(beyond).unwrap_or(0)
    };
    place(net.network())..=place(net.broadcast())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use balancer_common::client::{mask_v4, mask_v6};

    use super::*;

    const KEY: HashKey = HashKey { k0: 3, k1: 4 };
    const BUCKETS: u32 = 64;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// Hashes an address as the kernel program does.
    fn hash(address: IpAddr, prefix: u8) -> u64 {
        match address {
            IpAddr::V4(address) => hash_v4(KEY, u32::from_ne_bytes(address.octets()) & mask_v4(prefix)),
            IpAddr::V6(address) => {
                let [high, low]: [u64; 2] = bytemuck::cast(address.octets());
                let [high_mask, low_mask] = mask_v6(prefix);
                hash_v6(KEY, [high & high_mask, low & low_mask])
            }
        }
    }

    #[test]
    fn when_clients_are_searched_for_then_those_within_the_prefixes_are_found_each_once() {
        for (prefix, clients, within, found) in [
            (32, ["10.1.2.3", "10.1.255.0", "10.2.0.1"], ["10.1.0.0/16", "10.1.2.0/24"], 2),
            (24, ["10.1.2.3", "10.1.255.9", "10.2.0.1"], ["10.1.0.0/16", "10.1.2.7/32"], 2),
            (0, ["10.1.2.3", "10.1.2.3", "10.1.2.3"], ["10.1.0.0/16", "10.1.2.7/32"], 1),
            (64, ["2001:db8:1:2::3", "2001:db8:1:ffff::1", "2001:db8:2::1"], ["2001:db8:1::/48", "10.0.0.0/8"], 2),
            (128, ["2001:db8::3", "2001:db8::ffff", "2001:db8::1:0"], ["2001:db8::/112", "2001:db8::/120"], 2),
        ] {
            let clients = clients.map(|client| client.parse::<IpAddr>().unwrap());
            let hashing = Hashing { key: KEY, family: Family::of(clients[0]), prefix };
            let mut sought = Sought::new(hashing, BUCKETS);
            let mut expected = BTreeMap::new();
            for (backend, client) in (1..).zip(clients) {
                let hash = hash(client, prefix);
                let entry = Entry::new((hash >> 32) as u32, backend, 0);
                sought.add(bucket(hash, BUCKETS - 1), entry, Duration::from_secs(backend.into()));
                expected.insert(hash, backend);
            }
            let all = sought.within(&within.map(net));
            assert_eq!(all.len(), found, "{prefix}: {all:?}");
            for Found { address, backend, seen } in all {
                assert_eq!(expected.get(&hash(address, prefix)), Some(&backend.0), "{address}");
                assert_eq!(seen.as_secs(), u64::from(backend.0));
            }
        }
    }

    #[test]
    fn when_a_prefix_is_searched_then_its_clients_are_counted() {
        for (within, prefix, clients) in [
            ("0.0.0.0/0", 32, 1 << 32),
            ("0.0.0.0/0", 24, 1 << 24),
            ("0.0.0.0/0", 0, 1),
            ("10.0.0.7/32", 24, 1),
            ("2001:db8::/48", 64, 1 << 16),
            ("::/0", 128, u128::MAX),
        ] {
            assert_eq!(count(net(within), prefix), clients, "{within} by {prefix}");
        }
    }
}
