//! Bodies of `GET /v1/events`.

use std::time::Duration;

use balancer_core::io::Moved;
use serde::{Deserialize, Serialize};

/// How long a request may wait for the next event.
pub const MAX_WAIT: Duration = Duration::from_secs(20);

/// Something that happened, as it is shown and as it is kept, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Rises by one with each event, over restarts as well.
    pub sequence: u64,
    /// RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// `info` or `warn`.
    pub level: String,
    /// `state`: of a service or backend; `change`: somebody asked for it; `note`: of the balancer itself.
    pub kind: String,
    /// Which service it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Which backend of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The log's line.
    pub message: String,
    /// Where there is a fleet: which of its members says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// The uid of the user that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The slots and known clients that it moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Moved>,
}

/// The answer: a part of the history, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsView {
    /// At most 1,000.
    pub events: Vec<EventView>,
    /// How many after `since` are no longer kept.
    pub missed: u64,
    /// The `since` that goes on from here.
    pub next: u64,
}
