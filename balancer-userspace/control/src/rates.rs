//! Rates of traffic per second, averaged over about the last ten seconds.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use balancer_common::map_types::BackendStats;
use serde::{Deserialize, Serialize};

use crate::io::BackendId;

/// The minimum period for computing a rate, after the balancer has observed the backend for at least this period.
const LEAST: Duration = Duration::from_secs(10);
/// The shortest period for which the balancer computes a rate at all.
const ENOUGH: Duration = Duration::from_secs(1);
/// The number of samples that are kept: one sample that is old enough for a rate, and one that will become old enough.
const MOMENTS: usize = 2;

/// The traffic forwarded to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
    pub connections: u64,
}

impl From<&BackendStats> for Traffic {
    fn from(stats: &BackendStats) -> Self {
        Self { packets: stats.packets, bytes: stats.bytes, connections: stats.connections }
    }
}

/// The traffic of a backend per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The number of packets a second.
    pub packets: f64,
    /// The number of bytes a second.
    pub bytes: f64,
    /// The number of new connections a second.
    pub connections: f64,
}

impl std::ops::AddAssign for Rates {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.connections += other.connections;
    }
}

/// The counters of all backends at one moment, by backend id.
type Counted = Arc<[(BackendId, Traffic)]>;

/// The recent counters of a service's backends.
#[derive(Clone, Debug, Default)]
pub struct TrafficHistory(VecDeque<(Duration, Counted)>);

impl TrafficHistory {
    /// Stores the counters of the backends at `now`.
    pub fn keep(&mut self, now: Duration, backends: impl Iterator<Item = (BackendId, Traffic)>) {
        let mut counted: Vec<_> = backends.collect();
        counted.sort_unstable_by_key(|(id, _)| *id);
        if self.0.len() >= MOMENTS {
            self.0.pop_front();
        }
        self.0.push_back((now, counted.into()));
    }

    /// Returns the rates of a backend with the counters `traffic` at `now`; `None` if the backend was not observed for
    /// long enough. The function assumes that the counters of a new backend started from zero.
    #[must_use]
    pub fn rates(&self, now: Duration, id: BackendId, traffic: Traffic) -> Option<Rates> {
        let old = self.0.iter().rev().find(|(at, _)| now.saturating_sub(*at) >= LEAST);
        let (at, counted) = old.or(self.0.front())?;
        let time = now.saturating_sub(*at);
        let place = counted.binary_search_by_key(&id, |(id, _)| *id).ok();
        let before = place.and_then(|place| counted.get(place)).map(|(_, traffic)| *traffic).unwrap_or_default();
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / time.as_secs_f64();
        (time >= ENOUGH).then(|| Rates {
            packets: per_second(traffic.packets, before.packets),
            bytes: per_second(traffic.bytes, before.bytes),
            connections: per_second(traffic.connections, before.connections),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn traffic(packets: u64) -> Traffic {
        Traffic { packets, bytes: 100 * packets, connections: packets / 2 }
    }

    fn packets(history: &TrafficHistory, now: u32, id: u16, counted: u64) -> Option<f64> {
        history.rates(SECOND * now, BackendId(id), traffic(counted)).map(|rates| rates.packets)
    }

    #[test]
    fn when_ten_seconds_were_watched_then_rates_are_of_these() {
        let mut history = TrafficHistory::default();
        assert_eq!(packets(&history, 5, 1, 10), None);
        for (at, counted) in [(0, 1000), (10, 1000), (20, 1100)] {
            history.keep(SECOND * at, [(BackendId(2), traffic(7)), (BackendId(1), traffic(counted))].into_iter());
        }
        // From 30 s on, the sample from 20 s is old enough and replaces the sample from 10 s.
        assert_eq!(packets(&history, 25, 1, 1300), Some(20.0));
        assert_eq!(packets(&history, 30, 1, 1300), Some(20.0));
        assert_eq!(packets(&history, 40, 1, 1300), Some(10.0));
        assert_eq!(packets(&history, 40, 2, 7), Some(0.0));
        let rates = history.rates(SECOND * 30, BackendId(1), traffic(1300)).unwrap();
        assert_eq!((rates.bytes, rates.connections), (2000.0, 10.0));
    }

    #[test]
    fn when_less_was_watched_then_rates_are_of_that_and_of_a_moment_there_are_none() {
        let mut history = TrafficHistory::default();
        history.keep(SECOND * 100, [(BackendId(1), traffic(0))].into_iter());
        assert_eq!(history.rates(SECOND * 100, BackendId(1), traffic(5)), None);
        assert_eq!(packets(&history, 104, 1, 8), Some(2.0));
        // The two cases are a new backend, and a backend whose counters were reset.
        assert_eq!(packets(&history, 104, 9, 8), Some(2.0));
        history.keep(SECOND * 200, [(BackendId(1), traffic(50))].into_iter());
        assert_eq!(packets(&history, 210, 1, 3), Some(0.0));
    }
}
