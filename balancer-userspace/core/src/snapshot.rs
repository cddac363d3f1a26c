//! Everything there is to see of a running balancer, copied out so that rendering never holds up the controller.

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
use balancer_model::{
    agent::Said,
    bounded::Bound,
    config::ClientPrefix,
    discover::Source,
    limits::{Full, Limits},
    listeners::{Family, Listener},
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

/// A moment's state.
#[derive(Clone, Debug)]
pub struct Snapshot<Services = Vec<ServiceSnapshot>> {
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceSnapshot>,
    /// Services in configuration order.
    pub services: Services,
    /// Dropped packets.
    pub drops: DropStats,
    /// Packets that were answered in XDP.
    pub replies: ReplyStats,
    /// Frames that were redirected and not sent, by the interface that they were to leave by.
    pub redirect_errors: BTreeMap<String, u64>,
    /// The client table.
    pub memory: MemorySnapshot,
    /// The table of connections; `None`: no service is `snat`.
    pub flows: Option<FlowsSnapshot>,
    /// How often users have changed something.
    pub generation: u64,
    /// The changes made at run time.
    pub changed: Vec<RunTimeChange>,
    /// The state of this balancer that matters to the machines that send it clients.
    pub member: MemberSnapshot,
    /// The fleet that it is in; `None`: in none.
    pub fleet: Option<FleetSnapshot>,
}

/// Services of a snapshot that are put together one at a time: of sixty thousand backends few are in memory then.
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
    /// With what `make` makes of the services.
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
    /// With all services at once.
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
    /// Whether it is fit.
    pub readiness: Readiness,
    /// Whether the operator has taken its VIPs away.
    pub withdrawn: bool,
    /// The VIPs that its machine has from a balancer, with their interfaces.
    pub vips: Vec<(IpAddr, String)>,
}

/// The client table.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySnapshot {
    /// Known clients that it is made for.
    pub capacity: u64,
    /// Known clients at the last sweep.
    pub entries: u64,
    /// Slots whose clients' entries must be read, over all services.
    pub exceptions: u64,
    /// Counters, all CPUs.
    pub stats: MemoryStats,
    /// Packets sampled, all CPUs.
    pub samples: SampleStats,
}

/// The table of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowsSnapshot {
    /// Connections that it is made for.
    pub capacity: u64,
    /// Rows that are taken, by connections and by what is left of them.
    pub entries: u64,
}

/// An attached interface.
#[derive(Clone, Debug)]
pub struct InterfaceSnapshot {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface.
    pub ifindex: u32,
    /// `native` or `generic`.
    pub xdp_mode: &'static str,
    /// Packets by verdict, all CPUs.
    pub stats: InterfaceStats,
}

/// Statistics that are gathered by watching a service.
#[derive(Clone, Debug, Default)]
pub struct ServiceStatistics {
    /// One packet in so many is sampled.
    pub interval: u32,
    /// The service's clients by traffic.
    pub top: Arc<Top>,
    /// How long ago about a minute ago was, and what had been counted then.
    pub minute: Option<(Duration, Counted)>,
    /// The same for an hour.
    pub hour: Option<(Duration, Counted)>,
    /// Counters at every ten seconds of the last ten minutes.
    pub history: Arc<History>,
    /// Which shares its backends had in the minutes of the last hour.
    pub shares: Arc<ShareHistory>,
    /// The moment of the snapshot on the history's clock.
    pub now: Duration,
    /// Matters that need attention, a line each.
    pub warnings: Vec<String>,
    /// Recent counters of its backends' forwarded traffic.
    pub traffic: Arc<TrafficHistory>,
    /// The first thing to look at where no packets come; `None`: some come, or that is not known.
    pub silence: Option<String>,
}

/// A removed backend that clients are still known at.
#[derive(Clone, Debug)]
pub struct GoneSnapshot {
    /// Index of the backend's row in the kernel's maps.
    pub id: BackendId,
    /// Name of the removed backend.
    pub name: String,
    /// Known clients at the last sweep.
    pub known_clients: u64,
    /// Counters, all CPUs.
    pub stats: BackendStats,
}

/// A listener of a service.
#[derive(Clone, Copy, Debug)]
pub struct ListenerSnapshot {
    /// Address, ports and protocol.
    pub listener: Listener,
    /// Counters, all CPUs; `None`: it is the only one, and is not counted by itself.
    pub stats: Option<ListenerStats>,
}

