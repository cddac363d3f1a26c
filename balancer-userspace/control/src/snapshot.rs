//! A copy of everything visible in a running balancer, so that the output of this data never delays the controller.

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
    limits::{Enough, Full, Limits},
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
    served::HandshakeCounts,
    shares::{Load, ShareHistory},
    top::Top,
};

/// The state of the balancer at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot<Services = Vec<ServiceSnapshot>> {
    /// The interfaces to which the balancer has attached its program.
    pub interfaces: Vec<InterfaceSnapshot>,
    /// The services in the order of the configuration.
    pub services: Services,
    /// The counters of dropped packets.
    pub drops: DropStats,
    /// The counters of packets that the XDP program answered.
    pub replies: ReplyStats,
    /// The numbers of frames that were redirected but not sent, by the name of the egress interface.
    pub redirect_errors: BTreeMap<String, u64>,
    /// The state of the client table.
    pub memory: MemorySnapshot,
    /// The state of the flow table; `None`: no service has the mode `snat`.
    pub flows: Option<FlowsSnapshot>,
    /// The number of changes that users have made.
    pub generation: u64,
    /// The changes that users have made at run time.
    pub changed: Vec<RunTimeChange>,
    /// The state of this balancer that matters to the machines that send it clients.
    pub member: MemberSnapshot,
    /// The fleet to which the balancer belongs; `None`: the balancer belongs to no fleet.
    pub fleet: Option<FleetSnapshot>,
}

/// The services of a snapshot, which are made one at a time so that only a few of sixty thousand backends are in
/// memory.
pub struct Coming(Box<dyn Iterator<Item = ServiceSnapshot> + Send>);

impl Coming {
    /// Makes a value from an iterator that yields the services one at a time.
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
    /// Replaces the services with those that `make` returns.
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
    /// Collects all services into a list.
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

/// The state of a balancer that matters to the machines that send it clients.
#[derive(Clone, Debug, Default)]
pub struct MemberSnapshot {
    /// Whether this balancer is fit to receive clients.
    pub readiness: Readiness,
    /// Whether the operator has withdrawn this balancer's VIPs.
    pub withdrawn: bool,
    /// The VIPs that balancers have assigned to this machine, with their interfaces.
    pub vips: Vec<(IpAddr, String)>,
    /// Whether the state file lacks the present state, because it cannot be written.
    pub unsaved: bool,
}

/// The state of the client table.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySnapshot {
    /// The number of known clients for which the table is sized.
    pub capacity: u64,
    /// The number of known clients at the last sweep.
    pub entries: u64,
    /// The number of slots, over all services, for which the program reads the client table with each packet.
    pub exceptions: u64,
    /// The counters of the client table, added up over all CPUs.
    pub stats: MemoryStats,
    /// The counters of samples, added up over all CPUs.
    pub samples: SampleStats,
}

/// The state of the flow table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowsSnapshot {
    /// The number of connections for which the table is sized.
    pub capacity: u64,
    /// The number of rows in use, either by connections or by ports that must rest after a connection.
    pub entries: u64,
    /// The backends for which at least four fifths of the ports are taken, with the taken fraction.
    pub full_pools: Vec<(BackendName, f64)>,
}

/// An interface to which the balancer has attached its program.
#[derive(Clone, Debug)]
pub struct InterfaceSnapshot {
    pub name: String,
    /// The index of the interface.
    pub ifindex: u32,
    /// The XDP mode of the interface: `native` or `generic`.
    pub xdp_mode: &'static str,
    /// The numbers of packets by verdict, added up over all CPUs.
    pub stats: InterfaceStats,
}

/// Statistics that the balancer collects by observing a service over time.
#[derive(Clone, Debug, Default)]
pub struct ServiceStatistics {
    /// The sampling interval: the program samples one packet in this many.
    pub interval: u32,
    /// The heaviest clients of the service by traffic.
    pub top: Arc<Top>,
    /// The counts about a minute ago, with the exact age of this sample.
    pub minute: Option<(Duration, Counted)>,
    /// The counts about an hour ago, with the exact age of this sample.
    pub hour: Option<(Duration, Counted)>,
    /// The counts of the last ten minutes, one sample every ten seconds.
    pub history: Arc<History>,
    /// The shares of the service's backends in each minute of the last hour.
    pub shares: Arc<ShareHistory>,
    /// The time of the snapshot on the clock of the history.
    pub now: Duration,
    /// The problems that need attention, one line each.
    pub warnings: Vec<String>,
    /// The recent counters of the traffic that the program forwarded to the service's backends.
    pub traffic: Arc<TrafficHistory>,
    /// The first cause to check if no packets arrive; `None`: packets arrive, or the balancer does not know whether
    /// they arrive.
    pub silence: Option<String>,
}

