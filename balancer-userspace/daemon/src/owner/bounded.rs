//! Loads of backends, which decide which backends give slots to other backends, and which backends are full.

use std::collections::BTreeMap;

use balancer_config::bounded::Load;
use balancer_control::{
    bounded::{Watch, members},
    full,
    io::Change,
    service::Service,
};
use balancer_dataplane::Dataplane;
use tokio::time::Instant;

use super::Owner;

/// The observed loads of the backends, for each service with bounded loads.
#[derive(Debug, Default)]
pub(super) struct Watches(BTreeMap<String, Watch>);

/// The times at which backends became full, for each service with limits.
#[derive(Debug, Default)]
pub(super) struct Fullness(BTreeMap<String, full::Watch>);

impl<D: Dataplane> Owner<D> {
    /// Records the current loads of backends. The function returns the resulting changes if this balancer `decides`; in
    /// a fleet, only the leader decides.
    pub fn look_at_loads(&mut self, decides: bool) -> Vec<Change> {
        let now = Instant::now().into_std();
        let Self { controller, dataplane, watches, .. } = self;
        let services = controller.services();
        let rule = |name: &str| services.iter().find(|of| of.name() == name).and_then(Service::bounded_load);
        watches.0.retain(|name, watch| rule(name).is_some_and(|rule| rule.by == watch.by()));
        let mut changes = Vec::new();
        for service in services.iter() {
            let Some(rule) = service.bounded_load() else { continue };
            let name = service.name();
            let legs = || services.iter().filter(|of| of.name() == name);
            if legs().next().is_some_and(|first| first.id() != service.id()) {
                // The loop has already evaluated this service when it reached the first address family.
                continue;
            }
            let watch = watches.0.entry(name.to_owned()).or_insert_with(|| Watch::new(rule.by));
            let is_due = watch.is_due(now);
            if rule.by == Load::Latency {
                watch.note_checks(legs());
            } else if is_due {
                for (backend, load) in loads(dataplane, rule.by, legs()) {
                    watch.note(backend, now, load);
                }
            }
            if is_due && let Some(bounds) = watch.look(rule, &members(legs()), now).filter(|_| decides) {
                changes.push(Change::Bound { service: name.to_owned(), bounds });
            }
        }
        changes
    }

    /// Compares the current loads of backends with the backends' limits. The function returns the resulting changes.
    pub fn look_at_limits(&mut self) -> Vec<Change> {
        let now = Instant::now().into_std();
        let Self { controller, fullness, .. } = self;
        let services = controller.services();
        let bounds = |name: &str| services.iter().any(|of| of.name() == name && of.bounds_clients());
        fullness.0.retain(|name, _| bounds(name));
        let mut changes = Vec::new();
        for service in services.iter().filter(|service| service.bounds_clients()) {
            let name = service.name();
            let legs = || services.iter().filter(|of| of.name() == name);
            if legs().next().is_some_and(|first| first.id() != service.id()) {
                continue;
            }
            let watch = fullness.0.entry(name.to_owned()).or_default();
            if let Some(full) = watch.look(&full::members(legs()), now) {
                changes.push(Change::Full { service: name.to_owned(), full });
            }
        }
        changes
    }
}

/// The numbers of known clients of each backend, or the backend's counters, summed over all address families.
fn loads<'a, D: Dataplane>(dataplane: &D, by: Load, legs: impl Iterator<Item = &'a Service>) -> BTreeMap<&'a str, f64> {
    let counters = dataplane.backend_counters();
    let mut loads = BTreeMap::new();
    for backend in legs.flat_map(Service::backends) {
        let counted = || counters.read(backend.id());
        let load = match by {
            Load::Clients => backend.known_clients(),
            Load::Connections => counted().connections,
            Load::Bytes => counted().bytes,
            Load::Latency => continue,
        };
        *loads.entry(backend.name()).or_default() += load as f64;
    }
    loads
}
