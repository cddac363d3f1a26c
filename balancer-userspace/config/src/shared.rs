//! Shares memory between configurations, because most changes leave most services unchanged.

use std::sync::Arc;

use foldhash::HashMap;

use crate::service::ServiceConfig;

/// Services that can be looked up by their names.
pub type ByName<'a> = HashMap<&'a str, &'a Arc<ServiceConfig>>;

/// Makes services that can be looked up by their names.
#[must_use]
pub fn by_name(services: &[Arc<ServiceConfig>]) -> ByName<'_> {
    services.iter().map(|service| (service.name.as_str(), service)).collect()
}

/// Puts services into shared memory.
#[must_use]
pub fn shared(services: Vec<ServiceConfig>) -> Vec<Arc<ServiceConfig>> {
    services.into_iter().map(Arc::new).collect()
}

/// The service among `services` that is equal to `service`.
#[must_use]
pub fn alike<'a>(services: &ByName<'a>, service: &Arc<ServiceConfig>) -> Option<&'a Arc<ServiceConfig>> {
    let other = services.get(service.name.as_str()).copied();
    other.filter(|other| Arc::ptr_eq(other, service) || *other == service)
}

/// Whether both lists share the same memory, so that facts known about one list apply to the other list.
#[must_use]
pub fn is_one(one: &[Arc<ServiceConfig>], other: &[Arc<ServiceConfig>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
}
