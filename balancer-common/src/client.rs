//! Converts a source address into a client, the client into a keyed hash, and the hash into a slot.
//!
//! The hash is SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF") over the masked address, under a
//! key that is derived for each service from the fleet's key and the service's name. An outsider cannot compute
//! collisions of the hash, and every balancer with the same key computes the same hash for a client.

use bytemuck::{Pod, Zeroable};

/// A 128-bit SipHash key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct HashKey {
    /// Bytes 0–7, little endian.
    pub k0: u64,
    /// Bytes 8–15, little endian.
    pub k1: u64,
}

impl HashKey {
    /// The key whose bytes are `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self { k0: u64::from_le_bytes([a, b, c, d, e, f, g, h]), k1: u64::from_le_bytes([i, j, k, l, m, n, o, p]) }
    }
}

const C0: u64 = 0x736f_6d65_7073_6575;
const C1: u64 = 0x646f_7261_6e64_6f6d;
const C2: u64 = 0x6c79_6765_6e65_7261;
const C3: u64 = 0x7465_6462_7974_6573;

impl HashKey {
    /// The state of SipHash under this key before any message.
    #[inline(always)]
    #[must_use]
    pub const fn begun(self) -> BegunHash {
        let mut state = SipState { v0: self.k0 ^ C0, v1: self.k1 ^ C1, v2: self.k0 ^ C2, v3: self.k1 ^ C3 };
        state.first_addition();
        let SipState { v0, v1, v2, v3 } = state;
        BegunHash { v0, v1, v2, v3 }
    }
}

/// The state of SipHash under a key before any message: the state is the key mixed with the constants, after the first
/// addition of the first round. The first addition of the first round does not involve the message.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BegunHash {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl BegunHash {
    /// The key under which this hash begins.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> HashKey {
        HashKey { k0: self.v2 ^ C2, k1: self.v3 ^ C3 }
    }

    #[inline(always)]
    const fn absorb(self, word: u64) -> SipState {
        let mut state = SipState { v0: self.v0, v1: self.v1, v2: self.v2, v3: self.v3 ^ word };
        state.rest_of_round();
        state.v0 ^= word;
        state
    }

    /// SipHash-1-3 of the four bytes of an IPv4 address (`address` in memory order).
    #[inline(always)]
    #[must_use]
    pub const fn v4(self, address: u32) -> u64 {
        self.absorb(u32::from_le(address) as u64 | 4 << 56).finish()
    }

    /// SipHash-1-3 of the sixteen bytes of an IPv6 address (`address` in memory order).
    #[inline(always)]
    #[must_use]
    pub const fn v6(self, address: [u64; 2]) -> u64 {
        let mut state = self.absorb(u64::from_le(address[0]));
        state.absorb(u64::from_le(address[1]));
        state.absorb(16 << 56);
        state.finish()
    }
}

struct SipState {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl SipState {
    /// The beginning of a SipHash round, which involves only `v0` and `v1`.
    #[inline(always)]
    const fn first_addition(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
    }

    #[inline(always)]
    const fn rest_of_round(&mut self) {
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.first_addition();
        self.rest_of_round();
    }

    #[inline(always)]
    const fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    const fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// Hashes an IPv4 address under a key, as [`BegunHash::v4`] does.
#[inline(always)]
#[must_use]
pub const fn hash_v4(key: HashKey, address: u32) -> u64 {
    key.begun().v4(address)
}

/// Hashes an IPv6 address under a key, as [`BegunHash::v6`] does.
#[inline(always)]
#[must_use]
pub const fn hash_v6(key: HashKey, address: [u64; 2]) -> u64 {
    key.begun().v6(address)
}

/// SipHash-1-3 of the sixteen bytes of an address (IPv4 in the first word, then zeros) and the two bytes of a source
/// port, in memory order. This hash chooses the slot of a connection if a rule spreads the client's connections.
#[inline(always)]
#[must_use]
pub const fn hash_connection(key: HashKey, address: [u64; 2], port: u16) -> u64 {
    let mut state = key.begun().absorb(u64::from_le(address[0]));
    state.absorb(u64::from_le(address[1]));
    state.absorb(u16::from_le(port) as u64 | 18 << 56);
    state.finish()
}

/// The slot of a client hash in a table of `table_size` slots: the high 32 bits scaled to the size (Lemire's
/// multiply-shift reduction). The tag, which is the high half of the hash, therefore determines the slot. The
/// probabilities of two slots differ by less than a fraction `table_size` / 2^32.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u64, table_size: u32) -> u32 {
    (((hash >> 32) * table_size as u64) >> 32) as u32
}

/// A source port for outer headers, by which routers and receive queues distribute the clients over paths. The port
/// consists of 14 bits of a hash of the source address (network order, IPv4 in the first word); the two highest bits of
/// the port are set, as in an ephemeral port.
///
/// The hash leaves out the client's port, so that the later fragments of a datagram, which carry no port, take the path
/// of the first fragment.
#[inline(always)]
#[must_use]
pub const fn entropy(source: &[u32; 4]) -> u16 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let low = (source[0] as u64 | (source[1] as u64) << 32).wrapping_mul(MULTIPLIER);
    let high = source[2] as u64 | (source[3] as u64) << 32;
    let state = (low ^ low >> 29 ^ high).wrapping_mul(MULTIPLIER);
    0xc000 | (state >> 50) as u16
}

