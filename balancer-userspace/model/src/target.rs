//! One target of a list, whatever the list is.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Targets in one list, at most.
pub const MAX_TARGETS: usize = 65_534;
/// The weight of a target whose list gives none.
pub(crate) const DEFAULT_WEIGHT: u16 = 100;

/// One target of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The name of the backend; for targets of SRV records, of the host.
    pub name: String,
    /// Where it is reached: at one of these. Only a target of SRV records may have another number than one.
    pub addresses: Vec<IpAddr>,
    /// The reason why addresses are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The port there; `None`: the listener's.
    pub port: Option<u16>,
    /// The share of new clients, 0 to 65535.
    pub weight: u16,
    /// Whether others are used first.
    #[serde(default)]
    pub backup: bool,
}

/// A name for a target without one: the address as text, where characters that a name cannot have become `-`.
#[must_use]
pub(crate) fn implied_name(address: IpAddr, port: Option<u16>) -> String {
    let text = match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    text.chars().filter(|c| !"[]".contains(*c)).map(|c| if c == ':' { '-' } else { c }).collect()
}
