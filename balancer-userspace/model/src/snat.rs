//! What a `snat` service says of its connections.

use std::{net::IpAddr, time::Duration};

use balancer_common::map_types::MAX_POOL;
use serde::{Deserialize, Serialize};

/// How a `snat` service presents its clients to backends, and for how long it knows their connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatConfig {
    /// The addresses that backends see, at most [`MAX_POOL`] of each family; none: this machine's own on the way to the backend.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The first and the last port; `None`: those that the kernel does not give to its own sockets.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    /// How long a connection without packets is known.
    #[serde(default)]
    pub idle: IdleTimes,
}

/// How long a connection without packets is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleTimes {
    /// An established TCP connection.
    #[serde(with = "humantime_serde")]
    pub tcp: Duration,
    /// Datagrams that were answered.
    #[serde(with = "humantime_serde")]
    pub udp: Duration,
    /// What was not answered, or what its client did not go on with.
    #[serde(with = "humantime_serde")]
    pub half_open: Duration,
    /// A connection that both ends have closed, or one end has reset.
    #[serde(with = "humantime_serde")]
    pub closing: Duration,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self {
            tcp: Duration::from_secs(15 * 60),
            udp: Duration::from_secs(60),
            half_open: Duration::from_secs(30),
            closing: Duration::from_secs(10),
        }
    }
}

impl SnatConfig {
    /// The first address twice in the list, or what is too many. `None`: the list is as it must be.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        for (index, address) in self.addresses.iter().enumerate() {
            if self.addresses[..index].contains(address) {
                return Some(format!("addresses has {address} twice; remove one"));
            }
        }
        let v4 = self.addresses.iter().filter(|address| address.is_ipv4()).count();
        if v4 > MAX_POOL || self.addresses.len() - v4 > MAX_POOL {
            return Some(format!("addresses has more than {MAX_POOL} of a family; remove some"));
        }
        None
    }
}

/// What a drain waits for, before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainUntil {
    /// The known clients have left.
    Clients,
    /// The connections of known clients have ended.
    Connections,
}
