//! Bodies of the control API. Field names are the product's terms.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

pub use balancer_core::{
    fleet::{FleetMember, FleetSnapshot},
    rates::Rates,
    readiness::{Fitness, Readiness},
    rules::Action,
    run_time::RunTimeChange,
};
use balancer_core::{
    locate::Located,
    plan::{Planned, PlannedMove, PlannedService},
};
use balancer_model::listeners::Family;
use serde::{Deserialize, Serialize};

use crate::quic::QuicView;

/// The body of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView<Services = Vec<ServiceView>> {
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Frames that were redirected but not sent, by target interface.
    #[serde(default)]
    pub redirect_errors: BTreeMap<String, u64>,
    /// Services in configuration order.
    pub services: Services,
    /// The number of changes by users, across restarts.
    pub generation: u64,
    /// The differences between services and the configuration file.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// Whether the balancer is fit to receive clients.
    #[serde(default)]
    pub ready: Readiness,
    /// Whether the operator has withdrawn its VIPs.
    #[serde(default)]
    pub withdrawn: bool,
    /// The VIPs that it has assigned to its machine.
    #[serde(default)]
    pub vips: Vec<VipView>,
    /// The fleet that it belongs to; `None`: none.
    #[serde(default)]
    pub fleet: Option<FleetSnapshot>,
    /// The client table and its fill level.
    #[serde(default)]
    pub client_table: ClientTableView,
    /// Dropped packets, by reason; reasons without packets are left out.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// The client table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTableView {
    /// The number of known clients that it is sized for.
    pub capacity: u64,
    /// Known clients at the last sweep.
    pub entries: u64,
    /// Clients that were forgotten to make room for others.
    pub evictions: u64,
    /// Newcomers that found no room.
    pub unrecorded: u64,
}

/// The default share: every client, in percent.
const fn all() -> u8 {
    100
}

/// A VIP that the balancer has assigned to the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipView {
    /// The address.
    pub address: IpAddr,
    /// The name of the interface with the VIP.
    pub interface: String,
}

/// An attached interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// The name of the interface.
    pub name: String,
    /// The index of the interface.
    pub ifindex: u32,
    /// The real XDP mode: `native` or `generic`.
    pub xdp_mode: String,
    /// Packets seen, by verdict.
    pub packets_seen: Verdicts,
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Sent by the interface on which they arrived.
    pub tx: u64,
    /// Sent by another interface.
    pub redirect: u64,
    /// Passed to the kernel unchanged.
    pub pass: u64,
    /// Dropped.
    pub drop: u64,
    /// The program failed.
    pub aborted: u64,
    /// Rewritten and handed to the kernel for sending.
    pub handed: u64,
    /// Passed to this machine, which is the backend.
    #[serde(default)]
    pub local: u64,
}

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
    #[serde(default = "all")]
    pub steer: u8,
    /// Whether every packet passes to the host and all figures show what would have happened.
    #[serde(default)]
    pub watched: bool,
    /// Packets that passed to the host because their clients are not steered.
    #[serde(default)]
    pub unsteered_packets: u64,
    /// Packets of steered clients that passed to the host because they belong to one of its connections.
    #[serde(default)]
    pub host_connection_packets: u64,
    /// How QUIC connection IDs encode its backends; absent: it has no QUIC listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicView>,
    /// A line about the current sharing of clients between balancer and host; absent if every client has been steered
    /// for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<String>,
    /// The duration of its outage, in which so many backends fail that known clients stay where they are.
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
    /// Packets that they denied.
    pub packets: u64,
    /// Time since the file was last read without an error; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// Why the current file is not in effect; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A list of targets that become backends of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoverView {
    /// The file of the list, if it is one.
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
    /// Why the current version is not applied, or not completely; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A listener of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerView {
    /// `198.51.100.10:443/tcp`, as in `listen` of a configuration file.
    pub listener: String,
    /// Packets with ports that arrived for it; absent if it is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// TCP connections opened to it; absent if it is the only one, and for UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// The part of a backend that belongs to one address family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyView {
    /// The family of its clients: `IPv4` or `IPv6`.
    pub family: Family,
    /// The address by which it is reached.
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
    /// The backend's address, with a port if it has one for all listeners.
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
    /// `bounded_load`: the slots that it gives away; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<BoundView>,
    /// The number of known clients at which the backend stops taking new clients; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the backend stops taking new connections; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Whether it is at a limit and takes no new clients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Whether it is used only when no primary backend is eligible.
    pub backup: bool,
    /// `discover`: it comes from a list of targets; absent: it is from the configuration file, or was added at run
    /// time.
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
    /// The packets, bytes and new connections sent to it per second, over the last ten seconds or slightly more;
    /// absent: not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Unfinished handshakes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<UnansweredView>,
}