/// A removed backend that still has known clients.
#[derive(Clone, Debug)]
pub struct GoneSnapshot {
    /// The index of the backend's row in the kernel's maps.
    pub id: BackendId,
    /// The name of the removed backend.
    pub name: String,
    /// The number of the backend's known clients at the last sweep.
    pub known_clients: u64,
    /// The counters of the backend, added up over all CPUs.
    pub stats: BackendStats,
}

/// A listener of a service, with its counters.
#[derive(Clone, Copy, Debug)]
pub struct ListenerSnapshot {
    /// The address, the ports and the protocol of the listener.
    pub listener: Listener,
    /// The listener's counters, added up over all CPUs; `None`: it is the service's only listener and has no counters
    /// of its own.
    pub stats: Option<ListenerStats>,
}

/// The lookup table of a service, or of one address family of the service.
#[derive(Clone, Debug)]
pub struct TableSnapshot {
    pub family: Family,
    /// The M entries of the table, which are backend ids, or all `ALL_DOWN`, or all `NO_BACKEND`.
    pub live: Arc<[u16]>,
    /// The table that would apply if all primary backends took new clients; `None`: no primary backend takes new
    /// clients.
    pub base: Option<Arc<[u16]>>,
}

/// An outage of a service: so many of its backends fail that known clients stay with their backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutageSnapshot {
    /// The duration of the outage so far.
    pub lasted: Duration,
    /// A line that contains the numbers of down backends and of kept clients.
    pub line: String,
}

/// The list of prefixes that a service denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedSnapshot {
    /// The file that contains the prefixes.
    pub file: PathBuf,
    pub prefixes: usize,
    /// The number of packets that the program dropped because of the list.
    pub packets: u64,
    /// The time since the balancer read the file.
    pub read: Option<Duration>,
    /// The reason why the current contents of the file are not in effect.
    pub error: Option<String>,
}

/// The threshold above which the balancer suggests a rule `spread` for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadHeavy {
    /// The fraction of the service's bytes above which the balancer suggests a rule for a client.
    pub share: f64,
    /// The prefixes for which the service already has a rule.
    pub ruled: Vec<IpNet>,
}

/// A service, with its backends and counters.
#[derive(Clone, Debug)]
pub struct ServiceSnapshot {
    /// The indices of the service in the kernel's maps. A service with both address families has two indices; the first
    /// index belongs to the family of the first listener.
    pub ids: Vec<ServiceId>,
    /// The client prefix lengths of the service.
    pub client_prefix: ClientPrefix,
    /// The last change of the service's lookup table.
    pub last_change: Option<LastChange>,
    /// The service's statistics, which another task collects and fills in.
    pub statistics: ServiceStatistics,
    pub name: String,
    /// The drop-in that contains the service; `None`: the configuration file contains the service.
    pub drop_in: Option<String>,
    /// The service's listeners, with their counters.
    pub listeners: Vec<ListenerSnapshot>,
    pub forwarding: Forwarding,
    /// The number of slots of the lookup table.
    pub table_size: u32,
    /// The service's lookup table, or both tables if it has both address families.
    pub tables: Vec<TableSnapshot>,
    /// The number of live tables that the service has had so far.
    pub table_generation: u64,
    /// The number of slots moved since the start because a backend's share changed.
    pub slots_moved_required: u64,
    /// The number of slots moved since the start although the shares of their old and new backend stayed the same.
    pub slots_moved_needless: u64,
    /// The duration of the last computation of the table.
    pub table_build: Duration,
    pub outage: Option<OutageSnapshot>,
    pub remembers: bool,
    /// The share of clients that the balancer steers.
    pub share: Share,
    /// The counters of packets that passed to the host, which serves the clients that the balancer does not steer.
    pub passed: ShareStats,
    /// How QUIC connection IDs name the service's backends, and the QUIC counters.
    pub quic: Option<QuicSnapshot>,
    /// The number of packets that a rule pinned to a backend that took no clients.
    pub rule_fallbacks: u64,
    /// The threshold for suggesting a rule for a heavy client; `None`: the balancer makes no suggestions.
    pub spread_heavy: Option<SpreadHeavy>,
    /// The number of backends that are up in normal operation; `None`: all backends.
    pub expected: Option<u32>,
    /// The deny list; `None` if the service has none.
    pub denied: Option<DeniedSnapshot>,
    /// The lists of targets from which the service's backends come.
    pub discover: Vec<DiscoverSnapshot>,
    /// The counters of backends that were removed for good, by name; after an hour, these counters are added together.
    pub removed_backends: Vec<(String, BackendStats)>,
    /// The moves that this member counts although another member of the fleet has made and counts them too, by cause.
    pub repeated_moves: [u64; MOVE_COUNTERS],
    /// The removed backends that still have known clients.
    pub gone: Vec<GoneSnapshot>,
    pub backends: Vec<BackendSnapshot>,
}

