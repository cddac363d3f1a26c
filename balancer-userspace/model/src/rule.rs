//! Rules for client prefixes, as they are written.

use std::{fmt, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::listeners::Family;

/// What becomes of the clients of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// They go to one backend, while that takes clients.
    Pin {
        /// Its name in the service.
        backend: String,
    },
    /// Each connection goes its own way, by its source port as well.
    Spread,
    /// They are dropped.
    Deny,
}

impl Action {
    /// `pin`, `spread` or `deny`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Spread => "spread",
            Self::Deny => "deny",
        }
    }

    /// A backend is called otherwise now.
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

/// One `[[service.rule]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleConfig {
    /// The clients that it is about, by their address before it is masked. No host bits.
    pub prefix: IpNet,
    /// What becomes of them.
    #[serde(flatten)]
    pub action: Action,
    /// How long it holds after it came; `None`: until it is removed.
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

/// Why a pin of `prefix` is of no use in a service that remembers clients by so many bits (`length`) of their addresses, if
/// it is a part of one client: one entry of the client table says where all of the client is.
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

/// Why no client of a service whose clients are of `families` has an address in `prefix`, if so.
#[must_use]
pub fn foreign(service: &str, families: &[Family], prefix: IpNet) -> Option<String> {
    let theirs = Family::of(prefix.addr());
    let ours = families.first().filter(|_| !families.contains(&theirs))?;
    Some(format!("service {service} is {ours}: {prefix} is {theirs} and holds none of its clients"))
}
