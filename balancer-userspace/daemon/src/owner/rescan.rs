//! The work that a change leaves in the client table, done in parts between other tasks. The requester gets the answer
//! at the end, with the number of forgotten clients.

use std::{collections::HashSet, thread};

use balancer_api::model::Changed;
use balancer_config::{names::BackendName, words::counted};
use balancer_control::{
    io::{Moved, ServiceId, ServiceSpec},
    report,
};
use balancer_dataplane::{Dataplane, Rescanned};
use tokio::time::Instant;

use super::{Owner, PAUSE};

/// The remaining work of the last change.
pub(super) struct Rescan {
    /// The directories that the change has replaced.
    pub(super) before: Vec<ServiceSpec>,
    /// The report to make at the end.
    pub(super) report: Option<Report>,
    /// The time of the next part of the work.
    pub(super) at: Instant,
}

/// A completed change.
pub(super) struct Report {
    pub(super) message: String,
    pub(super) about: Option<BackendName>,
    pub(super) uid: Option<u32>,
    pub(super) moves: Moved,
    /// Whether the history gets an entry as well.
    pub(super) is_event: bool,
}

impl<D: Dataplane> Owner<D> {
    /// The time at which to continue the work of a change in the client table, if there is any.
    pub fn rescans_at(&self) -> Option<Instant> {
        self.rescan.as_ref().map(|rescan| rescan.at)
    }

    /// Continues the work for about a millisecond.
    pub fn rescan(&mut self) {
        let Some(rescan) = &mut self.rescan else { return };
        let forgotten = match self.dataplane.rescan() {
            Rescanned::Waits => {
                rescan.at = Instant::now() + PAUSE;
                return;
            }
            Rescanned::GoesOn => return,
            Rescanned::Ends(forgotten) => forgotten,
        };
        let Some(Rescan { before, report, .. }) = self.rescan.take() else { return };
        self.forgotten = forgotten.iter().map(|(_, forgotten)| forgotten.clients).sum();
        // The flag makes a restart continue with these counts.
        self.changed |= !forgotten.is_empty();
        for (backend, forgotten) in forgotten {
            let Some((service, name)) = self.owners.get(&backend).cloned() else { continue };
            if let Some(service) = heir(service, &before, &self.applied.services) {
                self.count_forgotten(service, name, forgotten.moved);
            }
        }
        let listed: HashSet<ServiceId> = self.applied.services.iter().map(|service| service.id).collect();
        self.owners.retain(|_, (service, _)| listed.contains(service));
        self.removed_backends.retain(&listed);
        self.repeated_moves.retain(|service, _| listed.contains(service));
        if let Some(report) = report {
            let told = self.tell(report);
            self.told.push_back(told);
        }
    }

    /// Does all remaining work.
    pub fn rescan_all(&mut self) {
        while let Some(at) = self.rescans_at() {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            self.rescan();
        }
    }

    /// Returns the next result of a change that forgot clients in parts, in the order of the changes.
    pub fn take_told(&mut self) -> Option<Changed> {
        self.told.pop_front()
    }

    pub(super) fn tell(&mut self, report: Report) -> Changed {
        let Report { mut message, about, uid, moves, is_event } = report;
        message += &report::clients_forgotten(std::mem::take(&mut self.forgotten));
        if let Some(leaving) = moves.known_clients {
            message += &format!(", {} moved", counted(leaving as usize, "known client"));
        }
        if is_event {
            self.events.change(about.as_ref(), &message, uid, Some(moves));
        }
        Changed { message }
    }
}

/// The service that gets the clients of `service` now: `service` itself, or one that has one of its listeners. `None`:
/// no service does.
fn heir(service: ServiceId, before: &[ServiceSpec], now: &[ServiceSpec]) -> Option<ServiceId> {
    if now.iter().any(|spec| spec.id == service) {
        return Some(service);
    }
    let old = before.iter().find(|spec| spec.id == service)?;
    let listens = |spec: &ServiceSpec, at| spec.listeners.iter().any(|other| other.listener == at);
    let same = |spec: &&ServiceSpec| old.listeners.iter().any(|old| listens(spec, old.listener));
    now.iter().find(same).map(|spec| spec.id)
}
