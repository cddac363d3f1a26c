//! Periods of the filter of recently seen clients.

use std::{sync::atomic::Ordering, time::Duration};

use balancer_common::{map_types::MemoryStats, seen};

use super::mapped::MappedArray;

/// The shortest period.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
/// A period ends early if the filter hides more than one newcomer for this number of clients seen in the period.
const HIDDEN: u64 = 1000;

/// The mapped filter.
pub(super) struct Seen {
    words: MappedArray<u64>,
    bucket_mask: u32,
    /// Number of the period, for its salt.
    number: u64,
    /// Start of the period.
    since: Duration,
    /// Length of the period. `None`: no packet uses the filter.
    period: Option<Duration>,
    /// The counters at the beginning of the period.
    before: MemoryStats,
}

impl Seen {
    /// The filter for a client table of `buckets`, in its first period.
    pub(super) fn new(words: MappedArray<u64>, buckets: u32, elapsed: Duration) -> Self {
        Self {
            words,
            bucket_mask: buckets - 1,
            number: 0,
            since: elapsed,
            period: None,
            before: MemoryStats::default(),
        }
    }

    /// The salt of the current period.
    pub(super) const fn salt(&self) -> u64 {
        seen::salt(self.number)
    }

    /// Sets the length of periods. Returns the new salt if the new length begins another period.
    pub(super) fn set_period(&mut self, seconds: Option<u32>, elapsed: Duration) -> Option<u64> {
        let period = seconds.map(|seconds| Duration::from_secs(seconds.into()));
        (std::mem::replace(&mut self.period, period) != period).then(|| self.next(elapsed))
    }

    /// Returns the new salt if the period is over. `counted` are the counters of newcomers. `openers`: whether each
    /// newcomer is recorded by the packet that opens its connection, unless too many come at once.
    pub(super) fn advance(&mut self, elapsed: Duration, counted: MemoryStats, openers: bool) -> Option<u64> {
        let period = self.period?;
        let lasted = elapsed.saturating_sub(self.since);
        let newcomers = counted.inserted.saturating_sub(self.before.inserted);
        let looked_up = openers && counted.limited == self.before.limited;
        if lasted < period && (lasted < SHORTEST_PERIOD || looked_up || !self.hides(newcomers)) {
            return None;
        }
        self.before = counted;
        Some(self.next(elapsed))
    }

    /// Whether the filter hides too many newcomers, given the number of recorded ones. A newcomer is hidden if other
    /// clients have set all its bits: its packets then do not read the table, and it is not recorded in this period.
    fn hides(&self, newcomers: u64) -> bool {
        let words = self.words.words();
        let bits = u128::from(u64::BITS) * words.len() as u128;
        // Of n newcomers, n·(set/bits)² are hidden among set/2 clients.
        let hides = |set: u128| 2 * u128::from(HIDDEN) * u128::from(newcomers) * set >= bits * bits;
        // In most seconds, the first comparison already decides.
        hides(bits) && hides(words.iter().map(|word| u128::from(word.load(Ordering::Relaxed).count_ones())).sum())
    }

    /// Begins another period and returns its salt. After publishing it, the caller calls [`Self::clear`].
    pub(super) fn next(&mut self, elapsed: Duration) -> u64 {
        self.number += 1;
        self.since = elapsed;
        self.salt()
    }

    /// Clears the filter. Bits that packets still set under the earlier salt count for other clients for one period.
    pub(super) fn clear(&self) {
        for word in self.words.words() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Clears the bits of a client's hash. The program then also reads the entries of clients that share a bit with
    /// this one once more.
    pub(super) fn forget(&self, hash: u64) {
        let (word, bits) = seen::place(hash, self.salt(), self.bucket_mask);
        if let Some(word) = self.words.words().get(word as usize) {
            word.fetch_and(!bits, Ordering::Relaxed);
        }
    }
}
