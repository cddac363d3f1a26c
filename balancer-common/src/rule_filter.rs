//! A filter that shows for most clients, without a rule lookup, that no rule matches them.
//!
//! A client's *place* is the first 16 bits of its IPv4 address, or a hash of the first 48 bits of its IPv6 address; the
//! filter has one bit for each place. Services share the bits, and each service permutes them differently. For IPv4, a
//! rule for a prefix shorter than 16 bits sets the bit of every place inside the prefix; for IPv6, a rule for a prefix
//! shorter than 48 bits sets one bit that covers all clients of the service.

use crate::map_types::FAMILY_V4;

pub const PLACES: u32 = 1 << 16;
/// The number of words of the filter: a bit for each place, then a bit for each service.
pub const WORDS: u32 = 2 * PLACES / u64::BITS;

/// The number of bits of an IPv4 address that determine its place.
pub const PREFIX_V4: u8 = 16;
/// The number of bits of an IPv6 address that determine its place.
pub const PREFIX_V6: u8 = 48;

/// The place of a service's client in the filter, below [`PLACES`]. `address` is in memory order, IPv4 in the first
/// word.
#[inline(always)]
#[must_use]
pub const fn place(service: u16, family: u8, address: &[u32; 4]) -> u32 {
    // The factor is odd, so each service permutes the places.
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let client = if family == FAMILY_V4 {
        address[0] as u16
    } else {
        ((address[0] as u64 | (address[1] as u64) << 32) << 16).wrapping_mul(MULTIPLIER).wrapping_shr(48) as u16
    };
    (client ^ service.wrapping_mul(MULTIPLIER as u16)) as u32
}

/// The filter word that contains a place's bit, and the bit in this word.
#[inline(always)]
#[must_use]
pub const fn bit(place: u32) -> (u32, u64) {
    (place / u64::BITS, 1 << (place % u64::BITS))
}

/// The filter word that contains the bit for all clients of a service, and the bit in this word.
#[inline(always)]
#[must_use]
pub const fn every(service: u16) -> (u32, u64) {
    bit(PLACES + service as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::map_types::FAMILY_V6;

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn when_clients_share_a_prefix_then_they_share_a_place_and_words_have_room_for_all_bits() {
        let v4 = |octets: [u8; 4]| place(7, FAMILY_V4, &[u32::from_ne_bytes(octets), 0, 0, 0]);
        assert_eq!(v4([10, 1, 2, 3]), v4([10, 1, 255, 0]));
        assert_ne!(v4([10, 1, 2, 3]), v4([10, 2, 2, 3]));
        let v6 = |bytes: [u8; 16]| place(7, FAMILY_V6, &bytemuck::cast(bytes));
        let address = [0x20, 1, 0xd, 0xb8, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let mut other = address;
        other[6..].fill(0);
        assert_eq!(v6(address), v6(other));
        other[5] = 8;
        assert_ne!(v6(address), v6(other));
        for service in [0, 1, 999, u16::MAX] {
            let places: HashSet<u32> =
                (0..PLACES).map(|client| place(service, FAMILY_V4, &[client, 0, 0, 0])).collect();
            assert_eq!(places.len(), PLACES as usize);
            assert!(places.iter().all(|&place| bit(place).0 < PLACES / u64::BITS));
            assert!((PLACES / u64::BITS..WORDS).contains(&every(service).0));
        }
        let v6_places: HashSet<u32> =
            (0..4096u32).map(|site| place(3, FAMILY_V6, &[0xb80d_0120, site, 0, 0])).collect();
        // With random places, 4,096 clients should hit 3,971 of the 65,536 places.
        assert!(v6_places.len() > 3800, "{}", v6_places.len());
    }
}
