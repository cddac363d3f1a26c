//! The layer-4 protocols that the balancer supports.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// The listener accepts TCP segments.
    Tcp,
    /// The listener accepts UDP datagrams.
    Udp,
    /// The listener accepts UDP datagrams that carry QUIC, whose connection IDs may name backends.
    Quic,
}

impl Protocol {
    /// The protocol's number at IANA.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp | Self::Quic => 17,
        }
    }

    /// The transport protocol of the packets: TCP or UDP.
    #[must_use]
    pub const fn transport(self) -> Self {
        match self {
            Self::Tcp => Self::Tcp,
            Self::Udp | Self::Quic => Self::Udp,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Quic => "quic",
        })
    }
}
