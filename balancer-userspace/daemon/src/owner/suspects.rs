//! Backends that may have failed, as packets or other members of a fleet say.

use std::collections::HashSet;

use balancer_core::io::{BackendId, CheckOutcome, Event};
use balancer_dataplane::Dataplane;

use super::Owner;

/// Backends that are checked because they are suspected, and have not passed since.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashSet<BackendId>);

impl Suspects {
    /// Takes note of a check. Whether a suspect has passed it.
    pub(super) fn passes(&mut self, event: &Event) -> Option<BackendId> {
        match event {
            Event::Checked { backend, outcome: CheckOutcome::Passed, .. } => self.0.take(backend),
            Event::Checked { .. } | Event::NextHop { .. } | Event::Swept { .. } | Event::Flows { .. } | Event::Tick => {
                None
            }
        }
    }
}

impl<D: Dataplane> Owner<D> {
    /// Has a backend checked at once that may have failed.
    pub fn suspect(&mut self, id: BackendId) {
        self.suspects.0.insert(id);
        self.prober.suspect(id);
    }
}
