//! The memory of one service's clients: the time for which the service remembers clients, and the service's current
//! tick.

use std::{sync::Arc, time::Duration};

use balancer_common::{
    client_table::{Entry, TICK_MASK},
    clock::Clock,
};
use balancer_control::io::BackendId;

use super::KnownClient;

/// The client memory of a service that has a lookup table.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) table: Arc<[u16]>,
    /// `None`: the service no longer remembers any clients.
    pub(super) clock: Option<Clock>,
    /// The earlier clock, during the conversion of ages from ticks of this clock to ticks of the new clock. The
    /// service's clock stands still until the conversion is complete.
    written: Option<Clock>,
    pub(super) tick: u16,
    /// A tick, and the elapsed time at which it was the current tick; later ticks are counted from this tick.
    since: (u16, Duration),
    /// The number of table swaps so far.
    pub(super) swaps: u64,
    /// The number of clients that the program has recorded so far at a backend other than the table's.
    pub(super) migrated: u64,
}

impl Memory {
    /// The memory of a service that remembers no clients yet, at the given tick.
    pub(super) fn new(tick: u16) -> Self {
        Self {
            table: Arc::default(),
            clock: None,
            written: None,
            tick,
            since: (0, Duration::ZERO),
            swaps: 0,
            migrated: 0,
        }
    }

    /// The tick of the service after the time `elapsed`.
    pub(super) fn tick_at(&self, elapsed: Duration) -> u16 {
        let Some(clock) = self.clock.filter(|_| self.written.is_none()) else { return self.tick };
        let (tick, since) = self.since;
        let ticks = elapsed.saturating_sub(since).as_secs() / u64::from(clock.tick_seconds);
        tick.wrapping_add(ticks as u16) & TICK_MASK
    }

    /// Records that the service has a new live table.
    pub(super) fn swapped(&mut self, table: Arc<[u16]>) {
        self.table = table;
        self.swaps += 1;
    }

    pub(super) fn retime(&mut self, clock: Option<Clock>, elapsed: Duration) {
        let before = std::mem::replace(&mut self.clock, clock);
        let tick_seconds = |clock: Option<Clock>| clock.map(|clock| clock.tick_seconds);
        if tick_seconds(before) != tick_seconds(self.clock) {
            self.since = (self.tick, elapsed);
            // If the clock returns to the earlier length of a tick, all entries have ages in ticks of this length.
            let written = self.written.take().or(before);
            self.written = written.filter(|&written| tick_seconds(Some(written)) != tick_seconds(self.clock));
        }
        self.tick = self.tick_at(elapsed);
    }

    /// The clock that the kernel program uses. While ages are being converted to the new clock's ticks, this clock lets
    /// no client expire.
    pub(super) fn published(&self) -> Option<Clock> {
        let clock = self.clock?;
        Some(self.written.map_or(clock, |written| Clock { remember: clock.remember.max(written.remember), ..clock }))
    }

    /// The old and the new clock for the conversion of ages, if they differ.
    pub(super) fn ages(&self) -> Option<(Clock, Clock)> {
        self.written.zip(self.clock)
    }

    /// Records that all ages are in ticks of the new clock; the service's clock continues from `elapsed`.
    pub(super) const fn settle(&mut self, elapsed: Duration) {
        if self.written.take().is_some() {
            self.since = (self.tick, elapsed);
        }
    }

    /// Whether the service still remembers the client of this entry.
    pub(super) fn remembers(&self, entry: Entry) -> bool {
        self.clock.is_some_and(|clock| entry.age(self.tick) <= clock.remember)
    }

    /// Returns the client of an entry at the time `elapsed`. If `is_rescanned` is false, the age of the entry is still
    /// in ticks of the earlier clock. `None`: the entry has expired.
    pub(super) fn known(&self, entry: Entry, is_rescanned: bool, elapsed: Duration) -> Option<KnownClient> {
        let written = self.written.filter(|_| !is_rescanned);
        let seconds = u64::from(entry.age(self.tick_at(elapsed))) * u64::from(written.or(self.clock)?.tick_seconds);
        let clock = self.clock?;
        (seconds / u64::from(clock.tick_seconds) <= u64::from(clock.remember))
            .then(|| KnownClient { backend: BackendId(entry.backend()), last_seen: Duration::from_secs(seconds) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// A clock with ticks of two seconds.
    const TWO_HOURS: Clock = Clock::new(7200);
    /// A clock with ticks of 22 seconds.
    const DAY: Clock = Clock::new(86_400);

    /// A memory that has used the two-second clock for 100 s, and an entry that was written after 30 s.
    fn working() -> (Memory, Entry) {
        let mut memory = Memory::new(7);
        memory.retime(Some(TWO_HOURS), Duration::ZERO);
        memory.settle(Duration::ZERO);
        memory.tick = memory.tick_at(30 * SECOND);
        let entry = Entry::new(1, 2, memory.tick);
        memory.tick = memory.tick_at(100 * SECOND);
        (memory, entry)
    }

    fn seen(memory: &Memory, entry: Entry, at: u32) -> Option<u64> {
        memory.known(entry, false, at * SECOND).map(|known| known.last_seen.as_secs())
    }

    #[test]
    fn when_a_change_of_clocks_is_undone_then_ages_are_as_before() {
        for between in [Some(DAY), Some(Clock::new(60)), None] {
            let (mut memory, entry) = working();
            assert_eq!(seen(&memory, entry, 100), Some(70));
            memory.retime(between, 100 * SECOND);
            assert_eq!(memory.ages().is_some(), between.is_some());
            memory.retime(Some(TWO_HOURS), 100 * SECOND);
            assert_eq!((memory.ages(), memory.published()), (None, Some(TWO_HOURS)));
            assert_eq!(seen(&memory, entry, 100), Some(70), "{between:?}");
            assert_eq!(seen(&memory, entry, 300), Some(270), "{between:?}");
        }
    }

    #[test]
    fn when_ages_are_not_converted_yet_then_time_stands_still_and_no_client_expires() {
        let (mut memory, entry) = working();
        memory.retime(Some(DAY), 100 * SECOND);
        assert_eq!(memory.ages(), Some((TWO_HOURS, DAY)));
        assert_eq!(memory.published(), Some(Clock { remember: DAY.remember.max(TWO_HOURS.remember), ..DAY }));
        assert_eq!(seen(&memory, entry, 5000), Some(70));
        // Another change of the clock follows before the controller has processed the client table.
        memory.retime(Some(Clock::new(60)), 200 * SECOND);
        assert_eq!(memory.ages(), Some((TWO_HOURS, Clock::new(60))));
        assert_eq!(memory.published().map(|clock| clock.remember), Some(TWO_HOURS.remember));
        memory.settle(200 * SECOND);
        assert_eq!((memory.ages(), memory.published()), (None, Some(Clock::new(60))));
        let tick = memory.tick;
        assert_eq!(memory.tick_at(230 * SECOND), tick + 30);
    }
}
