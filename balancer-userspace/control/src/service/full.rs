//! Applies the limits of backends within one service.

use std::collections::BTreeMap;

use balancer_common::map_types::Forwarding;
use balancer_config::limits::{Enough, Full, WhenFull};

use super::{Backend, Service};

impl Backend {
    /// Returns the limit that the backend has reached; `None`: the backend is not full.
    #[must_use]
    pub const fn full(&self) -> Option<Full> {
        self.full
    }

    /// How often this balancer found the backend full, by the number of [`Enough`].
    #[must_use]
    pub const fn filled(&self) -> [u64; Enough::ALL.len()] {
        self.filled
    }
}

impl Service {
    /// Whether a backend can be full: it has a limit, or its connections hold ports.
    #[must_use]
    pub fn may_be_full(&self, backend: &Backend) -> bool {
        self.forwarding() == Forwarding::Snat || !backend.config.limits.is_none()
    }

    /// Whether backends of the service can be full: at least one has a limit or connections that hold ports, and the
    /// balancer counts clients or connections.
    #[must_use]
    pub fn bounds_clients(&self) -> bool {
        self.keeps_clients() && self.backends.iter().any(|backend| self.may_be_full(backend))
    }

    /// Marks backends as not full that cannot be full: if the service counts neither clients nor connections, all.
    pub(super) fn drop_full(&mut self) {
        let (keeps, is_snat) = (self.keeps_clients(), self.forwarding() == Forwarding::Snat);
        for backend in &mut self.backends {
            let may_be = keeps && (is_snat || !backend.config.limits.is_none());
            backend.full = backend.full.filter(|_| may_be);
        }
    }

    /// How the service treats new clients when all backends are full.
    #[must_use]
    pub const fn when_full(&self) -> WhenFull {
        self.settings.when_full
    }

    /// Sets exactly these backends as full, given by name.
    pub(crate) fn set_full(&mut self, full: &BTreeMap<String, Full>) {
        let is_snat = self.forwarding() == Forwarding::Snat;
        for backend in &mut self.backends {
            let may_be = is_snat || !backend.config.limits.is_none();
            let before = backend.full;
            backend.full = full.get(&backend.config.name).copied().filter(|_| may_be);
            if let Some(full) = backend.full.filter(|_| before.is_none()) {
                backend.filled[full.of as usize] += 1;
            }
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
