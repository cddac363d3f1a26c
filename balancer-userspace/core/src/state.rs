//! The state of the controller that outlives its process.
//!
//! Plain data with no meaning of its own: [`Controller::export`](super::controller::Controller::export) makes it,
//! [`Controller::restore`](super::controller::Controller::restore) takes it. A field that is added gets
//! `#[serde(default)]`, so that older files stay readable; what an older controller must not overlook gets a new
//! [`VERSION`].

mod changes;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use balancer_common::{client::HashKey, share::SETTLES_SECONDS};
use balancer_model::{
    agent::Said,
    bounded::Bound,
    config::{BackendConfig, CheckConfig, ServiceConfig},
    limits::Full,
    listeners::{Family, Listener},
    states::{Admin, BackendState, Forced},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    agreed::Way,
    health::Health,
    io::{BackendId, BackendSpec, ListenerId, ServiceId},
    next_hops::Hop,
    rules::Action,
};

pub use self::changes::{ListChanges, SavedChanges};

/// Counters of backends that are gone for good, by service and name.
pub type SavedCountersByService = BTreeMap<u16, BTreeMap<String, SavedCounters>>;

/// The version written. A file of a later one is refused.
pub const VERSION: u32 = 2;

/// Everything that a restart must keep. To be written, its lists may be [`Listed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState<File = Vec<ServiceConfig>, Services = Vec<SavedService>, NextHops = Vec<(IpAddr, Hop)>> {
    /// [`VERSION`].
    pub version: u32,
    /// Which kernel maps belong to it: a number drawn when they were made.
    pub instance: u64,
    /// How often users have changed something.
    pub generation: u64,
    /// The fleet's hash key, where the configuration has none.
    pub hash_key: Option<HashKey>,
    /// Tells whether the clients' hashes are the same as before, whoever gave the key.
    pub key_fingerprint: u64,
    /// The services as the configuration file last said.
    pub file: File,
    /// The services as they are.
    pub services: Services,
    /// Removed backends that clients may still be known at.
    pub gone: Vec<SavedGone>,
    /// Free backend ids, next one first, as runs (first, last).
    pub free_ids: Vec<(u16, u16)>,
    /// The known states of the ways to the backends.
    pub next_hops: NextHops,
    /// Counters of backends that are gone for good, by service and name. Filled by the shell.
    #[serde(default)]
    pub departed: SavedCountersByService,
    /// Moves that other members of a fleet count, by service and cause. Filled by the shell.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repeated_moves: BTreeMap<u16, Vec<u64>>,
    /// Whether the operator has taken the VIPs away. Filled by the shell.
    #[serde(default)]
    pub withdrawn: bool,
    /// Which state of a fleet it is. Filled by the shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<SavedEpoch>,
    /// The clock by which its moments can be told even if the wall clock is set. Filled by the shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<SavedClock>,
}

/// A list, each of whose items is made when it is written: all of a large state at once would be tens of megabytes.
#[derive(Clone, Copy, Debug)]
pub struct Listed<List>(pub(crate) List);

impl<List: Fn() -> Items, Items: Iterator<Item: Serialize>> Serialize for Listed<List> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

