//! A histogram of the pauses between successive requests of a client. The histogram has wider buckets for longer
//! pauses, so that it stays small.

/// The number of buckets in each power of two.
const FINE: u64 = 16;
/// The total number of buckets, which is enough for all pauses that fit into 32 bits.
const BUCKETS: usize = 33 * FINE as usize;

/// The numbers of pauses, by their length in whole seconds.
#[derive(Clone, Debug)]
pub struct Gaps {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
}

impl Default for Gaps {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0 }
    }
}

impl Gaps {
    /// Counts a pause that lasted `seconds`.
    pub fn count(&mut self, seconds: u32) {
        if let Some(count) = self.counts.get_mut(bucket(seconds)) {
            *count += 1;
            self.total += 1;
        }
    }

    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Returns a number of seconds such that at least `of_thousand` of 1,000 pauses are shorter; `None` if there are no
    /// pauses. The result is exact up to 16 s; above 16 s, it is at most a sixteenth too large.
    #[must_use]
    pub fn longer_than(&self, of_thousand: u64) -> Option<u64> {
        let wanted = (u128::from(self.total) * u128::from(of_thousand)).div_ceil(1_000);
        let mut below = 0u128;
        let sums = self.counts.iter().zip(0..).map(|(&count, bucket)| {
            below += u128::from(count);
            (below, bucket)
        });
        let (_, bucket) = sums.filter(|_| self.total > 0).find(|&(below, _)| below >= wanted)?;
        Some(end(bucket))
    }

    /// Returns the number of pauses that lasted at least `seconds`. The result may be slightly too large, because it
    /// includes the whole bucket that contains `seconds`.
    #[must_use]
    pub fn at_least(&self, seconds: u64) -> u64 {
        self.counts.iter().zip(0..).filter(|&(_, bucket)| end(bucket) > seconds).map(|(count, _)| count).sum()
    }
}

/// Returns the bucket for a pause. Below 16 s, each number of seconds has its own bucket; above, each power of two has
/// 16 buckets.
fn bucket(seconds: u32) -> usize {
    let seconds = u64::from(seconds);
    let Some(power) = (seconds / FINE).checked_ilog2() else { return seconds as usize };
    ((u64::from(power) + 1) * FINE + (seconds >> power) - FINE) as usize
}

/// The exclusive end of a bucket: all pauses in the bucket are shorter than this number of seconds.
const fn end(bucket: u64) -> u64 {
    if bucket < FINE {
        return bucket + 1;
    }
    (FINE + bucket % FINE + 1) << (bucket / FINE - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_a_pause_is_counted_then_its_bucket_ends_soon_after_it(seconds: u32) {
            let end = end(bucket(seconds) as u64);
            let seconds = u64::from(seconds);
            prop_assert!(end > seconds && end - seconds <= seconds / FINE + 1, "{} ends {}", seconds, end);
        }

        #[test]
        fn when_pauses_are_counted_then_the_quantile_exceeds_the_share(all in prop::collection::vec(0u32..100_000, 1..200), of_thousand in 1u64..=1000) {
            let mut gaps = Gaps::default();
            all.iter().for_each(|&seconds| gaps.count(seconds));
            let limit = gaps.longer_than(of_thousand).unwrap();
            let shorter = all.iter().filter(|&&seconds| u64::from(seconds) < limit).count() as u64;
            prop_assert!(shorter * 1000 >= of_thousand * all.len() as u64);
            prop_assert_eq!(gaps.at_least(limit), all.len() as u64 - shorter);
        }
    }

    #[test]
    fn when_there_are_no_pauses_then_there_is_no_quantile() {
        assert_eq!(Gaps::default().longer_than(995), None);
        assert_eq!(Gaps::default().total(), 0);
    }
}
