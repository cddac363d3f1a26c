//! Bodies of `GET /v1/events`.

use std::time::Duration;

use balancer_control::io::Moved;
use serde::{Deserialize, Serialize};

/// How long a request may wait for the next event.
pub const MAX_WAIT: Duration = Duration::from_secs(20);

/// An event, shown and stored as one line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// A number that rises by one with each event; restarts do not reset it.
    pub sequence: u64,
    /// The time in RFC 3339 format, in UTC, with milliseconds.
    pub time: String,
    /// The severity: `info` or `warn`.
    pub level: String,
    /// The kind: `state` (of a service or backend), `change` (requested by a user) or `note` (about the balancer).
    pub kind: String,
    /// The service that the event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The backend that the event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The text of the event, as in the log.
    pub message: String,
    /// In a fleet, the member that reports the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// The uid of the user who requested the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The numbers of slots and known clients that the event moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Moved>,
}

/// Consecutive events, with the oldest event first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsView {
    /// The events, at most 1,000.
    pub events: Vec<EventView>,
    /// The number of events after `since` that are no longer stored.
    pub missed: u64,
    /// The value of `since` for the next request.
    pub next: u64,
}
