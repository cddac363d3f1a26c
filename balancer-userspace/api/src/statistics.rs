//! The control API's types for stickiness, balance and heavy clients.

use std::collections::BTreeMap;

use balancer_control::top::By;
use serde::{Deserialize, Serialize};

/// An element of `GET /v1/stats`, one for each service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsView {
    /// The service's name.
    pub service: String,
    /// The share of steered clients, in percent.
    #[serde(default = "all")]
    pub steer: u8,
    /// Whether every packet passes to the host and all figures show what would have happened.
    #[serde(default)]
    pub watched: bool,
    /// The ratio of kept to kept plus moved among new connections of known clients, since the start; `None` before the
    /// first.
    pub stickiness_ratio: Option<f64>,
    /// The largest ratio of actual to expected share among the backends.
    pub imbalance_ratio: Option<f64>,
    /// How unevenly clients load the service, 0 to 1: a lower bound for the Gini coefficient of recent bytes.
    pub client_gini: Option<f64>,
    /// The last minute, the last hour, and the time since the start.
    pub periods: Vec<PeriodView>,
    /// The shares of the backends, in configuration order.
    pub backends: Vec<BackendShare>,
    /// The service's heaviest clients by bytes.
    pub top_clients: Vec<TopClient>,
    /// The lookup table.
    pub table: TableView,
    /// Conditions that need attention, one line each.
    pub warnings: Vec<String>,
}

/// The default share: every client, in percent.
const fn all() -> u8 {
    100
}

/// The counts of a period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeriodView {
    /// The period: `minute`, `hour` or `start`.
    pub period: String,
    /// The exact length of the period; `None` with `start`.
    pub seconds: Option<u64>,
    /// The ratio as in [`StatsView`], but for this period.
    pub stickiness_ratio: Option<f64>,
    /// New connections.
    pub connections: u64,
    /// New connections by how their backend was chosen.
    pub decisions: BTreeMap<String, u64>,
    /// Known clients that moved, by cause.
    pub moves: BTreeMap<String, u64>,
}

/// A backend's share of the service's clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendShare {
    /// The name of the backend.
    pub name: String,
    /// The state, as in `status`.
    pub state: String,
    /// The backend's share of known clients, or of connections if the service remembers no clients; `None` before the
    /// first one.
    pub share: Option<f64>,
    /// The backend's weight divided by the total weight of backends that take new clients; `None` while none does.
    pub expected_share: Option<f64>,
    /// Entries in the client table.
    pub known_clients: u64,
    /// New connections since the start.
    pub connections: u64,
}

/// The lookup table of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableView {
    /// Number of slots.
    pub size: u32,
    /// The number of tables so far.
    pub generation: u64,
    /// The last change that moved slots; `None`: none since the start.
    pub last_change: Option<ChangeView>,
}

/// A change that moved slots of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangeView {
    /// The change in one line.
    pub message: String,
    /// Slots that changed backend.
    pub slots_moved: u64,
    /// The number of these slots for which neither the old nor the new backend had changed.
    pub needless_slots_moved: u64,
    /// Seconds since the change.
    pub seconds_ago: u64,
}

/// An element of `GET /v1/top`: a recently heavy client, estimated from samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopClient {
    /// The masked address with the prefix length.
    pub client: String,
    /// The service's name.
    pub service: String,
    /// The backend of the client's last sampled packet; `None`: it was removed.
    pub backend: Option<String>,
    /// The client's share of the service's bytes, or packets.
    pub share: f64,
    /// The approximate packet rate.
    pub packets_per_second: f64,
    /// The approximate byte rate.
    pub bytes_per_second: f64,
    /// Whether the client table contains the client.
    pub known: bool,
}

/// The query of `GET /v1/top`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopQuery {
    /// Restricts the answer to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Restricts the answer to clients of this backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The maximum number of clients; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// The order: `bytes` (default) or `packets`.
    #[serde(default)]
    pub by: By,
}
