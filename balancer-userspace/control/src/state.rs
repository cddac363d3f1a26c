//! The state of the controller that must survive the end of its process.
//!
//! The state is plain data; [`Controller::export`](super::controller::Controller::export) makes the state, and
//! [`Controller::restore`](super::controller::Controller::restore) reads it. A new field gets `#[serde(default)]`, so
//! that files of earlier releases stay readable; a new field that an older controller must not ignore requires a new [`VERSION`].

mod changes;
mod features;

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

/// The texts of the drop-ins, by name.
pub type DropIns = BTreeMap<String, String>;

/// The version of the state that this controller writes. The controller refuses files with a later version.
pub const VERSION: u32 = 2;

/// All data that a restart must preserve. In a state that is being written, the lists may be [`Listed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState<File = Vec<ServiceConfig>, Services = Vec<SavedService>, NextHops = Vec<(IpAddr, Hop)>> {
    /// The version of the state; see [`VERSION`].
    pub version: u32,
    /// A number that identifies the kernel maps to which the state belongs, drawn at random when the maps were created.
    pub instance: u64,
    /// The number of changes that users have made.
    pub generation: u64,
    /// The fleet's hash key, if the configuration has none.
    pub hash_key: Option<HashKey>,
    /// A fingerprint of the hash key, which shows whether the hash key is still the same.
    pub key_fingerprint: u64,
    /// The services of the last applied configuration file and of the drop-ins.
    pub file: File,
    /// The texts of the drop-ins, by name. The services of drop-ins are in `file`.
    #[serde(default, skip_serializing_if = "DropIns::is_empty")]
    pub drop_ins: DropIns,
    pub services: Services,
    /// The removed backends that may still have known clients.
    pub gone: Vec<SavedGone>,
    /// The free backend ids as runs (first, last), in the order in which the controller uses them.
    pub free_ids: Vec<(u16, u16)>,
    /// The known states of the paths to backends.
    pub next_hops: NextHops,
    /// The counters of backends that were removed for good, by service and name. The shell, and not the core, fills in
    /// these counters.
    pub removed_backends: SavedCountersByService,
    /// The moves that other members of a fleet count too, by service and cause. The shell, and not the core, fills in
    /// these moves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repeated_moves: BTreeMap<u16, Vec<u64>>,
    /// Whether the operator has withdrawn the VIPs from this machine. The shell, and not the core, fills in this flag.
    pub withdrawn: bool,
    /// The epoch of the fleet whose state this is. The shell, and not the core, fills in the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<SavedEpoch>,
    /// A clock by which times stay comparable even if the wall clock has been set since. The shell, and not the core,
    /// fills in this clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<SavedClock>,
}

/// A list whose items are created one by one while they are written, because all items of a large state together would
/// take tens of megabytes.
#[derive(Clone, Copy, Debug)]
pub struct Listed<List>(pub(crate) List);

impl<List: Fn() -> Items, Items: Iterator<Item: Serialize>> Serialize for Listed<List> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

impl<File, Services, NextHops> SavedState<File, Services, NextHops> {
    /// The same state with other services; also returns the services that it had.
    #[must_use]
    pub fn with_services<Others>(self, services: Others) -> (SavedState<File, Others, NextHops>, Services) {
        self.with_lists(|file| file, services)
    }

    /// The same state with other services of the configuration file.
    #[must_use]
    pub fn with_file<Other>(self, file: Other) -> SavedState<Other, Services, NextHops> {
        let (state, services) = self.with_lists(|_| file, ());
        state.with_services(services).0
    }

    fn with_lists<Other, Others>(
        self,
        file: impl FnOnce(File) -> Other,
        services: Others,
    ) -> (SavedState<Other, Others, NextHops>, Services) {
        let state = SavedState {
            version: self.version,
            instance: self.instance,
            generation: self.generation,
            hash_key: self.hash_key,
            key_fingerprint: self.key_fingerprint,
            file: file(self.file),
            drop_ins: self.drop_ins,
            services,
            gone: self.gone,
            free_ids: self.free_ids,
            next_hops: self.next_hops,
            removed_backends: self.removed_backends,
            repeated_moves: self.repeated_moves,
            withdrawn: self.withdrawn,
            epoch: self.epoch,
            clock: self.clock,
        };
        (state, self.services)
    }
}

