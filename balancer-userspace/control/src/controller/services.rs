//! The services of a controller; copies of the controller share each service until one of the copies changes it.

use std::{ops::Index, slice, sync::Arc};

use foldhash::{HashMap, HashSet};

use crate::{ids::place, io::ServiceId, service::Service};

/// The services in the order of the configuration. Each service costs a copy of the controller only one pointer.
#[derive(Clone, Debug, Default)]
pub struct Services(Vec<Arc<Service>>);

/// The iterator is that of [`Services::iter`].
pub type Iter<'a> = std::iter::Map<slice::Iter<'a, Arc<Service>>, fn(&Arc<Service>) -> &Service>;

impl Services {
    /// Iterates over the services in the order of the configuration.
    pub fn iter(&self) -> Iter<'_> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Iterates over the shared pointers of all services.
    pub(super) fn shared(&self) -> slice::Iter<'_, Arc<Service>> {
        self.0.iter()
    }

    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first service in configuration order.
    #[must_use]
    pub fn first(&self) -> Option<&Service> {
        self.get(0)
    }

    /// The service at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Service> {
        self.0.get(index).map(AsRef::as_ref)
    }

    #[must_use]
    pub fn with_id(&self, id: ServiceId) -> Option<&Service> {
        self.get(self.place(id)?)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Service> {
        self.0.get_mut(index).map(Arc::make_mut)
    }

    pub(super) fn with_id_mut(&mut self, id: ServiceId) -> Option<&mut Service> {
        self.get_mut(self.place(id)?)
    }

    fn place(&self, id: ServiceId) -> Option<usize> {
        place(&self.0, id.0, |service| service.id().0)
    }

    /// The `wanted` services, mutable. The other services stay shared with copies of the controller.
    pub(super) fn those_mut(&mut self, wanted: impl Fn(&Service) -> bool) -> impl Iterator<Item = &mut Service> {
        self.0.iter_mut().filter(move |service| wanted(service)).map(Arc::make_mut)
    }

    pub(super) fn push(&mut self, service: Arc<Service>) {
        self.0.push(service);
    }

    /// The services that have changed since they were shared with `other`, and those that `other` does not have.
    pub fn touched_since<'a>(&'a self, other: &Self) -> impl Iterator<Item = &'a Service> {
        let others: HashSet<*const Service> = other.0.iter().map(Arc::as_ptr).collect();
        self.0.iter().filter(move |service| !others.contains(&Arc::as_ptr(service))).map(AsRef::as_ref)
    }

    /// Whether no service has changed since these services were shared with `before`.
    pub(super) fn is_untouched_since(&self, before: &Self) -> bool {
        self.0.len() == before.0.len() && self.0.iter().zip(&before.0).all(|(now, before)| Arc::ptr_eq(now, before))
    }

    /// The services whose saved state differs from that in `before`.
    pub(super) fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Service> {
        let before: HashMap<ServiceId, &Arc<Service>> =
            before.0.iter().map(|service| (service.id(), service)).collect();
        let same = move |service: &&Arc<Service>| {
            before.get(&service.id()).is_some_and(|old| Arc::ptr_eq(old, service) || service.is_saved_as(old))
        };
        self.0.iter().filter(move |service| !same(service)).map(AsRef::as_ref)
    }
}

impl Index<usize> for Services {
    type Output = Service;

    fn index(&self, index: usize) -> &Service {
        &self.0[index]
    }
}

impl<'a> IntoIterator for &'a Services {
    type Item = &'a Service;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Services {
    type Item = Arc<Service>;
    type IntoIter = std::vec::IntoIter<Arc<Service>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<Service> for Services {
    fn from_iter<I: IntoIterator<Item = Service>>(services: I) -> Self {
        Self(services.into_iter().map(Arc::new).collect())
    }
}
