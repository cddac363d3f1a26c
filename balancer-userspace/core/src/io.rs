//! Input and output of the core: events and changes in, commands out.

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
use balancer_model::{
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

/// Index of a service in the kernel's maps; stable while the service exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ServiceId(pub u16);

/// Row of a listener's counters in the kernel's maps, unique over all services; stable while the listener exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ListenerId(pub u16);

/// Row of a backend in the kernel's maps, unique over all services: 1 to `LAST_BACKEND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BackendId(pub u16);

/// Tells a check from those that ran before it on the same backend, or on another address of it. Never given twice in a
/// process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckNumber(pub u64);

/// Something that happened outside of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A health check ended. Ignored if the backend is gone, or is checked otherwise by now.
    Checked {
        /// The backend that was checked.
        backend: BackendId,
        /// Which of all that were started for it.
        check: CheckNumber,
        /// How.
        outcome: CheckOutcome,
        /// How long it took.
        took: Duration,
        /// Whether a suspicion caused it, so that it began after the packets that raised the suspicion.
        asked: bool,
    },
    /// The way to an address was resolved, changed or was lost.
    NextHop {
        /// The backends' address.
        address: IpAddr,
        /// The next hop, or why there is none.
        next_hop: Result<NextHop, String>,
    },
    /// A sweep of the client table is complete.
    Swept {
        /// Known clients by backend, in rising order of ids; a backend that is not listed has none.
        known: Vec<(BackendId, u64)>,
    },
    /// All connections of `snat` services were looked at.
    Flows {
        /// Connections by backend; a backend that is not listed has none.
        of: BTreeMap<BackendId, u64>,
    },
    /// A deadline given by `next_deadline` has come.
    Tick,
}

/// How frames reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NextHop {
    /// Egress interface.
    pub ifindex: u32,
    /// The egress interface's MAC.
    pub source_mac: Mac,
    /// The next hop's MAC.
    pub destination_mac: Mac,
    /// The MTU of the egress interface, or of the route or path where that is smaller.
    pub mtu: u32,
    /// This machine's own address on the way, where the route names one.
    pub source: Option<IpAddr>,
    /// The router that it goes through. `None`: the address is on the same link.
    pub gateway: Option<IpAddr>,
    /// The address is this machine's own: its packets pass to the host, and only `mtu` means anything beside this.
    #[serde(default)]
    pub local: bool,
}

/// A change that a user asks for.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Add a backend; refused if the name is taken.
    Add {
        /// The name of the new backend.
        name: BackendName,
        /// The address of the new backend.
        address: IpAddr,
        /// The IPv6 address of the new backend, for services of both families.
        address6: Option<IpAddr>,
        /// The port of the new backend; `None`: the listener's.
        port: Option<u16>,
        /// The weight of the new backend; `None`: 100.
        weight: Option<u16>,
        /// Whether it is a backup.
        backup: bool,
        /// How much it takes at most.
        #[serde(default)]
        limits: Limits,
    },
    /// Remove a backend.
    Remove {
        /// Which.
        name: BackendName,
        /// Without draining it first.
        force: bool,
    },
    /// Set the administrative state.
    SetAdmin {
        /// Which.
        name: BackendName,
        /// To what.
        admin: Admin,
        /// With [`Admin::Drain`]: instead of the service's drain timeout.
        timeout: Option<Duration>,
    },
    /// Set the weight.
    SetWeight {
        /// Which.
        name: BackendName,
        /// To what.
        weight: u16,
    },
    /// Set how much a backend takes at most.
    SetLimits {
        /// Which.
        name: BackendName,
        /// To what.
        limits: Limits,
    },
    /// Set the share of a service's clients that are steered.
    SetSteer {
        /// The service's name.
        service: String,
        /// In percent.
        steer: u8,
    },
    /// Have servers of a service name themselves under another key. What they have named before is understood.
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
        /// Which.
        listener: Listener,
    },
    /// Override what the checks find.
    ForceHealth {
        /// Which.
        name: BackendName,
        /// `None`: the checks decide again.
        forced: Option<Forced>,
    },
    /// Put in force what the agent of a backend says.
    Agent {
        /// Which.
        name: BackendName,
        /// All that it has said so far.
        said: Said,
    },
    /// Put in force which backends of a service give slots away because of their load.
    Bound {
        /// The service's name.
        service: String,
        /// By the names of backends. All others give nothing away.
        bounds: BTreeMap<String, Bound>,
    },
    /// Have these backends of a service take no new clients, because they are at their limits.
    Full {
        /// The service's name.
        service: String,
        /// By the names of backends. All others have room.
        full: BTreeMap<String, Full>,
    },
    /// Add a rule for a client prefix; it replaces one for the same prefix.
    AddRule {
        /// The service's name.
        service: String,
        /// The prefix of the clients that the rule is for.
        prefix: IpNet,
        /// How the rule treats its clients.
        action: Action,
        /// After which it ends by itself.
        ttl: Option<Duration>,
    },
    /// Remove the rule for a client prefix.
    RemoveRule {
        /// The service's name.
        service: String,
        /// Exactly this prefix.
        prefix: IpNet,
    },
    /// Take over what the configuration file says now. What was changed at run time stays where the file says what it
    /// said before.
    #[serde(skip)]
    Reload(Box<Config>),
    /// The same, and undo what was changed at run time.
    #[serde(skip)]
    Reset(Box<Config>),
    /// Take over a list of targets.
    #[serde(skip)]
    Discover {
        /// The service's name.
        service: String,
        /// The list.
        source: Source,
        /// All targets of it.
        targets: Arc<Vec<Target>>,
    },
}

