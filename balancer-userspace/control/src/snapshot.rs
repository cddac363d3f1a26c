//! A copy of everything visible of a running balancer, so that rendering never delays the controller.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use balancer_common::{
    map_types::{
        BackendStats, DropStats, Forwarding, InterfaceStats, ListenerStats, MemoryStats, ReplyStats, SampleStats,
        ShareStats,
    },
    quic::QuicStats,
    share::{Share, WHOLE},
    verdict::{MOVE_COUNTERS, Signal},
};
use balancer_config::{
    agent::Said,
    bounded::Bound,
    config::ClientPrefix,
    discover::Source,
    limits::{Full, Limits},
    listeners::{Family, Listener},
    names::BackendName,
    quic::{QuicConfig, ServerId},
    states::{Admin, BackendState, Forced},
    words::counted,
};

use ipnet::IpNet;

use crate::{
    fleet::FleetSnapshot,
    health::Health,
    history::{Counted, History},
    io::{BackendId, CheckOutcome, ServiceId},
    last_changes::LastChange,
    rates::{Rates, TrafficHistory},
    ratios::{self, share},
    readiness::Readiness,
    run_time::RunTimeChange,
    shares::{Load, ShareHistory},
    top::Top,
};

/// The state at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot<Services = Vec<ServiceSnapshot>> {
    /// The interfaces to which the program is attached.
    pub interfaces: Vec<InterfaceSnapshot>,
    /// The services in configuration order.
    pub services: Services,
    /// The counters of dropped packets.
    pub drops: DropStats,
    /// Packets that the XDP program answered.
    pub replies: ReplyStats,
    /// Frames that were redirected but not sent, by the name of the interface to which they were redirected.
    pub redirect_errors: BTreeMap<String, u64>,
    /// The state of the client table.
    pub memory: MemorySnapshot,
    /// The state of the flow table; `None`: no service is `snat`.
    pub flows: Option<FlowsSnapshot>,
    /// The number of changes that users have made.
    pub generation: u64,
    /// The changes made at run time.
    pub changed: Vec<RunTimeChange>,
    /// The state of this balancer that matters to machines that send it clients.
    pub member: MemberSnapshot,
    /// The fleet to which the balancer belongs; `None`: it belongs to none.
    pub fleet: Option<FleetSnapshot>,
}

/// The services of a snapshot, assembled one at a time so that only a few of sixty thousand backends are in memory.
pub struct Coming(Box<dyn Iterator<Item = ServiceSnapshot> + Send>);

impl Coming {
    /// Wraps an iterator that yields the services one at a time.
    #[must_use]
    pub fn new(services: impl Iterator<Item = ServiceSnapshot> + Send + 'static) -> Self {
        Self(Box::new(services))
    }
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coming").finish_non_exhaustive()
    }
}

impl Iterator for Coming {
    type Item = ServiceSnapshot;

    fn next(&mut self) -> Option<ServiceSnapshot> {
        self.0.next()
    }
}

impl<Services> Snapshot<Services> {
    /// Replaces the services with the result of `make`.
    #[must_use]
    pub fn map<Made>(self, make: impl FnOnce(Services) -> Made) -> Snapshot<Made> {
        let Self {
            interfaces,
            services,
            drops,
            replies,
            redirect_errors,
            memory,
            flows,
            generation,
            changed,
            member,
            fleet,
        } = self;
        let services = make(services);
        Snapshot {
            interfaces,
            services,
            drops,
            replies,
            redirect_errors,
            memory,
            flows,
            generation,
            changed,
            member,
            fleet,
        }
    }
}

impl Snapshot<Coming> {
    /// Collects all services.
    #[must_use]
    pub fn whole(self) -> Snapshot {
        self.map(Iterator::collect)
    }
}

impl From<Snapshot> for Snapshot<Coming> {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.map(|services| Coming::new(services.into_iter()))
    }
}

