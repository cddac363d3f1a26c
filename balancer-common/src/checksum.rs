//! Incremental Internet checksums: RFC 1624, equation 3, `HC' = ~(~HC + ~m + m')`.
//!
//! All 16-bit words are in memory order (as loaded from the packet); one's complement sums do not depend on byte order
//! as long as all words and the checksum are loaded in the same order.

/// Folds a sum of 16-bit words into 16 bits with end-around carry.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    fold_short((sum & 0xffff_ffff) + (sum >> 32))
}

/// Like [`fold`], but in two instructions and only for a sum below 2^48. The highest word of the product is the sum of
/// the three words of `sum`, plus the carry out of the product's next lower word, which is the end-around carry.
#[inline(always)]
const fn fold_short(sum: u64) -> u16 {
    debug_assert!(sum < 1 << 48);
    (sum.wrapping_mul(0x0001_0001_0001_0001) >> 48) as u16
}

/// The amount, unfolded, that replacing the word `old` by `new` adds to the complemented checksum.
#[inline(always)]
#[must_use]
pub const fn replace_u16(old: u16, new: u16) -> u64 {
    (!old) as u64 + new as u64
}

/// The amount, unfolded, that replacing the 32-bit field `old` by `new` adds to the complemented checksum.
///
/// `old` and `new` are in memory order; the field must start at an even offset of the checksummed data.
#[inline(always)]
#[must_use]
pub const fn replace_u32(old: u32, new: u32) -> u64 {
    replace_u16(old as u16, new as u16) + replace_u16((old >> 16) as u16, (new >> 16) as u16)
}

/// The amount that replacing a 16-byte address (or the four words that hold an IPv4 address) adds to the complemented
/// checksum.
#[inline(always)]
#[must_use]
pub const fn replace_address(old: &[u32; 4], new: &[u32; 4]) -> u64 {
    replace_u32(old[0], new[0])
        + replace_u32(old[1], new[1])
        + replace_u32(old[2], new[2])
        + replace_u32(old[3], new[3])
}

/// The checksum field after a change that adds `delta` (a sum of `replace_*` results, below 2^47) to the complemented
/// checksum.
#[inline(always)]
#[must_use]
pub const fn apply(check: u16, delta: u64) -> u16 {
    !fold_short((!check) as u64 + delta)
}

/// Like [`apply`], for a UDP checksum field: 0 (no checksum) stays 0, and a computed 0 is sent as all ones (RFC 768).
#[inline(always)]
#[must_use]
pub const fn apply_udp(check: u16, delta: u64) -> u16 {
    if check == 0 {
        return 0;
    }
    match apply(check, delta) {
        0 => 0xffff,
        check => check,
    }
}

/// The word that consists of TTL, protocol and checksum of an IPv4 header, in memory order, after one hop (RFC 1624,
/// equation 3, as RFC 1141 simplifies this equation for a hop). The TTL before the hop must be above 0.
#[inline(always)]
#[must_use]
pub const fn one_hop_less(word: u32) -> u32 {
    const CHECK: u64 = 1 << 16;
    // The checksum rises by what the TTL loses. Because the TTL is above 0, the subtraction borrows nothing.
    let sum = u32::from_le(word) as u64 + CHECK - 1;
    // A sum of 0xffff or more wraps around, so the checksum never becomes all ones.
    let carry = (sum + CHECK) >> 32;
    ((sum + carry * CHECK) as u32).to_le()
}

/// The unfolded sum of a 32-bit field in memory order.
#[inline(always)]
#[must_use]
pub const fn sum_u32(field: u32) -> u64 {
    (field & 0xffff) as u64 + (field >> 16) as u64
}

/// The unfolded sum of a 16-byte address, or of the four words that hold an IPv4 address.
#[inline(always)]
#[must_use]
pub const fn sum_address(address: &[u32; 4]) -> u64 {
    sum_u32(address[0]) + sum_u32(address[1]) + sum_u32(address[2]) + sum_u32(address[3])
}

