//! Changes made at run time: lists these changes and undoes them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use balancer_config::{
    config::{BackendConfig, ServiceConfig},
    shared::by_name,
    states::{Admin, Forced},
};

use super::Controller;
use crate::{
    io::ServiceId,
    run_time::{RunTimeChange, of_backends, of_rules, of_service},
    service::{Backend, Service},
};

impl Controller {
    /// The differences between the current services and the services in the configuration file. Expired rules and
    /// withdrawn VIPs do not count as differences.
    #[must_use]
    pub fn changed_at_run_time(&self) -> Vec<RunTimeChange> {
        let present = self.present();
        let present = by_name(&present);
        let mut changes = Vec::new();
        for file in self.file.iter() {
            let Some(now) = present.get(file.name.as_str()) else { continue };
            let states = self.legs(&file.name).next().map(states).unwrap_or_default();
            if !Arc::ptr_eq(file, now) {
                changes.extend(of_service(file, now));
            }
            if !states.is_empty() || !Arc::ptr_eq(file, now) {
                changes.extend(of_backends(file, now, states));
            }
            let rules = self.rules_of(&file.name);
            if !rules.is_empty() || !file.rules.is_empty() {
                changes.extend(of_rules(&file.name, &file.rules, &rules));
            }
        }
        changes
    }

    /// Makes every backend ready, and lets the checks of each backend decide. Returns the affected services.
    pub(super) fn reset_states(&mut self) -> HashSet<ServiceId> {
        let is_set = |backend: &Backend| {
            let is_unlisted = backend.is_leaving() && backend.config().discovered.is_some();
            backend.forced().is_some() || backend.admin() != Admin::Ready && !is_unlisted
        };
        let mut touched = HashSet::new();
        for service in self.services.those_mut(|service| service.backends().iter().any(is_set)) {
            touched.insert(service.id());
            for backend in service.backends_mut().iter_mut().filter(|backend| is_set(backend)) {
                if !backend.is_leaving() || backend.config().discovered.is_none() {
                    backend.set_admin(Admin::Ready, None);
                }
                backend.force(None);
            }
        }
        touched
    }
}

/// The states that the operator has set for backends.
fn states(service: &Service) -> BTreeMap<String, String> {
    let words = |backend: &Backend| {
        let admin = match backend.admin() {
            _ if backend.is_leaving() && backend.config().discovered.is_some() => None,
            _ if backend.is_leaving() => Some("being removed"),
            Admin::Ready => None,
            Admin::Drain => Some("drain"),
            Admin::Maint => Some("maint"),
        };
        let forced = backend.forced().map(|forced| match forced {
            Forced::Up => "forced up",
            Forced::Down => "forced down",
        });
        let words: Vec<&str> = admin.into_iter().chain(forced).collect();
        (!words.is_empty()).then(|| (backend.name().to_owned(), words.join(", ")))
    };
    service.backends().iter().filter_map(words).collect()
}

/// The services that replace the services of the previous file, so that the new file overrides everything: all current
/// services, except that backends which are being removed are absent if the `file` contains them.
pub(super) fn as_if_written(
    present: &[Arc<ServiceConfig>],
    leaves: impl Fn(&str, &str) -> bool,
    file: &[Arc<ServiceConfig>],
) -> Vec<Arc<ServiceConfig>> {
    let wanted = by_name(file);
    let wanted = |service: &ServiceConfig, backend: &str| {
        wanted.get(service.name.as_str()).is_some_and(|of| of.backends.iter().any(|other| other.name == backend))
    };
    let written = |service: &Arc<ServiceConfig>| {
        let called_back = |name: &str| leaves(&service.name, name) && wanted(service, name);
        if !service.backends.iter().any(|backend| called_back(&backend.name)) {
            return Arc::clone(service);
        }
        let backends = service.backends.iter().filter(|backend| !called_back(&backend.name)).cloned().collect();
        Arc::new(ServiceConfig { backends, ..ServiceConfig::clone(service) })
    };
    present.iter().map(written).collect()
}

/// Gives discovered backends the weights that their lists contain.
pub(super) fn as_listed(services: &mut [Arc<ServiceConfig>]) {
    let weight = |backend: &BackendConfig| backend.discovered.as_ref().map_or(backend.weight, |of| of.weight);
    for service in services.iter_mut().filter(|of| of.backends.iter().any(|backend| backend.weight != weight(backend)))
    {
        for backend in &mut Arc::make_mut(service).backends {
            backend.weight = weight(backend);
        }
    }
}
