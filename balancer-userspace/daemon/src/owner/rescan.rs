//! The client table work that remains after a change; the owner does this work in steps between other tasks. The
//! requester gets the answer after the last step, with the number of forgotten clients.

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

/// The remaining client table work of the last change.
pub(super) struct Rescan {
    /// The directories of services that the change has replaced.
    pub(super) before: Vec<ServiceSpec>,
    /// The report to make after the last step.
    pub(super) report: Option<Report>,
    /// The time of the next step.
    pub(super) at: Instant,
}

/// A completed change and its effects.
pub(super) struct Report {
    pub(super) message: String,
    pub(super) about: Option<BackendName>,
    pub(super) uid: Option<u32>,
    pub(super) moves: Moved,
    /// Whether the change also becomes an event in the history.
    pub(super) is_event: bool,
}

impl<D: Dataplane> Owner<D> {
    /// The time of the next step of a change's client table work, if work remains.
    pub fn rescans_at(&self) -> Option<Instant> {
        self.rescan.as_ref().map(|rescan| rescan.at)
    }

    /// Continues the client table work for about a millisecond.
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
        // The flag causes a write of the state file, so that a restart continues with the counts of forgotten clients.
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

    /// Does all remaining client table work.
    pub fn rescan_all(&mut self) {
        while let Some(at) = self.rescans_at() {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            self.rescan();
        }
    }

    /// Returns the next result of a change that forgot clients in several steps, in the order of the changes.
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
        Changed::applied(message)
    }
}

/// The service that now gets the clients of `service`, which is `service` itself, or a service that took over one of
/// its listeners; `None` if no service gets these clients.
fn heir(service: ServiceId, before: &[ServiceSpec], now: &[ServiceSpec]) -> Option<ServiceId> {
    if now.iter().any(|spec| spec.id == service) {
        return Some(service);
    }
    let old = before.iter().find(|spec| spec.id == service)?;
    let listens = |spec: &ServiceSpec, at| spec.listeners.iter().any(|other| other.listener == at);
    let same = |spec: &&ServiceSpec| old.listeners.iter().any(|old| listens(spec, old.listener));
    now.iter().find(same).map(|spec| spec.id)
}
