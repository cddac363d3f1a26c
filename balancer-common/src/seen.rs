//! A filter of the known clients that have sent a packet in this period: a Bloom filter whose blocks are words, with
//! two bits for each client (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom Filters", 2007).
//!
//! For a packet in a slot without exceptions, the program reads the client's entry only to refresh the entry. The
//! client's first packet in a period refreshes the entry and sets the client's filter bits; for later packets, the
//! program finds these bits set and does not read the entry. A TCP client whose entry is not yet *established* sets no
//! filter bits, because its next packets may establish the entry. At the start of each period, which lasts seconds or a
//! few minutes, the controller clears all bits of the filter and draws a new *salt*. Clients that share bits in one
//! period therefore share no bits in the next period. If other clients have set both bits of a client, the program does
//! not refresh this client's entry in that period. The balancer forgets such a client only if, for the whole time for
//! which it remembers clients, no period in which the client sends a packet refreshes the entry. Only clients with an
//! entry set bits, so unknown sources cannot fill the filter.

/// The number of filter bits for each bucket of the client table: four for each client for which the table is sized.
const BITS_PER_BUCKET: u32 = 8;
/// The number of buckets whose filter bits make up one word.
const BUCKETS_PER_WORD: u32 = u64::BITS / BITS_PER_BUCKET;

/// The shortest time for remembering clients that allows refresh periods, in seconds. If clients are remembered for a
/// shorter time, the program reads the entry for every packet.
pub const SHORTEST_MEMORY: u32 = 16;

/// The minimum number of refresh periods in `remember`: four of these periods fit into the time in which a client must
/// send a packet.
const PERIODS_PER_REMEMBER: u32 = 32;
/// The longest refresh period in seconds for services that receive datagrams. Datagrams have no connections, so the age
/// of a client's entry determines when the client's next connection begins. A new client waits this long for its entry
/// if other clients have set its filter bits.
const LONGEST_OF_DATAGRAMS: u32 = 8;
/// The number of refresh periods in `remember` if each connection begins with a packet that opens it. Eight of these
/// periods fit into the time in which a client must send a packet, because a longer period would make more clients
/// share bits.
const LONG_PERIODS_PER_REMEMBER: u32 = 64;
/// The longest refresh period in seconds. The recorded age of an entry may be too high or too low by up to this time.
const LONGEST_PERIOD: u32 = 300;

/// The number of 64-bit words in the filter for a client table of `buckets`, which is a power of two.
#[must_use]
pub const fn words(buckets: u32) -> u32 {
    buckets.div_ceil(BUCKETS_PER_WORD)
}

/// The index of a client's filter word under `salt`, and the client's two bits in that word, which may coincide.
/// `bucket_mask` is the number of buckets less one.
#[inline(always)]
#[must_use]
pub const fn place(hash: u64, salt: u64, bucket_mask: u32) -> (u32, u64) {
    // Multiply-shift (Dietzfelbinger et al. 1997): each factor makes different clients share bits.
    let product = hash.wrapping_mul(salt);
    let word = (product >> 32) as u32 & (bucket_mask / BUCKETS_PER_WORD);
    (word, 1 << (product >> 58) | 1 << (product >> 26 & 63))
}

/// The salt of a period: an odd number that looks random (SplitMix64).
#[must_use]
pub const fn salt(period: u64) -> u64 {
    let state = period.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31 | 1
}

/// The length of a refresh period in seconds if the balancer remembers clients for `remember` seconds; `openers` says
/// whether each connection begins with a packet that opens it. `None`: the program reads the entry for every packet.
#[must_use]
pub fn period_seconds(remember: u32, openers: bool) -> Option<u32> {
    if remember < SHORTEST_MEMORY {
        return None;
    }
    let short = (remember / PERIODS_PER_REMEMBER).clamp(1, LONGEST_OF_DATAGRAMS);
    let long = (remember / LONG_PERIODS_PER_REMEMBER).min(LONGEST_PERIOD);
    Some(if openers { short.max(long) } else { short })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_a_client_has_a_place_then_it_is_in_the_filter(hash: u64, period: u64, bits in 0u32..=25) {
            let buckets = 1 << bits;
            let (word, bits) = place(hash, salt(period), buckets - 1);
            prop_assert!(word < words(buckets));
            prop_assert!((1..=2).contains(&bits.count_ones()));
        }

        #[test]
        fn when_a_client_sends_in_each_eighth_then_every_gap_contains_a_whole_period(remember in SHORTEST_MEMORY..=400 * 86_400) {
            for openers in [false, true] {
                let period = period_seconds(remember, openers).unwrap();
                prop_assert!((1..=LONGEST_PERIOD).contains(&period));
                prop_assert!(openers || period <= LONGEST_OF_DATAGRAMS);
                prop_assert!(8 * period <= remember);
                prop_assert!(period <= 1 || 32 * period <= remember, "an entry's age may lag by a thirty-second");
            }
        }
    }

    #[test]
    fn when_clients_are_remembered_for_hours_then_periods_of_connections_are_minutes() {
        let of = |remember| [false, true].map(|openers| period_seconds(remember, openers).unwrap_or_default());
        assert_eq!(of(15), [0, 0]);
        assert_eq!([of(16), of(60), of(600), of(3600)], [[1, 1], [1, 1], [8, 9], [8, 56]]);
        assert_eq!([of(3 * 3600), of(86_400)], [[8, 168], [8, 300]]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn when_two_clients_share_bits_then_it_is_by_chance_and_not_in_the_next_period() {
        // With 64 buckets, the filter has 8 words.
        let hash = |client: u64| salt(client.wrapping_mul(77));
        let place = |client: u64, period: u64| place(hash(client), salt(period), 63);
        let (mut once, mut twice) = (0u32, 0u32);
        for period in 0..20 {
            for client in 0..200 {
                for other in 0..client {
                    let shares = |period| {
                        let ((word, bits), (others, all)) = (place(client, period), place(other, period));
                        word == others && all & bits == bits
                    };
                    once += u32::from(shares(period));
                    twice += u32::from(shares(period) && shares(period + 1));
                }
            }
        }
        // Of 398,000 pairs of clients, one in 8 shares a word; in one of 1,024 pairs that share a word, both bits of
        // one client are among the bits of the other. The test expects 48.6 pairs with standard deviation 7, and 0.006
        // pairs that share bits twice in a row.
        assert!((20..77).contains(&once) && twice == 0, "{once} {twice}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: minutes under Miri")]
    fn when_many_clients_have_places_then_words_and_bits_are_used_evenly() {
        const CLIENTS: u64 = 1 << 20;
        let buckets = 1u32 << 9;
        for period in 0..4 {
            let mut counts = vec![0u32; words(buckets) as usize * 64];
            for client in 0..CLIENTS {
                let (word, bits) = place(salt(client), salt(period), buckets - 1);
                for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                    counts[(word * 64 + bit) as usize] += 1;
                }
            }
            // The filter has 4,096 bits; each client sets 2 - 1/64 of them.
            let expected = CLIENTS as f64 * (2.0 - 1.0 / 64.0) / f64::from(words(buckets) * 64);
            for count in counts {
                assert!((f64::from(count) - expected).abs() < 7.0 * expected.sqrt(), "{count}, {expected}");
            }
        }
    }
}
