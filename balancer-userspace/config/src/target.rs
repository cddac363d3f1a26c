//! A target in a list, whatever the source of the list.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::value;

/// The maximum number of targets in a list.
pub const MAX_TARGETS: usize = 65_534;
/// The maximum length of a backend's name, in bytes.
const MAX_BACKEND_NAME: usize = 63;
/// The weight of a target to which the list gives none.
pub(crate) const DEFAULT_WEIGHT: u16 = 100;

/// A single target of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The name of the backend; for targets of SRV records, the name of the host.
    pub name: String,
    /// The addresses of the target; one of them is used. Only a target of SRV records may have more or fewer than one.
    pub addresses: Vec<IpAddr>,
    /// The reason why addresses are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The port of the target; `None`: the listener's port.
    pub port: Option<u16>,
    /// The share of new clients, 0 to 65535.
    pub weight: u16,
    /// Whether new clients use other backends first.
    #[serde(default)]
    pub backup: bool,
}

/// The name for a target that has none: its address as text, with invalid characters replaced by `-`.
#[must_use]
pub(crate) fn implied_name(address: IpAddr, port: Option<u16>) -> String {
    let text = match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    text.chars().filter(|c| !"[]".contains(*c)).map(|c| if c == ':' { '-' } else { c }).collect()
}

/// A valid name for a backend: the text if possible, otherwise its beginning and a hash of the whole text.
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

/// The hash FNV-1a, which is the same everywhere and forever, because names must not change.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