impl SavedState {
    /// Forgets what checks and sweeps count all the time.
    pub fn forget_counts(&mut self) {
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            (backend.known, backend.checks) = (0, [0; 3]);
        }
        self.gone.iter_mut().for_each(|gone| gone.known = 0);
    }

    /// Has all counters begin at 0, because the maps with their latest values are gone. The file may be minutes old, and a
    /// counter that went on from it could go backwards, which Prometheus takes for a reset and counts twice. What a fleet
    /// has counted together (`agreed`) stays.
    pub fn restart_counters(&mut self, agreed: bool) {
        self.departed.clear();
        self.repeated_moves.clear();
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            backend.checks = [0; 3];
        }
        if agreed {
            return;
        }
        for service in &mut self.services {
            (service.slots_moved_required, service.slots_moved_needless) = (0, 0);
            service.backends.iter_mut().for_each(|backend| backend.transitions.fill(0));
        }
    }

    /// Everything that a controller counts on.
    pub(crate) fn counts(&self) -> impl Iterator<Item = u64> {
        let services = self
            .services
            .iter()
            .flat_map(|service| [service.table_generation, service.slots_moved_required, service.slots_moved_needless]);
        let backends = self
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .flat_map(|backend| backend.checks.iter().chain(&backend.transitions).copied().chain([backend.known]));
        let gone = self.gone.iter().map(|gone| gone.known);
        [self.generation].into_iter().chain(services).chain(backends).chain(gone)
    }

    /// Has nothing last longer from `now` on than it was to when it began. For a state whose moments were told by a clock
    /// that may have been set since then.
    pub fn bound(&mut self, now: Moment) {
        for service in &mut self.services {
            if let Some(outage) = &mut service.outage {
                outage.since = outage.since.min(now);
                let checks = service.backends.iter().filter_map(|backend| backend.config.check.as_deref());
                let checks = || checks.clone().chain([&service.settings.check]);
                let latest =
                    |lasts: fn(&CheckConfig) -> Duration| Moment(now.0 + checks().map(lasts).max().unwrap_or_default());
                match &mut outage.phase {
                    SavedPhase::Suspected { until } => *until = (*until).min(latest(CheckConfig::fast_round)),
                    SavedPhase::Ebbing { until, .. } => *until = (*until).min(latest(CheckConfig::return_takes)),
                    SavedPhase::Lasts => {}
                }
            }
            if let Some(share) = &mut service.share {
                share.settles = share.settles.min(Moment(now.0 + Duration::from_secs(SETTLES_SECONDS)));
            }
            for backend in &mut service.backends {
                let timeout = backend.drain_timeout.unwrap_or(service.settings.drain_timeout);
                let latest = Moment(now.0 + timeout);
                backend.drain_until = backend.drain_until.map(|until| until.min(latest));
                if let Some(start) = &mut backend.slow_start {
                    start.since = start.since.min(now);
                }
            }
        }
    }
}

/// A fleet's state by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEpoch {
    /// The epoch's lineage: see `balancer-fleet`.
    pub lineage: u64,
    /// The epoch's number in its lineage.
    pub number: u64,
    /// When it was decided.
    pub at: Moment,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedService {
    /// Index of the service.
    pub id: ServiceId,
    /// The family of its clients; absent: that of its first listener.
    #[serde(default)]
    pub family: Option<Family>,
    /// The ids of its listeners.
    #[serde(default)]
    pub listeners: Vec<(Listener, ListenerId)>,
    /// The service's configuration; `backends` is empty, because the backends are below.
    pub settings: ServiceConfig,
    /// How often the live table was replaced.
    pub table_generation: u64,
    /// Slots moved because their backend might not keep them.
    pub slots_moved_required: u64,
    /// Other slots moved.
    pub slots_moved_needless: u64,
    /// Seconds in a tick of its client memory; 0: it has none yet.
    #[serde(default)]
    pub tick_seconds: u32,
    /// Rules for client prefixes.
    #[serde(default)]
    pub rules: Vec<SavedRule>,
    /// Prefixes of rules of the configuration file whose time is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_rules: Vec<IpNet>,
    /// An outage of it, or what may be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<SavedOutage>,
    /// Where the share of clients that are steered has changed recently: what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<SavedShare>,
    /// The service's backends, in their order.
    pub backends: Vec<SavedBackend>,
}

/// The range of the recent shares of steered clients, beside the share that the settings give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedShare {
    /// The smallest.
    pub least: u8,
    /// The largest.
    pub most: u8,
    /// When that stops to matter.
    pub settles: Moment,
}

/// An outage of a service, or what may be one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOutage {
    /// How far it has come.
    pub phase: SavedPhase,
    /// When it began.
    pub since: Moment,
    /// The backends that keep their known clients although they are down.
    pub held: Vec<BackendId>,
}

/// How far an outage has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedPhase {
    /// It may be one.
    Suspected {
        /// When that is decided.
        until: Moment,
    },
    /// It is one.
    Lasts,
    /// Some of its backends are back.
    Ebbing {
        /// How long the others are waited for.
        until: Moment,
        /// Whether it was one, not only suspected.
        declared: bool,
    },
}

/// A rule for a client prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRule {
    /// The clients that the rule is for.
    pub prefix: IpNet,
    /// The treatment of these clients.
    #[serde(flatten)]
    pub action: Action,
    /// How long it was to hold when it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// When it ends by itself.
    #[serde(default)]
    pub ends: Option<Moment>,
}

