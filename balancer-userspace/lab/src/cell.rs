//! The effects of an event on the clients of a row of the results.

use serde::{Deserialize, Serialize};

use super::{event::Event, row::Row};

/// The numbers of sessions of a group of clients, by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// The number of sessions at the beginning.
    pub total: u64,
    /// The number of sessions whose counter increased with every answer until the end.
    pub survived: u64,
    /// The number of sessions that a server no longer knew, or for which no server answered at the end.
    pub lost: u64,
    /// The number of sessions that a server knew only in an old state. A session with an old state may also be lost
    /// later.
    pub stale: u64,
}

impl Sessions {
    /// The percentage of sessions that survived.
    #[must_use]
    pub fn percent(self) -> f64 {
        if self.total == 0 { 100.0 } else { self.survived as f64 * 100.0 / self.total as f64 }
    }
}

/// The result of an event for a row: the raw figures from which the lab computes all other figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The strategy of the servers, and the program in front of them.
    pub row: Row,
    /// The event whose effects were observed.
    pub event: Event,
    /// The sessions of clients that have their own address each.
    pub own: Sessions,
    /// The sessions of clients that share one address.
    pub nat: Sessions,
    /// The sessions at backends that the event did not affect.
    pub elsewhere: Sessions,
    /// The number of requests during the observation.
    pub requests: u64,
    /// The number of requests that got an error or no answer.
    pub failed: u64,
    /// The time from the SYN to the end of the answer, for successful requests.
    pub latency_ms: Latency,
    /// The number of client addresses that moved from one backend to another, as the clients observed. With any other
    /// front than the balancer with memory, the number counts clients and not addresses.
    pub moved_seen: u64,
    /// The number of moves according to the balancers' counters; `None` if the front has no counter.
    pub moved_counted: Option<u64>,
    /// The bytes on the network between servers, and between servers and stores.
    pub inner: Inner,
    /// The duration of the observation in seconds.
    pub seconds: f64,
    /// Remarks about this result, for human readers.
    pub notes: Vec<String>,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The median latency: half of the answers took less time.
    pub p50: f64,
    /// The 99th percentile of the latency: 99 of 100 answers took less time.
    pub p99: f64,
}

/// The bytes on the second network, which connects servers and stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    /// The bytes that servers sent to other servers.
    pub servers: u64,
    /// The bytes between servers and stores, in both directions.
    pub store: u64,
}

impl Cell {
    /// The numbers of sessions of all clients.
    #[must_use]
    pub const fn sessions(&self) -> Sessions {
        let (own, nat) = (self.own, self.nat);
        Sessions {
            total: own.total + nat.total,
            survived: own.survived + nat.survived,
            lost: own.lost + nat.lost,
            stale: own.stale + nat.stale,
        }
    }

    /// Whether the counters of the balancers and the clients' observations agree about the number of moves; `None` if
    /// the front has no counter.
    #[must_use]
    pub fn moves_agree(&self) -> Option<bool> {
        self.moved_counted.map(|counted| counted == self.moved_seen)
    }

    /// Divides a number of bytes by the number of requests.
    #[must_use]
    pub fn per_request(&self, bytes: u64) -> f64 {
        bytes as f64 / self.requests.max(1) as f64
    }
}

/// Makes a result of ten requests without any move, for tests.
#[cfg(test)]
pub(crate) fn fixture(row: Row, event: Event, own: Sessions) -> Cell {
    Cell {
        row,
        event,
        own,
        nat: Sessions::default(),
        elsewhere: Sessions::default(),
        requests: 10,
        failed: 0,
        latency_ms: Latency { p50: 1.0, p99: 2.0 },
        moved_seen: 0,
        moved_counted: None,
        inner: Inner::default(),
        seconds: 1.0,
        notes: Vec::new(),
    }
}