/// The lookup table of a service, or of one of its address families.
#[derive(Clone, Debug)]
pub struct TableSnapshot {
    /// Which family's.
    pub family: Family,
    /// M backend ids, or `ALL_DOWN` or `NO_BACKEND` throughout.
    pub live: Arc<[u16]>,
    /// The same while all primary backends take new clients; `None`: none of them does.
    pub base: Option<Arc<[u16]>>,
}

/// An outage of a service: so many of its backends fail that known clients stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutageSnapshot {
    /// How long it has lasted.
    pub lasted: Duration,
    /// How many backends are down, and how many clients kept.
    pub line: String,
}

/// A list of prefixes whose clients are denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedSnapshot {
    /// The file.
    pub file: PathBuf,
    /// How many prefixes are denied.
    pub prefixes: usize,
    /// Packets that these have denied.
    pub packets: u64,
    /// How long ago the file was read.
    pub read: Option<Duration>,
    /// Why the file, as it is now, is not what is denied.
    pub error: Option<String>,
}

/// From when on a rule `spread` is proposed for a client of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadHeavy {
    /// The part of the service's bytes.
    pub share: f64,
    /// Prefixes that have a rule.
    pub ruled: Vec<IpNet>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct ServiceSnapshot {
    /// The service's index in the kernel's maps; for a service of both families two indices, first that of its first
    /// listener's family.
    pub ids: Vec<ServiceId>,
    /// The client prefix lengths.
    pub client_prefix: ClientPrefix,
    /// The change that last altered its table.
    pub last_change: Option<LastChange>,
    /// Filled in by who watches.
    pub statistics: ServiceStatistics,
    /// Name of the service.
    pub name: String,
    /// Where it is reached.
    pub listeners: Vec<ListenerSnapshot>,
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// M.
    pub table_size: u32,
    /// The service's lookup table; for a service of both address families both tables.
    pub tables: Vec<TableSnapshot>,
    /// How often the live table was replaced.
    pub table_generation: u64,
    /// Slots moved because their backend may not keep them, since start.
    pub slots_moved_required: u64,
    /// Other slots moved, since start.
    pub slots_moved_needless: u64,
    /// How long the last table build took.
    pub table_build: Duration,
    /// An outage that it has.
    pub outage: Option<OutageSnapshot>,
    /// Whether clients are remembered.
    pub remembers: bool,
    /// The share of clients that are steered.
    pub share: Share,
    /// Packets that passed to the host, which serves the others.
    pub passed: ShareStats,
    /// How connection IDs of QUIC name its backends, and what came of it.
    pub quic: Option<QuicSnapshot>,
    /// Packets that a rule pinned to a backend that took no clients.
    pub rule_fallbacks: u64,
    /// From when on a rule is proposed for a heavy client; `None`: none is.
    pub spread_heavy: Option<SpreadHeavy>,
    /// The list of prefixes whose clients are denied.
    pub denied: Option<DeniedSnapshot>,
    /// The lists of targets that are backends of it.
    pub discover: Vec<DiscoverSnapshot>,
    /// Counters of backends that are gone for good, by name; after an hour added up.
    pub departed: Vec<(String, BackendStats)>,
    /// Moves counted here that another member of the fleet has made as well, and counts; by cause.
    pub repeated_moves: [u64; MOVE_COUNTERS],
    /// Removed backends that clients are still known at.
    pub gone: Vec<GoneSnapshot>,
    /// The service's present backends.
    pub backends: Vec<BackendSnapshot>,
}

/// How connection IDs of QUIC name the backends of a service, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSnapshot {
    /// Formats and keys.
    pub config: QuicConfig,
    /// Packets and addresses.
    pub stats: QuicStats,
    /// The names of the backends in the configuration, in connection IDs, and how many known clients left each because a
    /// connection named another one.
    pub servers: Vec<(String, ServerId, u64)>,
}

impl ServiceSnapshot {
    /// The client prefix length for the family of an address.
    #[must_use]
    pub const fn prefix_of(&self, client: IpAddr) -> u8 {
        if client.is_ipv4() { self.client_prefix.v4 } else { self.client_prefix.v6 }
    }

