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
    /// The drop-in that contains the service; absent: the configuration file contains the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_in: Option<String>,
    /// The virtual IP and port (or port range) of the first listener.
    pub address: String,
    /// The protocol of the first listener: `tcp` or `udp`.
    pub protocol: String,
    /// The service's listeners.
    #[serde(default)]
    pub listeners: Vec<ListenerView>,
    /// The forwarding mode, such as `dsr` or `nat`.
    pub forwarding: String,
    /// The number of slots of the lookup table.
    pub table_size: u32,
    /// The number of lookup tables that the service has used so far.
    pub table_generation: u64,
    /// The percentage of clients that the balancer steers; the host serves the other clients.
    #[serde(default = "super::all")]
    pub steer: u8,
    /// Whether the service is only watched: the host gets every packet, and all figures only show the effects that
    /// steering would have had.
    #[serde(default)]
    pub watched: bool,
    /// The number of packets that passed to the host because their clients are not steered.
    #[serde(default)]
    pub unsteered_packets: u64,
    /// The number of packets of steered clients that passed to the host because the packets belong to connections of
    /// the host.
    #[serde(default)]
    pub host_connection_packets: u64,
    /// The encoding of the service's backends in QUIC connection IDs; absent: the service has no QUIC listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicView>,
    /// A line about how the balancer and the host currently share the clients; absent if the balancer has steered every
    /// client for a long time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<String>,
    /// Seconds since the beginning of the service's outage; during an outage, known clients stay at their backends
    /// because too many backends have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_seconds: Option<u64>,
    /// Conditions that need attention, one line each, such as an outage, or a client that causes most of a backend's
    /// load.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The deny list; absent: the service has no deny list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyView>,
    /// The lists of targets from which the controller makes backends of the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverView>,
    /// The packets, bytes and new connections sent to the service's backends per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// The number of backends that are up in normal operation; absent: all backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u32>,
    /// The first thing to check if no packets arrive for the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// The backends in configuration order; backends added at run time come last.
    pub backends: Vec<BackendView>,
}

/// A deny list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DenyView {
    /// The file that contains the denied prefixes.
    pub file: String,
    /// The number of denied prefixes.
    pub prefixes: u64,
    /// The number of packets that the program dropped because of the deny list.
    pub packets: u64,
    /// Seconds since the controller last read the file without an error; absent: the controller has never done so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// The reason why the file's current contents are not in effect; absent: the current contents are in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A list of targets from which the controller makes backends of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoverView {
    /// The file of the list, if the list is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The DNS name whose SRV records form the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// The DNS name whose addresses form the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_a: Option<String>,
    /// The prefix of the etcd keys that contain the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// The DNS name that serves as the address of one backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The number of targets in the last valid version of the list; absent: no version was valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<u64>,
    /// Seconds since the controller read the last valid version of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// The reason why the current version of the list is not applied completely; absent: the whole version is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The faults of the entries that the controller leaves out because they cannot be backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The backends whose targets are missing, and which wait for them before they drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// A habit of the source, such as `gives other targets each time: 3 of 6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub habit: Option<String>,
}

