//! Applies the limits of backends within one service.

use std::collections::BTreeMap;

use balancer_config::limits::{Full, WhenFull};

use super::{Backend, Service};

impl Backend {
    /// Returns the limit (of clients or connections) that the backend has reached; `None`: the backend is not full.
    #[must_use]
    pub const fn full(&self) -> Option<Full> {
        self.full
    }
}

impl Service {
    /// Whether a backend of the service has a limit.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        self.backends.iter().any(|backend| !backend.config.limits.is_none())
    }

    /// Whether backends of the service can be full: at least one has a limit, and the balancer counts clients or
    /// connections.
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

    /// How the service treats new clients when all backends are full.
    #[must_use]
    pub const fn when_full(&self) -> WhenFull {
        self.settings.when_full
    }

    /// Sets exactly these backends as full, given by name.
    pub(crate) fn set_full(&mut self, full: &BTreeMap<String, Full>) {
        for backend in &mut self.backends {
            let has_limits = !backend.config.limits.is_none();
            backend.full = full.get(&backend.config.name).copied().filter(|_| has_limits);
        }
    }

    /// Whether all backends that could take new clients are full. The argument `takes_new` is as in [`Service::build`].
    pub(super) fn are_all_full(&self, takes_new: &[Option<bool>]) -> bool {
        let takers = self.backends.iter().zip(takes_new);
        let mut takers = takers.filter(|(of, takes_new)| **takes_new == Some(true) && of.effective_weight() > 0);
        takers.next().is_some_and(|(first, _)| first.full.is_some() && takers.all(|(other, _)| other.full.is_some()))
    }

    /// Whether all backends that could take new clients were full at the last evaluation.
    pub(crate) const fn is_full_up(&self) -> bool {
        self.all_full
    }

    /// Whether the program rejects the packets of clients that no backend takes.
    pub(super) const fn rejects(&self) -> bool {
        match self.settings.when_full {
            WhenFull::Reject if self.all_full => true,
            WhenFull::Drop if self.all_full => false,
            WhenFull::Open | WhenFull::Drop | WhenFull::Reject => self.settings.reject,
        }
    }
}
