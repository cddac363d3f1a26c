//! The input and output of the core: events and changes in, commands out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use balancer_common::{
    client::HashKey,
    map_types::{Forwarding, Mac},
    share::Share,
    verdict::MoveCause,
};
use balancer_config::{
    agent::Said,
    bounded::Bound,
    config::{CheckConfig, Config, Failback},
    discover::{Source, Target},
    limits::{Full, Limits},
    listeners::{Family, Listener},
    names::BackendName,
    quic::{QuicConfig, QuicKey, ServerId},
    states::{Admin, Forced},
};
use ipnet::IpNet;

pub use crate::{health::CheckOutcome, refused::Refused};
use crate::{health::Health, rules::Action};

/// The index of a service in the kernel's maps, stable while the service exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ServiceId(pub u16);

/// The row of a listener's counters in the kernel's maps, unique over all services; stable while the listener exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ListenerId(pub u16);

/// The row of a backend in the kernel's maps, unique over all services: 1 to `LAST_BACKEND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BackendId(pub u16);

/// A number that distinguishes a check from earlier checks of the same backend, also at another address. It is unique
/// within a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckNumber(pub u64);

/// An event outside of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A health check ended. The core ignores the event if the backend was removed or its check has changed.
    Checked {
        /// The backend that was checked.
        backend: BackendId,
        /// The number of the check.
        check: CheckNumber,
        /// The outcome.
        outcome: CheckOutcome,
        /// The duration of the check.
        took: Duration,
        /// Whether a suspicion triggered the check, so that the check began after the suspicious packets.
        asked: bool,
    },
    /// The path to an address was found, changed or lost.
    NextHop {
        /// The address of the backends.
        address: IpAddr,
        /// The next hop, or the reason why there is none.
        next_hop: Result<NextHop, String>,
    },
    /// A sweep of the client table is complete.
    Swept {
        /// Known clients by backend, in ascending order of ids; backends that are not listed have none.
        known: Vec<(BackendId, u64)>,
    },
    /// All connections of `snat` services were counted.
    Flows {
        /// Connections by backend; backends that are not listed have none.
        of: BTreeMap<BackendId, u64>,
    },
    /// A deadline from `next_deadline` has passed.
    Tick,
}

/// How frames reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NextHop {
    pub ifindex: u32,
    /// The MAC of the egress interface.
    pub source_mac: Mac,
    /// The MAC of the next hop.
    pub destination_mac: Mac,
    /// The MTU of the egress interface, or of the route or path if that is smaller.
    pub mtu: u32,
    /// This machine's own address on the path, if the route names one.
    pub source: Option<IpAddr>,
    /// The router on the path; `None` if the address is on the same link.
    pub gateway: Option<IpAddr>,
    /// Whether the address belongs to this machine: its packets pass to the host, and only `mtu` has a meaning besides
    /// this flag.
    #[serde(default)]
    pub local: bool,
}

