//! The last change of each service's table.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use crate::{
    controller::Controller,
    io::{Command, ServiceId},
    service::Service,
};

/// A change of a service's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastChange {
    /// The event that changed the table, in one line.
    pub message: String,
    pub slots_moved: u64,
    /// The number of moved slots whose old and new backend had not changed.
    pub needless_slots_moved: u64,
    pub at: Instant,
}

/// The last change of each service's table.
#[derive(Clone, Debug, Default)]
pub struct LastChanges {
    /// The numbers of slots moved since the start: the required moves and the needless moves.
    moved: HashMap<ServiceId, (u64, u64)>,
    last: HashMap<ServiceId, LastChange>,
}

impl LastChanges {
    /// Starts the record of changes; the first tables of services do not count as changes.
    pub fn begin(&mut self, controller: &Controller) {
        self.moved = controller.services().iter().map(|service| (service.id(), service.slots_moved())).collect();
    }

    /// Records the core's decisions before the shell carries them out. `message` describes the request that caused the
    /// decisions, if there was a request.
    pub fn note(&mut self, commands: &[Command], message: Option<&str>, controller: &Controller, now: Instant) {
        let swapped = commands
            .iter()
            .filter_map(|command| if let Command::SwapTable { service, .. } = command { Some(*service) } else { None });
        for id in swapped {
            let Some(service) = controller.services().with_id(id) else { continue };
            let moved = service.slots_moved();
            let before = self.moved.insert(id, moved).unwrap_or_default();
            let (required, needless) = (moved.0.saturating_sub(before.0), moved.1.saturating_sub(before.1));
            if required + needless == 0 {
                continue;
            }
            let reports = commands
                .iter()
                .filter_map(|command| if let Command::Report(report) = command { Some(report) } else { None });
            let mut about =
                reports.filter(|report| report.about.as_ref().is_some_and(|about| about.service == service.name()));
            let reported = about.next().map(|report| report.message.clone());
            let message = message.map(str::to_owned).or(reported).unwrap_or_else(|| "the table was rebuilt".to_owned());
            let change =
                LastChange { message, slots_moved: required + needless, needless_slots_moved: needless, at: now };
            self.last.insert(id, change);
        }
        if commands.iter().any(|command| matches!(command, Command::PublishServices(_))) {
            let there: HashSet<ServiceId> = controller.services().iter().map(Service::id).collect();
            self.moved.retain(|id, _| there.contains(id));
            self.last.retain(|id, _| there.contains(id));
        }
    }

    /// The last change of the table of `service`, if the table has changed.
    #[must_use]
    pub fn of(&self, service: ServiceId) -> Option<LastChange> {
        self.last.get(&service).cloned()
    }
}