/// Something for the shell to do, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Write a backend's row. Comes before a table names it.
    WriteBackend(Arc<BackendSpec>),
    /// Forget a backend's row. Comes after the last table that names it is gone.
    RetireBackend(BackendId),
    /// Replace a service's live table, whole.
    SwapTable {
        /// Which service. It may be one that is published only afterwards.
        service: ServiceId,
        /// `table_size` entries: a backend id, `NO_BACKEND` or `ALL_DOWN`.
        table: Arc<[u16]>,
        /// The base table, where every client is at home. `None`: nobody is, all are steered to backups or to nobody.
        home: Option<Arc<[u16]>>,
    },
    /// Replace the directory of services (and the way back of `nat` replies), whole. Each has had a `SwapTable`.
    /// Services that are no longer listed are gone, and their tables and rules with them.
    PublishServices(Vec<ServiceSpec>),
    /// Make these the rules of a service, each replaced in one piece. A service is published as one with rules before it
    /// has any, and as one without after it has none.
    SetRules {
        /// Which service.
        service: ServiceId,
        /// All its rules, no prefix twice.
        rules: Arc<[RuleSpec]>,
    },
    /// Keep the next hop of an address known: an `Event::NextHop` now and at each change.
    WatchNextHop(IpAddr),
    /// The address is of no more interest.
    UnwatchNextHop(IpAddr),
    /// Check a backend from now on (replacing an earlier check of it).
    StartChecks(Box<CheckSpec>),
    /// Check it no more.
    StopChecks(BackendId),
    /// Tell the operator.
    Report(Report),
}

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSpec {
    /// The backend to be checked.
    pub backend: BackendId,
    /// To tell its outcomes from those of the checks before.
    pub number: CheckNumber,
    /// For logs.
    pub name: BackendName,
    /// Where the check connects to.
    pub target: SocketAddr,
    /// How; never `CheckKind::None`.
    pub check: CheckConfig,
    /// The verdict and the counts so far.
    pub health: Health,
}

/// A rule as the kernel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// The prefix of the rule's clients, of the service's family.
    pub prefix: IpNet,
    /// How the rule treats its clients.
    pub action: RuleAction,
}

/// How a rule treats its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// To this backend, while its row says that it takes clients; `None`: there is none of that name.
    Pin(Option<BackendId>),
    /// By the source port as well.
    Spread,
    /// Dropped.
    Deny,
}

