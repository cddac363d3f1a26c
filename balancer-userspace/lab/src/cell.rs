//! The effects of an event on the clients of a row.

use serde::{Deserialize, Serialize};

use super::{event::Event, row::Row};

/// Counts of the sessions of a population.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// The number of sessions at the beginning.
    pub total: u64,
    /// Sessions whose counter increased with every answer until the end.
    pub survived: u64,
    /// Sessions that a server no longer knew, or for which no server answered at the end.
    pub lost: u64,
    /// Sessions that a server knew in an old state. (They may also be lost later.)
    pub stale: u64,
}

impl Sessions {
    /// The part of the sessions that survived, in percent.
    #[must_use]
    pub fn percent(self) -> f64 {
        if self.total == 0 { 100.0 } else { self.survived as f64 * 100.0 / self.total as f64 }
    }
}

/// The result of an event for a row: the raw figures, from which all others are computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The strategy of the servers, and the program in front of them.
    pub row: Row,
    /// The event that happened.
    pub event: Event,
    /// The sessions of clients that each have their own address.
    pub own: Sessions,
    /// The sessions of clients behind one address.
    pub nat: Sessions,
    /// The sessions that were not at the affected backend.
    pub elsewhere: Sessions,
    /// The number of requests in the observed time.
    pub requests: u64,
    /// Requests without an answer, or with an error.
    pub failed: u64,
    /// The time from the SYN to the end of a successful answer.
    pub latency_ms: Latency,
    /// The number of client addresses that moved from one backend to another, as the clients saw it. Unless the front
    /// is the balancer with memory, this counts clients, not addresses.
    pub moved_seen: u64,
    /// The number of moves by the balancers' counters; `None` if the front has no counter.
    pub moved_counted: Option<u64>,
    /// The bytes between servers, and between servers and stores, on the wire.
    pub inner: Inner,
    /// The length of the observation in seconds.
    pub seconds: f64,
    /// Further remarks on this result.
    pub notes: Vec<String>,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The median: half of the answers came sooner.
    pub p50: f64,
    /// The 99th percentile: 99 of 100 answers came sooner.
    pub p99: f64,
}

/// Bytes on the network behind the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    /// Sent by servers to other servers.
    pub servers: u64,
    /// Between servers and stores, both ways.
    pub store: u64,
}

impl Cell {
    /// Counts of all sessions.
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

    /// Whether the balancers' counters agree with the clients about moves; `None` without counters.
    #[must_use]
    pub fn moves_agree(&self) -> Option<bool> {
        self.moved_counted.map(|counted| counted == self.moved_seen)
    }

    /// The number of bytes for each request.
    #[must_use]
    pub fn per_request(&self, bytes: u64) -> f64 {
        bytes as f64 / self.requests.max(1) as f64
    }
}

/// A result of ten requests without any move, for tests.
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