impl SavedState {
    /// Clears the counters that change with every check and with every sweep.
    pub fn forget_counts(&mut self) {
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            (backend.known, backend.checks) = (0, [0; 3]);
        }
        self.gone.iter_mut().for_each(|gone| gone.known = 0);
    }

    /// Resets all counters to 0, because the maps with their latest values no longer exist. The file may be minutes
    /// old, so a counter that continued from the file could decrease, and Prometheus would take the decrease for a
    /// reset and count packets twice. Counters on which a fleet has `agreed` keep their values.
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

    /// Limits all times in the state so that, from `now` on, no period lasts longer than its original duration. A state
    /// needs this call if its times come from a clock that may have been set since the state was saved.
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

/// The identification of the epoch that contains a fleet's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEpoch {
    /// The lineage of the epoch: see `balancer-fleet`.
    pub lineage: u64,
    /// The number of the epoch in its lineage.
    pub number: u64,
    /// The time at which the epoch was decided.
    pub at: Moment,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedService {
    /// The index of the service.
    pub id: ServiceId,
    /// The address family of the service's clients; if absent: the family of the service's first listener.
    pub family: Option<Family>,
    /// The ids of the service's listeners.
    pub listeners: Vec<(Listener, ListenerId)>,
    /// The service's configuration without `backends`; the backends are stored in a field below.
    pub settings: ServiceConfig,
    /// The number of live tables that the service has had so far.
    pub table_generation: u64,
    /// The number of slots moved because the share of a backend changed.
    pub slots_moved_required: u64,
    /// The number of slots moved although the shares of their old and new backend stayed the same.
    pub slots_moved_needless: u64,
    /// The number of seconds in a tick of the service's client memory; 0: the service has no client memory yet.
    pub tick_seconds: u32,
    /// The service's rules for client prefixes.
    pub rules: Vec<SavedRule>,
    /// The prefixes of those rules in the configuration file that have expired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_rules: Vec<IpNet>,
    /// The declared or suspected outage of the service, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<SavedOutage>,
    /// The earlier shares of clients that the balancer steered, if the share has changed recently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<SavedShare>,
    /// The service's backends, in their order.
    pub backends: Vec<SavedBackend>,
}

/// The range of the share of steered clients in the recent past; the settings contain the current share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedShare {
    /// The smallest recent share.
    pub least: u8,
    /// The largest recent share.
    pub most: u8,
    /// The time after which connections from before the last change of the share no longer matter.
    pub settles: Moment,
}

/// A declared or suspected outage of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOutage {
    pub phase: SavedPhase,
    /// The time at which the outage began.
    pub since: Moment,
    /// The backends that keep their known clients although the backends are down.
    pub held: Vec<BackendId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedPhase {
    Suspected {
        /// The time at which the controller decides about the outage.
        until: Moment,
    },
    /// The controller has declared the outage.
    Lasts,
    /// Some backends of the outage are up again.
    Ebbing {
        /// The time until which the other backends of the outage may come back.
        until: Moment,
        /// Whether the outage was declared, and not only suspected.
        declared: bool,
    },
}

