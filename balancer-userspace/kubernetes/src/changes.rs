//! The differences between the wanted state and the balancer's state that remain after the balancer has applied the
//! drop-in.

use std::collections::{BTreeMap, BTreeSet};

use balancer_api::model::{AddBackend, BackendView, ServiceView};
use balancer_config::{names::BackendName, states::Admin};

use crate::drop_in::DropIn;

/// A change of a backend that the program requests from the balancer.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Set the administrative state of a backend.
    SetAdmin(BackendName, Admin),
    /// Add a backend that was removed at run time.
    Add(String, AddBackend),
}

/// Returns the changes that lead to the wanted state. The backends in `draining` must not take new clients.
///
/// A backend that an operator has drained stays drained, and a backend in maintenance stays in maintenance.
#[must_use]
pub fn changes(drop_in: &DropIn, draining: &BTreeSet<String>, actual: &[ServiceView]) -> Vec<Change> {
    let actual: BTreeMap<&str, &ServiceView> = actual.iter().map(|service| (service.name.as_str(), service)).collect();
    let mut changes = Vec::new();
    for service in &drop_in.services {
        let Some(found) = actual.get(service.name.as_str()) else { continue };
        for backend in &service.backends {
            let name = BackendName { service: service.name.clone(), backend: backend.name.clone() };
            let Some(there) = found.backends.iter().find(|there| there.name == backend.name) else {
                let add = AddBackend {
                    name: backend.name.clone(),
                    address: backend.address.clone(),
                    address6: backend.address6.clone(),
                    max_clients: None,
                    max_connections: None,
                    weight: None,
                    backup: false,
                };
                changes.push(Change::Add(service.name.clone(), add));
                continue;
            };
            let full = full(&name.service, &name.backend);
            match (draining.contains(&full), there.admin.as_str()) {
                (true, "ready") => changes.push(Change::SetAdmin(name, Admin::Drain)),
                (false, "drain") if drop_in.drained.contains(&full) => {
                    changes.push(Change::SetAdmin(name, Admin::Ready))
                }
                _ => {}
            }
        }
    }
    changes
}

/// Returns the backends that this program drains, or has drained and not yet made ready again. `before` contains the
/// backends that the previous comparison returned.
#[must_use]
pub fn drained(
    before: &BTreeSet<String>,
    draining: &BTreeSet<String>,
    wanted: &DropIn,
    actual: &[ServiceView],
) -> BTreeSet<String> {
    let admin = |service: &str, backend: &str| -> Option<&str> {
        let service = actual.iter().find(|there| there.name == service)?;
        let found: &BackendView = service.backends.iter().find(|there| there.name == backend)?;
        Some(found.admin.as_str())
    };
    let mut marks = BTreeSet::new();
    for service in &wanted.services {
        for backend in &service.backends {
            let full = full(&service.name, &backend.name);
            let (was, admin) = (before.contains(&full), admin(&service.name, &backend.name));
            let drains = draining.contains(&full);
            // If an operator has drained the backend, the program does not make the drain its own.
            let is_ours =
                if drains { was || admin != Some("drain") } else { was && admin.is_none_or(|admin| admin == "drain") };
            marks.extend(is_ours.then_some(full));
        }
    }
    marks
}

/// Formats the name of a backend as `SERVICE/BACKEND`.
#[must_use]
pub fn full(service: &str, backend: &str) -> String {
    format!("{service}/{backend}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drop_in::{BackendText, ServiceText};

    const NAME: &str = "k8s.shop.web/u1";

    fn drop_in(drained: &[&str]) -> DropIn {
        let backend = BackendText { name: "u1".to_owned(), address: "10.0.0.1:80".to_owned(), address6: None };
        let service =
            ServiceText { name: "k8s.shop.web".to_owned(), backends: vec![backend], ..ServiceText::default() };
        DropIn { services: vec![service], drained: set(drained) }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn actual(admin: Option<&str>) -> Vec<ServiceView> {
        let backends: Vec<_> = admin
            .into_iter()
            .map(|admin| {
                serde_json::json!({"name": "u1", "address": "", "weight": 100, "backup": false, "admin": admin,
                    "health": "up", "state": "up", "reason": "", "slots": 0, "known_clients": 0, "connections": 0,
                    "packets": 0, "bytes": 0})
            })
            .collect();
        let service = serde_json::json!({"name": "k8s.shop.web", "address": "", "protocol": "tcp", "forwarding": "nat",
            "table_size": 1, "table_generation": 0, "backends": backends});
        vec![serde_json::from_value(service).unwrap()]
    }

    /// Returns the required change of a backend, and whether the drain belongs to this program afterwards.
    fn of(was: bool, drains: bool, admin: Option<&str>) -> (Option<Change>, bool) {
        let (before, draining) = (set(if was { &[NAME] } else { &[] }), set(if drains { &[NAME] } else { &[] }));
        let actual = actual(admin);
        let marks = drained(&before, &draining, &drop_in(&[]), &actual);
        let drop_in = DropIn { drained: marks.clone(), ..drop_in(&[]) };
        (changes(&drop_in, &draining, &actual).pop(), marks.contains(NAME))
    }

    #[test]
    fn when_a_pod_is_to_drain_then_it_is_drained_and_made_ready_only_by_whom_has_drained_it() {
        let set = |admin| {
            Some(Change::SetAdmin(BackendName { service: "k8s.shop.web".to_owned(), backend: "u1".to_owned() }, admin))
        };
        for (was, drains, admin, change, ours) in [
            (false, false, "ready", None, false),
            (false, true, "ready", set(Admin::Drain), true),
            (true, true, "drain", None, true),
            (true, false, "drain", set(Admin::Ready), true),
            (true, false, "ready", None, false),
            // The drain belongs to the operator, so the program leaves the backend drained.
            (false, false, "drain", None, false),
            (false, true, "drain", None, false),
            (true, true, "maint", None, true),
            (true, false, "maint", None, false),
            // The backend is in this state after `apply --reset`.
            (true, true, "ready", set(Admin::Drain), true),
        ] {
            assert_eq!(of(was, drains, Some(admin)), (change, ours), "{was} {drains} {admin}");
        }
    }

    #[test]
    fn when_somebody_has_removed_a_backend_then_it_is_added_again() {
        let (change, _) = of(false, false, None);
        let Some(Change::Add(service, add)) = change else { unreachable!("{change:?}") };
        assert_eq!((service.as_str(), add.name.as_str(), add.address.as_str()), ("k8s.shop.web", "u1", "10.0.0.1:80"));
    }
}
