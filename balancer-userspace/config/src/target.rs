//! A target in a list of targets, whatever the source of the list is.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::value;

/// The maximum number of targets in a list.
pub const MAX_TARGETS: usize = 65_534;
/// The maximum length of a backend's name, in bytes.
const MAX_BACKEND_NAME: usize = 63;
/// The weight of a target for which the list specifies no weight.
pub(crate) const DEFAULT_WEIGHT: u16 = 100;

/// A single target of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The name of the backend; for a target from SRV records, the name of the host.
    pub name: String,
    /// The addresses of the target; the balancer uses one of them. Only a target from SRV records may have several
    /// addresses or none.
    pub addresses: Vec<IpAddr>,
    /// The reason why addresses of the target are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The fault of the entry, with its subject, if the entry is no target; the name then belongs to the backend that
    /// the entry is about, or, if nobody can tell the backend, contains a space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The port of the target; `None`: each listener's port.
    pub port: Option<u16>,
    /// The weight, which determines the share of new clients, 0 to 65535.
    pub weight: u16,
    /// Whether the target is a backup, which gets new clients only if no primary backend takes them.
    #[serde(default)]
    pub backup: bool,
}

impl Target {
    /// An entry of a list that is no target because of `fault`.
    pub(crate) const fn faulty(name: String, port: Option<u16>, fault: String) -> Self {
        let addresses = Vec::new();
        Self { name, addresses, why: None, fault: Some(fault), port, weight: DEFAULT_WEIGHT, backup: false }
    }
}

/// The backend name for a target without a name: the target's address as text, with `-` in place of invalid characters.
#[must_use]
pub(crate) fn implied_name(address: IpAddr, port: Option<u16>) -> String {
    let text = match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    text.chars().filter(|c| !"[]".contains(*c)).map(|c| if c == ':' { '-' } else { c }).collect()
}

/// A valid name for a backend: the whole text if possible, otherwise the beginning of the text and a hash of the whole
/// text.
#[must_use]
pub(crate) fn backend_name(text: &str) -> String {
    const HASHED: usize = MAX_BACKEND_NAME - 17;
    if value::name(text).is_ok() {
        return text.to_owned();
    }
    let usual = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let start: String = text.chars().take(HASHED).map(|c| if usual(c) { c } else { '-' }).collect();
    format!("{start}-{:016x}", hash(text))
}

/// The FNV-1a hash, which is the same on every machine and in every version, because the names must not change.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
