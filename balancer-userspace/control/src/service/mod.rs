//! Services and their backends at run time.

mod agent;
mod assess;
mod backend;
mod bounded;
mod features;
mod follow;
mod full;
mod outage;
mod refresh;
mod restore;
mod rules;
mod share;
mod tables;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::{client::HashKey, clock::Clock, map_types::Forwarding, share::WHOLE, verdict::MoveCause};
use balancer_config::{
    config::{
        AgentConfig, AssignVip, BackendConfig, CheckConfig, CheckKind, ClientPrefix, Failback, ServiceConfig,
        WhenAllDown,
    },
    deny::DenyConfig,
    discover::DiscoverConfig,
    listeners::{Family, Listener},
    names::BackendName,
    renames::Named as _,
    snat::DrainUntil,
    states::Admin,
};

use crate::{
    agreed::Way,
    ids::place,
    io::{
        BackendId, BackendSpec, CheckOutcome, CheckSpec, ListenerId, ListenerSpec, Passive, QuicSpec, RuleSpec,
        ServiceId, ServiceSpec,
    },
    keys,
    moves::Moves,
    next_hops::{self, Hop, NextHops},
    outage::Outage,
    rules::Rules,
    table::{Builder, Shares, Tier},
};
pub use agent::WordsOf;
pub use backend::Backend;
pub(crate) use backend::{Ended, ToldCheck};
pub(crate) use refresh::Look;
pub(crate) use share::SharedClients;

fn tick_after(tick_seconds: u32, remember: Duration) -> u32 {
    Clock::tick_after(tick_seconds, u32::try_from(remember.as_secs()).unwrap_or(u32::MAX))
}

/// A service, at run time, for one address family.
#[derive(Clone, Debug)]
pub struct Service {
    id: ServiceId,
    /// The family of the service's clients; each configured service becomes one such service for each family.
    family: Family,
    listeners: Vec<(Listener, ListenerId)>,
    /// The service's configuration without `backends`; the backends are stored in a field below.
    settings: ServiceConfig,
    /// The last configuration that was applied to the service, as long as the service and its backends match it.
    configured_as: Option<Arc<ServiceConfig>>,
    fleet: HashKey,
    client_key: HashKey,
    table_key: HashKey,
    backends: Vec<Backend>,
    rules: Rules,
    outage: Outage,
    /// The outage that this balancer's own checks show while the balancer is alone in its fleet.
    outage_seen_alone: Outage,
    /// The rules that the controller last passed to the shell.
    pub(crate) told_rules: Arc<[RuleSpec]>,
    /// Whether one of the service's backends is being removed.
    has_leaving: bool,
    /// The time of the next due action for a backend, as of the last evaluation.
    due: Option<Instant>,
    builder: Builder,
    live: Arc<[u16]>,
    home: Option<Arc<[u16]>>,
    shares: Shares,
    tier: Option<Tier>,
    generation: u64,
    required: u64,
    needless: u64,
    /// The number of seconds in a tick of the service's memory. The length of a tick stays the same as long as
    /// possible, so that ages in entries need no conversion.
    tick_seconds: u32,
    share: SharedClients,
    /// Whether all backends that could take new clients are full.
    all_full: bool,
}

impl Service {
    pub(crate) fn new(id: ServiceId, family: Family, settings: ServiceConfig, fleet: HashKey) -> Self {
        Self {
            id,
            family,
            listeners: Vec::new(),
            fleet,
            client_key: keys::client_key(fleet, settings.identity()),
            table_key: keys::table_key(fleet, settings.identity()),
            tick_seconds: tick_after(0, settings.remember),
            share: SharedClients::always(settings.steer),
            settings,
            configured_as: None,
            backends: Vec::new(),
            rules: Rules::default(),
            outage: Outage::default(),
            outage_seen_alone: Outage::default(),
            told_rules: Arc::default(),
            has_leaving: false,
            due: None,
            builder: Builder::default(),
            live: Arc::default(),
            home: None,
            shares: Shares::new(),
            tier: None,
            generation: 0,
            required: 0,
            needless: 0,
            all_full: false,
        }
    }

