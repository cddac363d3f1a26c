//! Pauses before a member repeats a failed request to the engine.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The pause after the first failure; each further failure doubles it.
const SHORTEST: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(4);

/// A kind of request that the member repeats until the engine carries it out. Each kind of request has its own pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Errand {
    /// Writing the settings that all members share.
    Common,
    /// Writing the member's own card.
    Card,
    /// Becoming the leader, and writing as the leader.
    Lead,
    /// Writing records of clients for the other members.
    Records,
    /// Reading the clients that were dumped for this member.
    Clients,
    /// Deleting keys for which no member waits.
    Orphans,
    /// Passing on the change request with this number.
    ChangeRequest(u64),
}

/// The pauses of a member: see the [module](self).
#[derive(Debug)]
pub(super) struct Pauses {
    /// A seed that differs between members, so that the members do not retry at the same time.
    seed: u64,
    by_errand: BTreeMap<Errand, Pause>,
}

#[derive(Debug)]
struct Pause {
    failures: u32,
    until: Instant,
}

impl Pauses {
    pub(super) const fn new(seed: u64) -> Self {
        Self { seed, by_errand: BTreeMap::new() }
    }

    /// Records the failure of a request. If several requests of a kind fail together, they count as one failure.
    pub(super) fn failed(&mut self, errand: Errand, now: Instant) {
        let pause = self.by_errand.entry(errand).or_insert(Pause { failures: 0, until: now });
        if pause.until <= now {
            self.seed = mixed(self.seed);
            pause.until = now + pause_after(pause.failures, self.seed);
            pause.failures = pause.failures.saturating_add(1);
        }
    }

    pub(super) fn succeeded(&mut self, errand: Errand) {
        self.by_errand.remove(&errand);
    }

    pub(super) fn clear(&mut self) {
        self.by_errand.clear();
    }

    /// Whether it is too early to repeat a request of this kind.
    pub(super) fn hold(&self, errand: Errand, now: Instant) -> bool {
        self.by_errand.get(&errand).is_some_and(|pause| pause.until > now)
    }

    /// The time at which the next pause ends.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.by_errand.values().map(|pause| pause.until).filter(|until| *until > now).min()
    }
}

/// A random time between one half of the pause and the whole pause.
fn pause_after(failures: u32, random: u64) -> Duration {
    let longest = SHORTEST.saturating_mul(1 << failures.min(16)).min(LONGEST);
    let thousandths = u32::try_from(random % 501).unwrap_or(0);
    longest / 2 + longest * thousandths / 1000
}

/// One step of the random number generator SplitMix64.
const fn mixed(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_errand_fails_again_then_its_pause_doubles_up_to_a_limit() {
        for (failures, longest) in [(0, 50), (1, 100), (4, 800), (6, 3200), (7, 4000), (1000, 4000)] {
            let longest = Duration::from_millis(longest);
            let pauses: Vec<Duration> = (0..200).map(|seed| pause_after(failures, mixed(seed))).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.iter().max() > pauses.iter().min(), "members would try again together");
        }
    }

    #[test]
    fn when_many_requests_fail_at_once_then_that_is_one_failure() {
        let (mut pauses, now) = (Pauses::new(1), balancer_config::fixture::now());
        (0..1000).for_each(|_| pauses.failed(Errand::Records, now));
        assert!(pauses.hold(Errand::Records, now) && !pauses.hold(Errand::Card, now));
        let end = pauses.next_deadline(now).unwrap();
        assert!(end <= now + SHORTEST && !pauses.hold(Errand::Records, end));
        assert_eq!(pauses.next_deadline(end), None);
        pauses.failed(Errand::Records, end);
        assert!(pauses.next_deadline(end).unwrap() >= end + SHORTEST);
        pauses.succeeded(Errand::Records);
        pauses.failed(Errand::Records, end);
        assert!(pauses.next_deadline(end).unwrap() <= end + SHORTEST, "a success begins anew");
    }
}
