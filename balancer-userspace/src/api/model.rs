//! Bodies of the control API. Field names are the product's words.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Services in configuration order.
    pub services: Vec<ServiceView>,
}

/// An attached interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The real XDP mode: `native` or `generic`.
    pub xdp_mode: String,
    /// Packets seen, by verdict.
    pub packets_seen: Verdicts,
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Sent out of the interface they came in by.
    pub tx: u64,
    /// Sent out of another interface.
    pub redirect: u64,
    /// Handed to the kernel.
    pub pass: u64,
    /// Dropped.
    pub drop: u64,
    /// The program failed.
    pub aborted: u64,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// VIP and port.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `dsr` or `nat`.
    pub forwarding: String,
    /// M.
    pub table_size: u32,
    /// How often the live table was replaced.
    pub table_generation: u64,
    /// What somebody should look at, a line each: one client that is most of a backend's load.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Its backends, in configuration order, runtime additions last.
    pub backends: Vec<BackendView>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendView {
    /// Its name in the service.
    pub name: String,
    /// Address and port.
    pub address: String,
    /// 0–65535.
    pub weight: u16,
    /// Whether it is used only when no primary backend is eligible.
    pub backup: bool,
    /// `ready`, `drain` or `maint`.
    pub admin: String,
    /// `unknown`, `up` or `down`.
    pub health: String,
    /// What follows: `up`, `checking`, `draining (health)`, `draining`, `drained`, `down`, `maint`.
    pub state: String,
    /// Why, in a few words; empty when there is nothing to explain.
    pub reason: String,
    /// Slots of the live table.
    pub slots: u32,
    /// Entries in the client table; 0 without memory.
    pub known_clients: u64,
    /// New connections forwarded.
    pub connections: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded.
    pub bytes: u64,
}

/// `GET /v1/backends`, one for each backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendEntry {
    /// The service's name.
    pub service: String,
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendView,
}

/// `GET /v1/clients/{ip}`, one for each service that matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientView {
    /// The service's name.
    pub service: String,
    /// The client: the address masked to the service's prefix, with the prefix length.
    pub client: String,
    /// Its slot of the lookup table.
    pub slot: u32,
    /// The backend it is steered to; `None`: dropped.
    pub backend: Option<String>,
    /// `known`, `table`, `rule` or `open`.
    pub why: String,
    /// Whether the client table holds it.
    pub known: bool,
    /// Seconds since its last recorded packet; `None` when it is not known.
    pub last_seen_seconds_ago: Option<u64>,
}

/// `POST /v1/services/{service}/backends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddBackend {
    /// Its name in the service.
    pub name: String,
    /// `ADDR` or `ADDR:PORT` (`[ADDR]:PORT` for IPv6).
    pub address: String,
    /// 0–65535; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether it is a backup.
    #[serde(default)]
    pub backup: bool,
}

/// `PUT /v1/services/{service}/backends/{backend}/admin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAdmin {
    /// `ready`, `drain` or `maint`.
    pub admin: crate::core::io::Admin,
    /// With `drain`: instead of the service's drain timeout, such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// `PUT /v1/services/{service}/backends/{backend}/weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// 0–65535.
    pub weight: u16,
}

/// The answer to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// What was done, in one line, e.g. `backend web/web4 added: 13,107 of 65,537 slots moved, 215 needless`.
    pub message: String,
}

/// `POST /v1/plan`: a change that is not to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum PlanRequest {
    /// Adding a backend.
    Add {
        /// The service's name.
        service: String,
        /// The backend.
        backend: AddBackend,
    },
    /// Removing a backend.
    Remove {
        /// The service's name.
        service: String,
        /// The backend's.
        name: String,
        /// Without draining it first.
        #[serde(default)]
        force: bool,
    },
    /// Setting a backend's administrative state.
    Admin {
        /// The service's name.
        service: String,
        /// The backend's.
        name: String,
        /// To what.
        admin: SetAdmin,
    },
    /// Setting a backend's weight.
    Weight {
        /// The service's name.
        service: String,
        /// The backend's.
        name: String,
        /// 0–65535.
        weight: u16,
    },
}

/// The answer to it, for the service whose backend it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The service's name.
    pub service: String,
    /// M, after the change.
    pub table_size: u32,
    /// Slots of the live table that would have another backend.
    pub slots_moved: u32,
    /// Those among them that move between backends of which neither came to deserve more or less.
    pub needless_slots_moved: u32,
    /// Known clients that would be steered elsewhere at once. Each is counted as moved when it comes back.
    pub known_clients_moved: u64,
    /// Known clients that would stay with a backend that begins to drain, until its deadline.
    pub known_clients_draining: u64,
    /// From whom to whom.
    pub moves: Vec<MoveView>,
}

/// Slots and clients that would go the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveView {
    /// The backend that loses them; `None`: nobody had them.
    pub from: Option<String>,
    /// The backend that gets them; `None`: nobody, they would be dropped.
    pub to: Option<String>,
    /// Slots of the live table.
    pub slots: u32,
    /// Known clients.
    pub clients: u64,
}

/// The answer to a request that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// What was wrong and what would be right, in one line.
    pub error: String,
}

/// What `client where` asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientQuery {
    /// The client's source address.
    pub address: IpAddr,
    /// Only this service.
    pub service: Option<String>,
}