/// The saved state of a rule for a client prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRule {
    /// The client prefix to which the rule applies.
    pub prefix: IpNet,
    /// How the rule treats these clients.
    #[serde(flatten)]
    pub action: Action,
    /// The lifetime that the rule had when it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// The time at which the rule expires.
    pub ends: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSlowStart {
    /// The time at which the slow start began.
    pub since: Moment,
    /// The total duration of the slow start.
    pub lasts: Duration,
    /// The current step of the slow start in the live table.
    pub step: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedBackend {
    /// The index of the backend's row in the kernel's maps.
    pub id: BackendId,
    /// The backend's present configuration, including changes made at run time.
    pub config: BackendConfig,
    /// The administrative state that the operator wants for the backend.
    pub admin: Admin,
    /// The verdict of the backend's checks, and the checks counted so far towards another verdict.
    pub health: Health,
    /// The state of the backend that users see.
    pub state: BackendState,
    /// The time at which that state began.
    pub since: Moment,
    /// The operator's timeout for a drain, which applies in place of the service's timeout.
    pub drain_timeout: Option<Duration>,
    /// The deadline of the backend's drain in progress.
    pub drain_until: Option<Moment>,
    /// Whether the controller removes the backend after the drain.
    pub leaving: bool,
    /// The verdict that the operator has set for the backend.
    pub forced: Option<Forced>,
    /// The agent's report, if it reduces something; `None`: no report reduces anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Box<Said>>,
    /// The fraction of its slots that the backend keeps because of its load; `None`: all slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// The limit (of clients or connections) that keeps the backend from taking new clients; `None`: the backend is not
    /// full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<Full>,
    pub slow_start: Option<SavedSlowStart>,
    /// Whether the backend was added while the service was in use, and waits for its next hop.
    pub late: bool,
    /// The number of the backend's known clients at the last sweep.
    pub known: u64,
    /// The numbers of the backend's checks that passed, failed softly, and failed hard.
    pub checks: [u64; 3],
    /// The number of times that the backend entered each state.
    pub transitions: Vec<u64>,
    /// The path to the backend on which the fleet has agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
}

/// A removed backend that may still have known clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedGone {
    /// The backend's name in its former service.
    pub name: String,
    /// The backend's specification, from its row.
    pub row: BackendSpec,
    /// The number of the backend's known clients at the last sweep.
    pub known: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedCounters {
    /// The number of packets forwarded to the backend.
    pub packets: u64,
    /// The number of bytes forwarded to the backend.
    pub bytes: u64,
    pub connections: u64,
    /// The numbers of new connections, by the index of the decision.
    pub decisions: Vec<u64>,
    /// The numbers of known clients that moved away, by the index of the cause.
    pub moves: Vec<u64>,
    /// The time at which a removed backend's counters were last added.
    pub since: Option<Moment>,
}

/// A time that is valid across restarts: the duration since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub Duration);

/// The time of a state on two clocks: the wall clock, which may be set, and a clock that advances steadily until the
/// machine shuts down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    /// The boot id of the machine.
    pub boot: String,
    /// The duration since the machine was booted.
    pub uptime: Duration,
    /// The time on the wall clock.
    pub wall: Moment,
}

impl SavedClock {
    /// Returns the time that the wall clock would show at this uptime if nobody had set the wall clock since this
    /// moment. `None`: the uptime is smaller than at this moment, which means that the machine was booted again.
    #[must_use]
    pub fn wall_at(&self, uptime: Duration) -> Option<SystemTime> {
        let since = uptime.checked_sub(self.uptime)?;
        UNIX_EPOCH.checked_add(self.wall.0)?.checked_add(since)
    }
}

/// The same moment on two clocks, which allows converting times from one clock to the other.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The time of the moment on the monotonic clock.
    pub now: Instant,
    /// The time of the moment on the wall clock.
    pub wall: SystemTime,
}

impl Clocks {
    fn since_epoch(self) -> Duration {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Converts `instant` to a time on the wall clock.
    #[must_use]
    pub fn moment(self, instant: Instant) -> Moment {
        let ahead = instant.saturating_duration_since(self.now);
        let behind = self.now.saturating_duration_since(instant);
        Moment((self.since_epoch() + ahead).saturating_sub(behind))
    }

    /// The two clocks as they were at `moment`, or as they are now if `moment` is in the future.
    #[must_use]
    pub fn as_of(self, moment: Moment) -> Self {
        let now = self.instant(moment).min(self.now);
        let ago = self.now.saturating_duration_since(now);
        Self { now, wall: self.wall.checked_sub(ago).unwrap_or(self.wall) }
    }

    /// Converts `moment` to a time on the monotonic clock, but not to a time before the earliest time of this clock.
    #[must_use]
    pub fn instant(self, moment: Moment) -> Instant {
        let wall = self.since_epoch();
        match moment.0.checked_sub(wall) {
            Some(ahead) => self.now.checked_add(ahead).unwrap_or(self.now),
            None => self.now.checked_sub(wall.saturating_sub(moment.0)).unwrap_or(self.now),
        }
    }
}
