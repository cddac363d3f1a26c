//! Rules for client prefixes in the configuration.

use std::{fmt, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::listeners::Family;

/// The shortest time after which a rule may end.
pub const LEAST_TTL: Duration = Duration::from_secs(1);

/// How a rule treats the clients of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// The balancer steers the clients to one backend while this backend takes clients.
    Pin {
        /// The name of the backend in the service.
        backend: String,
    },
    /// The balancer steers each connection separately, by the connection's source address and port.
    Spread,
    /// The program drops the packets of the clients.
    Deny,
}

impl Action {
    /// The word for this treatment: `pin`, `spread` or `deny`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Spread => "spread",
            Self::Deny => "deny",
        }
    }

    /// Replaces the name of a backend that was renamed.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Self::Pin { backend } = self
            && backend == from
        {
            to.clone_into(backend);
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin { backend } => write!(f, "pin {backend}"),
            Self::Spread | Self::Deny => f.write_str(self.word()),
        }
    }
}

/// One section `[[service.rule]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleConfig {
    /// The prefix of the clients' unmasked addresses, without host bits.
    pub prefix: IpNet,
    /// How the rule treats the clients of its prefix.
    #[serde(flatten)]
    pub action: Action,
    /// The time for which the rule applies after it was added; `None`: until the rule is removed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub ttl: Option<Duration>,
}

impl fmt::Display for RuleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.action.fmt(f)?;
        match self.ttl {
            Some(ttl) => write!(f, " for {}", humantime::format_duration(ttl)),
            None => Ok(()),
        }
    }
}

/// Returns the reason why a rule that pins `prefix` is useless in a service that identifies clients by `length` bits of
/// their addresses. The pin is useless if the prefix contains only some of the addresses of one client, because a
/// client has only one entry in the client table.
#[must_use]
pub fn less_than_a_client(service: &str, prefix: IpNet, length: u8) -> Option<String> {
    if prefix.prefix_len() <= length {
        return None;
    }
    let whole = IpNet::new(prefix.addr(), length).map_or(prefix, |whole| whole.trunc());
    Some(format!(
        "service {service} remembers clients by their first {length} bits, and {prefix} is a part of the client {whole}"
    ))
}

/// Returns the reason why no client of a service with clients of `families` has an address in `prefix`; `None`: some
/// clients may have such an address.
#[must_use]
pub fn foreign(service: &str, families: &[Family], prefix: IpNet) -> Option<String> {
    let theirs = Family::of(prefix.addr());
    let ours = families.first().filter(|_| !families.contains(&theirs))?;
    Some(format!("service {service} is {ours}: {prefix} is {theirs} and holds none of its clients"))
}
