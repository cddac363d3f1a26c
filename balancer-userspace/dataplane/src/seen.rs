//! The filter of known clients that have been seen: its periods.

use std::{sync::atomic::Ordering, time::Duration};

use balancer_common::seen;

use super::mapped::MappedArray;

/// The mapped filter.
pub(super) struct Seen {
    words: MappedArray<u64>,
    bucket_mask: u32,
    /// Number of the period, for its salt.
    number: u64,
    /// When it began.
    since: Duration,
    /// How long it lasts. `None`: nobody asks the filter.
    period: Option<Duration>,
}

impl Seen {
    /// The filter for a client table of `buckets`, in its first period.
    pub(super) fn new(words: MappedArray<u64>, buckets: u32, elapsed: Duration) -> Self {
        Self { words, bucket_mask: buckets - 1, number: 0, since: elapsed, period: None }
    }

    /// The salt of the present period.
    pub(super) const fn salt(&self) -> u64 {
        seen::salt(self.number)
    }

    /// From now on periods last so long; gives the new salt, if that begins another one.
    pub(super) fn set_period(&mut self, seconds: Option<u32>, elapsed: Duration) -> Option<u64> {
        let period = seconds.map(|seconds| Duration::from_secs(seconds.into()));
        (std::mem::replace(&mut self.period, period) != period).then(|| self.next(elapsed))
    }

    /// The new salt, if the period is over.
    pub(super) fn advance(&mut self, elapsed: Duration) -> Option<u64> {
        let period = self.period?;
        (elapsed.saturating_sub(self.since) >= period).then(|| self.next(elapsed))
    }

    /// Begins another period; gives its salt. Whoever publishes it calls [`Self::clear`] then.
    pub(super) fn next(&mut self, elapsed: Duration) -> u64 {
        self.number += 1;
        self.since = elapsed;
        self.salt()
    }

    /// Nobody has been seen. What packets still note under the salt before are somebody's bits, for a period.
    pub(super) fn clear(&self) {
        for word in self.words.words() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The client of this hash has not been seen, nor have those who share a bit with it: they are looked up once more.
    pub(super) fn forget(&self, hash: u64) {
        let (word, bits) = seen::place(hash, self.salt(), self.bucket_mask);
        if let Some(word) = self.words.words().get(word as usize) {
            word.fetch_and(!bits, Ordering::Relaxed);
        }
    }
}