/// The slots that a backend gives away because it has or had more than its share of load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundView {
    /// The percentage of its own slots that it keeps, 10–90.
    pub keeps_percent: u8,
    /// The approximate number of slots that it gives away.
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
    /// The administrative state that it requests: `ready`, `drain` or `maint`.
    pub admin: String,
    /// The agent's reason why the backend is down; may be empty. Absent: it reports the backend up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
    /// Seconds since its last answer; absent: no answer yet, it is silent, or another member of the fleet queries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<f64>,
    /// Why it is silent; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// Handshakes with a backend that began since one was last completed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnansweredView {
    /// Their number, including repeated ones.
    pub begun: u32,
    /// Waiting time of the first.
    pub seconds: f64,
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
    /// Whether the client table contains it.
    pub known: bool,
    /// Seconds since its last recorded packet; `None` when it is not known.
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

/// An element of `GET /v1/rules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleView {
    /// The service's name.
    pub service: String,
    /// The prefix of its clients.
    pub prefix: String,
    /// The treatment of these clients: `pin` (with `backend`), `spread` or `deny`.
    #[serde(flatten)]
    pub action: Action,
    /// Whether the configuration file contains the same rule; rules added or changed at run time are not in the file.
    pub in_file: bool,
    /// Whether it has an effect at the moment.
    pub active: bool,
    /// Why it has none; empty if it has.
    pub reason: String,
    /// Seconds until it expires; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// Packets that it decided about, except later fragments and ICMP errors.
    pub packets: u64,
    /// Packets steered as if it did not exist, because its backend took no clients.
    pub fallbacks: u64,
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
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Bytes of IP packets to the backend.
    pub bytes_to_backend: u64,
    /// Bytes of IP packets to the client.
    pub bytes_to_client: u64,
}

/// The action of a rule, without the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleWord {
    /// A pin, see [`Action::Pin`].
    Pin,
    /// A rule that spreads connections, see [`Action::Spread`].
    Spread,
    /// A rule that denies clients, see [`Action::Deny`].
    Deny,
}

/// The body of `PUT /v1/services/{service}/rules/{prefix}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRule {
    /// The treatment of the prefix's clients.
    pub action: RuleWord,
    /// With `pin`: the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Time after which it expires, such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

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
    /// Whether it is a backup.
    #[serde(default)]
    pub backup: bool,
    /// The number of known clients at which the backend stops taking new clients; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the backend stops taking new connections; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// The body of `PUT /v1/services/{service}/backends/{backend}/admin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAdmin {
    /// The administrative state: `ready`, `drain` or `maint`.
    pub admin: balancer_model::states::Admin,
    /// With `drain`: a timeout in place of the service's, such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// An element of `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthView {
    /// The service's name.
    pub service: String,
    /// The backend's name in it.
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
    pub forced: Option<balancer_model::states::Forced>,
    /// The displayed state of the backend.
    pub state: String,
    /// The reason for the state.
    pub reason: String,
    /// The result of the last check: `passed`, `soft`, `hard`, or `hindered` if this machine could not check. `None`:
    /// none yet.
    pub last_result: Option<String>,
    /// The reason for the result; empty if it passed.
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

/// The body of `PUT /v1/services/{service}/backends/{backend}/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForceHealth {
    /// The forced health: `up`, `down`, or `auto` to let the checks decide.
    pub force: Force,
}

/// A health set by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Force {
    /// The backend works.
    Up,
    /// The backend has failed.
    Down,
    /// The checks decide.
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
    /// The number of known clients at which the backend stops taking new clients; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: the number of connections at which the backend stops taking new connections; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// The body of `POST /v1/configuration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyConfiguration {
    /// The file's name, for messages.
    pub file: String,
    /// The contents of the file.
    pub text: String,
    /// Change nothing, and report what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Seconds since the file's last change. A fleet refuses a file that is older than its newest change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Apply the file even if it is older than the newest change in the fleet.
    #[serde(default)]
    pub force: bool,
    /// Undo all run-time changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The file's path on the balancer's machine without links, which tells whether it is the balancer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// The answer to a new configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The change that was made, or would be, in one line.
    pub message: String,
    /// With `dry_run`: the differences between file and run time, and further consequences.
    #[serde(default)]
    pub differences: Vec<String>,
    /// The run-time changes made before.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// The services in which slots or known clients move, clients are forgotten, or listeners are added or removed, as
    /// planned right before the change.
    #[serde(default)]
    pub services: Vec<PlanView>,
}

impl From<Planned> for Applied {
    fn from(planned: Planned) -> Self {
        let services = planned.services.into_iter().filter(PlannedService::does_something);
        Self {
            message: planned.message,
            differences: planned.reports,
            changed_at_run_time: planned.changed,
            services: services.map(Into::into).collect(),
        }
    }
}

/// The body of `PUT /v1/services/{service}/steer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSteer {
    /// The share in percent, 0–100.
    pub steer: u8,
}

/// The answer to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// The change in one line, e.g. `backend web/web4 added: 13,107 of 65,537 slots moved, 215 needless`.
    pub message: String,
}

