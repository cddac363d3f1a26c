//! Clients: the backend of each, known clients and open connections.

use std::net::IpAddr;

use balancer_control::locate::Located;
use serde::{Deserialize, Serialize};

/// An element of `GET /v1/clients/{ip}`, one for each matching service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientView {
    /// The service's name.
    pub service: String,
    /// The client: the address masked to the service's prefix, with the prefix length.
    pub client: String,
    /// The client's slot of the lookup table.
    pub slot: u32,
    /// The backend; `None`: the client is dropped, or a rule spreads its connections.
    pub backend: Option<String>,
    /// The reason: `known`, `table`, `rule` or `open`.
    pub why: String,
    /// The rule that decides, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<ClientRule>,
    /// Whether the client table contains the client.
    pub known: bool,
    /// Seconds since its last recorded packet; `None` if the client is not known.
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
    /// `pin`, `spread` or `deny`.
    pub action: String,
}

/// An element of `GET /v1/flows`: a connection of a `snat` service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// The service's name.
    pub service: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client's address and port.
    pub client: String,
    /// The address and port that the client connects to.
    pub vip: String,
    /// The balancer's address and port that the backend sees.
    pub seen_as: String,
    /// The backend's name; `-` if it was removed.
    pub backend: String,
    /// The backend's address and port.
    pub address: String,
    /// The phase: `half_open`, `established` or `closing`.
    pub state: String,
    /// Seconds since the connection began.
    pub age_seconds: u64,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Bytes of IP packets to the backend.
    pub bytes_to_backend: u64,
    /// Bytes of IP packets to the client.
    pub bytes_to_client: u64,
}

/// The answer to `DELETE /v1/clients/{ip}` and `DELETE /v1/services/{service}/backends/{backend}/clients`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenView {
    /// The result in one line.
    pub message: String,
    /// The number of removed client table entries.
    pub forgotten: u64,
    /// The number of these clients that the lookup table now sends to another backend.
    pub moved: u64,
}

/// The maximum number of clients in one `POST /v1/services/{service}/clients`: a millisecond's work or two.
pub const MAX_IMPORTED: usize = 4096;

/// The body of `POST /v1/services/{service}/clients`: clients to record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportClients {
    /// The clients, at most [`MAX_IMPORTED`].
    pub clients: Vec<ImportClient>,
}

/// A client to be recorded at a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportClient {
    /// An address of the client.
    pub client: IpAddr,
    /// The backend's name.
    pub backend: String,
    /// Seconds since the client was seen; absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Instead of the age: seconds for which the service still remembers the client, at most the service's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<u64>,
}

/// The result of recording clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedView {
    /// The result in one line.
    pub message: String,
    /// Clients that were unknown before.
    pub new: u64,
    /// Clients that were known at that backend before.
    pub known: u64,
    /// Clients that were known at another backend before.
    pub moved: u64,
    /// Clients that were not recorded because they had not been seen for longer than the service remembers clients.
    pub expired: u64,
    /// Clients that were not recorded because the client table had no room.
    pub full: u64,
    /// Clients that were not recorded because the service has no listener of their family.
    pub strangers: u64,
}

/// The answer to `GET /v1/services/{service}/clients`: the known clients of a service with addresses in the requested
/// prefixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClientsView {
    /// The service's name.
    pub service: String,
    /// The total number of its known clients.
    pub known_clients: u64,
    /// The client prefix length for IPv4.
    pub prefix_v4: u8,
    /// The client prefix length for IPv6.
    pub prefix_v6: u8,
    /// The clients found.
    pub clients: Vec<KnownClientView>,
}

/// A known client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClientView {
    /// The first address of its prefix.
    pub client: IpAddr,
    /// The backend's name.
    pub backend: String,
    /// Seconds since the client was seen.
    pub age_seconds: u64,
}

/// The query of `balancer client where`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientQuery {
    /// The client's source address.
    pub address: IpAddr,
    /// Restricts the query to this service.
    pub service: Option<String>,
}
