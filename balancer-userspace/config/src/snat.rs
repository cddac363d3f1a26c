//! The settings of a `snat` service's connections.

use std::{net::IpAddr, time::Duration};

use balancer_common::map_types::MAX_POOL;
use serde::{Deserialize, Serialize};

/// How a `snat` service presents its clients to backends, and how long it keeps idle connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatConfig {
    /// The addresses that backends see, at most [`MAX_POOL`] of each family; empty: this machine's own address on the
    /// path to the backend.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The first and the last port; `None`: the ports that the kernel does not assign to its own sockets.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    /// How long an idle connection is kept.
    #[serde(default)]
    pub idle: IdleTimes,
}

/// How long idle connections are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleTimes {
    /// The time for an established TCP connection.
    #[serde(with = "humantime_serde")]
    pub tcp: Duration,
    /// The time for datagrams that were answered.
    #[serde(with = "humantime_serde")]
    pub udp: Duration,
    /// The time for a connection that the backend has not answered, or that the client has not continued.
    #[serde(with = "humantime_serde")]
    pub half_open: Duration,
    /// The time for a connection that both ends have closed or one end has reset.
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
    /// Returns an error about the first duplicate address or about too many addresses; `None` if the list is valid.
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

/// The condition for which a drain waits until its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainUntil {
    /// The known clients have left.
    Clients,
    /// The connections of known clients have ended.
    Connections,
}