/// The state of a balancer that matters to machines that send it clients.
#[derive(Clone, Debug, Default)]
pub struct MemberSnapshot {
    /// Whether the balancer is fit to receive clients.
    pub readiness: Readiness,
    /// Whether the operator has withdrawn the balancer's VIPs.
    pub withdrawn: bool,
    /// The VIPs that balancers have assigned to this machine, with their interfaces.
    pub vips: Vec<(IpAddr, String)>,
}

/// The state of the client table.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySnapshot {
    /// The number of known clients for which the table is sized.
    pub capacity: u64,
    /// The number of known clients at the last sweep.
    pub entries: u64,
    /// The number of slots for which packets read the client table, over all services.
    pub exceptions: u64,
    /// Counters of the client table, summed over all CPUs.
    pub stats: MemoryStats,
    /// Counters of samples, summed over all CPUs.
    pub samples: SampleStats,
}

/// The state of the flow table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowsSnapshot {
    /// The number of connections for which the table is sized.
    pub capacity: u64,
    /// The number of rows in use, by connections or by their resting ports.
    pub entries: u64,
    /// The backends for which at least four fifths of the ports are taken, with the taken fraction.
    pub full_pools: Vec<(BackendName, f64)>,
}

/// An interface to which the program is attached.
#[derive(Clone, Debug)]
pub struct InterfaceSnapshot {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface.
    pub ifindex: u32,
    /// The XDP mode: `native` or `generic`.
    pub xdp_mode: &'static str,
    /// The numbers of packets by verdict, summed over all CPUs.
    pub stats: InterfaceStats,
}

/// Statistics that come from observing a service over time.
#[derive(Clone, Debug, Default)]
pub struct ServiceStatistics {
    /// The sampling interval: one packet in this many.
    pub interval: u32,
    /// The service's clients by traffic.
    pub top: Arc<Top>,
    /// The sample from about a minute ago: its age and its counts.
    pub minute: Option<(Duration, Counted)>,
    /// The sample from about an hour ago: its age and its counts.
    pub hour: Option<(Duration, Counted)>,
    /// Counters at every ten seconds of the last ten minutes.
    pub history: Arc<History>,
    /// The shares of the service's backends in the minutes of the last hour.
    pub shares: Arc<ShareHistory>,
    /// The moment of the snapshot on the history's clock.
    pub now: Duration,
    /// Matters that need attention, one line each.
    pub warnings: Vec<String>,
    /// The recent counters of traffic that was forwarded to the service's backends.
    pub traffic: Arc<TrafficHistory>,
    /// The first thing to check if no packets arrive; `None`: some arrive, or it is unknown whether any do.
    pub silence: Option<String>,
}

/// A removed backend that clients still know.
#[derive(Clone, Debug)]
pub struct GoneSnapshot {
    /// Index of the backend's row in the kernel's maps.
    pub id: BackendId,
    /// Name of the removed backend.
    pub name: String,
    /// The number of known clients at the last sweep.
    pub known_clients: u64,
    /// Counters, summed over all CPUs.
    pub stats: BackendStats,
}

/// A listener of a service.
#[derive(Clone, Copy, Debug)]
pub struct ListenerSnapshot {
    /// The address, the ports and the protocol.
    pub listener: Listener,
    /// The listener's counters, summed over all CPUs; `None`: it is the only listener and has no counters of its own.
    pub stats: Option<ListenerStats>,
}

/// The lookup table of a service, or of one of its address families.
#[derive(Clone, Debug)]
pub struct TableSnapshot {
    /// The address family.
    pub family: Family,
    /// The M entries: backend ids; or `ALL_DOWN` throughout, or `NO_BACKEND` throughout.
    pub live: Arc<[u16]>,
    /// The table that holds while all primary backends take new clients; `None`: none of them does.
    pub base: Option<Arc<[u16]>>,
}

/// An outage of a service: a large part of its backends fails, so that known clients stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutageSnapshot {
    /// The duration so far.
    pub lasted: Duration,
    /// A line with the numbers of down backends and kept clients.
    pub line: String,
}

