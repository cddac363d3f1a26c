//! Views of clients and their backends, of known clients, and of open connections.

use std::net::IpAddr;

use balancer_control::locate::Located;
use serde::{Deserialize, Serialize};

/// An element of `GET /v1/clients/{ip}`, one for each matching service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientView {
    /// The service's name.
    pub service: String,
    /// The client's address, masked to the service's client prefix length, followed by that length.
    pub client: String,
    /// The slot of the lookup table that the client maps to.
    pub slot: u32,
    /// The backend; `None` if the program drops the client's packets, or if a rule spreads the client's connections.
    pub backend: Option<String>,
    /// The reason: `known`, `table`, `rule` or `open`.
    pub why: String,
    /// The rule that decides about the client, if there is such a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<ClientRule>,
    /// Whether the client table contains the client.
    pub known: bool,
    /// Seconds since the client's last recorded packet; `None` if the client is unknown.
    pub last_seen_seconds_ago: Option<u64>,
}

impl From<Located> for ClientView {
    fn from(located: Located) -> Self {
        Self {
            service: located.service,
            client: located.client.to_string(),
            slot: located.slot,
            backend: located.backend,
            why: located.why.word().to_owned(),
            rule: located
                .rule
                .map(|rule| ClientRule { prefix: rule.prefix.to_string(), action: rule.action.word().to_owned() }),
            known: located.last_seen.is_some(),
            last_seen_seconds_ago: located.last_seen.map(|ago| ago.as_secs()),
        }
    }
}

/// The rule that decides about a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRule {
    /// The prefix of the rule.
    pub prefix: String,
    /// The action: `pin`, `spread` or `deny`.
    pub action: String,
}

/// An element of `GET /v1/flows`: a connection of a `snat` service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// The service's name.
    pub service: String,
    /// The protocol: `tcp` or `udp`.
    pub protocol: String,
    /// The client's address and port.
    pub client: String,
    /// The address and port that the client connects to.
    pub vip: String,
    /// The balancer's address and port that the backend sees.
    pub seen_as: String,
    /// The backend's name; `-` if it was removed.
    pub backend: String,
    /// The address and port that the client connected to.
    pub address: String,
    /// The phase: `half_open`, `established` or `closing`.
    pub state: String,
    /// Seconds since the connection began.
    pub age_seconds: u64,
    /// Seconds since the connection's last packet.
    pub idle_seconds: u64,
    /// Bytes of IP packets to the backend.
    pub bytes_to_backend: u64,
    /// Bytes of IP packets to the client.
    pub bytes_to_client: u64,
}

/// The answer to `DELETE /v1/clients/{ip}` and `DELETE /v1/services/{service}/backends/{backend}/clients`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenView {
    /// The result of the request in one line.
    pub message: String,
    /// The number of removed client table entries.
    pub forgotten: u64,
    /// The number of forgotten clients that the lookup table now sends to another backend.
    pub moved: u64,
}

/// The maximum number of clients in one `POST /v1/services/{service}/clients`; recording this number takes one or two
/// milliseconds.
pub const MAX_IMPORTED: usize = 4096;

/// The body of `POST /v1/services/{service}/clients`: clients to record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportClients {
    /// The clients to record, at most [`MAX_IMPORTED`].
    pub clients: Vec<ImportClient>,
    /// Whether to record also clients that this balancer has served since the last import; absent: these clients stay
    /// at their backends.
    #[serde(default)]
    pub overwrite: bool,
}

/// A client that the service should remember at a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportClient {
    /// An address of the client.
    pub client: IpAddr,
    /// The backend's name.
    pub backend: String,
    /// Seconds since the client's last packet; absent: the client counts as just seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// An alternative to `age_seconds`: seconds for which the service still remembers the client, at most the service's
    /// `remember`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<u64>,
}

/// The answer to a request that records clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedView {
    /// The result of the request in one line.
    pub message: String,
    /// The number of clients that were unknown before the request.
    pub new: u64,
    /// The number of clients that were already known at the given backend.
    pub known: u64,
    /// The number of clients that were known at another backend before the request.
    pub moved: u64,
    /// The number of clients that stay at another backend, because this balancer has served them since the last import.
    #[serde(default)]
    pub served: u64,
    /// The number of clients that were not recorded, because the service would already have forgotten clients of that
    /// age.
    pub expired: u64,
    /// The number of clients that were not recorded, because the client table had no room.
    pub full: u64,
    /// The number of clients that were not recorded, because the service has no listener of their address family.
    pub strangers: u64,
}

/// The answer to `GET /v1/services/{service}/clients`: the service's known clients whose addresses are in the requested
/// prefixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClientsView {
    /// The service's name.
    pub service: String,
    /// The total number of the service's known clients.
    pub known_clients: u64,
    /// The length of the service's client prefixes for IPv4.
    pub prefix_v4: u8,
    /// The length of the service's client prefixes for IPv6.
    pub prefix_v6: u8,
    /// The known clients in the requested prefixes.
    pub clients: Vec<KnownClientView>,
}

/// A known client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClientView {
    /// The first address of the client's prefix.
    pub client: IpAddr,
    /// The backend's name.
    pub backend: String,
    /// Seconds since the client's last packet.
    pub age_seconds: u64,
}

/// The query of `balancer client where`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientQuery {
    /// The client's source address.
    pub address: IpAddr,
    /// Restricts the query to the service with this name.
    pub service: Option<String>,
}