/// A slow start under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSlowStart {
    /// When it began.
    pub since: Moment,
    /// How long it takes.
    pub lasts: Duration,
    /// The step that the live table knows.
    pub step: u8,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedBackend {
    /// Index of the backend's row.
    pub id: BackendId,
    /// The backend's present configuration.
    pub config: BackendConfig,
    /// The administrative state that the operator wants.
    pub admin: Admin,
    /// The verdict of its checks, and those counted towards the next.
    pub health: Health,
    /// The state that it was shown with.
    pub state: BackendState,
    /// Since when.
    pub since: Moment,
    /// The operator's drain timeout, instead of the service's.
    pub drain_timeout: Option<Duration>,
    /// When a drain under way ends at the latest.
    pub drain_until: Option<Moment>,
    /// Whether it is removed once it is drained.
    pub leaving: bool,
    /// The verdict that the operator has set instead of the checks'.
    #[serde(default)]
    pub forced: Option<Forced>,
    /// The words of its agent that take something away; `None`: nothing is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Box<Said>>,
    /// The part of its slots that its load leaves it; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// What it has too much of to take new clients; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<Full>,
    /// How far its slow start has come.
    #[serde(default)]
    pub slow_start: Option<SavedSlowStart>,
    /// Whether it came to a service in use, and waits for its next hop.
    pub late: bool,
    /// Known clients at the last sweep.
    pub known: u64,
    /// Checks that passed, failed softly, failed hard.
    pub checks: [u64; 3],
    /// How often it entered each state.
    pub transitions: Vec<u64>,
    /// The way to the backend that its fleet has agreed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
}

/// A removed backend that clients may still be known at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedGone {
    /// Name of the backend in the service that it was in.
    pub name: String,
    /// The backend's specification, from its row.
    pub row: BackendSpec,
    /// Known clients at the last sweep.
    pub known: u64,
}

/// Counters of a backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedCounters {
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// New connections.
    pub connections: u64,
    /// New connections, by the index of their decision.
    pub decisions: Vec<u64>,
    /// Known clients moved away, by the index of the cause.
    pub moves: Vec<u64>,
    /// When something was last added.
    #[serde(default)]
    pub since: Option<Moment>,
}

/// A moment that means the same after a restart: time since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub Duration);

/// The moment of a state by two clocks: the wall's, which may be set, and one that goes on evenly until the machine ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    /// Which start of the machine it was.
    pub boot: String,
    /// Since that start.
    pub uptime: Duration,
    /// On the wall.
    pub wall: Moment,
}

impl SavedClock {
    /// Returns the time that the wall clock would show at this uptime if it had not been set since. `None` if the
    /// uptime is before this moment: then it belongs to another start of the machine.
    #[must_use]
    pub fn wall_at(&self, uptime: Duration) -> Option<SystemTime> {
        let since = uptime.checked_sub(self.uptime)?;
        UNIX_EPOCH.checked_add(self.wall.0)?.checked_add(since)
    }
}

/// The same moment on two clocks, to convert between them.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// On the monotonic clock.
    pub now: Instant,
    /// On the wall.
    pub wall: SystemTime,
}

impl Clocks {
    fn since_epoch(self) -> Duration {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// `instant` on the wall.
    #[must_use]
    pub fn moment(self, instant: Instant) -> Moment {
        let ahead = instant.saturating_duration_since(self.now);
        let behind = self.now.saturating_duration_since(instant);
        Moment((self.since_epoch() + ahead).saturating_sub(behind))
    }

    /// The same two clocks as they were at `moment`, or as they are, if it is to come.
    #[must_use]
    pub fn as_of(self, moment: Moment) -> Self {
        let now = self.instant(moment).min(self.now);
        let ago = self.now.saturating_duration_since(now);
        Self { now, wall: self.wall.checked_sub(ago).unwrap_or(self.wall) }
    }

    /// `moment` on the monotonic clock; the earliest it knows, if it was before.
    #[must_use]
    pub fn instant(self, moment: Moment) -> Instant {
        let wall = self.since_epoch();
        match moment.0.checked_sub(wall) {
            Some(ahead) => self.now.checked_add(ahead).unwrap_or(self.now),
            None => self.now.checked_sub(wall.saturating_sub(moment.0)).unwrap_or(self.now),
        }
    }
}