    /// Returns the index of the service in the kernel's maps.
    #[must_use]
    pub const fn id(&self) -> ServiceId {
        self.id
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The drop-in from which the service comes; `None`: the service is in the configuration file.
    #[must_use]
    pub fn drop_in(&self) -> Option<&str> {
        self.settings.drop_in.as_deref()
    }

    /// The address family of the service's clients.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Returns the name of the service for messages: `shop`, or `shop (IPv6)` if the configured service has both
    /// families.
    #[must_use]
    pub fn label(&self) -> String {
        if self.is_one_of_two() { format!("{} ({})", self.name(), self.family) } else { self.name().to_owned() }
    }

    /// Returns the family as a prefix for messages, such as `IPv6: `, if the configured service has both families;
    /// otherwise an empty text.
    pub(crate) fn prefix(&self) -> String {
        if self.is_one_of_two() { format!("{}: ", self.family) } else { String::new() }
    }

    /// Whether the configured service also has listeners of the other address family.
    #[must_use]
    pub fn is_one_of_two(&self) -> bool {
        self.settings.listen.iter().any(|listener| listener.family() != self.family)
    }

    /// Returns the listeners of all families in the configured order, with ids for the listeners of this service's own
    /// family.
    pub fn listeners(&self) -> impl Iterator<Item = (Listener, Option<ListenerId>)> {
        self.settings.listen.iter().map(|&listener| (listener, self.listener_id(listener)))
    }

    fn listener_id(&self, listener: Listener) -> Option<ListenerId> {
        self.listeners.iter().find(|(other, _)| *other == listener).map(|&(_, id)| id)
    }

    pub(crate) fn listener_ids(&self) -> impl Iterator<Item = ListenerId> {
        self.listeners.iter().map(|&(_, id)| id)
    }

    /// Gives each listener of the service an id: the listener's earlier id, or one of the `free` ids.
    pub(crate) fn name_listeners(&mut self, free: &mut impl Iterator<Item = ListenerId>) {
        let before = std::mem::take(&mut self.listeners);
        let known = |listener| before.iter().find(|(other, _)| *other == listener).map(|&(_, id)| id);
        self.listeners = (self.settings.listeners(self.family))
            .filter_map(|listener| Some((listener, known(listener).or_else(|| free.next())?)))
            .collect();
    }

    /// The address under which the balancer reaches a backend: see [`ServiceConfig::backend_address`].
    pub(crate) fn reached(&self, backend: &BackendConfig) -> SocketAddr {
        self.settings.backend_address(backend, self.family).unwrap_or(backend.address)
    }

    /// The address of a backend in the form that users see.
    #[must_use]
    pub fn shown_address(&self, backend: &Backend) -> String {
        self.settings.shown_address(&backend.config)
    }

    #[must_use]
    pub const fn forwarding(&self) -> Forwarding {
        self.settings.forwarding
    }

    /// The range of source ports that backends see, if the configuration contains a range.
    pub(crate) const fn snat_ports(&self) -> Option<(u16, u16)> {
        self.settings.snat.ports
    }

    /// Returns the condition for which a drain waits until its deadline.
    #[must_use]
    pub fn drains_until(&self) -> DrainUntil {
        self.settings.drains_until()
    }

    /// How long a draining backend must be silent before a drain that waits for connections ends.
    pub(crate) fn drain_grace(&self) -> Duration {
        self.settings.drain_grace()
    }

    /// The number of slots of the live table.
    #[must_use]
    pub fn table_size(&self) -> u32 {
        if self.live.is_empty() { self.slots_wanted() } else { self.live.len() as u32 }
    }

    /// The number of slots that the table will have when all backends of the service are reachable.
    pub(crate) fn slots_wanted(&self) -> u32 {
        self.settings.table_size.slots(self.backends.len())
    }

    /// The number of slots that the table had before a backend was added.
    pub(crate) fn slots_wanted_before(&self) -> u32 {
        self.settings.table_size.slots(self.backends.len().saturating_sub(1))
    }

    /// Returns the service's current configuration: it includes backends added at run time, but no backends removed at
    /// run time.
    #[must_use]
    pub fn config(&self) -> ServiceConfig {
        let backends = self.backends.iter().map(|backend| backend.config.clone()).collect();
        ServiceConfig { backends, ..self.settings.clone() }
    }

    /// Whether the service matches `config`, including the order of the backends.
    pub(crate) fn is_configured_as(&self, config: &Arc<ServiceConfig>) -> bool {
        let is_so = || {
            self.settings.has_settings_of(config)
                && self.settings.rules == config.rules
                && self.backends.iter().map(|of| &of.config).eq(&config.backends)
        };
        let is_known = self.configured_as.as_ref().is_some_and(|known| Arc::ptr_eq(known, config));
        debug_assert!(!is_known || is_so(), "{} was changed in another way than it was configured", self.name());
        is_known || is_so()
    }

    /// Returns the configuration that the service matches, if this configuration is known without a comparison.
    pub(crate) const fn configured_as(&self) -> Option<&Arc<ServiceConfig>> {
        self.configured_as.as_ref()
    }

    /// Records that the service now matches `config`.
    pub(crate) fn note_configured(&mut self, config: &Arc<ServiceConfig>) {
        self.configured_as = Some(Arc::clone(config));
    }

    pub(crate) fn set_weight(&mut self, backend: &str, weight: u16) {
        self.configured_as = None;
        self.backends.iter_mut().filter(|of| of.config.name == backend).for_each(|of| of.config.weight = weight);
    }

    /// Returns the service's backends in the order of the configuration, followed by backends added at run time.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backends of the service that are being removed.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = &Backend> {
        debug_assert!(self.has_leaving || !self.backends.iter().any(Backend::is_leaving), "{}", self.name());
        let all = if self.has_leaving { self.backends.as_slice() } else { &[] };
        all.iter().filter(|backend| backend.is_leaving())
    }

