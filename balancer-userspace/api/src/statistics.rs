//! The control API's types for stickiness, balance and heavy clients.

use std::collections::BTreeMap;

use balancer_control::top::By;
use serde::{Deserialize, Serialize};

/// An element of `GET /v1/stats`, one for each service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsView {
    /// The service's name.
    pub service: String,
    /// The percentage of the service's clients that the balancer steers.
    #[serde(default = "all")]
    pub steer: u8,
    /// Whether the service is only watched: the host gets every packet, and all figures only show the effects that
    /// steering would have had.
    #[serde(default)]
    pub watched: bool,
    /// The stickiness since the start, as a ratio of known clients' new connections: kept / (kept + moved). `None`
    /// before the first connection of a known client.
    pub stickiness_ratio: Option<f64>,
    /// The largest ratio of actual to expected share among the service's backends.
    pub imbalance_ratio: Option<f64>,
    /// A measure of how unevenly clients load the service, 0 to 1: a lower bound for the Gini coefficient of recent
    /// bytes; `null`: there are no or too few samples of packets.
    pub client_gini: Option<f64>,
    /// The counts for the last minute, the last hour, and the time since the start.
    pub periods: Vec<PeriodView>,
    /// The shares of the backends, in configuration order.
    pub backends: Vec<BackendShare>,
    /// The service's heaviest clients by bytes.
    pub top_clients: Vec<TopClient>,
    /// The lookup table of the service.
    pub table: TableView,
    /// Conditions that need attention, one line each.
    pub warnings: Vec<String>,
}

/// The default percentage of steered clients: all clients.
const fn all() -> u8 {
    100
}

/// The counts of a period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeriodView {
    /// The period: `minute`, `hour` or `start`.
    pub period: String,
    /// The exact length of the period in seconds; `None` for the period `start`.
    pub seconds: Option<u64>,
    /// The stickiness as in [`StatsView`], but for this period.
    pub stickiness_ratio: Option<f64>,
    /// The number of new connections in the period.
    pub connections: u64,
    /// The number of new connections, by how the program chose the backend.
    pub decisions: BTreeMap<String, u64>,
    /// The number of known clients that moved, by cause.
    pub moves: BTreeMap<String, u64>,
}

/// A backend's share of the service's clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendShare {
    /// The name of the backend.
    pub name: String,
    /// The state of the backend, as in `status`.
    pub state: String,
    /// The backend's share of the service's known clients, or of its connections if the service remembers no clients;
    /// `None` before the first client or connection.
    pub share: Option<f64>,
    /// The backend's weight divided by the total weight of backends that take new clients; `None` while no backend
    /// takes new clients.
    pub expected_share: Option<f64>,
    /// The number of the backend's entries in the client table.
    pub known_clients: u64,
    /// The number of new connections since the start.
    pub connections: u64,
}

/// The lookup table of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableView {
    /// The number of slots of the lookup table.
    pub size: u32,
    /// The number of lookup tables that the service has used so far.
    pub generation: u64,
    /// The last change that moved slots; `None` if no slot has moved since the start.
    pub last_change: Option<ChangeView>,
}

/// A change that moved slots of a lookup table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangeView {
    /// A description of the change in one line.
    pub message: String,
    /// The number of slots that got another backend.
    pub slots_moved: u64,
    /// The number of moved slots for which neither the old nor the new backend had changed.
    pub needless_slots_moved: u64,
    /// Seconds since the change.
    pub seconds_ago: u64,
}

/// An element of `GET /v1/top`: a client with much recent traffic, estimated from samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopClient {
    /// The client's masked address with the prefix length.
    pub client: String,
    /// The service's name.
    pub service: String,
    /// The backend of the client's last sampled packet; `None` if the backend was removed.
    pub backend: Option<String>,
    /// The client's share of the service's bytes or packets.
    pub share: f64,
    /// The client's approximate packet rate.
    pub packets_per_second: f64,
    /// The client's approximate byte rate.
    pub bytes_per_second: f64,
    /// Whether the client table contains the client.
    pub known: bool,
}

/// The query of `GET /v1/top`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopQuery {
    /// Restricts the list of clients to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Restricts the list of clients to clients of this backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The maximum number of listed clients; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// The quantity by which the clients are sorted: `bytes` (default) or `packets`.
    #[serde(default)]
    pub by: By,
}
