//! The state of the controller that outlives its process.
//!
//! Plain data, which [`Controller::export`](super::controller::Controller::export) makes and
//! [`Controller::restore`](super::controller::Controller::restore) takes. A new field gets `#[serde(default)]`, so that
//! older files stay readable; a new field that an older controller must not overlook gets a new [`VERSION`].

mod changes;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use balancer_common::{client::HashKey, share::SETTLES_SECONDS};
use balancer_config::{
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

/// The counters of backends that were removed for good, by service and name.
pub type SavedCountersByService = BTreeMap<u16, BTreeMap<String, SavedCounters>>;

/// The version that this controller writes. It refuses files of later versions.
pub const VERSION: u32 = 2;

/// Everything that a restart must preserve. When it is written, its lists may be [`Listed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState<File = Vec<ServiceConfig>, Services = Vec<SavedService>, NextHops = Vec<(IpAddr, Hop)>> {
    /// The version of the state, see [`VERSION`].
    pub version: u32,
    /// The number of the kernel maps that belong to the state, drawn at random when the maps were created.
    pub instance: u64,
    /// The number of changes that users have made.
    pub generation: u64,
    /// The fleet's hash key, if the configuration has none.
    pub hash_key: Option<HashKey>,
    /// A fingerprint of the hash key, which shows whether hashes are the same as before.
    pub key_fingerprint: u64,
    /// The services of the last applied configuration file.
    pub file: File,
    /// The current services.
    pub services: Services,
    /// The removed backends that clients may still know.
    pub gone: Vec<SavedGone>,
    /// The free backend ids as runs (first, last), in the order of their use.
    pub free_ids: Vec<(u16, u16)>,
    /// The known states of the paths to backends.
    pub next_hops: NextHops,
    /// The counters of backends that were removed for good, by service and name. The shell fills them in.
    #[serde(default, rename = "departed")]
    pub removed_backends: SavedCountersByService,
    /// The moves that other members of a fleet count, by service and cause. The shell fills them in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repeated_moves: BTreeMap<u16, Vec<u64>>,
    /// Whether the operator has withdrawn the VIPs. The shell fills this in.
    #[serde(default)]
    pub withdrawn: bool,
    /// The fleet's epoch that has this state. The shell fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<SavedEpoch>,
    /// A clock that makes moments comparable even if the wall clock has been set since. The shell fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<SavedClock>,
}

/// A list whose items are created one by one while they are written, because a large state as a whole would take tens
/// of megabytes.
#[derive(Clone, Copy, Debug)]
pub struct Listed<List>(pub(crate) List);

impl<List: Fn() -> Items, Items: Iterator<Item: Serialize>> Serialize for Listed<List> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

impl SavedState {
    /// Clears the counters that grow with every check and sweep.
    pub fn forget_counts(&mut self) {
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            (backend.known, backend.checks) = (0, [0; 3]);
        }
        self.gone.iter_mut().for_each(|gone| gone.known = 0);
    }

    /// Resets all counters to 0, because the maps with their latest values are gone. The file may be minutes old, so a
    /// counter that continued from it could decrease, and Prometheus would take this for a reset and count twice.
    /// Counters that a fleet has `agreed` on stay.
    pub fn restart_counters(&mut self, agreed: bool) {
        self.removed_backends.clear();
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

    /// All counters that a restored controller continues.
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

    /// Limits all times so that, from `now` on, nothing lasts longer than it was to last when it began. The function is
    /// for a state whose moments come from a clock that may have been set since then.
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

/// The name of a fleet's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEpoch {
    /// The epoch's lineage: see `balancer-fleet`.
    pub lineage: u64,
    /// The epoch's number in its lineage.
    pub number: u64,
    /// The time of the decision.
    pub at: Moment,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedService {
    /// Index of the service.
    pub id: ServiceId,
    /// The family of the service's clients; if absent, that of its first listener.
    #[serde(default)]
    pub family: Option<Family>,
    /// The ids of the service's listeners.
    #[serde(default)]
    pub listeners: Vec<(Listener, ListenerId)>,
    /// The service's configuration, without `backends`, which are stored below.
    pub settings: ServiceConfig,
    /// The number of live tables so far.
    pub table_generation: u64,
    /// The number of slots moved because a backend's share changed.
    pub slots_moved_required: u64,
    /// The number of other slots moved.
    pub slots_moved_needless: u64,
    /// The number of seconds in a tick of the service's client memory; 0: it has none yet.
    #[serde(default)]
    pub tick_seconds: u32,
    /// The rules for client prefixes.
    #[serde(default)]
    pub rules: Vec<SavedRule>,
    /// The prefixes of expired rules of the configuration file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_rules: Vec<IpNet>,
    /// The declared or suspected outage, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<SavedOutage>,
    /// The earlier shares of clients that the balancer steered, if the share has changed recently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<SavedShare>,
    /// The service's backends, in their order.
    pub backends: Vec<SavedBackend>,
}

/// The range of the recent shares of steered clients; the settings hold the current share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedShare {
    /// The smallest share.
    pub least: u8,
    /// The largest share.
    pub most: u8,
    /// The time from which on the earlier shares no longer matter.
    pub settles: Moment,
}

