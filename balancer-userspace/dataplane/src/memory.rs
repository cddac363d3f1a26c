//! The memory of the clients of one service: how long they are remembered, and the service's present tick.

use std::{sync::Arc, time::Duration};

use balancer_common::{
    client_table::{Entry, TICK_MASK},
    clock::Clock,
};
use balancer_core::io::BackendId;

use super::KnownClient;

/// The memory of a service that has a table.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) table: Arc<[u16]>,
    /// `None`: the service remembers nothing any more.
    pub(super) clock: Option<Clock>,
    /// In whose ticks ages are written, while they are to be written in those of another clock. Time stands still until they
    /// are.
    written: Option<Clock>,
    pub(super) tick: u16,
    /// The tick that it was when so much time had passed: from there on it is counted.
    since: (u16, Duration),
    /// Rises with each swap.
    pub(super) swaps: u64,
}

impl Memory {
    /// Makes the memory of a service that remembers nothing yet, in this tick.
    pub(super) fn new(tick: u16) -> Self {
        Self { table: Arc::default(), clock: None, written: None, tick, since: (0, Duration::ZERO), swaps: 0 }
    }

    /// The tick after `elapsed`.
    pub(super) fn tick_at(&self, elapsed: Duration) -> u16 {
        let Some(clock) = self.clock.filter(|_| self.written.is_none()) else { return self.tick };
        let (tick, since) = self.since;
        let ticks = elapsed.saturating_sub(since).as_secs() / u64::from(clock.tick_seconds);
        tick.wrapping_add(ticks as u16) & TICK_MASK
    }

    /// The live table is another one.
    pub(super) fn swapped(&mut self, table: Arc<[u16]>) {
        self.table = table;
        self.swaps += 1;
    }

    /// Sets the clock.
    pub(super) fn retime(&mut self, clock: Option<Clock>, elapsed: Duration) {
        let before = std::mem::replace(&mut self.clock, clock);
        let tick_seconds = |clock: Option<Clock>| clock.map(|clock| clock.tick_seconds);
        if tick_seconds(before) != tick_seconds(self.clock) {
            self.since = (self.tick, elapsed);
            // Back to the ticks of before: nothing has been written in others.
            let written = self.written.take().or(before);
            self.written = written.filter(|&written| tick_seconds(Some(written)) != tick_seconds(self.clock));
        }
        self.tick = self.tick_at(elapsed);
    }

    /// The clock that packets are to go by. Until ages are in its ticks, nobody is too old by those that they are in.
    pub(super) fn published(&self) -> Option<Clock> {
        let clock = self.clock?;
        Some(self.written.map_or(clock, |written| Clock { remember: clock.remember.max(written.remember), ..clock }))
    }

    /// In whose ticks ages are, and in whose they are to be, if these are not the same.
    pub(super) fn ages(&self) -> Option<(Clock, Clock)> {
        self.written.zip(self.clock)
    }

    /// All ages are in ticks of the clock; time goes on.
    pub(super) const fn settle(&mut self, elapsed: Duration) {
        if self.written.take().is_some() {
            self.since = (self.tick, elapsed);
        }
    }

    /// Whether a client of this service is remembered.
    pub(super) fn remembers(&self, entry: Entry) -> bool {
        self.clock.is_some_and(|clock| entry.age(self.tick) <= clock.remember)
    }

    /// Returns the client that an entry stands for after `elapsed`. The entry `is_reread`, or its age is still in the
    /// ticks of before. `None`: it is expired.
    pub(super) fn known(&self, entry: Entry, is_reread: bool, elapsed: Duration) -> Option<KnownClient> {
        let written = self.written.filter(|_| !is_reread);
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
    /// Ticks of two seconds.
    const TWO_HOURS: Clock = Clock::new(7200);
    /// Ticks of 22 seconds.
    const DAY: Clock = Clock::new(86_400);

    /// A memory that has worked by the first clock for 100 s, an entry of its 30th second, and how old that is.
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
    fn a_change_that_is_undone_leaves_ages_as_they_were() {
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
    fn until_ages_are_in_new_ticks_time_stands_still_and_nobody_is_too_old_by_the_old_ones() {
        let (mut memory, entry) = working();
        memory.retime(Some(DAY), 100 * SECOND);
        assert_eq!(memory.ages(), Some((TWO_HOURS, DAY)));
        assert_eq!(memory.published(), Some(Clock { remember: DAY.remember.max(TWO_HOURS.remember), ..DAY }));
        assert_eq!(seen(&memory, entry, 5000), Some(70));
        // Another one comes before anybody has looked at the table.
        memory.retime(Some(Clock::new(60)), 200 * SECOND);
        assert_eq!(memory.ages(), Some((TWO_HOURS, Clock::new(60))));
        assert_eq!(memory.published().map(|clock| clock.remember), Some(TWO_HOURS.remember));
        memory.settle(200 * SECOND);
        assert_eq!((memory.ages(), memory.published()), (None, Some(Clock::new(60))));
        let tick = memory.tick;
        assert_eq!(memory.tick_at(230 * SECOND), tick + 30);
    }
}
