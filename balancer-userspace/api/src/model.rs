//! Bodies of the control API. Field names are the product's words.

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

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView<Services = Vec<ServiceView>> {
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Frames that were redirected and not sent, by the interface that they were to leave by.
    #[serde(default)]
    pub redirect_errors: BTreeMap<String, u64>,
    /// Services in configuration order.
    pub services: Services,
    /// How often users have changed something, over restarts.
    pub generation: u64,
    /// Where services are not as the configuration file says.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// Whether it is fit to be sent clients.
    #[serde(default)]
    pub ready: Readiness,
    /// Whether the operator has taken its VIPs away.
    #[serde(default)]
    pub withdrawn: bool,
    /// The VIPs that its machine has from it.
    #[serde(default)]
    pub vips: Vec<VipView>,
    /// The fleet that it is in; `None`: in none.
    #[serde(default)]
    pub fleet: Option<FleetSnapshot>,
    /// The memory of clients, and how full it is.
    #[serde(default)]
    pub client_table: ClientTableView,
    /// Dropped packets, by reason; reasons without packets are left out.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// The memory of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTableView {
    /// Known clients that it is made for.
    pub capacity: u64,
    /// Known clients at the last sweep.
    pub entries: u64,
    /// Clients that were forgotten to make room for others.
    pub evictions: u64,
    /// Newcomers that found no room.
    pub unrecorded: u64,
}

/// Every client, in percent.
const fn all() -> u8 {
    100
}

/// A VIP that the machine has from the balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipView {
    /// The address.
    pub address: IpAddr,
    /// The name of the interface that has it.
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
    /// Sent out of the interface they came in by.
    pub tx: u64,
    /// Sent out of another interface.
    pub redirect: u64,
    /// Left to the kernel, unchanged.
    pub pass: u64,
    /// Dropped.
    pub drop: u64,
    /// The program failed.
    pub aborted: u64,
    /// Rewritten, and handed to the kernel to be sent.
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
    /// The first listener's virtual IP and port, or range of ports.
    pub address: String,
    /// The first listener's: `tcp` or `udp`.
    pub protocol: String,
    /// Where it is reached.
    #[serde(default)]
    pub listeners: Vec<ListenerView>,
    /// `dsr` or `nat`.
    pub forwarding: String,
    /// M.
    pub table_size: u32,
    /// How often the live table was replaced.
    pub table_generation: u64,
    /// The share of clients that are steered, in percent; the host serves the others.
    #[serde(default = "all")]
    pub steer: u8,
    /// Whether every packet passes to the host, and all figures say what would be.
    #[serde(default)]
    pub watched: bool,
    /// Packets that passed to the host because their clients are not steered.
    #[serde(default)]
    pub unsteered_packets: u64,
    /// Packets that passed to the host because they belong to one of its connections, although their clients are steered.
    #[serde(default)]
    pub host_connection_packets: u64,
    /// How connection IDs of QUIC name its backends; absent: it has no listener of QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicView>,
    /// A line on how clients are shared between balancer and host at present; absent where every client is steered, and
    /// has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<String>,
    /// How long it has had an outage: so many backends fail that known clients stay where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_seconds: Option<u64>,
    /// Conditions that a user should look at, a line each: an outage, one client that is most of a backend's load.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The list of prefixes whose clients are denied; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyView>,
    /// The lists of targets that are its backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverView>,
    /// The packets, bytes and new connections that its backends are sent in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Where no packets come: what to look at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// The backends in configuration order, runtime additions last.
    pub backends: Vec<BackendView>,
}

/// A list of prefixes whose clients are denied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DenyView {
    /// The file.
    pub file: String,
    /// How many prefixes are denied.
    pub prefixes: u64,
    /// Packets that these have denied.
    pub packets: u64,
    /// When the file was last read without an error; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// Why the file, as it is now, is not what is denied; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A list of targets that are backends of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoverView {
    /// The file, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The name whose SRV records it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// The name whose addresses it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_a: Option<String>,
    /// The name that is the address of one backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How many targets it had when it was last read or asked for without an error; absent: it has not been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<u64>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_seconds_ago: Option<u64>,
    /// Why it is not taken over as it is now, or not whole; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerView {
    /// `198.51.100.10:443/tcp`, as in `listen` of a configuration file.
    pub listener: String,
    /// Packets with ports that came for it; absent where it is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// TCP connections opened to it; absent where it is the only one, or for UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// The part of a backend that belongs to one address family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyView {
    /// `IPv4` or `IPv6`: that of its clients.
    pub family: Family,
    /// Where it is reached.
    pub address: String,
    /// `unknown`, `up` or `down`.
    pub health: String,
    /// As of the backend.
    pub state: String,
    /// As of the backend.
    pub reason: String,
    /// Slots of the family's live table.
    pub slots: u32,
    /// Entries in the client table; 0 without memory.
    pub known_clients: u64,
}