/// A deny list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedSnapshot {
    /// The file with the prefixes.
    pub file: PathBuf,
    /// The number of denied prefixes.
    pub prefixes: usize,
    /// The number of packets that the list has denied.
    pub packets: u64,
    /// The time since the file was read.
    pub read: Option<Duration>,
    /// Why the current contents of the file are not in effect.
    pub error: Option<String>,
}

/// The threshold at which a rule `spread` is suggested for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadHeavy {
    /// The fraction of the service's bytes from which on a rule is suggested.
    pub share: f64,
    /// Prefixes that already have a rule.
    pub ruled: Vec<IpNet>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct ServiceSnapshot {
    /// The indices of the service in the kernel's maps. A service with both families has two, beginning with that of
    /// its first listener's family.
    pub ids: Vec<ServiceId>,
    /// The client prefix lengths.
    pub client_prefix: ClientPrefix,
    /// The last change of its table.
    pub last_change: Option<LastChange>,
    /// The service's statistics, which the task that collects them fills in.
    pub statistics: ServiceStatistics,
    /// Name of the service.
    pub name: String,
    /// The service's listeners.
    pub listeners: Vec<ListenerSnapshot>,
    /// The forwarding mode.
    pub forwarding: Forwarding,
    /// The number of slots.
    pub table_size: u32,
    /// The service's lookup table, or both tables if it has both address families.
    pub tables: Vec<TableSnapshot>,
    /// The number of live tables so far.
    pub table_generation: u64,
    /// The number of slots moved since the start because a backend's share changed.
    pub slots_moved_required: u64,
    /// The number of other slots moved since the start.
    pub slots_moved_needless: u64,
    /// How long the last table build took.
    pub table_build: Duration,
    /// The current outage, if any.
    pub outage: Option<OutageSnapshot>,
    /// Whether clients are remembered.
    pub remembers: bool,
    /// The share of clients that the balancer steers.
    pub share: Share,
    /// The packets that passed to the host, which serves the other clients.
    pub passed: ShareStats,
    /// How QUIC connection IDs encode the service's backends, and the counters.
    pub quic: Option<QuicSnapshot>,
    /// The packets that a rule pinned to a backend that took no clients.
    pub rule_fallbacks: u64,
    /// The threshold for suggesting a rule for a heavy client; `None`: no suggestions.
    pub spread_heavy: Option<SpreadHeavy>,
    /// The deny list; `None` if the service has none.
    pub denied: Option<DeniedSnapshot>,
    /// The lists of targets that become the service's backends.
    pub discover: Vec<DiscoverSnapshot>,
    /// The counters of backends that were removed for good, by name; summed up after an hour.
    pub removed_backends: Vec<(String, BackendStats)>,
    /// The moves counted here that another member of the fleet has made and counts as well, by cause.
    pub repeated_moves: [u64; MOVE_COUNTERS],
    /// The removed backends that clients still know.
    pub gone: Vec<GoneSnapshot>,
    /// The service's present backends.
    pub backends: Vec<BackendSnapshot>,
}

/// How QUIC connection IDs encode the backends of a service, and the counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSnapshot {
    /// The formats and keys.
    pub config: QuicConfig,
    /// Counters of packets and addresses.
    pub stats: QuicStats,
    /// For each backend: its configured name, its server ID, and the number of known clients that left it because a
    /// connection named another backend.
    pub servers: Vec<(String, ServerId, u64)>,
}

impl ServiceSnapshot {
    /// The client prefix length for the family of an address.
    #[must_use]
    pub const fn prefix_of(&self, client: IpAddr) -> u8 {
        if client.is_ipv4() { self.client_prefix.v4 } else { self.client_prefix.v6 }
    }