    /// The next time at which something about the service is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        debug_assert_eq!(self.due, self.backends.iter().filter_map(Backend::deadline).min(), "{}", self.name());
        self.due
            .into_iter()
            .chain(self.rules.next_end())
            .chain(self.outage.deadline())
            .chain(self.share.settles())
            .min()
    }

    /// The time of the next decision that this balancer makes itself while another balancer decides for the fleet.
    pub(crate) fn deadline_alone(&self) -> Option<Instant> {
        self.outage_seen_alone.deadline()
    }

    /// Whether an action for one of the service's backends is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.into_iter().chain(self.outage.deadline()).any(|due| due <= now)
    }

    /// The position in the service of the backend with this id.
    pub(crate) fn position(&self, id: BackendId) -> Option<usize> {
        place(&self.backends, id.0, |backend| backend.id.0)
    }

    /// The M entries of the live table, each of which is a backend id, `NO_BACKEND` or `ALL_DOWN`.
    #[must_use]
    pub fn live_table(&self) -> &[u16] {
        &self.live
    }

    /// The live table and the base table, in the form that the data path needs.
    #[must_use]
    pub fn tables(&self) -> (Arc<[u16]>, Option<Arc<[u16]>>) {
        (Arc::clone(&self.live), self.home.clone())
    }

    /// How the service treats moved clients when their home backend returns.
    pub(crate) const fn failback(&self) -> Failback {
        self.settings.failback
    }

    /// Whether it makes sense to send clients to the service: some backend takes clients, or works and keeps known
    /// clients, or the operator wants clients steered regardless of checks, or this machine serves clients itself.
    pub(crate) fn has_somebody(&self) -> bool {
        let keeps = |backend: &Backend| backend.keeps_known() && self.outage.holds(backend.id).is_none();
        let takes = |backend: &Backend| backend.takes_new_clients() || keeps(backend);
        let is_shared = self.share().now < WHOLE;
        is_shared || self.settings.when_all_down == WhenAllDown::Open || self.backends.iter().any(takes)
    }

    /// Whether the balancer should assign the VIPs to its machine, and to which interface.
    pub(crate) const fn assign_vip(&self) -> &AssignVip {
        &self.settings.assign_vip
    }

    /// The lists of targets from which the service's backends come.
    #[must_use]
    pub fn discover(&self) -> &[DiscoverConfig] {
        &self.settings.discover
    }

    /// The list of prefixes that the service denies.
    #[must_use]
    pub const fn deny(&self) -> Option<&DenyConfig> {
        self.settings.deny.as_ref()
    }

    /// The fraction of the service's bytes above which the balancer suggests a rule for a client.
    #[must_use]
    pub const fn spread_heavy(&self) -> Option<f64> {
        self.settings.spread_heavy
    }

    /// The number of backends that are up in normal operation; `None`: all backends.
    #[must_use]
    pub const fn expected(&self) -> Option<u32> {
        self.settings.expect
    }

    #[must_use]
    pub const fn remembers(&self) -> bool {
        !self.settings.remember.is_zero()
    }

    /// Whether clients may stay at a backend that takes no new clients, because of client memory or because of
    /// connections.
    pub(crate) fn keeps_clients(&self) -> bool {
        self.remembers() || self.forwarding() == Forwarding::Snat
    }

    /// The number of live tables that the service has had, including the first one.
    #[must_use]
    pub const fn table_generation(&self) -> u64 {
        self.generation
    }

    /// The numbers of slots moved since the start: the required moves and the needless moves (see [`Moves`]).
    #[must_use]
    pub const fn slots_moved(&self) -> (u64, u64) {
        (self.required, self.needless)
    }

    /// The slots whose backend differs from the backend in an `earlier` state.
    #[must_use]
    pub fn moves_since(&self, earlier: &Self) -> Moves {
        Moves::between(&earlier.live, &earlier.shares, &self.live, &self.shares)
    }

    /// The kind of backends to which the live table steers clients.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier.unwrap_or(Tier::NoBackend)
    }

    /// The client prefix length for the family of this service's clients.
    #[must_use]
    pub const fn client_prefix(&self) -> u8 {
        match self.family {
            Family::V4 => self.settings.client_prefix.v4,
            Family::V6 => self.settings.client_prefix.v6,
        }
    }

    /// The client prefix lengths for both families.
    #[must_use]
    pub const fn client_prefixes(&self) -> ClientPrefix {
        self.settings.client_prefix
    }

    /// The address to which the check of a backend connects, or would connect if the check ran.
    #[must_use]
    pub fn check_target(&self, backend: &Backend) -> SocketAddr {
        let check = self.check_config(backend);
        self.settings.check_target(&backend.config, check, self.family).unwrap_or(backend.reached)
    }

    #[must_use]
    pub const fn client_key(&self) -> HashKey {
        self.client_key
    }

    /// The full name of a backend, which includes the name of its service.
    #[must_use]
    pub fn name_of(&self, backend: &Backend) -> BackendName {
        BackendName { service: self.settings.name.clone(), backend: backend.config.name.clone() }
    }

    pub(crate) fn spec(&self) -> ServiceSpec {
        ServiceSpec {
            id: self.id,
            hash_key: self.client_key,
            family: self.family,
            listeners: self.listener_specs(),
            client_prefix: self.client_prefix(),
            forwarding: self.settings.forwarding,
            remember: self.settings.remember,
            tick_seconds: self.tick_seconds,
            failback: self.settings.failback,
            rules: !self.told_rules.is_empty() || self.settings.deny.is_some(),
            reject: self.rejects(),
            flows: self.settings.snat.clone(),
            quic: self.quic_spec(),
            share: self.share.share(),
            local: self.backends.iter().filter(|backend| backend.is_local()).map(|backend| backend.id).collect(),
            backends: self.backends.iter().map(|backend| (backend.id, self.row_address(backend))).collect(),
        }
    }

    /// How QUIC connection IDs name the service's backends.
    #[must_use]
    pub fn quic_spec(&self) -> Option<QuicSpec> {
        let config = self.settings.quic.clone()?;
        let servers = self.backends.iter().map(|backend| (backend.id, backend.config.server_id(&config))).collect();
        Some(QuicSpec { config, servers })
    }

    fn listener_specs(&self) -> Vec<ListenerSpec> {
        let counted = self.settings.listen.len() > 1;
        let spec = |&(listener, id): &(Listener, ListenerId)| ListenerSpec {
            id,
            listener,
            backend_port: Some(self.settings.backend_port(listener))
                .filter(|&port| Some(port) != listener.ports.single())
                .unwrap_or(0),
            counted,
        };
        self.listeners.iter().map(spec).collect()
    }

    /// The address of a backend in the form that the data path needs.
    fn row_address(&self, backend: &Backend) -> SocketAddr {
        self.row_address_of(&backend.config)
    }

    pub(crate) fn row_address_of(&self, backend: &BackendConfig) -> SocketAddr {
        backend.address_for(self.family, self.settings.forwarding).unwrap_or(backend.address)
    }

    pub(crate) fn backends_mut(&mut self) -> &mut Vec<Backend> {
        &mut self.backends
    }

    pub(crate) fn set_settings(&mut self, settings: ServiceConfig) {
        self.configured_as = None;
        if !settings.remember.is_zero() {
            let tick_seconds = if self.remembers() { self.tick_seconds } else { 0 };
            self.tick_seconds = tick_after(tick_seconds, settings.remember);
        }
        if self.settings.name != settings.name {
            self.backends.iter_mut().for_each(Backend::called_otherwise);
        }
        if self.settings.identity() != settings.identity() {
            self.client_key = keys::client_key(self.fleet, settings.identity());
            self.table_key = keys::table_key(self.fleet, settings.identity());
        }
        if self.settings.agent.is_some() != settings.agent.is_some() {
            self.forget_words();
        }
        self.settings = settings;
        self.drop_bounds();
        self.drop_full();
    }

    /// The row that a backend should have in the kernel's map, after a [`refresh`](Self::refresh).
    pub(crate) fn row(&self, backend: &Backend, hops: &NextHops) -> BackendSpec {
        let standing = backend.assessment.as_ref().map(|assessment| assessment.standing);
        // If the service treats all backends as up, this backend keeps its clients even if it is a backup or has weight
        // 0.
        let as_if_up =
            self.tier == Some(Tier::AsIfUp) && backend.effective_admin() != Admin::Maint && self.keeps_clients();
        let next_hop = match self.way(backend, hops) {
            Hop::Resolved(next_hop) => Some(next_hop),
            Hop::Pending | Hop::Failed(_) => None,
        };
        BackendSpec {
            service: self.id,
            keeps_known: as_if_up || standing.is_some_and(|standing| standing.keeps_known),
            // Without client memory, no client moves, so a change of the cause of moves needs no new row.
            cause: standing.filter(|_| self.keeps_clients()).map_or(MoveCause::Down, |standing| standing.cause),
            // Where nothing reads this flag, it alone does not make the controller rewrite rows.
            takes_pinned: self.asks_who_takes_clients() && backend.takes_pinned(),
            id: backend.id,
            forwarding: self.settings.forwarding,
            address: self.row_address(backend),
            tunnel_source: next_hop.and_then(|next_hop| next_hop.source),
            next_hop,
            passive: self.passive(backend),
        }
    }

    /// Whether the program reads which backends take new clients: for pins, and for connection IDs that open connections
    /// of a `snat` service.
    fn asks_who_takes_clients(&self) -> bool {
        let settings = &self.settings;
        self.rules.pins() || settings.forwarding == Forwarding::Snat && settings.quic.is_some()
    }

    /// Returns how the program reacts to packets with signs of failure; `None` if no check could confirm a failure.
    fn passive(&self, backend: &Backend) -> Option<Passive> {
        let check = self.check_config(backend);
        let is_on = check.kind != CheckKind::None && check.passive;
        is_on.then(|| Passive { withhold: self.withholds(check) })
    }

    /// How long the program withholds the resets of a backend with this `check`. Resets are withheld for longer than
    /// the restart of a server may take, so that there is a verdict when they pass again.
    fn withholds(&self, check: &CheckConfig) -> Duration {
        let withhold = self.settings.withhold;
        if withhold.is_zero() { Duration::ZERO } else { withhold + self.settings.restart_grace(check) }
    }

    /// The path to a backend, if the forwarding mode of the service can use it.
    fn way(&self, backend: &Backend, hops: &NextHops) -> Hop {
        let address = backend.reached.ip();
        let hop = hops.get(address);
        let obstacle = match hop {
            Hop::Resolved(next_hop) => next_hops::obstacle(self.settings.forwarding, self.family, address, next_hop),
            Hop::Pending | Hop::Failed(_) => None,
        };
        obstacle.map_or_else(|| hop.clone(), Hop::Failed)
    }

    /// The path that counts for a backend: the path on which the fleet has agreed, or without an agreed path this
    /// balancer's own path.
    fn judged_way(&self, backend: &Backend, hops: &NextHops) -> Way {
        if let Some(way) = backend.agreed_way() {
            return way.clone();
        }
        match self.way(backend, hops) {
            Hop::Pending => Way::Unknown,
            Hop::Resolved(_) => Way::Open,
            Hop::Failed(why) => Way::Closed(why),
        }
    }

    /// The check that should run on a backend, with its target, and how long the backend may refuse checks.
    #[must_use]
    pub fn check<'a>(&'a self, backend: &'a Backend) -> Option<(SocketAddr, &'a CheckConfig, Duration)> {
        let check = self.check_config(backend);
        Some((self.checked_at(backend)?, check, self.settings.restart_grace(check)))
    }

    /// The target of the check that should run on a backend.
    #[must_use]
    pub fn checked_at(&self, backend: &Backend) -> Option<SocketAddr> {
        let check = self.check_config(backend);
        // The balancer still checks a backend whose answers say `maint`, because otherwise the backend could not revoke
        // this state.
        let admin = match self.words_of(backend) {
            Some(WordsOf::Checks) => backend.admin(),
            Some(WordsOf::Agents) | None => backend.effective_admin(),
        };
        let wanted = admin != Admin::Maint && check.kind != CheckKind::None;
        self.settings.check_target(&backend.config, check, self.family).filter(|_| wanted)
    }

    /// The reason why this machine could not make the last check of a backend; `None` if the machine made the check, or
    /// if there was nothing to check.
    #[must_use]
    pub fn hindered<'a>(&self, backend: &'a Backend) -> Option<&'a str> {
        match &backend.last_check()?.outcome {
            CheckOutcome::Hindered(why) => self.checked_at(backend).map(|_| why.as_str()),
            CheckOutcome::Passed
            | CheckOutcome::Soft(_)
            | CheckOutcome::Hard(_)
            | CheckOutcome::Shut(_)
            | CheckOutcome::Late(_) => None,
        }
    }

    /// Returns how the balancer queries the agents of the service's backends; `None`: the balancer queries no agents.
    #[must_use]
    pub const fn agents(&self) -> Option<&AgentConfig> {
        self.settings.agent.as_ref()
    }

    /// The service's check, for backends that have no check of their own.
    #[must_use]
    pub const fn own_check(&self) -> &CheckConfig {
        &self.settings.check
    }

    /// Returns the specification, for the shell, of the check that runs on a backend.
    pub(crate) fn check_spec(&self, backend: &Backend, told: &ToldCheck) -> CheckSpec {
        CheckSpec {
            backend: backend.id(),
            number: told.number,
            name: self.name_of(backend),
            target: told.target,
            check: told.config.clone(),
            restart_grace: told.restart_grace,
            health: backend.health().clone(),
        }
    }

    /// The check of a backend: the backend's own check, or without one the service's check.
    #[must_use]
    pub fn check_config<'a>(&'a self, backend: &'a Backend) -> &'a CheckConfig {
        backend.config.check.as_deref().unwrap_or(&self.settings.check)
    }

    /// Records a finished check of the backend at `index`. Returns true if the controller should evaluate the service
    /// again.
    pub(crate) fn record(&mut self, index: usize, ended: Ended<'_>, hops: &NextHops, now: Instant) -> bool {
        let number = Some(ended.number);
        let Some(backend) = self.backends.get_mut(index).filter(|backend| backend.check_number() == number) else {
            return false;
        };
        let was_doubted = backend.health.is_doubted();
        backend.record(ended, &self.settings.check, now);
        let Some(backend) = self.backends.get(index) else { return false };
        let doubt_changed = backend.health.is_doubted() != was_doubted;
        let mut assessment = self.assess(backend, hops, now);
        backend.explain(&mut assessment);
        let news = backend.assessment.as_ref().map(|old| old.standing) != Some(assessment.standing);
        if !news && let Some(backend) = self.backends.get_mut(index) {
            backend.assessment = Some(assessment);
        }
        news || doubt_changed
    }
}