/// The mask of an IPv4 client prefix, in memory order. `prefix` is clamped to 32.
#[must_use]
pub const fn mask_v4(prefix: u8) -> u32 {
    match prefix {
        0 => 0,
        1..=31 => (u32::MAX << (32 - prefix)).to_be(),
        _ => u32::MAX,
    }
}

/// The mask of an IPv6 client prefix, two 64-bit words in memory order. `prefix` is clamped to 128.
#[must_use]
pub const fn mask_v6(prefix: u8) -> [u64; 2] {
    const fn word(bits: u8) -> u64 {
        match bits {
            0 => 0,
            1..=63 => (u64::MAX << (64 - bits)).to_be(),
            _ => u64::MAX,
        }
    }
    [word(prefix), word(prefix.saturating_sub(64))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher as _;
    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;
    use std::{
        collections::HashSet,
        net::{Ipv4Addr, Ipv6Addr},
    };

    fn reference(key: [u8; 16], message: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&key);
        hasher.write(message);
        hasher.finish()
    }

    proptest! {
        #[test]
        fn when_an_ipv4_address_is_hashed_then_the_result_is_that_of_the_reference(key in any::<[u8; 16]>(), address in any::<[u8; 4]>()) {
            prop_assert_eq!(hash_v4(HashKey::from_bytes(key), u32::from_ne_bytes(address)), reference(key, &address));
        }

        #[test]
        fn when_an_ipv6_address_is_hashed_then_the_result_is_that_of_the_reference(key in any::<[u8; 16]>(), address in any::<[u8; 16]>()) {
            let words: [u64; 2] = bytemuck::cast(address);
            prop_assert_eq!(hash_v6(HashKey::from_bytes(key), words), reference(key, &address));
        }

        #[test]
        fn when_a_connection_is_hashed_then_the_result_is_that_of_the_reference(key in any::<[u8; 16]>(), address in any::<[u8; 16]>(), port in any::<[u8; 2]>()) {
            let hash = hash_connection(HashKey::from_bytes(key), bytemuck::cast(address), u16::from_ne_bytes(port));
            let message: Vec<u8> = address.into_iter().chain(port).collect();
            prop_assert_eq!(hash, reference(key, &message));
        }

        #[test]
        fn when_a_hash_has_begun_then_its_key_can_be_read_back(k0: u64, k1: u64) {
            let key = HashKey { k0, k1 };
            prop_assert_eq!(key.begun().key(), key);
        }

        #[test]
        fn when_a_client_is_hashed_then_its_slot_is_in_the_table(hash in any::<u64>(), size in 1u32..) {
            prop_assert!(slot(hash, size) < size);
        }

        #[test]
        fn when_a_prefix_has_a_length_then_the_mask_has_that_many_bits(prefix4 in 0u8..=32, prefix6 in 0u8..=128) {
            let v4 = Ipv4Addr::from(mask_v4(prefix4).to_ne_bytes());
            prop_assert_eq!(u32::from(v4), u32::MAX.checked_shl(32 - u32::from(prefix4)).unwrap_or(0));
            let v6 = Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(mask_v6(prefix6)));
            prop_assert_eq!(u128::from(v6), u128::MAX.checked_shl(128 - u32::from(prefix6)).unwrap_or(0));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn when_clients_are_tunnelled_then_their_source_ports_differ_and_are_ephemeral() {
        let v4: HashSet<u16> = (0..4096u32).map(|host| entropy(&[(0xcb00_0000 + host).to_be(), 0, 0, 0])).collect();
        let v6: HashSet<u16> = (0..4096u32).map(|host| entropy(&[0xb80d_0120, host, 0, 0x0100_0000])).collect();
        // With random ports, 4,096 addresses should hit 3,624 of the 16,384 ports.
        assert!(v4.len() > 3500 && v6.len() > 3500, "{} {}", v4.len(), v6.len());
        assert!(v4.iter().chain(&v6).all(|&port| port >= 0xc000));
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn when_many_clients_are_hashed_then_slots_get_equal_shares() {
        let key = HashKey { k0: 1, k1: 2 };
        let mut counts = [0u32; 16];
        for address in 0..160_000u32 {
            counts[slot(hash_v4(key, address.to_be()), 16) as usize] += 1;
        }
        // Each slot should get 10,000 clients; the limit is five standard deviations of 97 clients.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 485), "{counts:?}");
    }
}
