//! The open-addressed tables of listeners and of `nat` returns. A lookup reads at most [`PROBES`] rows: one pair of
//! neighbouring rows at each of two positions that the key determines (cuckoo hashing with buckets of two: Pagh and
//! Rodler, 2001; Dietzfelbinger and Weidling, 2007).
//!
//! The controller builds a whole table in the unused half of the map, tries hash factors until the table has a row for
//! every key, and then publishes the table with one 64-bit store.

use crate::map_types::ServiceKey;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const OTHER_MULTIPLIER: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// The maximum number of rows that a lookup of a key reads.
pub const PROBES: usize = 4;

const ROW_BITS: u32 = 24;
const ROWS: u32 = (1 << ROW_BITS) - 1;

/// The active part of the map: base row, size and hash factor in one word, which the controller replaces with one
/// store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableView {
    /// The first row of the table; a multiple of the number of rows, below 2^24.
    pub base: u32,
    /// The binary logarithm of the table's number of rows, 1 to 23.
    pub bits: u8,
    /// The factor of the hash in [`TableView::rows`], see [`factor`].
    pub factor: u32,
}

impl TableView {
    /// Packs the view into the word that the controller publishes.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let shift = 32 - self.bits as u64;
        (self.factor as u64) << 32 | shift << ROW_BITS | (self.base & ROWS) as u64
    }

    /// The rows that may hold `key`, in the order of the lookup.
    #[must_use]
    pub const fn rows(self, key: &ServiceKey) -> [u32; PROBES] {
        let home = PublishedView(self.to_word()).home(key);
        let (first, third) = (home.first(), home.third(KeyWords::of(key)));
        [first, first ^ 1, third, third ^ 1]
    }
}

/// The 64-bit word of a published [`TableView`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedView(pub u64);

impl PublishedView {
    /// The value of [`TableView::base`].
    #[must_use]
    pub const fn base(self) -> u32 {
        self.0 as u32 & ROWS
    }

    /// The rows at which the lookup of `key` starts in each pair.
    #[inline(always)]
    #[must_use]
    pub const fn home(self, key: &ServiceKey) -> Home {
        self.home_of(KeyWords::of(key))
    }

    /// The rows at which the lookup of a key starts in each pair, given the key as words.
    #[inline(always)]
    #[must_use]
    pub const fn home_of(self, key: KeyWords) -> Home {
        let index = hash((self.0 >> 32) as u32, key).wrapping_shr((self.0 >> ROW_BITS) as u32);
        Home((self.0 as u32).wrapping_add(index))
    }
}

/// A lookup key as three words, each of which fits a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWords {
    /// The first half of the address.
    pub low: u64,
    /// The second half of the address.
    pub high: u64,
    /// All fields of the key except the address.
    pub rest: u32,
}

impl KeyWords {
    /// Splits `key` into its three words.
    #[inline(always)]
    #[must_use]
    pub const fn of(key: &ServiceKey) -> Self {
        let (low, high) = halves(&key.address);
        Self { low, high, rest: key.rest() }
    }
}

/// A key's first row, and the bits that determine the key's other rows, in one word because the kernel program has few
/// registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(u32);

impl Home {
    /// The word from which [`Home::of_word`] makes the same value.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The value that [`Home::word`] encoded in this word.
    #[inline(always)]
    #[must_use]
    pub const fn of_word(word: u32) -> Self {
        Self(word)
    }

    /// The first row of the lookup; the second row is `first() ^ 1`.
    #[inline(always)]
    #[must_use]
    pub const fn first(self) -> u32 {
        self.0 & ROWS
    }

    /// The third row of the lookup; the fourth row is `third() ^ 1`.
    #[inline(always)]
    #[must_use]
    pub const fn third(self, key: KeyWords) -> u32 {
        let shift = self.0 >> ROW_BITS;
        (self.first() & !u32::MAX.wrapping_shr(shift)) | other_hash(key).wrapping_shr(shift)
    }
}

/// The hash factor to try after `tried` other factors. The factor is always odd.
#[must_use]
pub const fn factor(tried: u32) -> u32 {
    tried.wrapping_mul(0x2545_f491).wrapping_add(0x85eb_ca6b) | 1
}

/// A hash of a service key; callers use the high bits of the hash. The function adds two multiply-shift hashes
/// (Dietzfelbinger et al., 1997): one of the address and one of the other fields. Keys come from the configuration, not
/// from outsiders.
#[inline(always)]
#[must_use]
const fn hash(factor: u32, key: KeyWords) -> u32 {
    let KeyWords { low, high, rest } = key;
    // The address is in host order, because multiplication carries bits only upwards, and addresses of consecutive
    // hosts differ in their last byte.
    let address = (u64::from_be(high).wrapping_add(low).wrapping_mul(MULTIPLIER) >> 32) as u32;
    address.wrapping_mul(factor).wrapping_add(rest.wrapping_mul(0x9e37_79b1))
}

/// A second hash of a service key, which depends on no factor.
#[inline(always)]
#[must_use]
const fn other_hash(key: KeyWords) -> u32 {
    let address = key.low.wrapping_mul(OTHER_MULTIPLIER) ^ u64::from_be(key.high).wrapping_mul(MULTIPLIER);
    ((address >> 32) as u32).wrapping_mul(0xc2b2_ae35).wrapping_add(key.rest.wrapping_mul(0x27d4_eb2f))
}

#[inline(always)]
const fn halves(address: &[u32; 4]) -> (u64, u64) {
    (address[0] as u64 | (address[1] as u64) << 32, address[2] as u64 | (address[3] as u64) << 32)
}

/// The bit that stands for an address in a word with one bit for each VIP; for most addresses, a clear bit shows that
/// the address is no VIP.
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
        fn when_a_key_is_looked_up_then_its_rows_are_pairs_inside_the_table(
            address in any::<[u32; 4]>(), port in any::<u16>(), bits in 1u8..=23, second in any::<bool>(), tried in any::<u32>()
        ) {
            let key = ServiceKey { address, port, protocol: 6, family: 6 };
            let base = u32::from(second) << bits;
            let view = TableView { base, bits, factor: factor(tried) };
            let rows = view.rows(&key);
            prop_assert!(rows.iter().all(|row| (base..base + (1 << bits)).contains(row)));
            prop_assert_eq!([rows[1], rows[3]], [rows[0] ^ 1, rows[2] ^ 1]);
        }
    }

    #[test]
    fn when_addresses_and_ports_are_neighbours_then_they_spread() {
        let view = TableView { base: 0, bits: 10, factor: factor(3) };
        let mut used = [0u8; 1024];
        for host in 0..32u32 {
            for port in 0..16u16 {
                let address = [(0xc633_6400 + host).to_be(), 0, 0, 0];
                let key = ServiceKey { address, port: (8000 + port).to_be(), protocol: 6, family: 4 };
                used[view.rows(&key)[0] as usize] += 1;
            }
        }
        assert!(used.iter().all(|&count| count <= 6), "{:?}", used.iter().max());
    }

    #[test]
    fn when_addresses_are_neighbours_then_their_bits_differ() {
        let v4 = (0..16u32).fold(0, |bits, host| bits | vip_bit(&[(0xc633_6400 + host).to_be(), 0, 0, 0]));
        let v6 = (0..16u32).fold(0, |bits, host| bits | vip_bit(&[0xb80d_0120, 0, 0, host.to_be()]));
        // 16 random addresses should set 14 of 64 bits.
        assert!(v4.count_ones() >= 10 && v6.count_ones() >= 10, "{v4:b} {v6:b}");
    }
}