/// A change requested by a user.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Add a backend. The change is refused if the name is taken.
    Add {
        /// The name of the new backend.
        name: BackendName,
        /// The address of the new backend.
        address: IpAddr,
        /// The IPv6 address of the new backend, for services of both families.
        address6: Option<IpAddr>,
        /// The port of the new backend; `None`: the listener's port.
        port: Option<u16>,
        /// The weight of the new backend; `None`: 100.
        weight: Option<u16>,
        /// Whether the new backend is a backup.
        backup: bool,
        /// The limits of the backend.
        #[serde(default)]
        limits: Limits,
    },
    /// Remove a backend.
    Remove {
        /// The backend.
        name: BackendName,
        /// Remove it without draining.
        force: bool,
    },
    /// Set the administrative state.
    SetAdmin {
        /// The backend.
        name: BackendName,
        /// The new state.
        admin: Admin,
        /// With [`Admin::Drain`]: a timeout in place of the service's timeout.
        timeout: Option<Duration>,
    },
    /// Set the weight.
    SetWeight {
        /// The backend.
        name: BackendName,
        /// The new weight.
        weight: u16,
    },
    /// Set a backend's limits.
    SetLimits {
        /// The backend.
        name: BackendName,
        /// The new limits.
        limits: Limits,
    },
    /// Set the share of a service's clients that the balancer steers.
    SetSteer {
        /// The service's name.
        service: String,
        /// The new share in percent.
        steer: u8,
    },
    /// Give a service a new key for QUIC connection IDs. The balancer still understands IDs under earlier keys.
    RotateQuicKey {
        /// The service's name.
        service: String,
        /// The new key.
        key: QuicKey,
    },
    /// Add a listener to a service.
    AddListener {
        /// The service's name.
        service: String,
        /// The listener to be added.
        listener: Listener,
    },
    /// Remove a listener from a service.
    RemoveListener {
        /// The service's name.
        service: String,
        /// The listener to be removed.
        listener: Listener,
    },
    /// Override the verdict of the checks.
    ForceHealth {
        /// The backend.
        name: BackendName,
        /// The verdict; `None`: the checks decide again.
        forced: Option<Forced>,
    },
    /// Apply the report of a backend's agent.
    Agent {
        /// The backend.
        name: BackendName,
        /// The complete current report.
        said: Said,
    },
    /// Set which backends of a service give slots away because of their load.
    Bound {
        /// The service's name.
        service: String,
        /// The bounds by backend name. All other backends keep all of their slots.
        bounds: BTreeMap<String, Bound>,
    },
    /// Set which backends of a service take no new clients because they are at their limits.
    Full {
        /// The service's name.
        service: String,
        /// The full backends by name. All other backends have room.
        full: BTreeMap<String, Full>,
    },
    /// Add a rule for a client prefix; it replaces a rule for the same prefix.
    AddRule {
        /// The service's name.
        service: String,
        /// The prefix of the clients to which the rule applies.
        prefix: IpNet,
        /// The treatment of these clients.
        action: Action,
        /// The time after which the rule expires; `None`: never.
        ttl: Option<Duration>,
    },
    /// Remove the rule for a client prefix.
    RemoveRule {
        /// The service's name.
        service: String,
        /// The exact prefix of the rule.
        prefix: IpNet,
    },
    /// Apply the configuration file. Run-time changes stay where the file has not changed.
    #[serde(skip)]
    Reload(Box<Config>),
    /// Apply the configuration file and undo all run-time changes.
    #[serde(skip)]
    Reset(Box<Config>),
    /// Apply a list of targets.
    Discover {
        /// The service's name.
        service: String,
        /// The list.
        source: Source,
        /// All targets in the list.
        targets: Vec<Target>,
    },
}

/// A task for the shell. Tasks must be done in the given order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Write a backend's row. The command comes before a table names the backend.
    WriteBackend(Arc<BackendSpec>),
    /// Clear a backend's row. The command comes after the last table that names the backend is gone.
    RetireBackend(BackendId),
    /// Replace a service's whole live table.
    SwapTable {
        /// The service, which may be published only after this command.
        service: ServiceId,
        /// The `table_size` entries: backend ids, `NO_BACKEND` or `ALL_DOWN`.
        table: Arc<[u16]>,
        /// The base table, which defines clients' homes; `None`: no client has a home, because all clients are steered
        /// to backups or to no backend.
        home: Option<Arc<[u16]>>,
    },
    /// Replace the whole directory of services (and the return table of `nat` replies). Each service has already had a
    /// `SwapTable`. Services that are not listed are removed with their tables and rules.
    PublishServices(Vec<ServiceSpec>),
    /// Replace the rules of a service, each rule in one step. A service is published as having rules before it gets any
    /// rules, and as having none after the last rule is removed.
    SetRules {
        /// The service.
        service: ServiceId,
        /// All rules of the service, with unique prefixes.
        rules: Arc<[RuleSpec]>,
    },
    /// Track the next hop of an address: send an `Event::NextHop` now and at each change.
    WatchNextHop(IpAddr),
    /// Stop tracking an address.
    UnwatchNextHop(IpAddr),
    /// Start to check a backend, in place of any earlier check of this backend.
    StartChecks(Box<CheckSpec>),
    /// Stop checking a backend.
    StopChecks(BackendId),
    /// Inform the operator.
    Report(Report),
}

/// The specification of a backend's check.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSpec {
    /// The backend to be checked.
    pub backend: BackendId,
    /// The number that distinguishes its outcomes from those of earlier checks.
    pub number: CheckNumber,
    /// The name of the backend, for logs.
    pub name: BackendName,
    /// The address to connect to.
    pub target: SocketAddr,
    /// The kind of check; never `CheckKind::None`.
    pub check: CheckConfig,
    /// The verdict and the counts so far.
    pub health: Health,
}

/// A rule as the kernel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// The prefix of the rule's clients, which has the service's family.
    pub prefix: IpNet,
    /// How the rule treats its clients.
    pub action: RuleAction,
}

