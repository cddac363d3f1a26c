//! The room that changes need. The controller refuses changes that the data path cannot hold, or after which the data path
//! could not replace a lookup table.

use std::sync::Arc;

use balancer_config::{config::ServiceConfig, listeners::Family};
use foldhash::{HashMap, HashSet};

use super::Controller;
use crate::{
    io::{Refused, ServiceId},
    room::{Lines, Need, Rooms, Rows},
    state::{SavedService, SavedState},
};

impl Controller {
    /// Sets the room of this balancer's data path or, in a fleet, of the data paths of all members. From then on, the
    /// controller refuses changes that do not fit into all of them.
    pub fn set_rooms(&mut self, rooms: Rooms) {
        if let Some(rows) = rooms.backend_rows() {
            self.set_backend_rows(rows);
        }
        self.rooms = rooms;
    }

    /// The room that the services need in the data path since the last change of the services, and while that change is
    /// being made.
    #[must_use]
    pub fn need(&self) -> Need {
        self.need.with_ids_below(self.services.iter().map(|of| u32::from(of.id().0) + 1).max().unwrap_or(0))
    }

    /// The room that a follower needs in order to follow `state`.
    #[must_use]
    pub fn need_for(&self, state: &SavedState) -> Need {
        let mut before: HashMap<ServiceId, u32> = self.services.iter().map(|of| (of.id(), of.table_size())).collect();
        let mut tables = Lines::default();
        let mut rows = Rows::default();
        let mut counted = HashSet::default();
        for SavedService { id, settings, backends, .. } in &state.services {
            tables.add(before.remove(id), Some(settings.table_size.slots(backends.len())));
            // A service with both address families is there twice.
            if counted.insert(settings.name.as_str()) {
                rows.add(settings, backends.len());
            }
        }
        before.into_values().for_each(|removed| tables.add(Some(removed), None));
        let ids = state.services.iter().map(|of| u32::from(of.id.0) + 1).max().unwrap_or(0);
        Need::of(tables, rows).with_ids_below(ids)
    }

    /// The room that the configuration `configs` needs; `renamed` maps new names of services to their former names.
    ///
    /// # Errors
    /// Refuses the configuration if the data path has no room for it.
    pub(super) fn find_room(
        &self,
        configs: &[Arc<ServiceConfig>],
        renamed: &HashMap<String, String>,
    ) -> Result<Need, Refused> {
        let mut before: HashMap<(&str, Family), u32> =
            self.services.iter().map(|of| ((of.name(), of.family()), of.table_size())).collect();
        let mut tables = Lines::default();
        for config in configs {
            let name = renamed.get(&config.name).unwrap_or(&config.name).as_str();
            for family in config.families() {
                tables.add(before.remove(&(name, family)), Some(config.slots()));
            }
        }
        before.into_values().for_each(|removed| tables.add(Some(removed), None));
        self.rooms.hold(tables, || self.present(), configs).map_err(Refused::Conflict)
    }
}
