//! Views of QUIC connection IDs that encode the backends of a service.

use balancer_config::quic::{Keyed, QuicConfig};
use balancer_control::snapshot::QuicSnapshot;
use serde::{Deserialize, Serialize};

/// The encoding of a service's backends in QUIC connection IDs. The view contains no key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuicView {
    /// The format: `nlb` or `draft`.
    pub format: String,
    /// The configuration number that servers should use for new connection IDs.
    pub config: u8,
    /// The previous configuration number; the program still decodes connection IDs with this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_before: Option<u8>,
    /// Length of a server ID in bytes.
    pub server_id_length: u8,
    /// Length of a nonce in bytes.
    pub nonce_length: u8,
    /// Whether server IDs are encrypted.
    pub encrypted: bool,
    /// Whether the program records the new address of a migrated connection at the backend of the connection.
    pub learns: bool,
    /// The number of packets that were steered by their connection ID.
    pub steered: u64,
    /// The number of packets that were steered by their source address, because their connection ID named no backend.
    pub unknown_id: u64,
    /// The number of client addresses that the program recorded at a backend because of a connection ID.
    pub migrated: u64,
    /// The server IDs of the backends.
    pub servers: Vec<ServerView>,
}

/// The server ID of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// The name of the backend.
    pub backend: String,
    /// The server ID: `0x` and lower-case hexadecimal digits.
    pub server_id: String,
}

/// The answer to `GET /v1/services/{service}/quic/{backend}`: the settings that a backend's server needs for its
/// connection IDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuicServerConfig {
    /// The name of the service.
    pub service: String,
    /// The name of the backend.
    pub backend: String,
    /// The format: `nlb` or `draft`.
    pub format: String,
    /// The configuration number: the first three bits of a connection ID.
    pub config: u8,
    /// The server ID: `0x` and lower-case hexadecimal digits.
    pub server_id: String,
    /// Length of a nonce in bytes.
    pub nonce_length: u8,
    /// Length of a connection ID in bytes.
    pub id_length: u8,
    /// The secret key, `hex:` and 32 digits; absent: server IDs are not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl From<QuicSnapshot> for QuicView {
    fn from(snapshot: QuicSnapshot) -> Self {
        let QuicSnapshot { config, stats, servers } = snapshot;
        let learns = config.learns();
        let QuicConfig { format, server_id_length, nonce_length, current, before, .. } = config;
        let server = |(backend, id, _): (String, _, _)| {
            let id: balancer_config::quic::ServerId = id;
            ServerView { backend, server_id: id.to_string() }
        };
        Self {
            format: format.word().to_owned(),
            config: current.config,
            config_before: before.map(|before| before.config),
            server_id_length,
            nonce_length,
            encrypted: current.key.is_some(),
            learns,
            steered: stats.steered,
            unknown_id: stats.unknown,
            migrated: stats.migrated,
            servers: servers.into_iter().map(server).collect(),
        }
    }
}

impl QuicServerConfig {
    /// Selects the data for the server of a backend; `None` if the service has no such backend.
    #[must_use]
    pub fn of(service: &str, snapshot: &QuicSnapshot, backend: &str) -> Option<Self> {
        let (_, id, _) = snapshot.servers.iter().find(|(name, ..)| name == backend)?;
        let config = &snapshot.config;
        let Keyed { config: number, key } = config.current;
        Some(Self {
            service: service.to_owned(),
            backend: backend.to_owned(),
            format: config.format.word().to_owned(),
            config: number,
            server_id: id.to_string(),
            nonce_length: config.nonce_length,
            id_length: config.id_length(),
            key: key.map(|key| key.to_string()),
        })
    }
}