    /// The sum of a counter over all present and removed backends.
    #[must_use]
    pub fn total(&self, counter: impl Fn(&BackendStats) -> u64) -> u64 {
        let present = self.backends.iter().map(|backend| &backend.stats);
        let gone = self.gone.iter().map(|gone| &gone.stats);
        let removed_backends = self.removed_backends.iter().map(|(_, stats)| stats);
        present.chain(gone).chain(removed_backends).map(counter).sum()
    }

    /// The counters of all backends by id, before services of both families are joined.
    pub fn stats_mut(&mut self) -> impl Iterator<Item = (BackendId, &mut BackendStats)> {
        let gone = self.gone.iter_mut().map(|gone| (gone.id, &mut gone.stats));
        let present = self.backends.iter_mut();
        present.filter_map(|backend| Some((*backend.ids.first()?, &mut backend.stats))).chain(gone)
    }

    /// Returns the sums of the counters of all the service's backends, without moves that other members count.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted {
            decisions: std::array::from_fn(|index| {
                self.total(|stats| stats.decisions.get(index).copied().unwrap_or(0))
            }),
            moves: std::array::from_fn(|index| {
                let moves = self.total(|stats| stats.moves.get(index).copied().unwrap_or(0));
                moves.saturating_sub(self.repeated_moves.get(index).copied().unwrap_or(0))
            }),
        }
    }

    /// Returns one line on the effects of sharing the service's clients with the host; `None`: the balancer has steered
    /// every client for a long time.
    #[must_use]
    pub fn sharing_line(&self) -> Option<String> {
        let Share { now, least, most } = self.share;
        let ShareStats { unsteered, host_connections } = self.passed;
        let of_host = if host_connections > 0 {
            format!(
                ", {} of connections that its clients have to the host",
                counted(host_connections as usize, "packet")
            )
        } else {
            String::new()
        };
        match now {
            0 if most == 0 => {
                Some("watched: every packet passes to the host, the figures say what would be".to_owned())
            }
            0 => {
                Some("watched: every packet passes to the host but those of connections that backends have".to_owned())
            }
            WHOLE if least == WHOLE => None,
            WHOLE => Some(format!("every client is steered; connections that the host has stay there{of_host}")),
            _ => {
                let passed = counted(unsteered as usize, "packet");
                Some(format!("{now}% of the clients are steered; {passed} of the others passed to the host{of_host}"))
            }
        }
    }

    /// Whether every packet passes to the host, and counters show what the balancer would have done.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.share.now == 0
    }

    /// Returns the kind of load to which shares refer.
    #[must_use]
    pub const fn load_kind(&self) -> Load {
        if self.remembers { Load::Clients } else { Load::Connections }
    }

    /// Returns a backend's load of that kind; connections count from the start.
    #[must_use]
    pub const fn load(&self, backend: &BackendSnapshot) -> u64 {
        match self.load_kind() {
            Load::Clients => backend.known_clients,
            Load::Connections => backend.stats.connections,
        }
    }

    /// Returns for each backend its share of the known clients (without memory: of the connections), and the share that
    /// it would have by the weights alone. The shares are `None` if there is no load.
    #[must_use]
    pub fn shares(&self) -> Vec<(Option<f64>, Option<f64>)> {
        let load: u64 = self.backends.iter().map(|backend| self.load(backend)).sum();
        let weight: u64 = self.backends.iter().map(BackendSnapshot::eligible_weight).sum();
        let shares = self.backends.iter();
        shares.map(|backend| (share(self.load(backend), load), share(backend.eligible_weight(), weight))).collect()
    }

    /// Returns the rates of one of the service's backends; `None` if they are not known yet.
    #[must_use]
    pub fn rates_of(&self, backend: &BackendSnapshot) -> Option<Rates> {
        let id = *backend.ids.first()?;
        self.statistics.traffic.rates(self.statistics.now, id, (&backend.stats).into())
    }

    /// Returns the rates of all the service's backends together; `None` if they are not known yet.
    #[must_use]
    pub fn rates(&self) -> Option<Rates> {
        let rates = self.backends.iter().filter_map(|backend| self.rates_of(backend));
        rates.reduce(|mut sum, rates| {
            sum += rates;
            sum
        })
    }

    /// The largest ratio of actual to expected share.
    #[must_use]
    pub fn imbalance(&self) -> Option<f64> {
        ratios::imbalance(self.shares())
    }
}