/// A listener of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerView {
    /// The listener in the format of `listen` in a configuration file, such as `198.51.100.10:443/tcp`.
    pub listener: String,
    /// The number of packets with ports that arrived for the listener; absent if the service has only this listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// The number of TCP connections opened to the listener; absent for UDP, or if the service has only this listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// The values of a backend that differ by address family, for one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyView {
    /// The address family of the clients: `IPv4` or `IPv6`.
    pub family: Family,
    /// The backend's address in this address family.
    pub address: String,
    /// The health: `unknown`, `up` or `down`.
    pub health: String,
    /// The state of the backend, with the same values as [`BackendView::state`].
    pub state: String,
    /// The reason for the backend's state in a few words.
    pub reason: String,
    /// The number of the backend's slots in the live lookup table of this address family.
    pub slots: u32,
    /// The number of the backend's entries in the client table; 0 if the service remembers no clients.
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
    /// The backend's address; with a port if the backend has the same port for all listeners.
    pub address: String,
    /// The values for each address family, if the service has listeners of both families. With both address families,
    /// the backend's state is the worse of the two states, its slots are those of the first listener's family, and all
    /// counters cover both families.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<FamilyView>,
    /// The weight, 0–65535.
    pub weight: u16,
    /// The agent of the backend; absent: the service queries no agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentView>,
    /// `bounded_load`: the slots that the backend gives to other backends; absent: the backend keeps all slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<BoundView>,
    /// The number of known clients at which the balancer stops sending new clients to the backend; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the balancer stops sending new connections to the backend; absent: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Whether the backend has reached a limit and therefore gets no new clients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Whether the balancer uses the backend only while no primary backend is eligible.
    pub backup: bool,
    /// `discover`: the list of targets that contains the backend; absent: the backend is from the configuration file,
    /// or a user added it at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The administrative state: `ready`, `drain` or `maint`.
    pub admin: String,
    /// The health: `unknown`, `up` or `down`.
    pub health: String,
    /// The state that results from configuration, health and operator: `up`, `checking`, `draining (health)`,
    /// `draining`, `drained`, `down`, `maint`.
    pub state: String,
    /// Seconds until the deadline of a drain in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds_left: Option<u64>,
    /// The reason for the backend's state in a few words; empty if the state needs no explanation.
    pub reason: String,
    /// The number of the backend's slots in the live lookup table.
    pub slots: u32,
    /// The number of the backend's entries in the client table; 0 if the service remembers no clients.
    pub known_clients: u64,
    /// `snat`: the number of live connections; absent in other modes, which do not count connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// The number of new connections forwarded to the backend.
    pub connections: u64,
    /// The number of packets forwarded to the backend.
    pub packets: u64,
    /// The number of bytes forwarded to the backend.
    pub bytes: u64,
    /// The packets, bytes and new connections sent to the backend per second, averaged over the last ten seconds or
    /// slightly longer; absent: not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// The handshakes with the backend that are unfinished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<UnansweredView>,
    /// The handshakes of clients with the backend whose outcome became known in the last minute; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshakes: Option<HandshakesView>,
    /// `nat` and `snat`: the interface by which the backend's replies arrive, if the program is not attached to it, so
    /// that clients get no replies. Absent: the program sees the replies, or it is not known where they arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unattached: Option<String>,
}

/// The handshakes of clients whose outcome became known in the last minute, as far as the balancer watches clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakesView {
    /// The number of handshakes that clients completed, so that the backend's answer has reached them.
    pub completed: u64,
    /// The number of handshakes that clients did not continue within two seconds.
    pub unanswered: u64,
}

/// The slots that a backend gives to other backends, because the backend has or had more than its share of the load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundView {
    /// The percentage of its own slots that the backend keeps, 10–90.
    pub keeps_percent: u8,
    /// The approximate number of slots that the backend gives to other backends.
    pub given_slots: u32,
    /// The ratio of the backend's load to the expected load, at the time when the controller chose the slots.
    pub load_ratio: f64,
}

/// The agent of a backend. The agent may lower the backend's weight and state, but cannot raise them above the
/// operator's settings and the checks' results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// The report of the agent that is in effect: `75%`, `100%, drain`, `0%, down (no disk)`.
    pub says: String,
    /// The percentage of the backend's `weight` that is in effect, 0–100.
    pub weight_percent: u8,
    /// The administrative state that the agent requests: `ready`, `drain` or `maint`.
    pub admin: String,
    /// The agent's reason for reporting that the backend is down; may be empty. Absent: the agent reports that the
    /// backend is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
    /// Seconds since the agent's last answer; absent: no answer yet, the agent is silent, or another member of the
    /// fleet queries the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<f64>,
    /// The reason why the agent does not answer; absent: the agent answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// The handshakes that clients began after the last completed handshake with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnansweredView {
    /// The number of handshakes, including repeated ones.
    pub begun: u32,
    /// Seconds since the first of these handshakes began.
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
    /// The address and port that the checks use.
    pub target: String,
    /// A description of the check: `http GET /healthz every 2s, timeout 1s, fall 3, rise 2`, or `none`.
    pub check: String,
    /// The verdict of the health checks, without overrides: `unknown`, `up` or `down`.
    pub verdict: String,
    /// Seconds since the verdict changed.
    pub verdict_seconds: f64,
    /// The verdict that the operator has set; `None` if the checks decide.
    pub forced: Option<balancer_config::states::Forced>,
    /// The displayed state of the backend.
    pub state: String,
    /// The reason for the backend's state.
    pub reason: String,
    /// The result of the last check: `passed`, `soft`, `hard`, or `hindered` if this machine was unable to check.
    /// `None` if no check has ended yet.
    pub last_result: Option<String>,
    /// The reason for the result of the last check; empty if the check passed.
    pub last_reason: String,
    /// The duration of the last check in seconds.
    pub last_duration_seconds: Option<f64>,
    /// Seconds since the last check ended.
    pub last_seconds_ago: Option<f64>,
    /// The number of consecutive passed checks.
    pub passes: u32,
    /// The number of consecutive failed checks.
    pub failures: u32,
    /// The results that would change the verdict: `down after 2 more failures`. Empty if the backend has no checks.
    pub next_verdict: String,
}
