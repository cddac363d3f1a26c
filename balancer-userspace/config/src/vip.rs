//! Whether the balancer assigns a service's VIPs to its machine, and to which interface.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The setting `assign_vip` of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum AssignVip {
    /// The balancer does not assign the VIPs.
    #[default]
    No,
    /// The balancer assigns the VIPs to the first interface, and announces them to its neighbours on the link.
    First,
    /// The balancer assigns the VIPs to the named interface, for routing daemons, and does not announce them itself.
    On(String),
}

/// The serialized form of the setting `assign_vip`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Whether(bool),
    On(String),
}

impl From<Written> for AssignVip {
    fn from(written: Written) -> Self {
        match written {
            Written::Whether(false) => Self::No,
            Written::Whether(true) => Self::First,
            Written::On(interface) => Self::On(interface),
        }
    }
}

impl From<AssignVip> for Written {
    fn from(assign: AssignVip) -> Self {
        match assign {
            AssignVip::No => Self::Whether(false),
            AssignVip::First => Self::Whether(true),
            AssignVip::On(interface) => Self::On(interface),
        }
    }
}

/// Formats the setting as in the file: `true`, `false`, `"lo"`.
impl fmt::Display for AssignVip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("false"),
            Self::First => f.write_str("true"),
            Self::On(interface) => write!(f, "{interface:?}"),
        }
    }
}
