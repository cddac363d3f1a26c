//! Which known clients have been seen in this period: a Bloom filter with one hash function.
//!
//! A packet of a slot without exceptions needs its client's entry only to refresh it. The first one in a period does, and
//! sets the client's bit; those after it find the bit set and read nothing more. With each period, a few seconds long, the
//! controller clears all bits and draws a new *salt*, so that two clients that share a bit in one period share none in the
//! next: a client whose bit is another's loses that period, and is forgotten only if it loses every one in which it sends
//! a packet, for as long as it is remembered. Only clients that have an entry set bits, so that strangers cannot fill
//! the filter.

/// Bits for each bucket of the client table: eight for each client that the table is made for.
pub const BITS_PER_BUCKET: u32 = 16;

/// Below so many seconds of memory a period would not be short enough: every packet reads the entry.
pub const SHORTEST_MEMORY: u32 = 16;

/// Periods that a memory is divided into, at least: four in the time in which a client must send a packet.
const PERIODS_PER_REMEMBER: u32 = 32;
/// Seconds of a period at most: so long may an entry's age lag behind, and a newcomer wait to be established.
const LONGEST_PERIOD: u32 = 8;

/// Words of 64 bits of the filter for a client table of `buckets`, a power of two.
#[must_use]
pub const fn words(buckets: u32) -> u32 {
    // Of a smaller table a part of the word is used.
    if buckets < 64 / BITS_PER_BUCKET { 1 } else { buckets / (64 / BITS_PER_BUCKET) }
}

/// A client's bit under `salt`: its word, and the bit in that. `bucket_mask` is the number of buckets less one.
#[inline(always)]
#[must_use]
pub const fn place(hash: u64, salt: u64, bucket_mask: u32) -> (u32, u64) {
    // Multiply-shift (Dietzfelbinger et al. 1997): which clients share a bit is another matter with every factor.
    let bit = (hash.wrapping_mul(salt) >> 32) as u32 & ((bucket_mask * BITS_PER_BUCKET) | (BITS_PER_BUCKET - 1));
    (bit / 64, 1 << (bit % 64))
}

/// The salt of a period: an odd number that looks random (SplitMix64).
#[must_use]
pub const fn salt(period: u64) -> u64 {
    let state = period.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31 | 1
}

/// Seconds of a period where clients are remembered for `remember` seconds. `None`: every packet reads the entry.
#[must_use]
pub const fn period_seconds(remember: u32) -> Option<u32> {
    if remember < SHORTEST_MEMORY {
        return None;
    }
    Some(match remember / PERIODS_PER_REMEMBER {
        0 => 1,
        LONGEST_PERIOD.. => LONGEST_PERIOD,
        seconds => seconds,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_lies_in_the_filter(hash: u64, period: u64, bits in 0u32..=25) {
            let buckets = 1 << bits;
            let (word, bit) = place(hash, salt(period), buckets - 1);
            prop_assert!(word < words(buckets));
            prop_assert_eq!(bit.count_ones(), 1);
        }

        #[test]
        fn every_gap_that_a_client_may_leave_holds_a_whole_period(remember in SHORTEST_MEMORY..=400 * 86_400) {
            let period = period_seconds(remember).unwrap();
            prop_assert!((1..=LONGEST_PERIOD).contains(&period));
            prop_assert!(8 * period <= remember);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn two_clients_share_a_bit_as_rarely_as_by_chance_and_not_in_the_next_period() {
        // 1,024 buckets for 2,048 clients.
        let hash = |client: u64| salt(client.wrapping_mul(77));
        let place = |client: u64, period: u64| place(hash(client), salt(period), 1023);
        let (mut once, mut twice) = (0u32, 0u32);
        for period in 0..20 {
            for client in 0..200 {
                for other in 0..client {
                    let shares = |period| place(client, period) == place(other, period);
                    once += u32::from(shares(period));
                    twice += u32::from(shares(period) && shares(period + 1));
                }
            }
        }
        // 398,000 pairs, one in 16,384 each: 24.3 expected, standard deviation 4.9; both: 0.0015.
        assert!((5..45).contains(&once) && twice == 0, "{once} {twice}");
    }
}
