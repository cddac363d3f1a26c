//! The effects of completed commands: after a failed command, only these effects are certain.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::io::{BackendId, CheckNumber, Command, ServiceSpec};

/// The state in the data path, in the watch on neighbours and in the health checks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The backends that have rows in the data path.
    pub(crate) rows: BTreeSet<BackendId>,
    /// The services in the directory of the data path.
    pub services: Vec<ServiceSpec>,
    /// The addresses whose next hops are watched.
    pub(crate) watched: BTreeSet<IpAddr>,
    /// The running health checks, by backend.
    pub(crate) checks: BTreeMap<BackendId, CheckNumber>,
}

impl Applied {
    /// Records the effect of a completed command.
    pub fn note(&mut self, command: &Command) {
        match command {
            Command::WriteBackend(backend) => {
                self.rows.insert(backend.id);
            }
            Command::RetireBackend(id) => {
                self.rows.remove(id);
            }
            Command::PublishServices(services) => self.services.clone_from(services),
            Command::WatchNextHop(address) => {
                self.watched.insert(*address);
            }
            Command::UnwatchNextHop(address) => {
                self.watched.remove(address);
            }
            Command::StartChecks(check) => {
                self.checks.insert(check.backend, check.number);
            }
            Command::StopChecks(id) => {
                self.checks.remove(id);
            }
            // A resynchronization sends these commands again in any case.
            Command::SwapTable { .. } | Command::SetRules { .. } | Command::Report(_) => {}
        }
    }
}
