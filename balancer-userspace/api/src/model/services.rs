//! Services, their listeners and their backends.

use balancer_config::listeners::Family;
use balancer_control::rates::Rates;
use serde::{Deserialize, Serialize};

use crate::quic::QuicView;

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// The name of the service.
    pub name: String,
    /// The virtual IP and port (or port range) of the first listener.
    pub address: String,
    /// The protocol of the first listener: `tcp` or `udp`.
    pub protocol: String,
    /// The service's listeners.
    #[serde(default)]
    pub listeners: Vec<ListenerView>,
    /// The forwarding mode, such as `dsr` or `nat`.
    pub forwarding: String,
    /// Number of slots.
    pub table_size: u32,
    /// The number of live tables so far.
    pub table_generation: u64,
    /// The share of steered clients in percent; the host serves the others.
    #[serde(default = "super::all")]
    pub steer: u8,
    /// Whether every packet passes to the host and all figures show what would have happened.
    #[serde(default)]
    pub watched: bool,
    /// Packets that passed to the host because their clients are not steered.
    #[serde(default)]
    pub unsteered_packets: u64,
    /// Packets of steered clients that passed to the host because they belong to one of the host's connections.
    #[serde(default)]
    pub host_connection_packets: u64,
    /// How QUIC connection IDs encode the service's backends; absent: the service has no QUIC listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicView>,
    /// A line about the current sharing of clients between balancer and host; absent if every client has been steered
    /// for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<String>,
    /// The duration of the service's outage: so many backends have failed that known clients stay at their backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_seconds: Option<u64>,
    /// Conditions that need attention, one line each, such as an outage or a client that is most of a backend's load.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The deny list; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyView>,
    /// The lists of targets that become its backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverView>,
    /// The packets, bytes and new connections sent to its backends per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// If no packets arrive: the first thing to check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// The backends in configuration order; those added at run time come last.
    pub backends: Vec<BackendView>,
}

/// A deny list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DenyView {
    /// The file with the prefixes.
    pub file: String,
    /// Number of denied prefixes.
    pub prefixes: u64,
    /// Packets that these prefixes denied.
    pub packets: u64,
    /// Time since the file was last read without an error; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// Why the current file is not in effect; absent: it is in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A list of targets that become backends of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoverView {
    /// The file of the list, if the list is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The name whose SRV records are the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// The name whose addresses are the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_a: Option<String>,
    /// The prefix of the keys of etcd that contain the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// The name that is the address of one backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The number of targets in the last valid version; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<u64>,
    /// Time since that version was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// Why the current version is not applied, or not completely; absent: it is applied completely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A listener of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerView {
    /// `198.51.100.10:443/tcp`, as in `listen` of a configuration file.
    pub listener: String,
    /// Packets with ports that arrived for the listener; absent if it is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// TCP connections opened to the listener; absent if it is the only one, and for UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// The part of a backend that belongs to one address family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyView {
    /// The family of the clients: `IPv4` or `IPv6`.
    pub family: Family,
    /// The backend's address in this family.
    pub address: String,
    /// `unknown`, `up` or `down`.
    pub health: String,
    /// The state, as for the backend.
    pub state: String,
    /// The reason, as for the backend.
    pub reason: String,
    /// Slots of the family's live table.
    pub slots: u32,
    /// Entries in the client table; 0 without memory.
    pub known_clients: u64,
}

