//! The servers of a service as a list for nginx or `HAProxy`, before and after a change.

use std::{fmt, net::IpAddr, time::Duration};

use balancer_config::{config::ServiceConfig, states::Admin};

use crate::rules::{Peer, haproxy::Map, nginx, reduced};

/// The maximum weight of a server for nginx and `HAProxy`: `HAProxy` accepts no larger weight.
const LARGEST_WEIGHT: u32 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    /// The weight of the server, which determines its share of clients.
    pub weight: u16,
    /// Whether the server takes clients only when all other servers have failed.
    pub backup: bool,
    /// Whether the server takes clients.
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds a server at the end of the list.
    Add {
        name: String,
        /// The weight of the new server; `None` for the default weight.
        weight: Option<u16>,
        backup: bool,
    },
    Remove {
        name: String,
        /// Whether the server is removed without draining it first.
        force: bool,
    },
    /// Drains a server, makes it ready, or puts it into maintenance.
    Admin {
        name: String,
        /// The new administrative state of the server.
        admin: Admin,
        /// The duration of the drain, if the server is drained.
        timeout: Option<Duration>,
    },
    Weight {
        name: String,
        weight: u16,
    },
    /// Reverses the order of the servers in the list.
    Reorder,
}

/// The servers of a service, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers(pub Vec<Server>);

/// The default weight of a server.
pub const USUAL_WEIGHT: u16 = 100;

impl Servers {
    /// Makes the list of a service's servers, all of which take clients.
    #[must_use]
    pub fn of(service: &ServiceConfig) -> Self {
        let server = |backend: &balancer_config::config::BackendConfig| Server {
            name: backend.name.clone(),
            weight: backend.weight,
            backup: backend.backup,
            up: true,
        };
        Self(service.backends.iter().map(server).collect())
    }

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

    /// The servers that get clients: the primary servers, or the backups if no primary server takes clients.
    fn in_use(&self) -> impl Iterator<Item = &Server> + Clone {
        let usable = |backup: bool| self.0.iter().any(move |server| server.backup == backup && server.takes());
        let backups = !usable(false) && usable(true);
        self.0.iter().filter(move |server| server.backup == backups)
    }

    /// Returns for each server the share of all clients that it should have, in the order of the list.
    #[must_use]
    pub fn expected(&self) -> Vec<f64> {
        let share = |server: &Server| if server.takes() { f64::from(server.weight) } else { 0.0 };
        let total: f64 = self.in_use().map(share).sum();
        let is_in_use = |server: &Server| self.in_use().any(|other| other.name == server.name);
        let part = |server: &Server| if total > 0.0 && is_in_use(server) { share(server) / total } else { 0.0 };
        self.0.iter().map(part).collect()
    }

    /// Returns nginx's `ip_hash` and `HAProxy`'s `balance source` for these servers, with the smallest equivalent
    /// weights.
    #[must_use]
    pub fn classics(&self) -> Classics<'_> {
        // nginx does not accept a server of weight 0, and HAProxy sends no clients to such a server.
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

/// The rules of nginx and `HAProxy`, for a list of servers.
#[derive(Clone, Debug)]
pub struct Classics<'a> {
    peers: Vec<Peer>,
    names: Vec<&'a str>,
    map: Map,
}

impl Classics<'_> {
    /// Returns the server that nginx chooses with `ip_hash`; `None` if nginx chooses servers in rotation.
    #[must_use]
    pub fn ip_hash(&self, client: IpAddr) -> Option<&str> {
        self.names.get(nginx::ip_hash(client, &self.peers)?).copied()
    }

    /// Returns the server that `HAProxy` chooses with `balance source`; `None` if no server takes clients.
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
