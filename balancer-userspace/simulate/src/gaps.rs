//! A histogram of pauses between two requests of a client. Its buckets grow with the time, so that it stays small.

/// The number of buckets for each power of two.
const FINE: u64 = 16;
/// Enough for all pauses of 32 bits.
const BUCKETS: usize = 33 * FINE as usize;

/// Counts pauses of whole seconds.
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
    /// Counts a pause of `seconds`.
    pub fn count(&mut self, seconds: u32) {
        if let Some(count) = self.counts.get_mut(bucket(seconds)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Returns the number of pauses.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Returns a number of seconds so that at least this many of 1,000 pauses are shorter. The result is exact up to 16
    /// s, then at most a sixteenth too long; `None` if there are no pauses.
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

    /// Returns the number of pauses of at least this many seconds. It may be a little too small, because it leaves out
    /// buckets that begin earlier.
    #[must_use]
    pub fn at_least(&self, seconds: u64) -> u64 {
        self.counts.iter().zip(0..).filter(|&(_, bucket)| end(bucket) > seconds).map(|(count, _)| count).sum()
    }
}

/// The bucket of a pause. Below 16 it is the number of seconds; above, each power of two has 16 buckets.
fn bucket(seconds: u32) -> usize {
    let seconds = u64::from(seconds);
    let Some(power) = (seconds / FINE).checked_ilog2() else { return seconds as usize };
    ((u64::from(power) + 1) * FINE + (seconds >> power) - FINE) as usize
}

/// The end of a bucket: all pauses in it are shorter than this, in seconds.
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