impl ServiceView {
    /// Whether the service counts connections.
    #[must_use]
    pub fn counts_active(&self) -> bool {
        self.backends.iter().any(|backend| backend.active.is_some())
    }
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendView {
    /// The backend's name in the service.
    pub name: String,
    /// The backend's address, with a port if the backend has one for all listeners.
    pub address: String,
    /// The parts that differ by address family, if the service has listeners of both. The backend's state is then the
    /// worse of the two, its slots are those of the first listener's family, and all counters cover both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<FamilyView>,
    /// The weight, 0–65535.
    pub weight: u16,
    /// The backend's agent; absent: its service queries none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentView>,
    /// `bounded_load`: the slots that the backend gives away; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<BoundView>,
    /// The number of known clients at which the backend stops taking new clients; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the backend stops taking new connections; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Whether the backend is at a limit and takes no new clients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Whether the backend is used only when no primary backend is eligible.
    pub backup: bool,
    /// `discover`: the list of targets that the backend comes from; absent: it is from the configuration file, or was
    /// added at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The administrative state: `ready`, `drain` or `maint`.
    pub admin: String,
    /// `unknown`, `up` or `down`.
    pub health: String,
    /// The resulting state: `up`, `checking`, `draining (health)`, `draining`, `drained`, `down`, `maint`.
    pub state: String,
    /// Seconds until the deadline of a drain in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds_left: Option<u64>,
    /// The reason in a few words; empty if there is nothing to explain.
    pub reason: String,
    /// Slots of the live table.
    pub slots: u32,
    /// Entries in the client table; 0 without memory.
    pub known_clients: u64,
    /// `snat`: live connections; other modes do not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// New connections forwarded.
    pub connections: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded.
    pub bytes: u64,
    /// The packets, bytes and new connections sent to the backend per second, over the last ten seconds or slightly
    /// more; absent: not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Unfinished handshakes with the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<UnansweredView>,
}

/// The slots that a backend gives away because it has or had more than its share of load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundView {
    /// The percentage of its own slots that the backend keeps, 10–90.
    pub keeps_percent: u8,
    /// The approximate number of slots that the backend gives away.
    pub given_slots: u32,
    /// The ratio of its load to the expected load at the time of the decision.
    pub load_ratio: f64,
}

/// The agent of a backend, which may lower what the operator and the checks allow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// The report in effect: `75%`, `100%, drain`, `0%, down (no disk)`.
    pub says: String,
    /// The percentage of `weight` that is in effect, 0–100.
    pub weight_percent: u8,
    /// The administrative state that the agent requests: `ready`, `drain` or `maint`.
    pub admin: String,
    /// The agent's reason why the backend is down; may be empty. Absent: it reports the backend up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
    /// Seconds since the agent's last answer; absent: no answer yet, the agent is silent, or another member of the
    /// fleet queries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<f64>,
    /// The reason why the agent is silent; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// Handshakes with a backend that began since one was last completed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnansweredView {
    /// The number of handshakes, including repeated ones.
    pub begun: u32,
    /// Waiting time of the first.
    pub seconds: f64,
}

impl UnansweredView {
    /// Whether so many handshakes wait that something is wrong. The cause of older handshakes may already be mended.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        self.begun >= 3 && (1.0..600.0).contains(&self.seconds)
    }
}

/// An element of `GET /v1/backends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendEntry {
    /// The service's name.
    pub service: String,
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendView,
}

/// An element of `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthView {
    /// The service's name.
    pub service: String,
    /// The backend's name in the service.
    pub backend: String,
    /// The address and port that are checked.
    pub target: String,
    /// The check in words: `http GET /healthz every 2s, timeout 1s, fall 3, rise 2`, or `none`.
    pub check: String,
    /// The result of the checks alone: `unknown`, `up` or `down`.
    pub verdict: String,
    /// Seconds since the verdict changed.
    pub verdict_seconds: f64,
    /// The verdict that the operator has set; `None`: the checks decide.
    pub forced: Option<balancer_config::states::Forced>,
    /// The displayed state of the backend.
    pub state: String,
    /// The reason for the state.
    pub reason: String,
    /// The result of the last check: `passed`, `soft`, `hard`, or `hindered` if this machine could not check. `None`:
    /// none yet.
    pub last_result: Option<String>,
    /// The reason for the result; empty if the check passed.
    pub last_reason: String,
    /// Duration of the last check.
    pub last_duration_seconds: Option<f64>,
    /// Seconds since its end.
    pub last_seconds_ago: Option<f64>,
    /// Consecutive passes.
    pub passes: u32,
    /// Consecutive failures.
    pub failures: u32,
    /// The results needed for another verdict: `down after 2 more failures`. Empty without checks.
    pub next_verdict: String,
}
