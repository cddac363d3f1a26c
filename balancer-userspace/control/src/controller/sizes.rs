//! The sizes of lookup tables before and after a change.

use std::collections::BTreeMap;

use balancer_config::words::counted;
use foldhash::HashMap;

use super::Services;
use crate::{report, service::Service};

/// The services before a change. While this value exists, a change copies a service before it changes the service.
pub(super) struct Sizes(Services);

impl Sizes {
    pub(super) fn before(services: &Services) -> Self {
        Self(services.clone())
    }

    /// Returns how the size of a service's tables has changed, as part of a sentence; empty if the size has not
    /// changed.
    pub(super) fn resized(&self, now: &Services, service: &str) -> String {
        let size = |of: &Services| of.iter().find(|of| of.name() == service).map_or(0, Service::slots_wanted);
        report::resized(size(&self.0), size(now))
    }

    /// Returns the changes in table sizes of all services that exist before or after the change.
    pub(super) fn all_resized(&self, now: &Services) -> String {
        let touched: BTreeMap<&str, u32> =
            now.touched_since(&self.0).map(|service| (service.name(), service.slots_wanted())).collect();
        if touched.is_empty() {
            return String::new();
        }
        let before: HashMap<&str, u32> =
            self.0.iter().map(|service| (service.name(), service.slots_wanted())).collect();
        let resized: Vec<(u32, u32)> = touched
            .into_iter()
            .filter_map(|(name, now)| Some((*before.get(name)?, now)))
            .filter(|(before, now)| before != now)
            .collect();
        match resized[..] {
            [] => String::new(),
            [(before, now)] => report::resized(before, now),
            _ => format!("; the tables of {} have other sizes", counted(resized.len(), "service")),
        }
    }
}
