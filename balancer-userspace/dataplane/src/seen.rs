//! Periods for the filter of recently seen clients.

use std::{sync::atomic::Ordering, time::Duration};

use balancer_common::{map_types::MemoryStats, seen};

use super::mapped::MappedArray;

/// The length of the shortest period.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
/// A period ends early if the filter hides more than one new client for every group of this many clients seen in the
/// period.
const HIDDEN: u64 = 1000;

/// The filter, mapped into memory.
pub(super) struct Seen {
    words: MappedArray<u64>,
    bucket_mask: u32,
    /// The number of the period, from which its salt is computed.
    number: u64,
    /// The time at which the period began.
    since: Duration,
    /// The length of the period. `None`: the program does not use the filter.
    period: Option<Duration>,
    /// The counters of new clients at the beginning of the period.
    before: MemoryStats,
}

impl Seen {
    /// The filter for a client table with `buckets` buckets, in its first period.
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

    /// Sets the length of the periods. Returns the new salt if another period begins because of the new length.
    pub(super) fn set_period(&mut self, seconds: Option<u32>, elapsed: Duration) -> Option<u64> {
        let period = seconds.map(|seconds| Duration::from_secs(seconds.into()));
        (std::mem::replace(&mut self.period, period) != period).then(|| self.next(elapsed))
    }

    /// Returns the new salt if the period is over. `counted` are the present counters of new clients. `openers` says
    /// whether the program records each new client with the packet that opens its connection, unless too many new
    /// clients come at once.
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

    /// Whether the filter hides too many new clients, given the number of recorded new clients. A new client is hidden
    /// if other clients have set all its bits: for its packets, the program then does not read the table, and it does
    /// not record the client in this period.
    fn hides(&self, newcomers: u64) -> bool {
        let words = self.words.words();
        let bits = u128::from(u64::BITS) * words.len() as u128;
        // Of n new clients, n·(set/bits)² are hidden if set/2 clients have set bits.
        let hides = |set: u128| 2 * u128::from(HIDDEN) * u128::from(newcomers) * set >= bits * bits;
        // In most seconds, the first comparison is false and the second one is unnecessary.
        hides(bits) && hides(words.iter().map(|word| u128::from(word.load(Ordering::Relaxed).count_ones())).sum())
    }

    /// Begins another period, and returns the salt of this period. After the caller has published the salt, it must
    /// call [`Self::clear`].
    pub(super) fn next(&mut self, elapsed: Duration) -> u64 {
        self.number += 1;
        self.since = elapsed;
        self.salt()
    }

    /// Clears the filter. Bits that the program sets after this call under the earlier salt stand for other clients
    /// during one period.
    pub(super) fn clear(&self) {
        for word in self.words.words() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Clears the bits for a client's hash. As a side effect, the program also reads once more the entries of other
    /// clients that share a bit with this client.
    pub(super) fn forget(&self, hash: u64) {
        let (word, bits) = seen::place(hash, self.salt(), self.bucket_mask);
        if let Some(word) = self.words.words().get(word as usize) {
            word.fetch_and(!bits, Ordering::Relaxed);
        }
    }
}
