//! Rules for clients.

use balancer_control::rules::Action;
use serde::{Deserialize, Serialize};

/// An element of `GET /v1/rules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleView {
    /// The service's name.
    pub service: String,
    /// The prefix of the clients to which the rule applies.
    pub prefix: String,
    /// The treatment of clients in the prefix: `pin` (with `backend`), `spread` or `deny`.
    #[serde(flatten)]
    pub action: Action,
    /// Whether the configuration file contains an identical rule; rules added or changed at run time are not in the
    /// file.
    pub in_file: bool,
    /// Whether the rule has an effect at the moment.
    pub active: bool,
    /// The reason why the rule has no effect; empty for a rule in effect.
    pub reason: String,
    /// Seconds until the rule expires; absent: the rule never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// The number of packets that the rule decided about, without later fragments and ICMP errors.
    pub packets: u64,
    /// The number of packets steered as if the rule did not exist, because the rule's backend took no clients.
    pub fallbacks: u64,
}

/// The action of a rule, without the name of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleWord {
    /// A pin, see [`Action::Pin`].
    Pin,
    /// A rule that spreads connections, see [`Action::Spread`].
    Spread,
    /// A rule that denies clients, see [`Action::Deny`].
    Deny,
}

/// The body of `PUT /v1/services/{service}/rules/{prefix}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRule {
    /// The treatment of the prefix's clients.
    pub action: RuleWord,
    /// With `pin`: the backend that gets the prefix's clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Time after which the rule expires, such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}