/// How QUIC connection IDs name the backends of a service, and the QUIC counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSnapshot {
    /// The formats of connection IDs and the keys.
    pub config: QuicConfig,
    /// The counters of packets and addresses for QUIC.
    pub stats: QuicStats,
    /// For each backend: its configured name, its server ID, and the number of known clients that left the backend
    /// because a connection named another backend.
    pub servers: Vec<(String, ServerId, u64)>,
}

impl ServiceSnapshot {
    /// The client prefix length for the family of an address.
    #[must_use]
    pub const fn prefix_of(&self, client: IpAddr) -> u8 {
        if client.is_ipv4() { self.client_prefix.v4 } else { self.client_prefix.v6 }
    }

    /// The sum of one counter over all present and removed backends.
    #[must_use]
    pub fn total(&self, counter: impl Fn(&BackendStats) -> u64) -> u64 {
        let present = self.backends.iter().map(|backend| &backend.stats);
        let gone = self.gone.iter().map(|gone| &gone.stats);
        let removed_backends = self.removed_backends.iter().map(|(_, stats)| stats);
        present.chain(gone).chain(removed_backends).map(counter).sum()
    }

    /// The counters of all backends by id, before the parts of services with both families are joined.
    pub fn stats_mut(&mut self) -> impl Iterator<Item = (BackendId, &mut BackendStats)> {
        let gone = self.gone.iter_mut().map(|gone| (gone.id, &mut gone.stats));
        let present = self.backends.iter_mut();
        present.filter_map(|backend| Some((*backend.ids.first()?, &mut backend.stats))).chain(gone)
    }

    /// Returns the sums of the counters over all the service's backends, without moves that other members count.
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

    /// Returns one line about the effects of sharing the service's clients with the host; `None`: the balancer has
    /// steered every client for a long time.
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
            0 if most == 0 && self.forwarding != Forwarding::Snat => {
                Some("the host gets every packet; counters show what the balancer would have done".to_owned())
            }
            0 => Some("the host gets every packet, except those of connections that backends have".to_owned()),
            WHOLE if least == WHOLE => None,
            WHOLE => Some(format!("every client is steered; connections of the host stay with the host{of_host}")),
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

    /// Returns the kind of load that the shares measure.
    #[must_use]
    pub const fn load_kind(&self) -> Load {
        if self.remembers { Load::Clients } else { Load::Connections }
    }

    /// Returns a backend's load of the kind that the shares measure; the number of connections counts from the start.
    #[must_use]
    pub const fn load(&self, backend: &BackendSnapshot) -> u64 {
        match self.load_kind() {
            Load::Clients => backend.known_clients,
            Load::Connections => backend.stats.connections,
        }
    }

    /// Returns for each backend its actual share of the known clients (without client memory: of the connections), and
    /// the share that the weights alone would give it. The actual shares are `None` if there is no load.
    #[must_use]
    pub fn shares(&self) -> Vec<(Option<f64>, Option<f64>)> {
        let load: u64 = self.backends.iter().map(|backend| self.load(backend)).sum();
        let weight: u64 = self.backends.iter().map(BackendSnapshot::eligible_weight).sum();
        let shares = self.backends.iter();
        shares.map(|backend| (share(self.load(backend), load), share(backend.eligible_weight(), weight))).collect()
    }

    /// Returns the rates of one of the service's backends; `None` if the rates are not known yet.
    #[must_use]
    pub fn rates_of(&self, backend: &BackendSnapshot) -> Option<Rates> {
        let id = *backend.ids.first()?;
        self.statistics.traffic.rates(self.statistics.now, id, (&backend.stats).into())
    }

