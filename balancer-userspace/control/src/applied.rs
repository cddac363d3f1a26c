//! The effects of completed commands, which are all that is certain after a command has failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::io::{BackendId, CheckNumber, Command, ServiceSpec};

/// The state that the data path, the watch on neighbours and the health checks hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The backends that have rows.
    pub(crate) rows: BTreeSet<BackendId>,
    /// The services in the directory.
    pub services: Vec<ServiceSpec>,
    /// The addresses whose next hops are watched.
    pub(crate) watched: BTreeSet<IpAddr>,
    /// The running checks, by backend.
    pub(crate) checks: BTreeMap<BackendId, CheckNumber>,
}

impl Applied {
    /// Records a completed command.
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
            // Resynchronization sends these commands again in any case.
            Command::SwapTable { .. } | Command::SetRules { .. } | Command::Report(_) => {}
        }
    }
}
