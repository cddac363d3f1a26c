//! Backends that were removed recently. The program may still count packets in progress for such a backend, so the
//! owner reads the backend's counters once more before another backend gets its id.

use std::time::{Duration, Instant};

use balancer_common::map_types::BackendStats;
use balancer_control::io::{BackendId, ServiceId};

/// No packet stays in the program for longer than this time.
const PACKETS_ARE_OVER: Duration = Duration::from_millis(100);

/// The recently removed backends: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct RecentlyRetired(Vec<Retired>);

#[derive(Debug)]
pub(super) struct Retired {
    pub(super) id: BackendId,
    pub(super) service: ServiceId,
    pub(super) name: String,
    /// The counters at the time when the backend was removed.
    pub(super) counted: BackendStats,
    pub(super) at: Instant,
}

impl RecentlyRetired {
    pub(super) fn add(&mut self, retired: Retired) {
        self.0.push(retired);
    }

    /// Removes and returns those backends for which the program can no longer count packets.
    pub(super) fn take_final(&mut self, now: Instant) -> Vec<Retired> {
        self.0.extract_if(.., |of| now.saturating_duration_since(of.at) >= PACKETS_ARE_OVER).collect()
    }

    /// Removes and returns the backend with the id `id`, because another backend gets this id.
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
