//! Results that are computed before a change is made: base tables, from the copy of the controller that tried the
//! change, and the number of known clients that the change affects.

use std::{collections::HashMap, sync::Arc};

use super::{Controller, Services};
use crate::{io::ServiceId, table::Made};

/// The precomputed base tables, and the number of known clients, for the next change.
#[derive(Clone, Debug, Default)]
pub struct Precomputed {
    /// The precomputed tables, by service. If a precomputed table does not match, the controller computes the table
    /// again.
    tables: HashMap<ServiceId, Arc<[Made]>>,
    /// The number of known clients of the backend to be removed, which was counted shortly before; `None`: the clients
    /// were not counted.
    pub(super) known_clients: Option<u64>,
}

impl Precomputed {
    /// Sets the number of clients that are known at the backend to be removed.
    #[must_use]
    pub fn with_known_clients(self, known_clients: Option<u64>) -> Self {
        Self { known_clients, ..self }
    }

    pub(super) fn of(&self, service: ServiceId) -> &[Made] {
        self.tables.get(&service).map_or(&[], |made| made)
    }
}

impl Controller {
    /// The tables of services that have changed since this controller shared these services with `before`.
    #[must_use]
    pub fn precomputed_since(&self, before: &Services) -> Precomputed {
        let touched = self.services.touched_since(before);
        let tables = touched.map(|service| (service.id(), service.made().into())).collect();
        Precomputed { tables, known_clients: None }
    }

    /// Sets the precomputed results for the next change, in place of the previous results.
    pub fn expect(&mut self, precomputed: Precomputed) {
        self.precomputed = precomputed;
    }
}
