//! Base tables that are made before they are wanted: those of a change, by the copy in which it is worked out.

use std::{collections::HashMap, sync::Arc};

use super::{Controller, Services};
use crate::{io::ServiceId, table::Made};

/// Tables by service. Where they turn out not to be the ones that are wanted, those are made.
#[derive(Clone, Debug, Default)]
pub struct Foresight(HashMap<ServiceId, Arc<[Made]>>);

impl Foresight {
    /// The tables there are for a service.
    pub(super) fn of(&self, service: ServiceId) -> &[Made] {
        self.0.get(&service).map_or(&[], |made| made)
    }
}

impl Controller {
    /// The tables of the services that were touched since they were shared with `before`.
    #[must_use]
    pub fn foresight_since(&self, before: &Services) -> Foresight {
        Foresight(self.services.touched_since(before).map(|service| (service.id(), service.made().into())).collect())
    }

    /// Has these tables for the change that comes next, instead of those of the last.
    pub fn expect(&mut self, foresight: Foresight) {
        self.foreseen = foresight;
    }
}