/// The body of `POST /v1/plan`: a change to be planned but not made.
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
        /// The backend's name.
        name: String,
        /// Remove it without draining.
        #[serde(default)]
        force: bool,
    },
    /// Setting a backend's administrative state.
    Admin {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// The new state.
        admin: SetAdmin,
    },
    /// Setting a backend's weight.
    Weight {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// The weight, 0–65535.
        weight: u16,
    },
    /// Setting a backend's limits.
    Limit {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// The limits.
        limits: SetLimits,
    },
    /// Setting the share of steered clients.
    Steer {
        /// The service's name.
        service: String,
        /// The share in percent, 0–100.
        steer: u8,
    },
    /// Adding a listener.
    AddListener {
        /// The service's name.
        service: String,
        /// The listener, as in `listen` of a configuration file.
        listener: String,
    },
    /// Removing a listener.
    RemoveListener {
        /// The service's name.
        service: String,
        /// The listener, as in `listen` of a configuration file.
        listener: String,
    },
}

/// The planned effects on a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The service's name.
    pub service: String,
    /// Number of slots before the change; of both tables together if the service has listeners of both families.
    #[serde(default)]
    pub table_size_before: u32,
    /// Number of slots after the change.
    pub table_size: u32,
    /// Slots of the live table, or of both, that would get another backend.
    pub slots_moved: u32,
    /// The number of slots that move between backends with unchanged shares.
    pub needless_slots_moved: u32,
    /// Known clients that would move at once. Each counts as moved when it comes back.
    pub known_clients_moved: u64,
    /// Known clients that would stay with a draining backend until its deadline.
    pub known_clients_draining: u64,
    /// Known clients that would be forgotten, because hashing changes, the service is removed, or it remembers for a
    /// shorter time. Each counts as moved at once, under `forgotten`, unless the table sends it to the same backend, or
    /// no service takes over the address.
    #[serde(default)]
    pub known_clients_forgotten: u64,
    /// The reason for forgetting clients, if there is any.
    #[serde(default)]
    pub forgotten_because: Option<String>,
    /// The share of steered clients before the change, in percent.
    #[serde(default = "all")]
    pub steer_before: u8,
    /// The share of steered clients after the change, in percent.
    #[serde(default = "all")]
    pub steer: u8,
    /// Known clients that would start being steered.
    #[serde(default)]
    pub known_clients_taken_over: u64,
    /// Known clients that would return to the host.
    #[serde(default)]
    pub known_clients_sent_back: u64,
    /// Whether the service would be removed.
    #[serde(default)]
    pub removed: bool,
    /// Added listeners, such as `198.51.100.10:443/tcp`; empty for a removed service.
    #[serde(default)]
    pub listeners_added: Vec<String>,
    /// Removed listeners; empty for a removed service.
    #[serde(default)]
    pub listeners_removed: Vec<String>,
    /// The moves by old and new backend.
    pub moves: Vec<MoveView>,
}

/// Slots and clients with the same old and new backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveView {
    /// The backend that loses them; `None`: they had none.
    pub from: Option<String>,
    /// The backend that gets them; `None`: they would be dropped.
    pub to: Option<String>,
    /// Slots of the live table.
    pub slots: u32,
    /// Known clients.
    pub clients: u64,
}

impl From<PlannedService> for PlanView {
    fn from(planned: PlannedService) -> Self {
        Self {
            service: planned.service,
            table_size_before: planned.table_size_before,
            table_size: planned.table_size,
            slots_moved: planned.slots_moved,
            needless_slots_moved: planned.needless_slots_moved,
            known_clients_moved: planned.known_clients_moved,
            known_clients_draining: planned.known_clients_draining,
            known_clients_forgotten: planned.known_clients_forgotten,
            forgotten_because: planned.forgotten_because.map(str::to_owned),
            steer_before: planned.steer[0],
            steer: planned.steer[1],
            known_clients_taken_over: planned.known_clients_taken_over,
            known_clients_sent_back: planned.known_clients_sent_back,
            removed: planned.removed,
            listeners_added: planned.listeners_added.iter().map(ToString::to_string).collect(),
            listeners_removed: planned.listeners_removed.iter().map(ToString::to_string).collect(),
            moves: planned.moves.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<PlannedMove> for MoveView {
    fn from(PlannedMove { from, to, slots, clients }: PlannedMove) -> Self {
        Self { from, to, slots, clients }
    }
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
    /// At most [`MAX_IMPORTED`] clients.
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
    /// Seconds since it was seen; absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// In place of the age: seconds for which it is remembered from now on, limited to the service's time.
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
    /// Clients not seen for longer than the service remembers; they were not recorded.
    pub expired: u64,
    /// Clients without room in the client table; they were not recorded.
    pub full: u64,
    /// Clients of a family without a listener of the service; they were not recorded.
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
    /// Seconds since it was seen.
    pub age_seconds: u64,
}

/// The answer to a request that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// The mistake and its correction, in one line.
    pub error: String,
}

/// The query of `balancer client where`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientQuery {
    /// The client's source address.
    pub address: IpAddr,
    /// Restricts the query to this service.
    pub service: Option<String>,
}
