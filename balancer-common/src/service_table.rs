//! The open-addressed arrays that services and `nat` returns are found in: at most [`PROBES`] neighbouring rows.
//!
//! The controller builds a table whole in the half of the map that is not in use (reseeding until every key lies within
//! its probes) and then publishes it with one 64-bit store.

use crate::map_types::ServiceKey;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Rows looked at for one key.
pub const PROBES: u32 = 4;

/// Which part of the map is in use: base row, size and seed in the one word that the controller stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableView {
    /// First row; below 2^24.
    pub base: u32,
    /// Binary logarithm of the number of home rows, 1 to 24. The table has [`PROBES`] − 1 rows more.
    pub bits: u8,
    /// Seed of the hash behind [`TableView::home_row`].
    pub seed: u32,
}

impl TableView {
    /// Packs the view into the published word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        (self.seed as u64) << 32 | (self.bits as u64) << 24 | (self.base & 0x00ff_ffff) as u64
    }

    /// Unpacks the published word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { base: word as u32 & 0x00ff_ffff, bits: (word >> 24) as u8, seed: (word >> 32) as u32 }
    }

    /// The row of the map that probing for `key` starts at.
    #[inline(always)]
    #[must_use]
    pub fn home_row(self, key: &ServiceKey) -> u32 {
        self.base + (hash(self.seed, key) >> (32u32.wrapping_sub(self.bits as u32) & 31))
    }
}

/// A seeded hash of a service key: multiply and fold. Keys come from the configuration, not from outsiders.
#[inline(always)]
#[must_use]
fn hash(seed: u32, key: &ServiceKey) -> u32 {
    let address = &key.address;
    let low = address[0] as u64 | (address[1] as u64) << 32;
    let high = address[2] as u64 | (address[3] as u64) << 32;
    let port = key.port as u64 | (key.protocol as u64) << 16 | (key.family as u64) << 24;
    let mut state = (low ^ (port << 32 | seed as u64)).wrapping_mul(MULTIPLIER);
    state = (state ^ state >> 29 ^ high).wrapping_mul(MULTIPLIER);
    (state >> 32) as u32
}

/// The bit of an address in the word that says of most addresses that they are no VIP.
#[inline(always)]
#[must_use]
pub const fn vip_bit(address: &[u32; 4]) -> u64 {
    let low = address[0] as u64 | (address[1] as u64) << 32;
    let high = address[2] as u64 | (address[3] as u64) << 32;
    1 << ((low ^ high.rotate_left(32)).wrapping_mul(MULTIPLIER) >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_view_survives_its_word(base in 0u32..1 << 24, bits in 1u8..=24, seed in any::<u32>()) {
            let view = TableView { base, bits, seed };
            prop_assert_eq!(TableView::from_word(view.to_word()), view);
        }

        #[test]
        fn a_home_row_is_inside_the_table(
            address in any::<[u32; 4]>(), port in any::<u16>(), bits in 1u8..=24, seed in any::<u32>()
        ) {
            let key = ServiceKey { address, port, protocol: 6, family: 6 };
            let row = TableView { base: 7, bits, seed }.home_row(&key);
            prop_assert!(row < 7 + (1 << bits));
        }
    }

    #[test]
    fn neighbouring_addresses_and_ports_spread() {
        let view = TableView { base: 0, bits: 10, seed: 3 };
        let mut used = [0u8; 1024];
        for host in 0..32u32 {
            for port in 0..16u16 {
                let address = [(0xc633_6400 + host).to_be(), 0, 0, 0];
                let key = ServiceKey { address, port: (8000 + port).to_be(), protocol: 6, family: 4 };
                used[view.home_row(&key) as usize] += 1;
            }
        }
        assert!(used.iter().all(|&count| count <= 6), "{:?}", used.iter().max());
    }

    #[test]
    fn neighbouring_addresses_have_bits_of_their_own() {
        let v4 = (0..16u32).fold(0, |bits, host| bits | vip_bit(&[(0xc633_6400 + host).to_be(), 0, 0, 0]));
        let v6 = (0..16u32).fold(0, |bits, host| bits | vip_bit(&[0xb80d_0120, 0, 0, host.to_be()]));
        // 14 of 64 bits are expected of 16 addresses at random.
        assert!(v4.count_ones() >= 10 && v6.count_ones() >= 10, "{v4:b} {v6:b}");
    }
}
