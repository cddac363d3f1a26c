//! Applies the limits of backends within a service.

use std::collections::BTreeMap;

use balancer_config::limits::{Full, WhenFull};

use super::{Backend, Service};

impl Backend {
    /// Returns the limit (of clients or connections) that the backend has reached; `None`: it is not full.
    #[must_use]
    pub const fn full(&self) -> Option<Full> {
        self.full
    }
}

impl Service {
    /// Whether a backend has a limit.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        self.backends.iter().any(|backend| !backend.config.limits.is_none())
    }

    /// Whether backends can be full: at least one has a limit, and clients or connections are counted.
    #[must_use]
    pub fn bounds_clients(&self) -> bool {
        self.keeps_clients() && self.has_limits()
    }

    /// Marks all backends as not full if the service counts neither clients nor connections.
    pub(super) fn drop_full(&mut self) {
        if !self.keeps_clients() {
            self.backends.iter_mut().for_each(|backend| backend.full = None);
        }
    }

    /// The treatment of new clients when all backends are full.
    #[must_use]
    pub const fn when_full(&self) -> WhenFull {
        self.settings.when_full
    }

    /// Sets exactly these backends as full, by name.
    pub(crate) fn set_full(&mut self, full: &BTreeMap<String, Full>) {
        for backend in &mut self.backends {
            let has_limits = !backend.config.limits.is_none();
            backend.full = full.get(&backend.config.name).copied().filter(|_| has_limits);
        }
    }

    /// Whether all backends that could take new clients are full. `takes_new` is as in [`Service::build`].
    pub(super) fn are_all_full(&self, takes_new: &[Option<bool>]) -> bool {
        let takers = self.backends.iter().zip(takes_new);
        let mut takers = takers.filter(|(of, takes_new)| **takes_new == Some(true) && of.effective_weight() > 0);
        takers.next().is_some_and(|(first, _)| first.full.is_some() && takers.all(|(other, _)| other.full.is_some()))
    }

    /// Whether all backends that could take new clients were full at the last evaluation.
    pub(crate) const fn is_full_up(&self) -> bool {
        self.all_full
    }

    /// Whether clients that no backend takes are rejected with an answer.
    pub(super) const fn rejects(&self) -> bool {
        match self.settings.when_full {
            WhenFull::Reject if self.all_full => true,
            WhenFull::Drop if self.all_full => false,
            WhenFull::Open | WhenFull::Drop | WhenFull::Reject => self.settings.reject,
        }
    }
}
