//! The control API's types for stickiness, balance and heavy clients.

use std::collections::BTreeMap;

use balancer_core::top::By;
use serde::{Deserialize, Serialize};

/// `GET /v1/stats`, one for each service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsView {
    /// The service's name.
    pub service: String,
    /// The share of clients that are steered, in percent.
    #[serde(default = "all")]
    pub steer: u8,
    /// Whether every packet passes to the host, and all figures say what would be.
    #[serde(default)]
    pub watched: bool,
    /// Kept over kept and moved among the new connections of known clients, since start; `None` before the first.
    pub stickiness_ratio: Option<f64>,
    /// The largest share over expected share among the backends.
    pub imbalance_ratio: Option<f64>,
    /// How unevenly clients load the service, 0 to 1: the Gini coefficient of bytes of late, at least.
    pub client_gini: Option<f64>,
    /// The last minute, the last hour, and since start.
    pub periods: Vec<PeriodView>,
    /// The shares of the backends, in configuration order.
    pub backends: Vec<BackendShare>,
    /// The service's heaviest clients by bytes.
    pub top_clients: Vec<TopClient>,
    /// The lookup table.
    pub table: TableView,
    /// Conditions that a user should look at, a line each.
    pub warnings: Vec<String>,
}

/// Every client, in percent.
const fn all() -> u8 {
    100
}

/// The counts of a period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeriodView {
    /// `minute`, `hour` or `start`.
    pub period: String,
    /// How long it really is; `None` with `start`.
    pub seconds: Option<u64>,
    /// As in [`StatsView`], in this while.
    pub stickiness_ratio: Option<f64>,
    /// New connections.
    pub connections: u64,
    /// New connections by how their backend was chosen.
    pub decisions: BTreeMap<String, u64>,
    /// Known clients moved, by cause.
    pub moves: BTreeMap<String, u64>,
}

/// A backend's share of the service's clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendShare {
    /// The name of the backend.
    pub name: String,
    /// As in `status`.
    pub state: String,
    /// The backend's share of known clients, or without memory of connections. `None` before the first.
    pub share: Option<f64>,
    /// Weight over the weight of all that take new clients; `None` while nobody does.
    pub expected_share: Option<f64>,
    /// Entries in the client table.
    pub known_clients: u64,
    /// New connections since start.
    pub connections: u64,
}

/// The lookup table of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableView {
    /// M.
    pub size: u32,
    /// How often it was replaced.
    pub generation: u64,
    /// The last change that moved slots; `None`: none since start.
    pub last_change: Option<ChangeView>,
}

/// A change that moved slots of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangeView {
    /// In one line.
    pub message: String,
    /// Slots that changed backend.
    pub slots_moved: u64,
    /// Those among them whose backends had not changed.
    pub needless_slots_moved: u64,
    /// When.
    pub seconds_ago: u64,
}

/// `GET /v1/top`: a client that is heavy of late, going by samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopClient {
    /// The masked address with the prefix length.
    pub client: String,
    /// The service's name.
    pub service: String,
    /// Where its last sampled packet went; `None`: a backend that is gone.
    pub backend: Option<String>,
    /// The client's share of the service's bytes, or packets.
    pub share: f64,
    /// About.
    pub packets_per_second: f64,
    /// About.
    pub bytes_per_second: f64,
    /// Whether the client table holds it.
    pub known: bool,
}

/// The query of `GET /v1/top`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopQuery {
    /// Only this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only clients of this backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// At most so many; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// `bytes` (absent) or `packets`.
    #[serde(default)]
    pub by: By,
}