impl ServiceView {
    /// Whether it knows connections.
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
    /// The backend's address, with a port where that is one for all listeners.
    pub address: String,
    /// The parts that differ by address family, where the service has listeners of both. The backend's state is then
    /// the worst of them, its slots are those of the first listener's family, and all counters are of both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<FamilyView>,
    /// 0–65535.
    pub weight: u16,
    /// The backend's agent; absent: its service asks none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentView>,
    /// `bounded_load`: the slots that it gives away; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<BoundView>,
    /// Known clients with which it takes no new ones; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: connections with which it takes no new ones; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Whether it is at a limit, and takes no new clients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Whether it is used only when no primary backend is eligible.
    pub backup: bool,
    /// `discover`: it is a target of a list; absent: it is from the configuration file, or was added at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `ready`, `drain` or `maint`.
    pub admin: String,
    /// `unknown`, `up` or `down`.
    pub health: String,
    /// The resulting state: `up`, `checking`, `draining (health)`, `draining`, `drained`, `down`, `maint`.
    pub state: String,
    /// Seconds until a drain under way ends at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds_left: Option<u64>,
    /// Why, in a few words; empty when there is nothing to explain.
    pub reason: String,
    /// Slots of the live table.
    pub slots: u32,
    /// Entries in the client table; 0 without memory.
    pub known_clients: u64,
    /// `snat`: connections that live; other modes know none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// New connections forwarded.
    pub connections: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded.
    pub bytes: u64,
    /// The packets, bytes and new connections that it is sent in a second, over the last ten seconds or a little more;
    /// absent: that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Handshakes with it that no client has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<UnansweredView>,
}

/// The slots that a backend gives away because it has, or had, more than its share of load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundView {
    /// The part of its own slots that it keeps, 10–90.
    pub keeps_percent: u8,
    /// About how many slots it gives away.
    pub given_slots: u32,
    /// Its load when that was decided, over what was expected.
    pub load_ratio: f64,
}

/// The agent of a backend, which may lower what the operator and the checks leave to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// The words in force: `75%`, `100%, drain`, `0%, down (no disk)`.
    pub says: String,
    /// The part of `weight` that new clients are counted by, 0–100.
    pub weight_percent: u8,
    /// The administrative state that it asks for: `ready`, `drain` or `maint`.
    pub admin: String,
    /// Why the backend is down, as it says; may be empty. Absent: it says that the backend is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
    /// How long ago it last answered; absent: not yet, it is silent, or another member of the fleet asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<f64>,
    /// Why it is silent; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// Handshakes that clients have begun with a backend since one was last ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnansweredView {
    /// How many, those that were begun again among them.
    pub begun: u32,
    /// For how long the first of them has waited.
    pub seconds: f64,
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
    /// The client's slot of the lookup table.
    pub slot: u32,
    /// The backend it is steered to; `None`: dropped, or spread by a rule.
    pub backend: Option<String>,
    /// `known`, `table`, `rule` or `open`.
    pub why: String,
    /// The rule that decides, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<ClientRule>,
    /// Whether the client table holds it.
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

/// `GET /v1/rules`, one for each rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleView {
    /// The service's name.
    pub service: String,
    /// The prefix of the clients that it is about.
    pub prefix: String,
    /// The treatment of these clients: `pin` (with `backend`), `spread` or `deny`.
    #[serde(flatten)]
    pub action: Action,
    /// Whether the configuration file says it so; what was added or changed at run time is not in the file.
    pub in_file: bool,
    /// Whether it decides about anybody now.
    pub active: bool,
    /// Why not; empty where it does.
    pub reason: String,
    /// When it ends by itself; absent: not before it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// Packets it decided about, but for later fragments and ICMP errors.
    pub packets: u64,
    /// Packets steered as without it, because its backend took no clients.
    pub fallbacks: u64,
}

