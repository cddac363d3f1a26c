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
    /// Unique name, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The name that it is hashed under, where that is an earlier one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// Where it is reached: at least one, none twice, none another service's.
    pub listen: Vec<Listener>,
    /// `nat`: the ports of backends by those of listeners, where they differ.
    #[serde(default)]
    pub ports: BTreeMap<u16, u16>,
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// Slots of the lookup table.
    pub table_size: TableSize,
    /// What of a source address makes a client.
    pub client_prefix: ClientPrefix,
    /// How long a client is remembered; zero: the table alone decides.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// Where moved clients go when their home returns.
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
    /// What a drain waits for until then; `None`: for connections with `snat`, else for clients.
    #[serde(default)]
    pub drain_until: Option<DrainUntil>,
    /// What a failed health check does.
    pub on_failure: OnFailure,
    /// `nat`: for how long resets that refuse connections are withheld from clients while their backend is checked; zero: they
    /// are not.
    #[serde(default = "ServiceConfig::withhold_by_default", with = "humantime_serde")]
    pub withhold: Duration,
    /// `snat`: its connections.
    #[serde(default)]
    pub snat: SnatConfig,
    /// When failures are those of no single backend.
    #[serde(default)]
    pub outage: Outage,
    /// Whether a backend counts as down until its first verdict.
    pub start_down: bool,
    /// Whether clients that nobody takes are told so.
    #[serde(default)]
    pub reject: bool,
    /// The share of clients that are steered, in percent; the host serves the others.
    #[serde(default = "ServiceConfig::steer_by_default")]
    pub steer: u8,
    /// Whether this machine is given the VIPs, and where.
    #[serde(default)]
    pub assign_vip: AssignVip,
    /// A list of prefixes whose clients are denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<DenyConfig>,
    /// Lists of targets, each of which is a backend beside those below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<DiscoverConfig>,
    /// The agents of its backends; `None`: none are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentConfig>,
    /// When a backend has too much and takes fewer new clients; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<BoundedLoad>,
    /// How connection IDs of QUIC name backends; `None`: there is no listener of QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicConfig>,
    /// The part of its bytes, above 0, from which on a rule `spread` is proposed for a client; `None`: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_heavy: Option<f64>,
    /// The health check of backends without one of their own.
    pub check: CheckConfig,
    /// Backends in file order; names are unique in the service.
    pub backends: Vec<BackendConfig>,
    /// Rules for client prefixes, at most one for a prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleConfig>,
}

impl ServiceConfig {
    /// [`Self::withhold`] where nothing is said.
    #[must_use]
    pub const fn withhold_by_default() -> Duration {
        Duration::from_secs(1)
    }

    /// The service's check, and those of backends that have one of their own.
    pub fn checks(&self) -> impl Iterator<Item = &CheckConfig> {
        self.backends.iter().filter_map(|backend| backend.check.as_deref()).chain([&self.check])
    }

    /// What a drain waits for until its deadline.
    #[must_use]
    pub fn drains_until(&self) -> DrainUntil {
        let by_mode = if self.forwarding == Forwarding::Snat { DrainUntil::Connections } else { DrainUntil::Clients };
        self.drain_until.unwrap_or(by_mode)
    }

    /// [`Self::steer`] where nothing is said.
    #[must_use]
    pub const fn steer_by_default() -> u8 {
        share::WHOLE
    }

    /// Slots of its lookup table, once all of its backends are reachable.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.table_size.slots(self.backends.len())
    }

    /// Whether it says what `other` says, but for backends and rules.
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
    /// Unique in its service, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The name that it is hashed under, where that is an earlier one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// Its address. Port 0: the listener's.
    pub address: SocketAddr,
    /// Its address for listeners of the other family, IPv6; the port as above.
    #[serde(default)]
    pub address6: Option<SocketAddr>,
    /// Share of new clients; 0 takes none.
    pub weight: u16,
    /// Used only when no primary backend is eligible.
    pub backup: bool,
    /// How much it takes at most.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Overrides the service's check.
    pub check: Option<Box<CheckConfig>>,
    /// Its name in connection IDs of QUIC; `None`: derived from its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_server_id: Option<ServerId>,
    /// The list of targets that names it; `None`: it is from the configuration file, or was added at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovered: Option<Box<Discovered>>,
}

impl BackendConfig {
    /// Its name in the connection IDs of its service.
    #[must_use]
    pub fn server_id(&self, quic: &QuicConfig) -> ServerId {
        self.quic_server_id.unwrap_or_else(|| quic.derived_id(&self.name))
    }
}

/// Prefix lengths that make a client of a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPrefix {
    /// 0–32.
    pub v4: u8,
    /// 0–128.
    pub v6: u8,
}

/// Where moved clients go when their home backend returns.
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
    /// Drop, counted.
    Drop,
}

/// What a failed health check does with known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnFailure {
    /// Nobody answers.
    pub hard: FailureAction,
    /// It answers, and the answer says no.
    pub soft: FailureAction,
}

/// When failures are those of no single backend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// More than this part of the eligible backends fail. Above 0, at most 1; of 1 there is never more.
    pub share: f64,
}

impl Outage {
    /// Whether so many of the eligible backends are more than the share.
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

/// What becomes of the known clients of a failed backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// Moved at once.
    Move,
    /// Kept until the drain deadline.
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