/// A declared or suspected outage of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOutage {
    /// The phase.
    pub phase: SavedPhase,
    /// The time at which the outage began.
    pub since: Moment,
    /// The backends that keep their known clients although they are down.
    pub held: Vec<BackendId>,
}

/// The phase of an outage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedPhase {
    /// The outage is suspected.
    Suspected {
        /// The time at which the decision is due.
        until: Moment,
    },
    /// The outage is declared.
    Lasts,
    /// Some backends of the outage are back.
    Ebbing {
        /// The time until which the other backends may come back.
        until: Moment,
        /// Whether the outage was declared, and not only suspected.
        declared: bool,
    },
}

/// A rule for a client prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRule {
    /// The clients to which the rule applies.
    pub prefix: IpNet,
    /// The treatment of these clients.
    #[serde(flatten)]
    pub action: Action,
    /// The time for which the rule was to hold when it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// The time at which the rule expires.
    #[serde(default)]
    pub ends: Option<Moment>,
}

/// A slow start in progress.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSlowStart {
    /// The time at which the slow start began.
    pub since: Moment,
    /// The total duration of the slow start.
    pub lasts: Duration,
    /// The current step in the live table.
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
    /// The verdict of the backend's checks, and the checks counted towards the next verdict.
    pub health: Health,
    /// The state that users see.
    pub state: BackendState,
    /// The start of that state.
    pub since: Moment,
    /// The operator's drain timeout, which applies in place of the service's.
    pub drain_timeout: Option<Duration>,
    /// The deadline of a drain in progress.
    pub drain_until: Option<Moment>,
    /// Whether the backend is removed once it is drained.
    pub leaving: bool,
    /// The verdict that the operator has set.
    #[serde(default)]
    pub forced: Option<Forced>,
    /// The agent's report that reduces something; `None`: nothing is reduced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Box<Said>>,
    /// The part of the backend's slots that its load allows; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// The limit (of clients or connections) that keeps the backend from taking new clients; `None`: it is not full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<Full>,
    /// The progress of the backend's slow start.
    #[serde(default)]
    pub slow_start: Option<SavedSlowStart>,
    /// Whether the backend was added while the service was in use, and waits for its next hop.
    pub late: bool,
    /// The number of known clients at the last sweep.
    pub known: u64,
    /// The numbers of checks that passed, failed softly, and failed hard.
    pub checks: [u64; 3],
    /// The number of times that the backend entered each state.
    pub transitions: Vec<u64>,
    /// The path to the backend on which the fleet has agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
}

/// A removed backend that clients may still know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedGone {
    /// The backend's name in its former service.
    pub name: String,
    /// The backend's specification, from its row.
    pub row: BackendSpec,
    /// The number of known clients at the last sweep.
    pub known: u64,
}

/// Counters of a backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedCounters {
    /// The number of packets forwarded.
    pub packets: u64,
    /// The number of bytes forwarded.
    pub bytes: u64,
    /// The number of new connections.
    pub connections: u64,
    /// New connections, by the index of their decision.
    pub decisions: Vec<u64>,
    /// Known clients that moved away, by the index of the cause.
    pub moves: Vec<u64>,
    /// The time at which counters were last added.
    #[serde(default)]
    pub since: Option<Moment>,
}

/// A moment that is valid across restarts: the time since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub Duration);

/// The moment of a state on two clocks: the wall clock, which may be set, and a clock that advances steadily until the
/// machine shuts down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    /// The boot id of the machine.
    pub boot: String,
    /// The time since the boot.
    pub uptime: Duration,
    /// The wall clock's time.
    pub wall: Moment,
}

impl SavedClock {
    /// Returns the time that the wall clock would show at this uptime if it had not been set since; `None` if the
    /// uptime is before this moment, which means that the machine was booted again.
    #[must_use]
    pub fn wall_at(&self, uptime: Duration) -> Option<SystemTime> {
        let since = uptime.checked_sub(self.uptime)?;
        UNIX_EPOCH.checked_add(self.wall.0)?.checked_add(since)
    }
}

/// The same moment on two clocks, for conversion.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The monotonic clock's time.
    pub now: Instant,
    /// The wall clock's time.
    pub wall: SystemTime,
}

impl Clocks {
    fn since_epoch(self) -> Duration {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Converts `instant` to the wall clock.
    #[must_use]
    pub fn moment(self, instant: Instant) -> Moment {
        let ahead = instant.saturating_duration_since(self.now);
        let behind = self.now.saturating_duration_since(instant);
        Moment((self.since_epoch() + ahead).saturating_sub(behind))
    }

    /// The same clocks as they were at `moment`, or as they are now if it is in the future.
    #[must_use]
    pub fn as_of(self, moment: Moment) -> Self {
        let now = self.instant(moment).min(self.now);
        let ago = self.now.saturating_duration_since(now);
        Self { now, wall: self.wall.checked_sub(ago).unwrap_or(self.wall) }
    }

    /// Converts `moment` to the monotonic clock, but not to a time before this clock's earliest time.
    #[must_use]
    pub fn instant(self, moment: Moment) -> Instant {
        let wall = self.since_epoch();
        match moment.0.checked_sub(wall) {
            Some(ahead) => self.now.checked_add(ahead).unwrap_or(self.now),
            None => self.now.checked_sub(wall.saturating_sub(moment.0)).unwrap_or(self.now),
        }
    }
}
