//! Request bodies for changes by users, and the answers.

use serde::{Deserialize, Serialize};

/// The body of `POST /v1/services/{service}/backends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddBackend {
    /// The backend's name in the service.
    pub name: String,
    /// The address: `ADDR` or `ADDR:PORT` (`[ADDR]:PORT` for IPv6).
    pub address: String,
    /// The backend's IPv6 address, if the service has listeners of both families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
    /// The weight, 0–65535; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether the backend is a backup.
    #[serde(default)]
    pub backup: bool,
    /// The number of known clients at which the balancer stops sending new clients to the backend; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the balancer stops sending new connections to the backend; absent: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// The body of `PUT /v1/services/{service}/backends/{backend}/admin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAdmin {
    /// The administrative state: `ready`, `drain` or `maint`.
    pub admin: balancer_config::states::Admin,
    /// With `drain`: a timeout such as `5m`, used instead of the service's timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// The body of `PUT /v1/services/{service}/backends/{backend}/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForceHealth {
    /// The forced health: `up`, `down`, or `auto` to let the checks decide.
    pub force: Force,
}

/// The health that an operator has set for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Force {
    /// The balancer treats the backend as healthy.
    Up,
    /// The balancer treats the backend as failed.
    Down,
    /// The health checks decide about the backend.
    Auto,
}

/// The body of `PUT /v1/services/{service}/backends/{backend}/weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// The weight, 0–65535.
    pub weight: u16,
}

/// The body of `PUT /v1/services/{service}/backends/{backend}/limits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimits {
    /// The number of known clients at which the balancer stops sending new clients to the backend; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the balancer stops sending new connections to the backend; absent: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// The body of `PUT /v1/services/{service}/steer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSteer {
    /// The percentage of the service's clients that the balancer steers, 0–100.
    pub steer: u8,
    /// Whether the balancer steers more clients even if it knows that they would not be served.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// The answer to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// The effects of the change in one line, e.g. `backend web/web4 added: 13,107 of 65,537 slots moved, 215
    /// needless`.
    pub message: String,
    /// The members of the fleet that do not apply the change, or not yet, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applied_by: Vec<String>,
}

impl Changed {
    /// The answer to a change that is completely applied.
    #[must_use]
    pub const fn applied(message: String) -> Self {
        Self { message, not_applied_by: Vec::new() }
    }
}

/// The answer to a refused request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// The mistake in the request and the correction, in one line.
    pub error: String,
}
