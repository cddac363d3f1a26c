//! The open-addressed arrays that services and `nat` returns are found in: at most [`PROBES`] neighbouring rows.
//!
//! The controller builds a table whole in the half of the map that is not in use (with another factor until every key lies
//! within its probes) and then publishes it with one 64-bit store.

use crate::map_types::ServiceKey;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Rows looked at for one key.
pub const PROBES: u32 = 4;

/// Which part of the map is in use: base row, size and factor in the one word that the controller stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableView {
    /// First row; below 2^24.
    pub base: u32,
    /// Binary logarithm of the number of home rows, 1 to 24. The table has [`PROBES`] − 1 rows more.
    pub bits: u8,
    /// Factor of the hash behind [`TableView::home_row`], see [`factor`].
    pub factor: u32,
}

impl TableView {
    /// Packs the view into the published word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let shift = 32 - self.bits as u64;
        (self.factor as u64) << 32 | shift << 24 | (self.base & 0x00ff_ffff) as u64
    }

    /// The row of the map that probing for `key` starts at.
    #[must_use]
    pub fn home_row(self, key: &ServiceKey) -> u32 {
        PublishedView(self.to_word()).home_row(key)
    }
}

/// A [`TableView`] in the word that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedView(pub u64);

impl PublishedView {
    /// [`TableView::base`].
    #[inline(always)]
    #[must_use]
    pub const fn base(self) -> u32 {
        self.0 as u32 & 0x00ff_ffff
    }

    /// [`TableView::home_row`].
    #[inline(always)]
    #[must_use]
    pub const fn home_row(self, key: &ServiceKey) -> u32 {
        self.base().wrapping_add(hash((self.0 >> 32) as u32, key).wrapping_shr((self.0 >> 24) as u32))
    }
}

/// The factor of the hash that is tried next after so many others; odd.
#[must_use]
pub const fn factor(tried: u32) -> u32 {
    tried.wrapping_mul(0x2545_f491).wrapping_add(0x85eb_ca6b) | 1
}

/// A hash of a service key, of which the high bits are to be taken: multiply-shift (Dietzfelbinger et al., 1997) of the
/// address and of the rest, added up. Keys come from the configuration, not from outsiders.
#[inline(always)]
#[must_use]
const fn hash(factor: u32, key: &ServiceKey) -> u32 {
    let (low, high) = halves(&key.address);
    // In host order, as what a factor multiplies only counts from its bits upwards, and hosts in a row differ in their last byte.
    let address = (u64::from_be(high).wrapping_add(low).wrapping_mul(MULTIPLIER) >> 32) as u32;
    address.wrapping_mul(factor).wrapping_add(key.rest().wrapping_mul(0x9e37_79b1))
}

#[inline(always)]
const fn halves(address: &[u32; 4]) -> (u64, u64) {
    (address[0] as u64 | (address[1] as u64) << 32, address[2] as u64 | (address[3] as u64) << 32)
}

/// The bit of an address in the word that says of most addresses that they are no VIP.
#[inline(always)]
#[must_use]
pub const fn vip_bit(address: &[u32; 4]) -> u64 {
    let (low, high) = halves(address);
    1 << ((low ^ high.rotate_left(32)).wrapping_mul(MULTIPLIER) >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_home_row_is_inside_the_table(
            address in any::<[u32; 4]>(), port in any::<u16>(), bits in 1u8..=24, base in 0u32..1 << 23, tried in any::<u32>()
        ) {
            let key = ServiceKey { address, port, protocol: 6, family: 6 };
            let row = TableView { base, bits, factor: factor(tried) }.home_row(&key);
            prop_assert!((base..base + (1 << bits)).contains(&row));
        }
    }

    #[test]
    fn neighbouring_addresses_and_ports_spread() {
        let view = TableView { base: 0, bits: 10, factor: factor(3) };
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
