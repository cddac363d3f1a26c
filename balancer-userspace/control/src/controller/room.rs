//! Refuses changes that the data path cannot hold, or after which it could not replace a lookup table.

use std::sync::Arc;

use balancer_config::{config::ServiceConfig, listeners::Family};
use foldhash::HashMap;

use super::Controller;
use crate::{
    io::Refused,
    room::{Lines, Rooms},
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

    /// Refuses the configuration `configs` if the data path has no room for it; `renamed` maps new names of services to
    /// their former names.
    pub(super) fn refuse_without_room(
        &self,
        configs: &[Arc<ServiceConfig>],
        renamed: &HashMap<String, String>,
    ) -> Result<(), Refused> {
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
        let lack = self.rooms.lack(tables, || self.present(), configs);
        lack.map_or(Ok(()), |why| Err(Refused::Conflict(why)))
    }
}
