//! The servers of a service as the list that nginx or `HAProxy` would have, and what a change makes of it.

use std::{fmt, net::IpAddr, time::Duration};

use balancer_model::{config::ServiceConfig, states::Admin};

use crate::rules::{Peer, haproxy::Map, nginx, reduced};

/// The largest weight that nginx and `HAProxy` are both given here: `HAProxy` takes no larger one.
const LARGEST_WEIGHT: u32 = 256;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Name of the server.
    pub name: String,
    /// Weight for its share of clients.
    pub weight: u16,
    /// Whether it waits for all others to fail.
    pub backup: bool,
    /// Whether it takes clients.
    pub up: bool,
}

/// A change of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// One more, at the end of the list.
    Add {
        /// Name of the new server.
        name: String,
        /// The weight of the new server. `None`: the usual one.
        weight: Option<u16>,
        /// Whether it is a backup.
        backup: bool,
    },
    /// One less.
    Remove {
        /// Name of the server removed.
        name: String,
        /// Without a drain.
        force: bool,
    },
    /// Drained, ready or in maintenance.
    Admin {
        /// Name of the server changed.
        name: String,
        /// To what.
        admin: Admin,
        /// How long a drain lasts.
        timeout: Option<Duration>,
    },
    /// Another weight.
    Weight {
        /// Name of the server changed.
        name: String,
        /// The server's new weight.
        weight: u16,
    },
    /// The same servers in the opposite order.
    Reorder,
}

/// Servers in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers(pub Vec<Server>);

/// The weight of a server that says nothing of it.
pub const USUAL_WEIGHT: u16 = 100;

impl Servers {
    /// Those of a service, which are all in use.
    #[must_use]
    pub fn of(service: &ServiceConfig) -> Self {
        let server = |backend: &balancer_model::config::BackendConfig| Server {
            name: backend.name.clone(),
            weight: backend.weight,
            backup: backend.backup,
            up: true,
        };
        Self(service.backends.iter().map(server).collect())
    }

    /// Returns the servers after a change.
    #[must_use]
    pub fn after(&self, change: &Change) -> Self {
        let mut all = self.0.clone();
        let set = |name: &str, set: &mut dyn FnMut(&mut Server), all: &mut Vec<Server>| {
            all.iter_mut().filter(|server| server.name == name).for_each(set);
        };
        match change {
            Change::Add { name, weight, backup } => {
                let weight = weight.unwrap_or(USUAL_WEIGHT);
                all.push(Server { name: name.clone(), weight, backup: *backup, up: true });
            }
            Change::Remove { name, .. } => all.retain(|server| server.name != *name),
            Change::Admin { name, admin, .. } => {
                set(name, &mut |server| server.up = *admin == Admin::Ready, &mut all);
            }
            Change::Weight { name, weight } => set(name, &mut |server| server.weight = *weight, &mut all),
            Change::Reorder => all.reverse(),
        }
        Self(all)
    }

    /// Those that clients go to: the primaries, or the backups where no primary takes clients.
    fn in_use(&self) -> impl Iterator<Item = &Server> + Clone {
        let usable = |backup: bool| self.0.iter().any(move |server| server.backup == backup && server.takes());
        let backups = !usable(false) && usable(true);
        self.0.iter().filter(move |server| server.backup == backups)
    }

    /// The part of all clients that each server should have, in the order of the list.
    #[must_use]
    pub fn expected(&self) -> Vec<f64> {
        let share = |server: &Server| if server.takes() { f64::from(server.weight) } else { 0.0 };
        let total: f64 = self.in_use().map(share).sum();
        let is_in_use = |server: &Server| self.in_use().any(|other| other.name == server.name);
        let part = |server: &Server| if total > 0.0 && is_in_use(server) { share(server) / total } else { 0.0 };
        self.0.iter().map(part).collect()
    }

    /// How nginx's `ip_hash` and `HAProxy`'s `balance source` choose among them, weights written as small as they can be.
    #[must_use]
    pub fn classics(&self) -> Classics<'_> {
        // nginx takes no server of weight 0, and HAProxy sends it no clients.
        let servers: Vec<&Server> = self.in_use().filter(|server| server.weight > 0).collect();
        let weights: Vec<u32> = reduced(servers.iter().map(|server| u32::from(server.weight))).collect();
        let largest = weights.iter().copied().max().unwrap_or(1);
        let peer = |(server, weight): (&&Server, u32)| Peer {
            weight: if largest > LARGEST_WEIGHT { (weight * LARGEST_WEIGHT).div_ceil(largest) } else { weight },
            up: server.up,
        };
        let peers: Vec<Peer> = servers.iter().zip(weights).map(peer).collect();
        let names = servers.iter().map(|server| server.name.as_str()).collect();
        Classics { map: Map::new(&peers), peers, names }
    }
}

impl Server {
    const fn takes(&self) -> bool {
        self.up && self.weight > 0
    }
}

/// How two other balancers choose.
#[derive(Clone, Debug)]
pub struct Classics<'a> {
    peers: Vec<Peer>,
    names: Vec<&'a str>,
    map: Map,
}

impl Classics<'_> {
    /// Where nginx's `ip_hash` sends a client. `None`: it takes turns.
    #[must_use]
    pub fn ip_hash(&self, client: IpAddr) -> Option<&str> {
        self.names.get(nginx::ip_hash(client, &self.peers)?).copied()
    }

    /// Where `HAProxy`'s `balance source` sends a client. `None`: no server takes clients.
    #[must_use]
    pub fn source(&self, client: IpAddr) -> Option<&str> {
        self.names.get(self.map.server(client)?).copied()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { name, weight, backup } => {
                write!(f, "add {name}")?;
                if let Some(weight) = weight {
                    write!(f, " --weight {weight}")?;
                }
                f.write_str(if *backup { " --backup" } else { "" })
            }
            Self::Remove { name, force } => write!(f, "remove {name}{}", if *force { " --force" } else { "" }),
            Self::Admin { name, admin, .. } => {
                let word = match admin {
                    Admin::Ready => "ready",
                    Admin::Drain => "drain",
                    Admin::Maint => "maint",
                };
                write!(f, "{word} {name}")
            }
            Self::Weight { name, weight } => write!(f, "weight {name} {weight}"),
            Self::Reorder => f.write_str("reorder"),
        }
    }
}
