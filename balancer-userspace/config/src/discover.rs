//! Service discovery: backends from a list of targets, which another program maintains.

use std::{
    fmt, mem,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use crate::target::{MAX_TARGETS, Target};
use crate::{
    dns::{DnsSource, Records},
    etcd::EtcdSource,
    states::Admin,
    words::counted,
};

/// How long a backend waits for its missing target before it drains, by default.
pub const DEFAULT_KEEP: Duration = Duration::from_secs(30);

/// One section `[[service.discover]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoverConfig {
    /// The source of the list.
    pub source: Source,
    /// The minimum number of targets; the balancer does not apply a shorter list.
    pub min: Floor,
    /// How long a backend waits for its missing target before it drains.
    #[serde(default = "default_keep", skip_serializing_if = "is_default_keep")]
    pub keep: Duration,
    /// The configuration of the only backend, if the list consists of the addresses of a single backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Own>,
}

impl DiscoverConfig {
    /// The configuration of a list for which only the source is set.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source, min: Floor::default(), keep: DEFAULT_KEEP, own: None }
    }
}

const fn default_keep() -> Duration {
    DEFAULT_KEEP
}

fn is_default_keep(keep: &Duration) -> bool {
    *keep == DEFAULT_KEEP
}

/// The configured settings of a backend whose address is a DNS name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// The weight, which determines the backend's share of new clients.
    pub weight: u16,
    /// Whether the backend is a backup, which gets new clients only if no primary backend takes them.
    pub backup: bool,
}

/// The source of a list of targets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// The source is a file, given by its absolute path.
    File(PathBuf),
    /// The source is DNS records, given by their query.
    Dns(DnsSource),
    /// The source is keys of etcd, given by their prefix.
    Etcd(EtcdSource),
}

impl Source {
    /// The path of the file, if the source is a file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Dns(_) | Self::Etcd(_) => None,
        }
    }

    /// The name of the backend whose address the source resolves, if the source belongs to a single backend.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        match &self.dns()?.records {
            Records::Backend { backend, .. } => Some(backend),
            Records::Services | Records::Addresses { .. } => None,
        }
    }

    /// Whether this source queries the same DNS records of the same name, or the same keys of etcd, as an earlier
    /// source. A source that resolves the address of a backend belongs only to this backend.
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

    /// The DNS query, if the source is DNS records.
    #[must_use]
    pub const fn dns(&self) -> Option<&DnsSource> {
        match self {
            Self::Dns(dns) => Some(dns),
            Self::File(_) | Self::Etcd(_) => None,
        }
    }

    /// The keys of etcd, if the source is keys of etcd.
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

/// The minimum number of targets that a list must have to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Floor {
    /// The minimum is a fixed number of targets.
    Targets(u32),
    /// The minimum is a percentage of the number of targets in the list that was last applied, but at least one target.
    Share(u8),
}

impl Floor {
    /// The minimum number of targets, given the number of targets in the list that was last applied.
    #[must_use]
    pub fn least(self, had: usize) -> usize {
        match self {
            Self::Targets(count) => count as usize,
            Self::Share(percent) => (had * usize::from(percent)).div_ceil(100).max(1),
        }
    }

    /// Returns an error if `count` targets are too few for a list that had `had` targets when it was last applied.
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

/// The properties of a backend that a list of targets controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// The source of the list that contains the backend.
    pub source: Source,
    /// The weight that the list specifies for the backend; a user can change the weight at run time.
    pub weight: u16,
    /// The state that the operator wanted before the backend disappeared from the list; set only while the backend
    /// drains for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Admin>,
    /// The name under which the backend was hashed before its target got another name at the same address. The backend
    /// is hashed under its present name, so that all balancers with this list agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
}
