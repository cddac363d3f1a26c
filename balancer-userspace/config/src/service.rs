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

/// One section `[[service]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// The unique name, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The earlier name under which the service is hashed, if there is one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// The service's listeners: at least one, without duplicates; no other service has any of them.
    pub listen: Vec<Listener>,
    /// `nat`: the ports of backends by listener port, if they differ.
    #[serde(default)]
    pub ports: BTreeMap<u16, u16>,
    /// The forwarding mode.
    pub forwarding: Forwarding,
    /// The number of slots of the lookup table.
    pub table_size: TableSize,
    /// The prefix lengths that turn a source address into a client.
    pub client_prefix: ClientPrefix,
    /// How long a client is remembered; zero: only the table decides about clients.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// The treatment of moved clients when their home returns.
    pub failback: Failback,
    /// The treatment of clients when no backend is eligible.
    pub when_all_down: WhenAllDown,
    /// The treatment of new clients when all backends are at their limits.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How long a returning backend takes to reach its full share of new clients.
    #[serde(with = "humantime_serde")]
    pub slow_start: Duration,
    /// How long a draining backend keeps its known clients.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The condition for which a drain waits until then; `None`: connections with `snat`, otherwise clients.
    #[serde(default)]
    pub drain_until: Option<DrainUntil>,
    /// The effect of a failed health check.
    pub on_failure: OnFailure,
    /// `nat`: how long the balancer withholds resets that refuse connections from clients while it checks the backend;
    /// zero: not at all.
    #[serde(default = "ServiceConfig::withhold_by_default", with = "humantime_serde")]
    pub withhold: Duration,
    /// `snat`: the settings of the service's connections.
    #[serde(default)]
    pub snat: SnatConfig,
    /// The rule that decides when failures count as an outage rather than as failures of single backends.
    #[serde(default)]
    pub outage: Outage,
    /// Whether a backend counts as down until its first verdict.
    pub start_down: bool,
    /// Whether clients that no backend takes are rejected with an answer.
    #[serde(default)]
    pub reject: bool,
    /// The share of clients that the balancer steers, in percent; the host serves the others.
    #[serde(default = "ServiceConfig::steer_by_default")]
    pub steer: u8,
    /// Whether, and on which interface, this machine gets the VIPs.
    #[serde(default)]
    pub assign_vip: AssignVip,
    /// The deny list; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyConfig>,
    /// Lists of targets that become backends in addition to those below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverConfig>,
    /// The agents of the service's backends; `None`: the balancer queries none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentConfig>,
    /// The rule for bounded load, by which a backend with too much load gets fewer new clients; `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<BoundedLoad>,
    /// How QUIC connection IDs encode backends; `None`: there is no QUIC listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicConfig>,
    /// The fraction of the service's bytes, above 0, from which on a rule `spread` is suggested for a client; `None`:
    /// no suggestions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_heavy: Option<f64>,
    /// The health check of backends that have none of their own.
    pub check: CheckConfig,
    /// The backends in file order; names are unique in the service.
    pub backends: Vec<BackendConfig>,
    /// The rules for client prefixes, at most one for each prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleConfig>,
}

impl ServiceConfig {
    /// The default of [`Self::withhold`].
    #[must_use]
    pub const fn withhold_by_default() -> Duration {
        Duration::from_secs(1)
    }

    /// The check of the service, and the backends' own checks.
    pub fn checks(&self) -> impl Iterator<Item = &CheckConfig> {
        self.backends.iter().filter_map(|backend| backend.check.as_deref()).chain([&self.check])
    }

    /// The condition for which a drain waits until its deadline.
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

    /// The number of slots of the service's lookup table, once all of its backends are reachable.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.table_size.slots(self.backends.len())
    }

    /// Whether the service equals `other`, except for backends and rules.
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

/// One section `[[service.backend]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// The name, unique in its service, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The earlier name under which the backend is hashed, if there is one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// The address of the backend; port 0 stands for the listener's port.
    pub address: SocketAddr,
    /// The backend's IPv6 address, for IPv6 listeners, with the same port as `address`.
    #[serde(default)]
    pub address6: Option<SocketAddr>,
    /// The share of new clients; a backend with 0 takes none.
    pub weight: u16,
    /// Whether the backend is used only when no primary backend is eligible.
    pub backup: bool,
    /// The limits of the backend.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// The backend's own check, in place of the service's.
    pub check: Option<Box<CheckConfig>>,
    /// The backend's server ID in QUIC connection IDs; `None`: derived from its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_server_id: Option<ServerId>,
    /// The list of targets that contains the backend; `None`: the backend is in the configuration file, or was added at
    /// run time.
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

/// The prefix lengths that turn a source address into a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPrefix {
    /// The prefix length for IPv4, 0–32.
    pub v4: u8,
    /// The prefix length for IPv6, 0–128.
    pub v6: u8,
}

/// The treatment of moved clients when their home backend returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failback {
    /// The clients stay where they are.
    Stay,
    /// The clients return to their home.
    Return,
}

/// The treatment of clients when no backend is eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenAllDown {
    /// Steer as if every backend that is not in maintenance were up.
    Open,
    /// Drop and count the packets of clients.
    Drop,
}

/// The effect of a failed health check on known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnFailure {
    /// The action for a backend that does not answer.
    pub hard: FailureAction,
    /// The action for a backend that answers with a failure.
    pub soft: FailureAction,
}

/// The rule that decides when failures count as an outage rather than as failures of single backends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// The fraction of the eligible backends above which failures count as an outage. The value is above 0 and at most
    /// 1; with 1 there are no outages.
    pub share: f64,
}

impl Outage {
    /// Whether this number of failing backends exceeds the fraction of the eligible ones.
    #[must_use]
    pub fn is_exceeded(self, failing: usize, eligible: usize) -> bool {
        // Products such as 0.57 * 100 are not exact.
        const ROUNDING: f64 = 1e-9;
        failing as f64 > (eligible as f64).mul_add(self.share, ROUNDING)
    }

    /// Whether there can be outages at all.
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
    /// The clients move at once.
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
            assert_eq!(Outage { share }.is_exceeded(failing, eligible), exceeded, "{failing} of {eligible}, {share}");
        }
    }
}