    /// A counter of all backends there are and there were.
    #[must_use]
    pub fn total(&self, counter: impl Fn(&BackendStats) -> u64) -> u64 {
        let present = self.backends.iter().map(|backend| &backend.stats);
        let gone = self.gone.iter().map(|gone| &gone.stats);
        let departed = self.departed.iter().map(|(_, stats)| stats);
        present.chain(gone).chain(departed).map(counter).sum()
    }

    /// The places of the counters of rows in the kernel's maps, before services of both families are put together.
    pub fn stats_mut(&mut self) -> impl Iterator<Item = (BackendId, &mut BackendStats)> {
        let gone = self.gone.iter_mut().map(|gone| (gone.id, &mut gone.stats));
        let present = self.backends.iter_mut();
        present.filter_map(|backend| Some((*backend.ids.first()?, &mut backend.stats))).chain(gone)
    }

    /// Returns the sum of all its backends' counters, without moves that other members count.
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

    /// Returns the effects of sharing its clients with the host, in a line. `None`: it steers every client, and has for
    /// long.
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

    /// Whether every packet passes to the host, and what is counted is what would be.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.share.now == 0
    }

    /// Returns the kind of load that shares are parts of.
    #[must_use]
    pub const fn load_kind(&self) -> Load {
        if self.remembers { Load::Clients } else { Load::Connections }
    }

    /// Returns a backend's load of that kind; connections are counted since the start.
    #[must_use]
    pub const fn load(&self, backend: &BackendSnapshot) -> u64 {
        match self.load_kind() {
            Load::Clients => backend.known_clients,
            Load::Connections => backend.stats.connections,
        }
    }

    /// Returns, for every backend in order, its part of the known clients (without memory: of the connections), and the
    /// part that it would have if clients followed the weights. `None` where there is nothing to divide by.
    #[must_use]
    pub fn shares(&self) -> Vec<(Option<f64>, Option<f64>)> {
        let load: u64 = self.backends.iter().map(|backend| self.load(backend)).sum();
        let weight: u64 = self.backends.iter().map(BackendSnapshot::eligible_weight).sum();
        let shares = self.backends.iter();
        shares.map(|backend| (share(self.load(backend), load), share(backend.eligible_weight(), weight))).collect()
    }

    /// Returns the rates of one of its backends; `None`: they are not known yet.
    #[must_use]
    pub fn rates_of(&self, backend: &BackendSnapshot) -> Option<Rates> {
        let id = *backend.ids.first()?;
        self.statistics.traffic.rates(self.statistics.now, id, (&backend.stats).into())
    }

    /// Returns the rates of all its backends together; `None`: they are not known yet.
    #[must_use]
    pub fn rates(&self) -> Option<Rates> {
        let rates = self.backends.iter().filter_map(|backend| self.rates_of(backend));
        rates.reduce(|mut sum, rates| {
            sum += rates;
            sum
        })
    }

    /// The largest share over expected share.
    #[must_use]
    pub fn imbalance(&self) -> Option<f64> {
        ratios::imbalance(self.shares())
    }
}

/// The agent of a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSnapshot {
    /// All that it has said and is in force.
    pub said: Said,
    /// How long ago it last answered. `None`: not yet, it is silent, or another member asks it.
    pub heard: Option<Duration>,
    /// The reason why there is no answer. `None`: the last one was right.
    pub silent: Option<String>,
}

/// Handshakes that clients have begun with a backend since one was last ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// How many, those that were begun again among them.
    pub begun: u32,
    /// For how long the first of them has waited.
    pub lasted: Duration,
}

