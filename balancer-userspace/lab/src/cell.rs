//! The effects of one event on the clients of one row.

use serde::{Deserialize, Serialize};

use super::{event::Event, row::Row};

/// Sessions of a population.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// At the beginning.
    pub total: u64,
    /// Sessions whose counter went on, with every answer, to the end.
    pub survived: u64,
    /// Sessions that a server did not know any more, or that no server could be asked for at the end.
    pub lost: u64,
    /// Sessions that a server knew as they were some requests ago. (They may be lost later as well.)
    pub stale: u64,
}

impl Sessions {
    /// Those that survived, in percent.
    #[must_use]
    pub fn percent(self) -> f64 {
        if self.total == 0 { 100.0 } else { self.survived as f64 * 100.0 / self.total as f64 }
    }
}

/// The result of an event for a row: the raw figures, from which everything that is shown is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The strategy, and what is in front of its servers.
    pub row: Row,
    /// The event that happened.
    pub event: Event,
    /// Clients with addresses of their own.
    pub own: Sessions,
    /// Clients behind one address.
    pub nat: Sessions,
    /// Sessions that survived of those that were not at the backend that the event concerns.
    pub elsewhere: Sessions,
    /// Requests in the time that was looked at.
    pub requests: u64,
    /// Those that were not answered, or not well.
    pub failed: u64,
    /// From the SYN to the whole answer, of those answered well.
    pub latency_ms: Latency,
    /// Client addresses that came from one backend to another, as they saw it; clients, where it was not the balancer with
    /// memory.
    pub moved_seen: u64,
    /// Moves by the balancers' counters; `None`: they count nothing, or it was not the balancer.
    pub moved_counted: Option<u64>,
    /// Bytes between servers, and between them and stores, on the wire.
    pub inner: Inner,
    /// How long it was looked at.
    pub seconds: f64,
    /// Further remarks on this result.
    pub notes: Vec<String>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the answers came sooner.
    pub p50: f64,
    /// 99 of 100 came sooner.
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
    /// All sessions.
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

    /// Whether the counters say of moves what the clients saw; `None`: nobody counted.
    #[must_use]
    pub fn moves_agree(&self) -> Option<bool> {
        self.moved_counted.map(|counted| counted == self.moved_seen)
    }

    /// Bytes for each request.
    #[must_use]
    pub fn per_request(&self, bytes: u64) -> f64 {
        bytes as f64 / self.requests.max(1) as f64
    }
}

/// A result of ten requests at which nothing moved, for tests.
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
