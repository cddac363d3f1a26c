//! The configuration of a service.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use balancer_common::{map_types::Forwarding, share};
use serde::{Deserialize, Serialize};

use crate::{
    agent::AgentConfig,
    bounded::BoundedLoad,
    check::CheckConfig,
    deny::DenyConfig,
    discover::{DiscoverConfig, Discovered},
    limits::{Limits, WhenFull},
    listeners::Listener,
    quic::{QuicConfig, ServerId},
    rule::RuleConfig,
    snat::{DrainUntil, SnatConfig},
    table_size::TableSize,
    vip::AssignVip,
};

/// The minimum of the default of [`ServiceConfig::drain_grace`].
const LEAST_GRACE: Duration = Duration::from_secs(30);
/// The default of [`ServiceConfig::restart_grace`] if the balancer withholds refusals from clients.
const RESTART_GRACE: Duration = Duration::from_secs(2);

/// One section `[[service]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// The unique name of the service, 1–63 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The earlier name by which the service is hashed, if there is one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// The drop-in that contains the service; `None`: the configuration file contains the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_in: Option<String>,
    /// The service's listeners: at least one, without duplicates; no other service has one of these listeners.
    pub listen: Vec<Listener>,
    /// `nat`: the ports of backends by listener port, for listeners whose port differs from the backends' port.
    #[serde(default)]
    pub ports: BTreeMap<u16, u16>,
    /// The forwarding mode of the service.
    pub forwarding: Forwarding,
    /// The number of slots of the service's lookup table.
    pub table_size: TableSize,
    /// The prefix lengths by which the service maps source addresses to clients.
    pub client_prefix: ClientPrefix,
    /// The time for which the service remembers a client; zero: only the lookup table determines backends.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// How the service treats moved clients when their home backend returns.
    pub failback: Failback,
    /// How the service treats clients when no backend is eligible.
    pub when_all_down: WhenAllDown,
    /// How the service treats new clients when all backends are at their limits.
    #[serde(default)]
    pub when_full: WhenFull,
    /// The time that a returning backend needs to reach its full share of new clients.
    #[serde(with = "humantime_serde")]
    pub slow_start: Duration,
    /// The time for which a draining backend keeps its known clients.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The condition for which a drain waits until its deadline; `None`: clients.
    #[serde(default)]
    pub drain_until: Option<DrainUntil>,
    /// How long a backend must be silent before a drain that waits for connections ends; `None`: see
    /// [`Self::drain_grace`].
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub drain_grace: Option<Duration>,
    /// The effect of a failed health check on known clients.
    pub on_failure: OnFailure,
    /// `nat`: while the balancer checks a backend, it withholds from clients the backend's resets that refuse
    /// connections for at most this time; zero: it withholds no resets.
    #[serde(default = "ServiceConfig::withhold_by_default", with = "humantime_serde")]
    pub withhold: Duration,
    /// How long a backend may refuse connections, as while its server restarts, before refusals count as a failure;
    /// `None`: see [`Self::restart_grace`].
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub restart_grace: Option<Duration>,
    /// `snat`: the settings for the service's connections.
    #[serde(default)]
    pub snat: SnatConfig,
    /// The rule that decides when failures of several backends count as an outage rather than as single failures.
    #[serde(default)]
    pub outage: Outage,
    /// Whether a backend counts as down until its checks give the first verdict.
    pub start_down: bool,
    /// Whether the program rejects the packets of clients that no backend takes.
    #[serde(default)]
    pub reject: bool,
    /// The share of the service's clients that the balancer steers, in percent; the host serves the other clients.
    #[serde(default = "ServiceConfig::steer_by_default")]
    pub steer: u8,
    /// Whether the balancer assigns the VIPs to this machine, and to which interface.
    #[serde(default)]
    pub assign_vip: AssignVip,
    /// The deny list of the service; `None`: the service has no deny list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyConfig>,
    /// The lists of targets whose targets become backends in addition to `backends`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverConfig>,
    /// The agents of the service's backends; `None`: the balancer queries no agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentConfig>,
    /// The rule for bounded load, by which a backend with too much load gets fewer new clients; `None`: the service has
    /// no such rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<BoundedLoad>,
    /// How QUIC connection IDs name backends; `None`: the service has no QUIC listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicConfig>,
    /// The fraction of the service's bytes, greater than 0, above which the balancer suggests a rule `spread` for a
    /// client; `None`: it makes no suggestions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_heavy: Option<f64>,
    /// The number of backends that are up in normal operation, at least 1; while so many are up, other backends that
    /// fail their checks are no fault. `None`: all backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u32>,
    /// The health check of backends that have no check of their own.
    pub check: CheckConfig,
    /// The service's backends in the order of the file; names are unique in the service.
    pub backends: Vec<BackendConfig>,
    /// The service's rules for client prefixes, at most one rule for each prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleConfig>,
}