    /// Returns the rates of all the service's backends added together; `None` if the rates are not known yet.
    #[must_use]
    pub fn rates(&self) -> Option<Rates> {
        let rates = self.backends.iter().filter_map(|backend| self.rates_of(backend));
        rates.reduce(|mut sum, rates| {
            sum += rates;
            sum
        })
    }

    /// The largest ratio of a backend's actual share to its expected share.
    #[must_use]
    pub fn imbalance(&self) -> Option<f64> {
        ratios::imbalance(self.shares())
    }
}

/// The agent of a backend, and its report.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSnapshot {
    /// The complete report of the agent that is in effect.
    pub said: Said,
    /// The time since the agent's last answer; `None`: the agent has not answered yet, is silent, or is queried by
    /// another member.
    pub heard: Option<Duration>,
    /// The reason why the agent has not answered; `None`: the agent's last answer was valid.
    pub silent: Option<String>,
}

/// The handshakes with a backend that began since the last completed handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// The number of unfinished handshakes, including repeated handshakes.
    pub begun: u32,
    /// The time for which the oldest unfinished handshake has waited.
    pub lasted: Duration,
}

/// A backend, with its counters.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// The indices of the backend's rows in the kernel's maps, one for each family of its service.
    pub ids: Vec<BackendId>,
    /// The backend's state in each address family, if its service has both families.
    pub families: Vec<FamilySnapshot>,
    /// The name of the backend, unique in its service.
    pub name: String,
    /// The address of the backend, with a port if the backend has one port for all listeners.
    pub address: String,
    /// The weight of the backend, 0–65535.
    pub weight: u16,
    pub backup: bool,
    /// Whether the backend comes from a list of targets.
    pub discovered: bool,
    /// The backend's agent; `None`: the balancer queries no agents of this service.
    pub agent: Option<AgentSnapshot>,
    /// The fraction of its slots that the backend keeps because of its load; 100%: it gives no slots away; `None`: its
    /// service does not bound loads.
    pub bound: Option<Bound>,
    /// The backend's limits on clients and connections.
    pub limits: Limits,
    /// The limit that keeps the backend from taking new clients; `None`: the backend is not full.
    pub full: Option<Full>,
    /// How often this balancer found the backend full, by the number of [`Enough`]; `None`: the backend cannot be full.
    pub filled: Option<[u64; Enough::ALL.len()]>,
    /// The administrative state that the operator wants for the backend.
    pub admin: Admin,
    /// The name of the verdict: `unknown`, `up` or `down`.
    pub health: &'static str,
    /// The state of the backend that users see.
    pub state: BackendState,
    /// The reason for the backend's state; may be empty.
    pub reason: String,
    /// The number of slots that the backend has in the live table.
    pub slots: u32,
    /// The number of the backend's known clients at the last sweep.
    pub known_clients: u64,
    /// `snat`: the number of the backend's connections at the last count.
    pub active: Option<u64>,
    /// The remaining time of the backend's drain.
    pub drain_deadline: Option<Duration>,
    /// Whether the backend takes new clients.
    pub eligible: bool,
    /// The counters of the backend, added up over all CPUs.
    pub stats: BackendStats,
    /// The number of resets by which the backend refused connections and which the program withheld from clients.
    pub withheld: u64,
    /// The numbers of signs that the backend may have failed, by kind.
    pub signals: [u64; Signal::COUNT],
    /// Unfinished handshakes with the backend.
    pub unanswered: Option<Unanswered>,
    /// The handshakes with the backend whose outcome became known in the last minute.
    pub handshakes: HandshakeCounts,
    /// The handshakes with the backend whose outcome has become known since the backend was added.
    pub handshakes_ended: HandshakeCounts,
    /// `nat` and `snat`: the interface by which the backend's replies arrive, if the program is not attached to it.
    pub unattached: Option<String>,
    /// The numbers of the backend's health checks that passed, failed softly, and failed hard.
    pub checks: [u64; 3],
    pub last_check: Option<Duration>,
    /// The backend's check and the check's results, once for each address family of the service.
    pub check: Vec<CheckSnapshot>,
    /// The number of times that the backend entered each of [`BackendState::ALL`].
    pub transitions: [u64; BackendState::ALL.len()],
}

