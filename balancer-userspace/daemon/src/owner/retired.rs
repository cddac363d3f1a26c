//! Recently retired backends. Packets in progress may still count for them, so the owner reads their counters once more
//! before other backends get their ids.

use std::time::{Duration, Instant};

use balancer_common::map_types::BackendStats;
use balancer_control::io::{BackendId, ServiceId};

/// A time that is longer than any packet stays in the program.
const PACKETS_ARE_OVER: Duration = Duration::from_millis(100);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct RecentlyRetired(Vec<Retired>);

#[derive(Debug)]
pub(super) struct Retired {
    pub(super) id: BackendId,
    pub(super) service: ServiceId,
    pub(super) name: String,
    /// The counters at the time of retirement.
    pub(super) counted: BackendStats,
    pub(super) at: Instant,
}

impl RecentlyRetired {
    pub(super) fn add(&mut self, retired: Retired) {
        self.0.push(retired);
    }

    /// Removes and returns the backends for which no packet can count any more.
    pub(super) fn take_final(&mut self, now: Instant) -> Vec<Retired> {
        self.0.extract_if(.., |of| now.saturating_duration_since(of.at) >= PACKETS_ARE_OVER).collect()
    }

    /// Removes and returns the backend whose id now goes to another one.
    pub(super) fn take_id(&mut self, id: BackendId) -> Option<Retired> {
        let place = self.0.iter().position(|of| of.id == id)?;
        Some(self.0.swap_remove(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_backend_was_retired_then_it_is_read_again_once_and_not_at_once() {
        let now = tokio::time::Instant::now().into_std();
        let retired = |id, at| Retired {
            id: BackendId(id),
            service: ServiceId(0),
            name: format!("web{id}"),
            counted: BackendStats::default(),
            at,
        };
        let mut all = RecentlyRetired::default();
        all.add(retired(1, now));
        all.add(retired(2, now + Duration::from_millis(80)));
        all.add(retired(3, now));
        assert!(all.take_final(now + Duration::from_millis(99)).is_empty());
        assert_eq!(all.take_id(BackendId(3)).map(|of| of.name).as_deref(), Some("web3"));
        let ids = |taken: Vec<Retired>| taken.iter().map(|of| of.id.0).collect::<Vec<_>>();
        assert_eq!(ids(all.take_final(now + PACKETS_ARE_OVER)), [1]);
        assert_eq!(ids(all.take_final(now + 2 * PACKETS_ARE_OVER)), [2]);
        assert!(all.take_id(BackendId(2)).is_none());
    }
}
