//! What is remembered of the clients of one service: for how long, and what time it is there.

use std::{sync::Arc, time::Duration};

use balancer_common::{
    client_table::{Entry, TICK_MASK},
    clock::Clock,
};
use balancer_core::io::{BackendId, ServiceSpec};

use super::KnownClient;

/// The memory of a service that has a table.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) table: Arc<[u16]>,
    /// `None`: the service remembers nothing any more.
    pub(super) clock: Option<Clock>,
    pub(super) tick: u16,
    /// The tick that it was when so much time had passed: from there on it is counted.
    since: (u16, Duration),
    /// Rises with each swap.
    pub(super) swaps: u64,
}

/// What a new clock asks for.
pub(super) struct Retimed {
    /// The clock to be published.
    pub(super) published: Option<Clock>,
    /// The old and the new one, if ages are to be written anew.
    pub(super) converted: Option<(Clock, Clock)>,
}

impl Memory {
    /// Of a service that remembers nothing yet, in this tick.
    pub(super) fn new(tick: u16) -> Self {
        Self { table: Arc::default(), clock: None, tick, since: (0, Duration::ZERO), swaps: 0 }
    }

    /// The tick after `elapsed`.
    pub(super) fn tick_at(&self, elapsed: Duration) -> u16 {
        let Some(clock) = self.clock else { return 0 };
        let (tick, since) = self.since;
        let ticks = elapsed.saturating_sub(since).as_secs() / u64::from(clock.tick_seconds);
        tick.wrapping_add(ticks as u16) & TICK_MASK
    }

    /// The live table is another one.
    pub(super) fn swapped(&mut self, table: Arc<[u16]>) {
        self.table = table;
        self.swaps += 1;
    }

    /// Sets the clock as `spec` wants it.
    pub(super) fn retime(&mut self, spec: &ServiceSpec, elapsed: Duration) -> Retimed {
        let clock = spec.clock();
        let before = std::mem::replace(&mut self.clock, clock);
        let mut retimed = Retimed { published: clock, converted: None };
        if before.map(|clock| clock.tick_seconds) != clock.map(|clock| clock.tick_seconds) {
            // The tick goes on from where it is: what packets write meanwhile is of age 0 in either unit.
            self.since = (self.tick, elapsed);
            if let (Some(before), Some(clock)) = (before, clock) {
                retimed.converted = Some((before, clock));
                // Until ages are in the new unit nobody is too old by the old one.
                retimed.published = Some(Clock { remember: clock.remember.max(before.remember), ..clock });
            }
        }
        self.tick = self.tick_at(elapsed);
        retimed
    }

    /// What an entry tells after `elapsed`. `None`: it is expired.
    pub(super) fn known(&self, entry: Entry, elapsed: Duration) -> Option<KnownClient> {
        let clock = self.clock?;
        let age = entry.age(self.tick_at(elapsed));
        let seconds = u64::from(age) * u64::from(clock.tick_seconds);
        (age <= clock.remember)
            .then(|| KnownClient { backend: BackendId(entry.backend()), last_seen: Duration::from_secs(seconds) })
    }
}
