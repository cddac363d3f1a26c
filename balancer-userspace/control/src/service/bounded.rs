//! Bounds by which backends give slots away because of their load.

use std::collections::BTreeMap;

use balancer_config::bounded::{Bound, BoundedLoad};

use super::{Backend, Service};
use crate::table::STEPS;

pub(super) const PERCENT_IN_A_STEP: u8 = 100 / STEPS;

impl Backend {
    /// Returns the fraction of its slots that the backend keeps because of its load; `None`: all slots.
    #[must_use]
    pub const fn bound(&self) -> Option<Bound> {
        self.bound
    }

    #[must_use]
    pub fn slow_start_step(&self) -> Option<u8> {
        self.slow_start.as_ref().map(|slow_start| slow_start.step)
    }
}

impl Service {
    /// Returns the service's rule for bounded load; `None`: the service does not bound loads.
    #[must_use]
    pub const fn bounded_load(&self) -> Option<&BoundedLoad> {
        self.settings.bounded_load.as_ref()
    }

    /// Sets exactly these bounds, given by backend name.
    pub(crate) fn set_bounds(&mut self, bounds: &BTreeMap<String, Bound>) {
        for backend in &mut self.backends {
            backend.bound = bounds.get(&backend.config.name).copied();
        }
    }

    /// Gives all backends their slots back if the service no longer bounds loads.
    pub(super) fn drop_bounds(&mut self) {
        if self.settings.bounded_load.is_none() {
            self.backends.iter_mut().for_each(|backend| backend.bound = None);
        }
    }
}