/// The state of a list of targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverSnapshot {
    /// The configuration of the list.
    pub source: Source,
    /// The number of targets in the last valid list.
    pub targets: Option<usize>,
    /// The time since the balancer read this list.
    pub read: Option<Duration>,
    /// The reason why the balancer does not apply the current list, or not all of it.
    pub error: Option<String>,
    /// The faults of the entries of the list that are left out.
    pub left_out: Vec<String>,
    /// The backends that wait for their missing targets before they drain.
    pub waiting: Vec<String>,
    /// A habit of the source that makes its answers unusual, in words.
    pub habit: Option<String>,
}

/// The state of a backend in one address family.
#[derive(Clone, Debug)]
pub struct FamilySnapshot {
    /// The address family in which the backend has this state.
    pub family: Family,
    /// The address under which the balancer reaches the backend.
    pub address: String,
    /// The name of the verdict: `unknown`, `up` or `down`.
    pub health: &'static str,
    /// The backend's state that users see for this family.
    pub state: BackendState,
    /// The reason for the backend's state; may be empty.
    pub reason: String,
    /// The number of slots that the backend has in the family's live table.
    pub slots: u32,
    /// The number of the backend's known clients at the last sweep.
    pub known_clients: u64,
}

/// The health checks of a backend.
#[derive(Clone, Debug)]
pub struct CheckSnapshot {
    /// The address and port to which the check connects.
    pub target: SocketAddr,
    /// A description of the check in words.
    pub words: Arc<str>,
    pub health: Health,
    /// The time since the verdict last changed.
    pub verdict_age: Duration,
    /// The verdict that the operator has set for the backend.
    pub forced: Option<Forced>,
    /// The last check, and the time since this check ended.
    pub last: Option<(CheckOutcome, Duration)>,
    pub took: Option<Duration>,
    /// The numbers of consecutive passes and of consecutive failures that change the verdict; `None`: the backend has
    /// no check.
    pub rise_fall: Option<(u32, u32)>,
}

impl CheckSnapshot {
    /// Returns the check results that another verdict needs, as text; empty without checks.
    #[must_use]
    pub fn next_verdict(&self) -> String {
        self.rise_fall.map_or_else(String::new, |rise_fall| self.health.next_verdict(rise_fall))
    }

    /// The reason why this machine could not make the last check; `None` if the machine made the check, or if there was
    /// nothing to check.
    fn hindered(&self) -> Option<&str> {
        match &self.last {
            Some((CheckOutcome::Hindered(why), _)) if self.rise_fall.is_some() => Some(why),
            Some(_) | None => None,
        }
    }
}

impl BackendSnapshot {
    /// The reason for the backend's state; if the backend takes no new clients but still has clients, the reason why
    /// these clients stay. If the program does not see the backend's replies, the reason also says so.
    #[must_use]
    pub fn shown_reason(&self) -> String {
        let reason = self.reason_with_agent();
        match &self.unattached {
            None => reason,
            Some(interface) => {
                let unseen = format!("its replies come in by {interface}, which lacks the program");
                if reason.is_empty() { unseen } else { format!("{reason}; {unseen}") }
            }
        }
    }

    fn reason_with_agent(&self) -> String {
        let silent = self.agent.as_ref().and_then(|agent| agent.silent.as_ref());
        match (self.hindered(), silent) {
            (Some(why), _) if self.reason.is_empty() => format!("cannot be checked here: {why}"),
            (None, Some(why)) if self.reason.is_empty() => format!("its agent is silent: {why}"),
            (None, Some(why)) => format!("{}; its agent is silent: {why}", self.judged_reason()),
            (Some(_), _) | (None, None) => self.judged_reason(),
        }
    }

    /// The reason why this machine could not make the last check; `None` if the machine made the check, or if there was
    /// nothing to check.
    #[must_use]
    pub fn hindered(&self) -> Option<&str> {
        self.check.iter().find_map(CheckSnapshot::hindered)
    }

    fn judged_reason(&self) -> String {
        let takes_new = self.eligible && self.effective_weight() > 0;
        // The core gives "weight 0" as the reason if nothing else is wrong.
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

    /// The weight that determines the number of slots of the backend.
    #[must_use]
    pub fn effective_weight(&self) -> u16 {
        self.agent.as_ref().map_or(self.weight, |agent| agent.said.weight(self.weight))
    }

    fn eligible_weight(&self) -> u64 {
        if self.eligible { u64::from(self.effective_weight()) } else { 0 }
    }
}
