//! A service of the configuration.

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

/// One `[[service]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// The unique name, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The earlier name under which it is hashed, if there is one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// Its listeners: at least one, without duplicates, and none of another service.
    pub listen: Vec<Listener>,
    /// `nat`: backend ports by listener port, if they differ.
    #[serde(default)]
    pub ports: BTreeMap<u16, u16>,
    /// The forwarding mode.
    pub forwarding: Forwarding,
    /// Slots of the lookup table.
    pub table_size: TableSize,
    /// The prefix lengths that turn a source address into a client.
    pub client_prefix: ClientPrefix,
    /// How long a client is remembered; zero: only the table decides.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// What happens to moved clients when their home returns.
    pub failback: Failback,
    /// What happens when no backend is eligible.
    pub when_all_down: WhenAllDown,
    /// What happens when all backends are at their limits.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How long a returning backend takes to reach its full share of new clients.
    #[serde(with = "humantime_serde")]
    pub slow_start: Duration,
    /// How long a draining backend keeps its known clients.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The condition that a drain waits for until then; `None`: connections with `snat`, otherwise clients.
    #[serde(default)]
    pub drain_until: Option<DrainUntil>,
    /// The effect of a failed health check.
    pub on_failure: OnFailure,
    /// `nat`: how long resets that refuse connections are withheld from clients while their backend is checked; zero:
    /// not at all.
    #[serde(default = "ServiceConfig::withhold_by_default", with = "humantime_serde")]
    pub withhold: Duration,
    /// `snat`: settings of its connections.
    #[serde(default)]
    pub snat: SnatConfig,
    /// When failures count as an outage rather than as failures of single backends.
    #[serde(default)]
    pub outage: Outage,
    /// Whether a backend counts as down until its first verdict.
    pub start_down: bool,
    /// Whether clients that no backend takes get a rejection.
    #[serde(default)]
    pub reject: bool,
    /// The share of steered clients, in percent; the host serves the others.
    #[serde(default = "ServiceConfig::steer_by_default")]
    pub steer: u8,
    /// Whether, and on which interface, this machine gets the VIPs.
    #[serde(default)]
    pub assign_vip: AssignVip,
    /// A deny list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyConfig>,
    /// Lists of targets that become backends beside those below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverConfig>,
    /// The agents of its backends; `None`: none are queried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentConfig>,
    /// When a backend has too much load and gets fewer new clients; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<BoundedLoad>,
    /// How QUIC connection IDs encode backends; `None`: there is no QUIC listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicConfig>,
    /// The fraction of its bytes, above 0, from which on a rule `spread` is suggested for a client; `None`: no
    /// suggestions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_heavy: Option<f64>,
    /// The health check of backends without their own.
    pub check: CheckConfig,
    /// Backends in file order; names are unique in the service.
    pub backends: Vec<BackendConfig>,
    /// Rules for client prefixes, at most one for a prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleConfig>,
}

impl ServiceConfig {
    /// The default of [`Self::withhold`].
    #[must_use]
    pub const fn withhold_by_default() -> Duration {
        Duration::from_secs(1)
    }

    /// The service's check, and backends' own checks.
    pub fn checks(&self) -> impl Iterator<Item = &CheckConfig> {
        self.backends.iter().filter_map(|backend| backend.check.as_deref()).chain([&self.check])
    }

    /// The condition that a drain waits for until its deadline.
    #[must_use]
    pub fn drains_until(&self) -> DrainUntil {
        let by_mode = if self.forwarding == Forwarding::Snat { DrainUntil::Connections } else { DrainUntil::Clients };
        self.drain_until.unwrap_or(by_mode)
    }

    /// The default of [`Self::steer`].
    #[must_use]
    pub const fn steer_by_default() -> u8 {
        share::WHOLE
    }

    /// Number of slots of its lookup table, once all of its backends are reachable.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.table_size.slots(self.backends.len())
    }

    /// Whether it equals `other`, except for backends and rules.
    #[must_use]
    pub fn has_settings_of(&self, other: &Self) -> bool {
        let Self {
            name,
            renamed_from,
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
            on_failure,
            withhold,
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
            check,
            backends: _,
            rules: _,
        } = self;
        *name == other.name
            && *renamed_from == other.renamed_from
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
            && *on_failure == other.on_failure
            && *snat == other.snat
            && *withhold == other.withhold
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
            && *check == other.check
    }
}

/// One `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// The name, unique in its service, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The earlier name under which it is hashed, if there is one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// The backend's address. Port 0: the listener's.
    pub address: SocketAddr,
    /// The backend's IPv6 address, for IPv6 listeners, with the same port as `address`.
    #[serde(default)]
    pub address6: Option<SocketAddr>,
    /// Share of new clients; 0 takes none.
    pub weight: u16,
    /// Used only when no primary backend is eligible.
    pub backup: bool,
    /// The limits of the backend.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Overrides the service's check.
    pub check: Option<Box<CheckConfig>>,
    /// Its server ID in QUIC connection IDs; `None`: derived from its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_server_id: Option<ServerId>,
    /// The list of targets that it comes from; `None`: it is from the configuration file, or was added at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovered: Option<Box<Discovered>>,
}

impl BackendConfig {
    /// Its server ID in the connection IDs of its service.
    #[must_use]
    pub fn server_id(&self, quic: &QuicConfig) -> ServerId {
        self.quic_server_id.unwrap_or_else(|| quic.derived_id(&self.name))
    }
}

/// The prefix lengths that turn a source address into a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPrefix {
    /// The length for IPv4, 0–32.
    pub v4: u8,
    /// The length for IPv6, 0–128.
    pub v6: u8,
}

/// What happens to moved clients when their home backend returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failback {
    /// They stay where they are.
    Stay,
    /// They go home.
    Return,
}

/// What happens when no backend is eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenAllDown {
    /// Steer as if every backend that is not in maintenance were up.
    Open,
    /// Drop and count.
    Drop,
}

/// The effect of a failed health check on known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnFailure {
    /// For a backend that does not answer.
    pub hard: FailureAction,
    /// For a backend that answers with a failure.
    pub soft: FailureAction,
}

/// When failures count as an outage rather than as failures of single backends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// The fraction of eligible backends that must be exceeded by failures. Above 0, at most 1; with 1 there is no
    /// outage.
    pub share: f64,
}

impl Outage {
    /// Whether this many of the eligible backends exceed the fraction.
    #[must_use]
    pub fn is_exceeded(self, failing: usize, eligible: usize) -> bool {
        // Products such as 0.57 * 100 are not exact.
        const ROUNDING: f64 = 1e-9;
        failing as f64 > (eligible as f64).mul_add(self.share, ROUNDING)
    }

    /// Whether the rule applies at all.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.share < 1.0
    }
}

impl Default for Outage {
    fn default() -> Self {
        Self { share: 0.5 }
    }
}

/// The treatment of a failed backend's known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// They are moved at once.
    Move,
    /// They are kept until the drain deadline.
    Drain,
}

/// The configuration's word for a forwarding mode.
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
            assert_eq!(Outage { share }.is_exceeded(failing, eligible), exceeded, "{failing} of {eligible}, {share}");
        }
    }
}
