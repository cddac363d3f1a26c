//! The input and output of the core: events and changes are the input, and commands are the output.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
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
    config::{CheckConfig, Config, Failback, ServiceConfig},
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

/// The row of a listener's counters in the kernel's maps, unique among all services, stable while the listener exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ListenerId(pub u16);

/// The row of a backend in the kernel's maps, unique among all services: 1 to `LAST_BACKEND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BackendId(pub u16);

/// A number that distinguishes a check from earlier checks of the same backend, even if the backend's address has
/// changed. The number is unique within a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckNumber(pub u64);

/// An event outside of the core that the core must handle.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A health check of a backend ended. The core ignores the event if the backend was removed or its check has
    /// changed.
    Checked {
        backend: BackendId,
        check: CheckNumber,
        outcome: CheckOutcome,
        took: Duration,
        /// Whether a sign of failure triggered the check, so that the check began after the suspicious packets.
        asked: bool,
    },
    /// The path to an address was found, has changed or was lost.
    NextHop {
        /// The address of one or more backends.
        address: IpAddr,
        /// The next hop, or the reason why the address has none.
        next_hop: Result<NextHop, String>,
    },
    /// A sweep of the client table is complete.
    Swept {
        /// The numbers of known clients by backend, in ascending order of ids; backends that are not listed have no
        /// known clients.
        known: Vec<(BackendId, u64)>,
    },
    /// The shell has counted all connections of `snat` services.
    Flows {
        /// The numbers of connections by backend; backends that are not listed have no connections.
        of: BTreeMap<BackendId, u64>,
        /// The ports that connections hold, by backend; connections to backends that are not listed hold no ports.
        ports: BTreeMap<BackendId, PortsInUse>,
        /// The backends whose drains wait for connections, and that have received packets since the previous count.
        active: BTreeSet<BackendId>,
    },
    /// A deadline that `next_deadline` returned has passed.
    Tick,
}

impl Event {
    /// The address of backends which, by this event, belongs to this machine.
    #[must_use]
    pub fn local_address(&self) -> Option<IpAddr> {
        if let Self::NextHop { address, next_hop: Ok(hop) } = self { hop.local.then_some(*address) } else { None }
    }
}

/// How many ports of its address pool a `snat` backend's connections hold that do not give way to new connections. If
/// the backend has several ports, the numbers are those of the port with the fewest free ports of the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortsInUse {
    pub taken: u32,
    /// The number of ports of all addresses of the pool.
    pub all: u32,
}

impl PortsInUse {
    /// The fraction of the ports that are taken.
    #[must_use]
    pub fn part(&self) -> f64 {
        f64::from(self.taken) / f64::from(self.all.max(1))
    }

    /// Compares fractions of ports that are taken.
    #[must_use]
    pub fn by_part(&self, other: &Self) -> Ordering {
        self.part().total_cmp(&other.part())
    }
}

/// How frames reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NextHop {
    pub ifindex: u32,
    /// The MAC of the egress interface.
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// The MTU of the egress interface, or the MTU of the route or path if it is smaller.
    pub mtu: u32,
    /// This machine's own address on the path, if the route contains one.
    pub source: Option<IpAddr>,
    /// The router on the path; `None` if the address is on a link of this machine.
    pub gateway: Option<IpAddr>,
    /// Whether the address belongs to this machine: if so, its packets pass to the host, and of the other fields only
    /// `mtu` has a meaning.
    #[serde(default)]
    pub local: bool,
}