/// A backend.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// Indices of the backend's rows in the kernel's maps: one for each family of its service.
    pub ids: Vec<BackendId>,
    /// The backend's state in each family, where its service has both.
    pub families: Vec<FamilySnapshot>,
    /// Name of the backend, unique in the service.
    pub name: String,
    /// Address, with a port where it has one for all listeners.
    pub address: String,
    /// 0–65535.
    pub weight: u16,
    /// Whether it is a backup.
    pub backup: bool,
    /// Whether it is a target of a list.
    pub discovered: bool,
    /// The backend's agent; `None`: its service asks none.
    pub agent: Option<AgentSnapshot>,
    /// The part of its slots that its load leaves it; `None`: its service bounds no loads. Of one that gives nothing away, 100%.
    pub bound: Option<Bound>,
    /// How much it takes at most.
    pub limits: Limits,
    /// What it has too much of to take new clients; `None`: nothing.
    pub full: Option<Full>,
    /// The administrative state that the operator wants.
    pub admin: Admin,
    /// `unknown`, `up` or `down`.
    pub health: &'static str,
    /// The state that the backend is shown with.
    pub state: BackendState,
    /// Why; may be empty.
    pub reason: String,
    /// Slots of the live table.
    pub slots: u32,
    /// Known clients at the last sweep.
    pub known_clients: u64,
    /// `snat`: connections, at the last count.
    pub active: Option<u64>,
    /// Time left to a drain under way.
    pub drain_deadline: Option<Duration>,
    /// Whether it takes new clients.
    pub eligible: bool,
    /// Counters, all CPUs.
    pub stats: BackendStats,
    /// Resets that refused connections and were withheld from clients.
    pub withheld: u64,
    /// Signals that it may have failed, by kind.
    pub signals: [u64; Signal::COUNT],
    /// Handshakes with it that no client has ended.
    pub unanswered: Option<Unanswered>,
    /// Health checks passed, failed softly, failed hard.
    pub checks: [u64; 3],
    /// How long the last health check took.
    pub last_check: Option<Duration>,
    /// How it is checked, and what was found: once for each family of its service.
    pub check: Vec<CheckSnapshot>,
    /// How often it entered each of [`BackendState::ALL`].
    pub transitions: [u64; BackendState::ALL.len()],
}

/// The state of a list of targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverSnapshot {
    /// The list.
    pub source: Source,
    /// Targets of it when it was last right.
    pub targets: Option<usize>,
    /// When that was read.
    pub read: Option<Duration>,
    /// Why it is not taken over as it is now.
    pub error: Option<String>,
}

/// The state of a backend in one address family.
#[derive(Clone, Debug)]
pub struct FamilySnapshot {
    /// Which.
    pub family: Family,
    /// Where it is reached.
    pub address: String,
    /// `unknown`, `up` or `down`.
    pub health: &'static str,
    /// The state that the backend is shown with in this family.
    pub state: BackendState,
    /// Why; may be empty.
    pub reason: String,
    /// Slots of the family's live table.
    pub slots: u32,
    /// Known clients at the last sweep.
    pub known_clients: u64,
}

/// The health checks of a backend.
#[derive(Clone, Debug)]
pub struct CheckSnapshot {
    /// Address and port that are checked.
    pub target: SocketAddr,
    /// The check in words.
    pub words: Arc<str>,
    /// The results of the checks.
    pub health: Health,
    /// Since when that is the verdict.
    pub verdict_age: Duration,
    /// The verdict that the operator has set instead.
    pub forced: Option<Forced>,
    /// The last check and how long ago it ended.
    pub last: Option<(CheckOutcome, Duration)>,
    /// How long it took.
    pub took: Option<Duration>,
    /// Passes and failures in a row that make a verdict; `None`: nothing is checked.
    pub rise_fall: Option<(u32, u32)>,
}

impl CheckSnapshot {
    /// Returns the results that it takes to reach another verdict; empty without checks.
    #[must_use]
    pub fn next_verdict(&self) -> String {
        self.rise_fall.map_or_else(String::new, |rise_fall| self.health.next_verdict(rise_fall))
    }

    /// Why this machine could not make the last check, if it should have.
    fn hindered(&self) -> Option<&str> {
        match &self.last {
            Some((CheckOutcome::Hindered(why), _)) if self.rise_fall.is_some() => Some(why),
            Some(_) | None => None,
        }
    }
}

impl BackendSnapshot {
    /// Why it is what it is; where clients are still at one that takes no new ones, what keeps them there.
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

    /// Why this machine could not make the last check, if it should have.
    #[must_use]
    pub fn hindered(&self) -> Option<&str> {
        self.check.iter().find_map(CheckSnapshot::hindered)
    }

    fn judged_reason(&self) -> String {
        let takes_new = self.eligible && self.effective_weight() > 0;
        // The core says "weight 0" of one that nothing else is wrong with.
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

    /// The weight that its slots go by.
    #[must_use]
    pub fn effective_weight(&self) -> u16 {
        self.agent.as_ref().map_or(self.weight, |agent| agent.said.weight(self.weight))
    }

    fn eligible_weight(&self) -> u64 {
        if self.eligible { u64::from(self.effective_weight()) } else { 0 }
    }
}
