//! Whether, and where, the balancer gives its machine the VIPs of a service.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `assign_vip`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum AssignVip {
    /// The VIPs are somebody else's matter.
    #[default]
    No,
    /// On the first interface, announced to the neighbours.
    First,
    /// On the interface of this name, for routing daemons: nothing is announced.
    On(String),
}

/// As it is in files.
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

/// As in the file: `true`, `false`, `"lo"`.
impl fmt::Display for AssignVip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("false"),
            Self::First => f.write_str("true"),
            Self::On(interface) => write!(f, "{interface:?}"),
        }
    }
}