impl ServiceConfig {
    /// The default value of [`Self::withhold`].
    #[must_use]
    pub const fn withhold_by_default() -> Duration {
        Duration::from_secs(1)
    }

    /// The place in which the service is configured, for messages: `the file` or `drop-in NAME`.
    #[must_use]
    pub fn origin(&self) -> String {
        self.drop_in.as_ref().map_or_else(|| "the file".to_owned(), |name| format!("drop-in {name}"))
    }

    /// The check of the service, and the own checks of its backends.
    pub fn checks(&self) -> impl Iterator<Item = &CheckConfig> {
        self.backends.iter().filter_map(|backend| backend.check.as_deref()).chain([&self.check])
    }

    /// The condition for which a drain waits until its deadline.
    #[must_use]
    pub fn drains_until(&self) -> DrainUntil {
        self.drain_until.unwrap_or_default()
    }

    /// How long a draining backend must have no connection, and get no packet, before a drain that waits for connections
    /// ends.
    #[must_use]
    pub fn drain_grace(&self) -> Duration {
        self.drain_grace.unwrap_or_else(|| (self.remember / 8).max(LEAST_GRACE))
    }

    /// How long a backend with this `check` may refuse connections, as while its server restarts, before refusals count
    /// as a failure. By default, the balancer waits if clients do not see the refusals, because it withholds the
    /// backend's resets, and if there are known clients that would move.
    #[must_use]
    pub fn restart_grace(&self, check: &CheckConfig) -> Duration {
        let can_wait = matches!(self.forwarding, Forwarding::Nat | Forwarding::Snat)
            && check.passive
            && !self.withhold.is_zero()
            && !self.remember.is_zero();
        self.restart_grace.unwrap_or(if can_wait { RESTART_GRACE } else { Duration::ZERO })
    }

    /// The default value of [`Self::steer`].
    #[must_use]
    pub const fn steer_by_default() -> u8 {
        share::WHOLE
    }

    /// The number of slots of the service's lookup table when all backends of the service are reachable.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.table_size.slots(self.backends.len())
    }

    /// Whether all settings of the service except backends and rules are equal to those of `other`.
    #[must_use]
    pub fn has_settings_of(&self, other: &Self) -> bool {
        let Self {
            name,
            renamed_from,
            drop_in,
            listen,
            ports,
            forwarding,
            table_size,
            client_prefix,
            remember,
            failback,
            when_all_down,
            when_full,
            slow_start,
            drain_timeout,
            drain_until,
            drain_grace,
            on_failure,
            withhold,
            restart_grace,
            snat,
            outage,
            start_down,
            reject,
            steer,
            assign_vip,
            deny,
            discover,
            agent,
            bounded_load,
            quic,
            spread_heavy,
            expect,
            check,
            backends: _,
            rules: _,
        } = self;
        *name == other.name
            && *renamed_from == other.renamed_from
            && *drop_in == other.drop_in
            && *listen == other.listen
            && *ports == other.ports
            && *forwarding == other.forwarding
            && *table_size == other.table_size
            && *client_prefix == other.client_prefix
            && *remember == other.remember
            && *failback == other.failback
            && *when_all_down == other.when_all_down
            && *when_full == other.when_full
            && *slow_start == other.slow_start
            && *drain_timeout == other.drain_timeout
            && *drain_until == other.drain_until
            && *drain_grace == other.drain_grace
            && *on_failure == other.on_failure
            && *snat == other.snat
            && *withhold == other.withhold
            && *restart_grace == other.restart_grace
            && *outage == other.outage
            && *start_down == other.start_down
            && *reject == other.reject
            && *steer == other.steer
            && *assign_vip == other.assign_vip
            && *deny == other.deny
            && *discover == other.discover
            && *agent == other.agent
            && *bounded_load == other.bounded_load
            && *quic == other.quic
            && *spread_heavy == other.spread_heavy
            && *expect == other.expect
            && *check == other.check
    }
}