/// The agent of a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSnapshot {
    /// The complete report of the agent that is in effect.
    pub said: Said,
    /// The time since the agent's last answer; `None`: it has not answered yet, it is silent, or another member queries
    /// it.
    pub heard: Option<Duration>,
    /// Why the agent has not answered; `None`: its last answer was valid.
    pub silent: Option<String>,
}

/// The handshakes with a backend that began since one was last completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// The number of these handshakes, including repeated ones.
    pub begun: u32,
    /// The time for which the first of them has waited.
    pub lasted: Duration,
}

/// A backend.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// The indices of the backend's rows in the kernel's maps, one for each family of its service.
    pub ids: Vec<BackendId>,
    /// The backend's state in each family, if its service has both.
    pub families: Vec<FamilySnapshot>,
    /// Name of the backend, unique in the service.
    pub name: String,
    /// The address, with a port if the backend has one for all listeners.
    pub address: String,
    /// The weight, 0–65535.
    pub weight: u16,
    /// Whether the backend is a backup.
    pub backup: bool,
    /// Whether the backend comes from a list of targets.
    pub discovered: bool,
    /// The backend's agent; `None`: its service queries no agents.
    pub agent: Option<AgentSnapshot>,
    /// The part of the backend's slots that its load allows; 100% if it gives nothing away; `None`: its service bounds
    /// no loads.
    pub bound: Option<Bound>,
    /// The backend's limits.
    pub limits: Limits,
    /// The limit (of clients or connections) that keeps the backend from taking new clients; `None`: it is not full.
    pub full: Option<Full>,
    /// The administrative state that the operator wants.
    pub admin: Admin,
    /// The word for the verdict: `unknown`, `up` or `down`.
    pub health: &'static str,
    /// The state that users see.
    pub state: BackendState,
    /// The reason for the state; may be empty.
    pub reason: String,
    /// The number of slots of the live table.
    pub slots: u32,
    /// The number of known clients at the last sweep.
    pub known_clients: u64,
    /// `snat`: the number of connections at the last count.
    pub active: Option<u64>,
    /// The time that is left of a drain in progress.
    pub drain_deadline: Option<Duration>,
    /// Whether the backend takes new clients.
    pub eligible: bool,
    /// Counters, summed over all CPUs.
    pub stats: BackendStats,
    /// The number of resets that refused connections and that the balancer withheld from clients.
    pub withheld: u64,
    /// The numbers of signs of failure, by kind.
    pub signals: [u64; Signal::COUNT],
    /// Unfinished handshakes with the backend.
    pub unanswered: Option<Unanswered>,
    /// The numbers of health checks that passed, failed softly, and failed hard.
    pub checks: [u64; 3],
    /// The duration of the last health check.
    pub last_check: Option<Duration>,
    /// The backend's check and its results, once for each family of its service.
    pub check: Vec<CheckSnapshot>,
    /// The number of times the backend entered each of [`BackendState::ALL`].
    pub transitions: [u64; BackendState::ALL.len()],
}

/// The state of a list of targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverSnapshot {
    /// The list.
    pub source: Source,
    /// The number of targets in the last valid list.
    pub targets: Option<usize>,
    /// The time since that list was read.
    pub read: Option<Duration>,
    /// Why the current list is not applied.
    pub error: Option<String>,
}

/// The state of a backend in one address family.
#[derive(Clone, Debug)]
pub struct FamilySnapshot {
    /// The address family.
    pub family: Family,
    /// The address under which the balancer reaches the backend.
    pub address: String,
    /// The word for the verdict: `unknown`, `up` or `down`.
    pub health: &'static str,
    /// The state that users see for this family.
    pub state: BackendState,
    /// The reason for the state; may be empty.
    pub reason: String,
    /// The number of slots in the family's live table.
    pub slots: u32,
    /// The number of known clients at the last sweep.
    pub known_clients: u64,
}