/// `GET /v1/flows`, one for each connection of a `snat` service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// The service's name.
    pub service: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client's address and port.
    pub client: String,
    /// The address and port that the client speaks to.
    pub vip: String,
    /// The address and port of the balancer that the backend sees.
    pub seen_as: String,
    /// The backend's name; `-` if it is gone.
    pub backend: String,
    /// The backend's address and port.
    pub address: String,
    /// `half_open`, `established` or `closing`.
    pub state: String,
    /// How long ago it began.
    pub age_seconds: u64,
    /// How long ago its last packet came.
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
    /// See [`Action::Pin`].
    Pin,
    /// See [`Action::Spread`].
    Spread,
    /// See [`Action::Deny`].
    Deny,
}

/// `PUT /v1/services/{service}/rules/{prefix}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRule {
    /// The treatment of the prefix's clients.
    pub action: RuleWord,
    /// With `pin`: to whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// After which it ends by itself, such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// `POST /v1/services/{service}/backends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddBackend {
    /// The backend's name in the service.
    pub name: String,
    /// `ADDR` or `ADDR:PORT` (`[ADDR]:PORT` for IPv6).
    pub address: String,
    /// The backend's IPv6 address, where the service has listeners of both families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
    /// 0–65535; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether it is a backup.
    #[serde(default)]
    pub backup: bool,
    /// Known clients with which it takes no new ones; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: connections with which it takes no new ones; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// `PUT /v1/services/{service}/backends/{backend}/admin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAdmin {
    /// `ready`, `drain` or `maint`.
    pub admin: balancer_model::states::Admin,
    /// With `drain`: instead of the service's drain timeout, such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// `GET /v1/health`, one for each backend.
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
    /// The result of the checks alone, whatever else decides the backend's state: `unknown`, `up` or `down`.
    pub verdict: String,
    /// Since when, in seconds.
    pub verdict_seconds: f64,
    /// The verdict that the operator has forced instead; `None`: the checks decide.
    pub forced: Option<balancer_model::states::Forced>,
    /// The state that is shown of the backend.
    pub state: String,
    /// Why.
    pub reason: String,
    /// The last check: `passed`, `soft`, `hard`, or `hindered` where this machine could not check. `None`: none yet.
    pub last_result: Option<String>,
    /// Why it ended so; empty when it passed.
    pub last_reason: String,
    /// How long it took.
    pub last_duration_seconds: Option<f64>,
    /// When it ended.
    pub last_seconds_ago: Option<f64>,
    /// Passes in a row.
    pub passes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// The results that another verdict takes: `down after 2 more failures`. Empty without checks.
    pub next_verdict: String,
}

/// `PUT /v1/services/{service}/backends/{backend}/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForceHealth {
    /// `up`, `down`, or `auto` to let the checks decide.
    pub force: Force,
}

/// The health of a backend by an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Force {
    /// It works.
    Up,
    /// It does not.
    Down,
    /// The checks decide.
    Auto,
}

/// `PUT /v1/services/{service}/backends/{backend}/weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// 0–65535.
    pub weight: u16,
}

/// `PUT /v1/services/{service}/backends/{backend}/limits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimits {
    /// Known clients with which it takes no new ones; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// `snat`: connections with which it takes no new ones; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// `POST /v1/configuration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyConfiguration {
    /// The file's name, for messages.
    pub file: String,
    /// The contents of the file.
    pub text: String,
    /// Change nothing, and say what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// How long ago the file was last changed, in seconds. In a fleet, one that is older than its newest change is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Also if the file is older than the newest change in the fleet.
    #[serde(default)]
    pub force: bool,
    /// Undo what was changed at run time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Where the file is on the balancer's machine, without links, to tell whether it is the balancer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// The answer to a new configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The change that was made, or would be, in one line.
    pub message: String,
    /// With `dry_run`: where file and run time differ, and what else would come of it.
    #[serde(default)]
    pub differences: Vec<String>,
    /// Changes made at run time before.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// The services in which slots or known clients move or would move, clients are forgotten, or listeners come or go, as
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

/// `PUT /v1/services/{service}/steer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSteer {
    /// In percent, 0–100.
    pub steer: u8,
}

