//! The settings for the connections of a `snat` service.

use std::{net::IpAddr, time::Duration};

use balancer_common::map_types::MAX_POOL;
use serde::{Deserialize, Serialize};

/// The addresses and ports by which a `snat` service presents its clients to backends, and the time for which it keeps
/// idle connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatConfig {
    /// The addresses that backends see, at most [`MAX_POOL`] of each family; empty: this machine's own address on the
    /// path to the backend.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The first and the last port that backends see; `None`: the ports that the kernel does not assign to its own
    /// sockets.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    /// The time for which the service keeps an idle connection.
    #[serde(default)]
    pub idle: IdleTimes,
}

/// The times for which a service keeps idle connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleTimes {
    /// The idle time for an established TCP connection.
    #[serde(with = "humantime_serde")]
    pub tcp: Duration,
    /// The idle time for datagrams, if the client has sent another one after an answer.
    #[serde(with = "humantime_serde")]
    pub udp: Duration,
    /// The idle time for datagrams, if the client has sent nothing after the answer.
    #[serde(default = "udp_once", with = "humantime_serde")]
    pub udp_once: Duration,
    /// The idle time for a connection that the backend has not answered, or in which the client has not confirmed the
    /// answer.
    #[serde(with = "humantime_serde")]
    pub half_open: Duration,
    /// The idle time for a connection that both ends have closed or that one end has reset.
    #[serde(with = "humantime_serde")]
    pub closing: Duration,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self {
            tcp: Duration::from_secs(15 * 60),
            udp: Duration::from_secs(60),
            udp_once: udp_once(),
            half_open: Duration::from_secs(30),
            closing: Duration::from_secs(10),
        }
    }
}

const fn udp_once() -> Duration {
    Duration::from_secs(5)
}

impl SnatConfig {
    /// Returns an error about the first duplicate address, or about too many addresses; `None`: the list of addresses
    /// is valid.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainUntil {
    /// The drain waits until the known clients have left.
    #[default]
    Clients,
    /// The drain waits until the connections of known clients have ended.
    Connections,
}