/// A backend as the kernel needs it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackendSpec {
    /// The row of the backend in the kernel's maps.
    pub id: BackendId,
    /// How it is reached.
    pub forwarding: Forwarding,
    /// The backend's address; port 0: the one that the listener says.
    pub address: SocketAddr,
    /// `None`: unreachable, packets are dropped as `no_next_hop`.
    pub next_hop: Option<NextHop>,
    /// The service it belongs to.
    pub service: ServiceId,
    /// Whether known clients stay with it.
    pub keeps_known: bool,
    /// Why they are moved, where they do not.
    pub cause: MoveCause,
    /// Whether rules may pin clients to it.
    pub takes_pinned: bool,
    /// `ipip` and `gue`: this machine's address on the way to the backend, of the backend's family. A backend that needs
    /// one and has none is unreachable.
    pub tunnel_source: Option<IpAddr>,
    /// The reaction to packets which suggest that the backend may have failed; `None`: there is none.
    #[serde(default)]
    pub passive: Option<Passive>,
}

/// The reaction to packets which suggest that a backend may have failed. The backend is checked at once in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Passive {
    /// `nat`: for how long resets that refuse connections are withheld meanwhile; zero: they are not.
    pub withhold: Duration,
}

/// A service as the kernel needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The index of the service in the kernel's maps.
    pub id: ServiceId,
    /// The key of its client hash, derived from the fleet's key and the service's name.
    pub hash_key: HashKey,
    /// The family of its clients.
    pub family: Family,
    /// Where it is reached, in that family: at least one.
    pub listeners: Vec<ListenerSpec>,
    /// Client prefix length for the family.
    pub client_prefix: u8,
    /// How packets reach its backends.
    pub forwarding: Forwarding,
    /// How long clients are remembered; zero: not at all.
    pub remember: Duration,
    /// Seconds in a tick of its memory; 0: as suits `remember` best.
    pub tick_seconds: u32,
    /// Where moved clients go when their home returns.
    pub failback: Failback,
    /// Whether it has rules for client prefixes.
    pub rules: bool,
    /// Whether clients that nobody takes are told so.
    pub reject: bool,
    /// `snat`: its connections.
    pub flows: FlowSpec,
    /// How connection IDs of QUIC name its backends.
    pub quic: Option<QuicSpec>,
    /// The share of clients that are steered.
    pub share: Share,
    /// The backends that are this machine itself, as their rows say.
    pub local: Vec<BackendId>,
    /// The ids and addresses of the service's backends, from which `nat` replies come (port 0: the one that the
    /// listener says).
    pub backends: Arc<[(BackendId, SocketAddr)]>,
}

/// How connection IDs of QUIC name the backends of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSpec {
    /// Formats and keys.
    pub config: QuicConfig,
    /// The names of the backends, no name twice.
    pub servers: Arc<[(BackendId, ServerId)]>,
}

/// The addresses, ports and idle times for the connections of a `snat` service.
pub type FlowSpec = balancer_model::snat::SnatConfig;

/// A listener as the kernel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerSpec {
    /// The row of the listener's counters.
    pub id: ListenerId,
    /// Address, ports and protocol.
    pub listener: Listener,
    /// `nat`: the port of backends without one of their own, if it is not the listener's; 0: it is.
    pub backend_port: u16,
    /// Whether its packets are counted: where it is one of several of its service.
    pub counted: bool,
}

/// A line for the log and the list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How serious.
    pub level: ReportLevel,
    /// About whom, where it is about a backend or (with an empty backend name) a service.
    pub about: Option<BackendName>,
    /// One line, e.g. `backend web/web1 down (connect: refused), 16,384 of 65,537 slots moved to 3 backends`.
    pub message: String,
    /// The slots and clients that moved, where that is known.
    pub moves: Option<Moved>,
}

/// The slots and clients that a change moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moved {
    /// Slots of the live table.
    pub slots: u64,
    /// Those among them whose old and new backend had not changed.
    pub needless: u64,
    /// Known clients of the backend, at the last sweep, that are moved with their next packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_clients: Option<u64>,
}

/// How serious a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportLevel {
    /// As intended.
    Info,
    /// Somebody should look.
    Warn,
}