/// A change that a user requests.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Add a backend to a service. The controller refuses the change if another backend has this name.
    Add {
        name: BackendName,
        address: IpAddr,
        /// The IPv6 address of the new backend, if the service has both families.
        address6: Option<IpAddr>,
        /// The port of the new backend; `None`: the listener's port.
        port: Option<u16>,
        /// The weight of the new backend; `None`: 100.
        weight: Option<u16>,
        backup: bool,
        /// The limits on clients and connections of the new backend.
        #[serde(default)]
        limits: Limits,
    },
    /// Remove a backend from a service.
    Remove {
        name: BackendName,
        /// Whether the controller removes the backend without draining it.
        force: bool,
    },
    /// Set the administrative state of a backend.
    SetAdmin {
        name: BackendName,
        /// The administrative state that the backend gets.
        admin: Admin,
        /// With [`Admin::Drain`]: a timeout for this drain in place of the service's timeout.
        timeout: Option<Duration>,
    },
    SetWeight {
        name: BackendName,
        weight: u16,
    },
    /// Set the limits on clients and connections of a backend.
    SetLimits {
        name: BackendName,
        limits: Limits,
    },
    /// Set the share of a service's clients that the balancer steers.
    SetSteer {
        service: String,
        /// The new share in percent.
        steer: u8,
    },
    /// Give a service a new key for its QUIC connection IDs. The balancer still understands connection IDs under
    /// earlier keys.
    RotateQuicKey {
        service: String,
        key: QuicKey,
    },
    AddListener {
        service: String,
        listener: Listener,
    },
    RemoveListener {
        service: String,
        /// The listener that the service loses.
        listener: Listener,
    },
    /// Override the verdict of the checks on a backend.
    ForceHealth {
        name: BackendName,
        /// The verdict; `None`: the checks determine the verdict again.
        forced: Option<Forced>,
    },
    /// Apply the report that the agent of a backend has sent.
    Agent {
        name: BackendName,
        /// The complete current report of the agent.
        said: Said,
    },
    /// Set which backends of a service give slots away because of their load.
    Bound {
        service: String,
        /// The bounds by the name of the backend. All backends that are not named keep all of their slots.
        bounds: BTreeMap<String, Bound>,
    },
    /// Set which backends of a service take no new clients because they are at their limits.
    Full {
        service: String,
        /// The names of the full backends. All backends that are not named have room.
        full: BTreeMap<String, Full>,
    },
    /// Add a rule for a client prefix; this rule replaces an earlier rule for the same prefix.
    AddRule {
        service: String,
        /// The prefix of the clients to which the rule applies.
        prefix: IpNet,
        /// How the rule treats these clients.
        action: Action,
        /// The time after which the rule expires; `None`: the rule never expires.
        ttl: Option<Duration>,
    },
    /// Remove the rule for a client prefix.
    RemoveRule {
        service: String,
        /// The exact prefix of the rule.
        prefix: IpNet,
    },
    /// Replace a drop-in. Changes made at run time stay in effect where the drop-in has not changed.
    SetDropIn {
        name: String,
        text: String,
        /// The services in the text; without services, the controller removes the drop-in.
        services: Vec<ServiceConfig>,
    },
    /// Apply the configuration file. Changes made at run time stay in effect where the file has not changed.
    #[serde(skip)]
    Reload(Box<Config>),
    /// Apply the configuration file and undo all changes made at run time.
    #[serde(skip)]
    Reset(Box<Config>),
    /// Apply a list of targets to a service.
    Discover {
        service: String,
        /// The list from which the targets come.
        source: Source,
        targets: Vec<Target>,
        /// The names of the backends that stay although the list lacks their targets.
        #[serde(default)]
        waiting: BTreeSet<String>,
    },
}

/// A command for the shell, which carries out the core's decisions. The shell must carry out commands in the given
/// order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Write the row of a backend. This command comes before a table names the backend.
    WriteBackend(Arc<BackendSpec>),
    /// Clear the row of a backend. This command comes after the last table that names the backend.
    RetireBackend(BackendId),
    /// Replace the whole live table of a service.
    SwapTable {
        /// The id of the service, which may be published only after this command.
        service: ServiceId,
        /// The `table_size` entries of the table: backend ids, `NO_BACKEND` or `ALL_DOWN`.
        table: Arc<[u16]>,
        /// The base table, which defines the home backends of clients; `None`: no client has a home backend, because
        /// all clients are steered to backups or to no backend.
        home: Option<Arc<[u16]>>,
    },
    /// Replace the whole directory of services (and the return table of `nat` replies). For each service in the
    /// directory, the shell has already had a `SwapTable`. The data path removes a service that is not in the
    /// directory, with the service's tables and rules.
    PublishServices(Vec<ServiceSpec>),
    /// Replace the rules of a service; each single rule changes in one step. The directory says that a service has
    /// rules before the service gets its first rule, and it says that the service has no rules after the last rule is
    /// removed.
    SetRules {
        service: ServiceId,
        /// All rules of the service; no two rules have the same prefix.
        rules: Arc<[RuleSpec]>,
    },
    /// Track the next hop of an address: send an `Event::NextHop` now and after each change.
    WatchNextHop(IpAddr),
    /// Stop tracking the next hop of an address.
    UnwatchNextHop(IpAddr),
    /// Start to check a backend, in place of any earlier check of this backend.
    StartChecks(Box<CheckSpec>),
    StopChecks(BackendId),
    /// Report a line to the operator.
    Report(Report),
}

/// The specification of a backend's check.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSpec {
    pub backend: BackendId,
    /// The number that distinguishes the outcomes of this check from those of earlier checks.
    pub number: CheckNumber,
    /// The name of the backend, for logs.
    pub name: BackendName,
    /// The address to which the check connects.
    pub target: SocketAddr,
    /// The kind of check; never `CheckKind::None`.
    pub check: CheckConfig,
    /// How long the backend may refuse checks, as while its server restarts, before refusals count as a failure.
    pub restart_grace: Duration,
    /// The verdict so far, and the checks counted towards another verdict.
    pub health: Health,
}

/// A rule in the form that the kernel program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// The prefix of the rule's clients, which has the service's family.
    pub prefix: IpNet,
    /// How the rule treats its clients.
    pub action: RuleAction,
}

