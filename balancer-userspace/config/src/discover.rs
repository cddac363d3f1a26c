//! Service discovery: backends from a list of targets that another program maintains.

use std::{
    fmt, mem,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use crate::target::{MAX_TARGETS, Target};
use crate::{
    dns::{DnsSource, Records},
    etcd::EtcdSource,
    states::Admin,
    words::counted,
};

/// One section `[[service.discover]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoverConfig {
    /// The source of the list.
    pub source: Source,
    /// The minimum number of targets; a shorter list is not applied.
    pub min: Floor,
    /// The configuration of the only backend, if the list contains the addresses of a single backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Own>,
}

/// The configured part of a backend whose address is a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// The share of new clients.
    pub weight: u16,
    /// Whether new clients use other backends first.
    pub backup: bool,
}

/// The source of a list of targets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// A file, by its absolute path.
    File(PathBuf),
    /// Records of DNS, by their query.
    Dns(DnsSource),
    /// Keys of etcd, by their prefix.
    Etcd(EtcdSource),
}

impl Source {
    /// The file, if the source is a file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Dns(_) | Self::Etcd(_) => None,
        }
    }

    /// The backend whose address the source is, if it belongs to one.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        match &self.dns()?.records {
            Records::Backend { backend, .. } => Some(backend),
            Records::Services | Records::Addresses { .. } => None,
        }
    }

    /// Whether this source queries the same records of the same name, or the same keys, as an earlier source. The
    /// address of a backend belongs only to that backend.
    #[must_use]
    pub fn succeeds(&self, former: &Self) -> bool {
        let kind = |dns: &DnsSource| mem::discriminant(&dns.records);
        match (self, former) {
            (Self::Dns(now), Self::Dns(before)) => {
                self.backend().is_none() && now.name == before.name && kind(now) == kind(before)
            }
            (Self::Etcd(now), Self::Etcd(before)) => now.prefix == before.prefix,
            (Self::File(_) | Self::Dns(_) | Self::Etcd(_), _) => false,
        }
    }

    /// The DNS query, if the source is one.
    #[must_use]
    pub const fn dns(&self) -> Option<&DnsSource> {
        match self {
            Self::Dns(dns) => Some(dns),
            Self::File(_) | Self::Etcd(_) => None,
        }
    }

    /// The keys of etcd, if the source consists of keys.
    #[must_use]
    pub const fn etcd(&self) -> Option<&EtcdSource> {
        match self {
            Self::Etcd(etcd) => Some(etcd),
            Self::File(_) | Self::Dns(_) => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Dns(dns) => dns.fmt(f),
            Self::Etcd(etcd) => etcd.fmt(f),
        }
    }
}

/// The minimum number of targets for a list to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Floor {
    /// A fixed number of targets.
    Targets(u32),
    /// A percentage of the number of targets when the list was last applied, but at least one target.
    Share(u8),
}

impl Floor {
    /// The minimum number of targets, given the earlier number.
    #[must_use]
    pub fn least(self, had: usize) -> usize {
        match self {
            Self::Targets(count) => count as usize,
            Self::Share(percent) => (had * usize::from(percent)).div_ceil(100).max(1),
        }
    }

    /// Returns an error if a list of `count` targets, which had `had` targets before, has too few.
    #[must_use]
    pub fn too_few(self, count: usize, had: usize) -> Option<String> {
        let least = self.least(had);
        if count >= least {
            return None;
        }
        let of = match self {
            Self::Share(percent) if had > 0 => format!("{percent} % of the {had} before"),
            Self::Targets(_) | Self::Share(_) => format!("min = {least}"),
        };
        Some(format!("has {}, fewer than {of}; if that is meant, lower min", counted(count, "target")))
    }
}

impl From<u32> for Floor {
    fn from(count: u32) -> Self {
        Self::Targets(count)
    }
}

impl Default for Floor {
    fn default() -> Self {
        Self::Targets(1)
    }
}

/// The part of a backend that a list of targets controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// The list that contains the backend.
    pub source: Source,
    /// The weight in the list, which a user can change at run time.
    pub weight: u16,
    /// The state that the operator wanted before the backend was no longer listed; set only while the backend drains
    /// for that reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Admin>,
}