/// The treatment of a rule's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Steer to this backend while its row says that it takes clients; `None`: no backend has the rule's name.
    Pin(Option<BackendId>),
    /// Steer by the address and the source port.
    Spread,
    /// Drop the clients' packets.
    Deny,
}

/// A backend as the kernel needs it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackendSpec {
    /// The row of the backend in the kernel's maps.
    pub id: BackendId,
    /// The forwarding mode.
    pub forwarding: Forwarding,
    /// The backend's address; port 0: the listener's port.
    pub address: SocketAddr,
    /// The next hop; `None`: the backend is unreachable, and its packets are dropped as `no_next_hop`.
    pub next_hop: Option<NextHop>,
    /// The service to which the backend belongs.
    pub service: ServiceId,
    /// Whether known clients stay with the backend.
    pub keeps_known: bool,
    /// The cause of moves, if known clients do not stay.
    pub cause: MoveCause,
    /// Whether rules may pin clients to the backend.
    pub takes_pinned: bool,
    /// `ipip` and `gue`: this machine's address on the path to the backend, of the backend's family. A backend that
    /// needs such an address and has none is unreachable.
    pub tunnel_source: Option<IpAddr>,
    /// The reaction to signs of failure in packets; `None`: there is none.
    #[serde(default)]
    pub passive: Option<Passive>,
}

/// The reaction to signs of failure in packets. The balancer checks the backend at once in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Passive {
    /// `nat`: how long to withhold resets that refuse connections during the check; zero: not at all.
    pub withhold: Duration,
}

/// A service as the kernel needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The index of the service in the kernel's maps.
    pub id: ServiceId,
    /// The key of the service's client hash, derived from the fleet's key and the service's name.
    pub hash_key: HashKey,
    /// The family of the service's clients.
    pub family: Family,
    /// The listeners, at least one, all of that family.
    pub listeners: Vec<ListenerSpec>,
    /// Client prefix length for this family.
    pub client_prefix: u8,
    /// The forwarding mode.
    pub forwarding: Forwarding,
    /// How long clients are remembered; zero: the service has no memory.
    pub remember: Duration,
    /// The number of seconds in a tick of the service's memory; 0: chosen to suit `remember`.
    pub tick_seconds: u32,
    /// The treatment of moved clients when their home returns.
    pub failback: Failback,
    /// Whether the service has rules for client prefixes.
    pub rules: bool,
    /// Whether clients that no backend takes are rejected with an answer.
    pub reject: bool,
    /// `snat`: the pool and the idle times of the service's connections.
    pub flows: FlowSpec,
    /// How QUIC connection IDs encode the service's backends.
    pub quic: Option<QuicSpec>,
    /// The share of clients that the balancer steers.
    pub share: Share,
    /// The backends that are this machine itself, according to their rows.
    pub local: Vec<BackendId>,
    /// The ids and addresses of the service's backends, from which `nat` replies come (port 0: the listener's port).
    pub backends: Arc<[(BackendId, SocketAddr)]>,
}

/// How QUIC connection IDs encode the backends of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSpec {
    /// The formats and keys.
    pub config: QuicConfig,
    /// The server IDs of the backends, which are unique.
    pub servers: Arc<[(BackendId, ServerId)]>,
}

/// The addresses, ports and idle times for the connections of a `snat` service.
pub type FlowSpec = balancer_config::snat::SnatConfig;

/// A listener as the kernel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerSpec {
    /// The row of the listener's counters.
    pub id: ListenerId,
    /// Address, ports and protocol.
    pub listener: Listener,
    /// `nat`: the port of backends without their own port, if it differs from the listener's; otherwise 0.
    pub backend_port: u16,
    /// Whether the listener's packets are counted, because its service has several listeners.
    pub counted: bool,
}

/// A line for the log and the list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The severity.
    pub level: ReportLevel,
    /// The backend or (with an empty backend name) service that the report is about, if any.
    pub about: Option<BackendName>,
    /// One line, such as `backend web/web1 down (connect: refused), 16,384 of 65,537 slots moved to 3 backends`.
    pub message: String,
    /// The slots and clients that moved, if known.
    pub moves: Option<Moved>,
}

/// The slots and clients that a change moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moved {
    /// The number of slots of the live table that moved.
    pub slots: u64,
    /// The number of those slots whose old and new backend had not changed.
    pub needless: u64,
    /// The backend's known clients at the last sweep, which move with their next packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_clients: Option<u64>,
}

/// The severity of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportLevel {
    /// An intended change.
    Info,
    /// A problem that needs attention.
    Warn,
}