/// The answer to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// The change that was made, in one line, e.g. `backend web/web4 added: 13,107 of 65,537 slots moved, 215
    /// needless`.
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
    /// Setting the share of clients that are steered.
    Steer {
        /// The service's name.
        service: String,
        /// In percent, 0–100.
        steer: u8,
    },
    /// Adding a listener.
    AddListener {
        /// The service's name.
        service: String,
        /// As in `listen` of a configuration file.
        listener: String,
    },
    /// Removing a listener.
    RemoveListener {
        /// The service's name.
        service: String,
        /// As in `listen` of a configuration file.
        listener: String,
    },
}

/// The answer to it, for the service that it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The service's name.
    pub service: String,
    /// M, before the change; of both tables together where the service has listeners of both families.
    #[serde(default)]
    pub table_size_before: u32,
    /// The same after the change.
    pub table_size: u32,
    /// Slots of the live table, or of both, that would have another backend.
    pub slots_moved: u32,
    /// Those among them that move between backends of which neither came to deserve more or less.
    pub needless_slots_moved: u32,
    /// Known clients that would be steered elsewhere at once. Each is counted as moved when it comes back.
    pub known_clients_moved: u64,
    /// Known clients that would stay with a backend that begins to drain, until its deadline.
    pub known_clients_draining: u64,
    /// Known clients that would be strangers: forgotten, because they are hashed otherwise from then on, or because the
    /// service is removed or remembers for a shorter time. Each is counted as moved at once, under `forgotten`, unless the
    /// table sends it to the same backend, or nobody takes over the service's address.
    #[serde(default)]
    pub known_clients_forgotten: u64,
    /// Why, where there are some.
    #[serde(default)]
    pub forgotten_because: Option<String>,
    /// The share of clients that are steered before the change, in percent.
    #[serde(default = "all")]
    pub steer_before: u8,
    /// The same after the change.
    #[serde(default = "all")]
    pub steer: u8,
    /// Known clients that would come to be steered.
    #[serde(default)]
    pub known_clients_taken_over: u64,
    /// Known clients that would go back to the host.
    #[serde(default)]
    pub known_clients_sent_back: u64,
    /// Whether the service would be removed.
    #[serde(default)]
    pub removed: bool,
    /// Listeners that come, such as `198.51.100.10:443/tcp`. A service that is removed has none to tell of.
    #[serde(default)]
    pub listeners_added: Vec<String>,
    /// Listeners that go.
    #[serde(default)]
    pub listeners_removed: Vec<String>,
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
    /// Entries of the client table that are gone.
    pub forgotten: u64,
    /// How many of these clients the lookup table sends elsewhere.
    pub moved: u64,
}

/// Clients in one `POST /v1/services/{service}/clients`, at most: a millisecond's work or two.
pub const MAX_IMPORTED: usize = 4096;

/// `POST /v1/services/{service}/clients`: clients that are to be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportClients {
    /// At most [`MAX_IMPORTED`].
    pub clients: Vec<ImportClient>,
}

/// A client that is to be known at a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportClient {
    /// An address of it.
    pub client: IpAddr,
    /// The backend's name.
    pub backend: String,
    /// How long ago it was seen; absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Instead: for how long it is to be remembered from now on, if the service remembers that long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<u64>,
}

/// The answer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedView {
    /// The result in one line.
    pub message: String,
    /// Clients not known before.
    pub new: u64,
    /// Clients known at that backend before.
    pub known: u64,
    /// Clients known at another backend before.
    pub moved: u64,
    /// Clients not seen for longer than the service remembers; they are not known.
    pub expired: u64,
    /// Clients without room in the client table; they are not known.
    pub full: u64,
    /// Clients of a family that the service has no listener of; they are not known.
    pub strangers: u64,
}

/// `GET /v1/services/{service}/clients`: the known clients of a service with addresses in the prefixes asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClientsView {
    /// The service's name.
    pub service: String,
    /// All known clients of it.
    pub known_clients: u64,
    /// The length of the prefix that makes an IPv4 client.
    pub prefix_v4: u8,
    /// The same of an IPv6 client.
    pub prefix_v6: u8,
    /// Those that were found.
    pub clients: Vec<KnownClientView>,
}

/// A known client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClientView {
    /// The first address of its prefix.
    pub client: IpAddr,
    /// The backend's name.
    pub backend: String,
    /// How long ago it was seen.
    pub age_seconds: u64,
}

/// The answer to a request that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// The mistake, and what would be right, in one line.
    pub error: String,
}

/// The query of `client where`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientQuery {
    /// The client's source address.
    pub address: IpAddr,
    /// Only this service.
    pub service: Option<String>,
}
