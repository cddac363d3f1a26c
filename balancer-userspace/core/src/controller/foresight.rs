//! Results computed for a change before it is made: base tables, made in the copy of the controller that tries the
//! change, and the number of known clients that it concerns.

use std::{collections::HashMap, sync::Arc};

use super::{Controller, Services};
use crate::{io::ServiceId, table::Made};

/// The tables and the number of known clients for the change that comes next.
#[derive(Clone, Debug, Default)]
pub struct Foresight {
    /// Tables by service. Where they turn out not to be the ones that are wanted, those are made.
    tables: HashMap<ServiceId, Arc<[Made]>>,
    /// Known clients of the backend that it removes, counted a moment ago; `None`: nobody has counted them.
    pub(super) known_clients: Option<u64>,
}

impl Foresight {
    /// With the number of clients that are known at the backend which is to be removed.
    #[must_use]
    pub fn with_known_clients(self, known_clients: Option<u64>) -> Self {
        Self { known_clients, ..self }
    }

    /// The tables there are for a service.
    pub(super) fn of(&self, service: ServiceId) -> &[Made] {
        self.tables.get(&service).map_or(&[], |made| made)
    }
}

impl Controller {
    /// The tables of the services that were touched since they were shared with `before`.
    #[must_use]
    pub fn foresight_since(&self, before: &Services) -> Foresight {
        let touched = self.services.touched_since(before);
        let tables = touched.map(|service| (service.id(), service.made().into())).collect();
        Foresight { tables, known_clients: None }
    }

    /// Has these for the change that comes next, instead of those of the last.
    pub fn expect(&mut self, foresight: Foresight) {
        self.foreseen = foresight;
    }
}
