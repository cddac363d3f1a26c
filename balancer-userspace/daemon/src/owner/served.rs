//! The outcomes of clients' handshakes with each backend.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use balancer_control::{
    io::BackendId,
    served::{HandshakeCounts, Served},
    service::{Backend, Service},
};
use balancer_dataplane::Dataplane;

use super::Owner;

#[derive(Debug, Default)]
pub(super) struct Outcomes {
    backends: HashMap<BackendId, Served>,
    /// The services most of whose handshakes fail.
    failing: BTreeSet<String>,
}

impl Outcomes {
    /// The outcomes of the last minute, and since the backend was added.
    pub(super) fn of(&self, id: BackendId) -> [HandshakeCounts; 2] {
        self.backends.get(&id).map(|of| [of.recent(), of.total()]).unwrap_or_default()
    }

    fn add(&mut self, new: impl IntoIterator<Item = (BackendId, HandshakeCounts)>, now: Duration) {
        for (id, counts) in new {
            self.backends.entry(id).or_default().add(counts, now);
        }
        self.backends.values_mut().for_each(|of| of.expire(now));
    }

    /// Forgets a removed backend, because another backend may get the same id.
    pub(super) fn forget(&mut self, id: BackendId) {
        self.backends.remove(&id);
    }
}

impl<D: Dataplane> Owner<D> {
    /// Adds the outcomes that have become known since the last call.
    pub(super) fn count_handshakes(&mut self) {
        let backends = self.controller.services().iter().flat_map(Service::backends);
        let ids: Vec<BackendId> = backends.map(Backend::id).collect();
        let new = self.dataplane.handshakes(&ids);
        self.outcomes.add(new, self.started.elapsed());
        let failing: BTreeSet<String> = self.failing().collect();
        self.changed |= failing != self.outcomes.failing;
        self.outcomes.failing = failing;
    }

    fn failing(&self) -> impl Iterator<Item = String> {
        let mut sums: HashMap<&str, HandshakeCounts> = HashMap::new();
        for service in self.controller.services() {
            // A service with both address families is listed twice.
            let sum = sums.entry(service.name()).or_default();
            *sum += service.backends().iter().map(|backend| self.outcomes.of(backend.id())[0]).sum();
        }
        sums.into_iter().filter(|(_, sum)| sum.fail()).map(|(name, _)| name.to_owned())
    }

    /// The problems of services whose clients do not complete their handshakes. The text contains no number, so that
    /// the text stays the same while the problem lasts.
    pub(super) fn unserved(&self) -> impl Iterator<Item = String> {
        self.outcomes.failing.iter().map(|service| {
            format!(
                "clients of {service} complete less than half of their handshakes: `balancer doctor {service}` looks \
                 for the cause"
            )
        })
    }
}