/// One section `[[service.backend]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// The name of the backend, unique in its service, 1–63 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The earlier name by which the backend is hashed, if there is one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// The address of the backend; port 0 stands for each listener's port.
    pub address: SocketAddr,
    /// The backend's IPv6 address, for IPv6 listeners; its port equals the port of `address`.
    #[serde(default)]
    pub address6: Option<SocketAddr>,
    /// The weight, which determines the share of new clients; a backend with weight 0 takes no new clients.
    pub weight: u16,
    /// Whether the backend gets clients only when no primary backend is eligible.
    pub backup: bool,
    /// The limits on clients and connections of the backend.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// The backend's own check, which replaces the service's check.
    pub check: Option<Box<CheckConfig>>,
    /// The backend's server ID in QUIC connection IDs; `None`: the balancer derives the server ID from the backend's
    /// name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_server_id: Option<ServerId>,
    /// The list of targets that contains the backend; `None`: the configuration file contains the backend, or a user
    /// has added it at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovered: Option<Box<Discovered>>,
}

impl BackendConfig {
    /// The backend's server ID in the connection IDs of its service.
    #[must_use]
    pub fn server_id(&self, quic: &QuicConfig) -> ServerId {
        self.quic_server_id.unwrap_or_else(|| quic.derived_id(&self.name))
    }
}

/// The prefix lengths by which a service maps source addresses to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPrefix {
    /// The prefix length for IPv4 addresses, 0–32.
    pub v4: u8,
    /// The prefix length for IPv6 addresses, 0–128.
    pub v6: u8,
}

/// How the service treats moved clients when their home backend returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failback {
    /// The clients stay at their present backends.
    Stay,
    /// The clients return to their home backend.
    Return,
}

/// How the service treats clients when no backend is eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenAllDown {
    /// The balancer steers clients as if every backend that is not in maintenance were up.
    Open,
    /// The program drops and counts the packets of the clients.
    Drop,
}

/// How a failed health check affects known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnFailure {
    /// The action for the clients of a backend that does not answer.
    pub hard: FailureAction,
    /// The action for the clients of a backend that answers with a failure.
    pub soft: FailureAction,
}

/// The rule that decides when failures of several backends count as an outage rather than as single failures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// The fraction of the eligible backends above which failures count as an outage. The value is greater than 0 and
    /// at most 1; with 1, the service has no outages.
    pub share: f64,
    /// How long clients of the backends that are still down stay after the last return of a backend.
    #[serde(
        default = "Outage::hold_by_default",
        with = "humantime_serde",
        skip_serializing_if = "Outage::is_default_hold"
    )]
    pub hold: Duration,
}

impl Outage {
    /// The default value of [`Self::hold`].
    #[must_use]
    pub const fn hold_by_default() -> Duration {
        Duration::from_secs(10)
    }

    fn is_default_hold(hold: &Duration) -> bool {
        *hold == Self::hold_by_default()
    }

    /// Whether this number of failing backends exceeds the fraction among the eligible backends.
    #[must_use]
    pub fn is_exceeded(self, failing: usize, eligible: usize) -> bool {
        // In floating-point numbers, products such as 0.57 * 100 are not exact.
        const ROUNDING: f64 = 1e-9;
        failing as f64 > (eligible as f64).mul_add(self.share, ROUNDING)
    }

    /// Whether the service can have outages at all.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.share < 1.0
    }
}

impl Default for Outage {
    fn default() -> Self {
        Self { share: 0.5, hold: Self::hold_by_default() }
    }
}

/// How the balancer treats the known clients of a failed backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// The clients move with their next packets.
    Move,
    /// The clients stay until the deadline of a drain.
    Drain,
}

/// The word for a forwarding mode in the configuration.
#[must_use]
pub const fn forwarding_word(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Dsr => "dsr",
        Forwarding::Nat => "nat",
        Forwarding::Snat => "snat",
        Forwarding::Ipip => "ipip",
        Forwarding::Gue => "gue",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_exactly_the_share_fails_then_it_is_not_exceeded() {
        for (share, failing, eligible, exceeded) in [
            (0.5, 1, 2, false),
            (0.5, 2, 3, true),
            (0.5, 2, 4, false),
            (0.5, 3, 4, true),
            (0.5, 1, 1, true),
            (0.5, 0, 0, false),
            (0.57, 57, 100, false),
            (0.57, 58, 100, true),
            (0.7, 7, 10, false),
            (1.0, 4, 4, false),
        ] {
            let rule = Outage { share, ..Outage::default() };
            assert_eq!(rule.is_exceeded(failing, eligible), exceeded, "{failing} of {eligible}, {share}");
        }
    }
}