/// The unfolded sum of `data` as 16-bit words in memory order; an odd last byte is padded with zero.
#[must_use]
pub fn sum(data: &[u8]) -> u64 {
    let mut chunks = data.chunks_exact(2);
    let mut total = 0;
    for chunk in &mut chunks {
        total += u16::from_ne_bytes([chunk[0], chunk[1]]) as u64;
    }
    if let [last] = chunks.remainder() {
        total += u16::from_ne_bytes([*last, 0]) as u64;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(data: &[u8]) -> u16 {
        !fold(sum(data))
    }

    /// Folds a sum by the definition, one carry at a time.
    fn around(mut sum: u64) -> u16 {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Sums of three words, each at its minimum, at its maximum or arbitrary.
    fn edges() -> impl Strategy<Value = u64> {
        let word =
            || prop_oneof![Just(0u64), Just(1), Just(0x7fff), Just(0x8000), Just(0xfffe), Just(0xffff), 0u64..0x1_0000];
        (word(), word(), word()).prop_map(|(a, b, c)| a | b << 16 | c << 32)
    }

    #[test]
    fn when_the_example_of_rfc_1624_is_computed_then_the_result_is_the_one_printed_there() {
        // RFC 1624 section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000, where RFC 1141 gave 0xFFFF.
        assert_eq!(apply(0xdd2f, replace_u16(0x5555, 0x3285)), 0x0000);
    }

    #[test]
    fn when_a_udp_packet_has_no_checksum_then_it_gets_none() {
        assert_eq!(apply_udp(0, replace_u32(1, 2)), 0);
    }

    proptest! {
        #[test]
        fn when_a_field_changes_then_the_updated_checksum_equals_the_recomputed_one(
            mut data in prop::collection::vec(any::<u8>(), 8..128).prop_map(|mut d| { d.truncate(d.len() & !1); d }),
            at in any::<prop::sample::Index>(),
            new in any::<u32>(),
        ) {
            prop_assume!(data.iter().any(|&b| b != 0));
            let at = at.index((data.len() - 4) / 2 + 1) * 2;
            let check = full(&data);
            let old = u32::from_ne_bytes(data[at..at + 4].try_into().expect("four bytes"));
            data[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            prop_assume!(data.iter().any(|&b| b != 0));
            prop_assert_eq!(apply(check, replace_u32(old, new)), full(&data));
        }

        #[test]
        fn when_a_packet_takes_a_hop_then_its_checksum_changes_as_for_a_replaced_ttl(ttl in 1u8.., protocol in any::<u8>(), check in any::<[u8; 2]>()) {
            let old = u16::from_ne_bytes([ttl, protocol]);
            let new = u16::from_ne_bytes([ttl - 1, protocol]);
            let expected = apply(u16::from_ne_bytes(check), replace_u16(old, new)).to_ne_bytes();
            let word = one_hop_less(u32::from_ne_bytes([ttl, protocol, check[0], check[1]]));
            prop_assert_eq!(word.to_ne_bytes(), [ttl - 1, protocol, expected[0], expected[1]]);
        }

        #[test]
        fn when_a_udp_checksum_is_updated_then_it_never_becomes_zero(check in 1u16.., old in any::<u32>(), new in any::<u32>()) {
            prop_assert_ne!(apply_udp(check, replace_u32(old, new)), 0);
        }

        #[test]
        fn when_an_address_is_summed_as_words_then_the_sum_is_that_of_its_bytes(address in any::<[u32; 4]>()) {
            let bytes: [u8; 16] = bytemuck::cast(address);
            prop_assert_eq!(sum_address(&address), sum(&bytes));
        }

        #[test]
        fn when_a_sum_is_folded_then_every_carry_is_added(sum in any::<u64>(), bits in 0u32..64) {
            let sum = sum >> bits;
            prop_assert_eq!(fold(sum), around(sum));
        }

        #[test]
        fn when_a_sum_is_below_2_48_then_the_short_fold_gives_the_same_result(near in edges(), offset in -4i64..=4) {
            let sum = near.saturating_add_signed(offset).min((1 << 48) - 1);
            prop_assert_eq!(fold_short(sum), around(sum));
        }
    }
}
