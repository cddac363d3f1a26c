//! The parts of services that the controller must re-evaluate.

use std::collections::HashMap;

use crate::{
    io::ServiceId,
    service::{Look, Service},
};

/// The services that a group of events affects.
#[derive(Debug, Default)]
pub(super) struct Concerned(HashMap<ServiceId, Option<Vec<usize>>>);

impl Concerned {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a backend whose check result has changed; the backend is given by its position.
    pub(super) fn add_checked(&mut self, service: ServiceId, place: usize) {
        if let Some(places) = self.0.entry(service).or_insert_with(|| Some(Vec::new())) {
            places.push(place);
        }
    }

    /// Adds all backends of services.
    pub(super) fn extend(&mut self, services: impl IntoIterator<Item = ServiceId>) {
        self.0.extend(services.into_iter().map(|service| (service, None)));
    }

    /// Returns which part of a service the controller must re-evaluate, if any.
    pub(super) fn look(&self, service: &Service) -> Option<Look<'_>> {
        Some(self.0.get(&service.id())?.as_deref().map_or(Look::Whole, Look::Checked))
    }
}