/// How a rule treats its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Steer the clients to this backend while its row says that it takes clients; `None`: no backend has the name that
    /// the rule gives.
    Pin(Option<BackendId>),
    /// Steer each connection by the client's address and source port.
    Spread,
    /// Drop the packets of the clients.
    Deny,
}

/// A backend in the form that the kernel program needs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackendSpec {
    /// The row of the backend in the kernel's maps.
    pub id: BackendId,
    /// The forwarding mode of the service.
    pub forwarding: Forwarding,
    /// The backend's address; port 0: the listener's port.
    pub address: SocketAddr,
    /// The next hop; `None`: the backend is unreachable, and the program drops its packets with the reason
    /// `no_next_hop`.
    pub next_hop: Option<NextHop>,
    pub service: ServiceId,
    /// Whether known clients stay at the backend.
    pub keeps_known: bool,
    /// The cause of moves, if known clients do not stay at the backend.
    pub cause: MoveCause,
    /// Whether the backend takes new clients at present, so that rules may pin clients to it, and QUIC connection IDs
    /// may open `snat` connections to it. `false` if the service has neither.
    pub takes_pinned: bool,
    /// `ipip` and `gue`: this machine's address on the path to the backend, in the backend's family. A backend that
    /// needs a tunnel source but has none is unreachable.
    pub tunnel_source: Option<IpAddr>,
    /// How the program reacts to signs of failure in packets; `None`: it ignores the signs.
    #[serde(default)]
    pub passive: Option<Passive>,
}

/// How the program reacts to signs of failure in packets. In any case, the balancer checks the backend immediately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Passive {
    /// `nat`: how long the program withholds resets that refuse connections while the check runs; zero: the program
    /// withholds no resets.
    pub withhold: Duration,
}

/// A service in the form that the kernel program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The index of the service in the kernel's maps.
    pub id: ServiceId,
    /// The key of the service's client hash, derived from the fleet's key and the service's name.
    pub hash_key: HashKey,
    pub family: Family,
    /// The listeners, at least one; all listeners have the service's family.
    pub listeners: Vec<ListenerSpec>,
    /// The client prefix length for the service's family.
    pub client_prefix: u8,
    pub forwarding: Forwarding,
    /// How long the service remembers clients; zero: the service has no memory.
    pub remember: Duration,
    /// The number of seconds in a tick of the service's memory; 0: the data path chooses a number that suits
    /// `remember`.
    pub tick_seconds: u32,
    /// How the service treats moved clients when their home backend returns.
    pub failback: Failback,
    /// Whether the service has rules for client prefixes.
    pub rules: bool,
    /// Whether the program rejects the packets of clients that no backend takes.
    pub reject: bool,
    /// `snat`: the address pool and the idle times of the service's connections.
    pub flows: FlowSpec,
    /// How QUIC connection IDs name the service's backends.
    pub quic: Option<QuicSpec>,
    /// The share of clients that the balancer steers.
    pub share: Share,
    /// The backends that are this machine itself, according to the backends' rows.
    pub local: Vec<BackendId>,
    /// The ids and addresses of the service's backends, from which `nat` replies come (port 0: the listener's port).
    pub backends: Arc<[(BackendId, SocketAddr)]>,
}

/// How QUIC connection IDs name the backends of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSpec {
    /// The formats of connection IDs and the keys.
    pub config: QuicConfig,
    /// The server IDs of the backends; no two backends have the same server ID.
    pub servers: Arc<[(BackendId, ServerId)]>,
}

/// The addresses, ports and idle times for the connections of a `snat` service.
pub type FlowSpec = balancer_config::snat::SnatConfig;

/// A listener in the form that the kernel program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerSpec {
    /// The row of the listener's counters in the kernel's maps.
    pub id: ListenerId,
    /// The address, the ports and the protocol of the listener.
    pub listener: Listener,
    /// `nat`: the port on which backends without their own port listen, if it differs from the listener's port;
    /// otherwise 0.
    pub backend_port: u16,
    /// Whether the program counts packets for the listener, because the service has several listeners.
    pub counted: bool,
}

/// A line for the log and for the list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The severity of the report.
    pub level: ReportLevel,
    /// The backend or (with an empty backend name) the service that the report is about, if there is one.
    pub about: Option<BackendName>,
    /// One line, such as `backend web/web1 down (connect: refused), 16,384 of 65,537 slots moved to 3 backends`.
    pub message: String,
    /// The slots and the clients that moved, if the numbers are known.
    pub moves: Option<Moved>,
}

/// The slots and the clients that a change moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moved {
    /// The number of slots of the live table that moved.
    pub slots: u64,
    /// The number of moved slots whose old and new backend had not changed.
    pub needless: u64,
    /// The number of the backend's known clients at the last sweep, each of which moves with its next packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_clients: Option<u64>,
}

/// The severity of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportLevel {
    /// The report is about an intended change.
    Info,
    /// The report is about a problem that needs attention.
    Warn,
}
