//! How much of a service is to be looked at anew.

use std::collections::HashMap;

use crate::{
    io::ServiceId,
    service::{Look, Service},
};

/// The services that something has happened to.
#[derive(Debug, Default)]
pub(super) struct Concerned(HashMap<ServiceId, Option<Vec<usize>>>);

impl Concerned {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The check of the backend at this place says something else.
    pub(super) fn add_checked(&mut self, service: ServiceId, place: usize) {
        if let Some(places) = self.0.entry(service).or_insert_with(|| Some(Vec::new())) {
            places.push(place);
        }
    }

    /// Something has happened to these as a whole.
    pub(super) fn extend(&mut self, services: impl IntoIterator<Item = ServiceId>) {
        self.0.extend(services.into_iter().map(|service| (service, None)));
    }

    /// How much of a service is to be looked at, if it is.
    pub(super) fn look(&self, service: &Service) -> Option<Look<'_>> {
        Some(self.0.get(&service.id())?.as_deref().map_or(Look::Whole, Look::Checked))
    }
}