/// The health checks of a backend.
#[derive(Clone, Debug)]
pub struct CheckSnapshot {
    /// The address and port to which the check connects.
    pub target: SocketAddr,
    /// The check, described in words.
    pub words: Arc<str>,
    /// The results of the checks.
    pub health: Health,
    /// The age of the current verdict.
    pub verdict_age: Duration,
    /// The verdict that the operator has set.
    pub forced: Option<Forced>,
    /// The last check and the time since its end.
    pub last: Option<(CheckOutcome, Duration)>,
    /// The duration of the last check.
    pub took: Option<Duration>,
    /// The numbers of consecutive passes and failures that make a verdict; `None`: there is no check.
    pub rise_fall: Option<(u32, u32)>,
}

impl CheckSnapshot {
    /// Returns the results that another verdict needs; empty without checks.
    #[must_use]
    pub fn next_verdict(&self) -> String {
        self.rise_fall.map_or_else(String::new, |rise_fall| self.health.next_verdict(rise_fall))
    }

    /// Why this machine could not make the last check; `None` if it could, or if there was nothing to check.
    fn hindered(&self) -> Option<&str> {
        match &self.last {
            Some((CheckOutcome::Hindered(why), _)) if self.rise_fall.is_some() => Some(why),
            Some(_) | None => None,
        }
    }
}

impl BackendSnapshot {
    /// The reason for the backend's state; if clients are still at a backend that takes no new ones, the reason why
    /// they stay.
    #[must_use]
    pub fn shown_reason(&self) -> String {
        let silent = self.agent.as_ref().and_then(|agent| agent.silent.as_ref());
        match (self.hindered(), silent) {
            (Some(why), _) if self.reason.is_empty() => format!("cannot be checked here: {why}"),
            (None, Some(why)) if self.reason.is_empty() => format!("its agent is silent: {why}"),
            (None, Some(why)) => format!("{}; its agent is silent: {why}", self.judged_reason()),
            (Some(_), _) | (None, None) => self.judged_reason(),
        }
    }

    /// Why this machine could not make the last check; `None` if it could, or if there was nothing to check.
    #[must_use]
    pub fn hindered(&self) -> Option<&str> {
        self.check.iter().find_map(CheckSnapshot::hindered)
    }

    fn judged_reason(&self) -> String {
        let takes_new = self.eligible && self.effective_weight() > 0;
        // The core gives "weight 0" as reason if nothing else is wrong.
        let by_weight = self.weight == 0 && matches!(self.state, BackendState::Up | BackendState::Checking);
        let says_enough = !self.reason.is_empty() && !by_weight;
        if says_enough || takes_new || self.known_clients == 0 {
            return self.reason.clone();
        }
        let why = match (self.admin, self.state) {
            (Admin::Drain, BackendState::Drained) => "drained; they move when they come back",
            (Admin::Drain, _) => "drained by an operator; they stay until the deadline",
            (Admin::Maint, _) => "in maint; they move when they come back",
            (Admin::Ready, BackendState::Down) => "down; they move when they come back",
            (Admin::Ready, _) if self.weight == 0 => "its weight is 0; they stay",
            (Admin::Ready, _) if self.backup => "a backup that is not in use; they stay",
            (Admin::Ready, _) => return self.reason.clone(),
        };
        format!("takes no new clients, has {}: {why}", counted(self.known_clients as usize, "known client"))
    }

    /// The weight that determines the number of the backend's slots.
    #[must_use]
    pub fn effective_weight(&self) -> u16 {
        self.agent.as_ref().map_or(self.weight, |agent| agent.said.weight(self.weight))
    }

    fn eligible_weight(&self) -> u64 {
        if self.eligible { u64::from(self.effective_weight()) } else { 0 }
    }
}
