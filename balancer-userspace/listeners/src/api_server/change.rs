//! Converts request bodies into changes, both for changes to make and for changes to plan.

use balancer_api::model::{AddBackend, PlanRequest, SetAdmin, SetLimits};
use balancer_config::{limits::Limits, names::BackendName, states::Admin, value};
use balancer_control::io::Change;

use super::failure::Failure;

/// A valid example of an [`AddBackend`].
pub(super) const ADD_SHAPE: &str = r#"{"name": "web4", "address": "192.0.2.4:8080", "weight": 100, "backup": false}"#;
/// Valid examples of a [`SetAdmin`].
pub(super) const ADMIN_SHAPE: &str = r#"{"admin": "ready"}, {"admin": "drain", "timeout": "5m"} or {"admin": "maint"}"#;

pub(super) fn add(
    service: String,
    AddBackend { name, address, address6, weight, backup, max_clients, max_connections }: AddBackend,
) -> Result<Change, Failure> {
    let name = BackendName { service, backend: value::name(&name).map_err(Failure::bad_request)? };
    let (address, port) = value::address(&address).map_err(Failure::bad_request)?;
    let address6 = address6.as_deref().map(value::ipv6).transpose().map_err(Failure::bad_request)?;
    let limits = Limits { clients: max_clients, connections: max_connections };
    Ok(Change::Add { name, address, address6, port, weight, backup, limits })
}

pub(super) fn set_admin(name: BackendName, SetAdmin { admin, timeout }: SetAdmin) -> Result<Change, Failure> {
    if timeout.is_some() && admin != Admin::Drain {
        return Err(Failure::bad_request(format!("a timeout has an effect only with drain; give {ADMIN_SHAPE}")));
    }
    let timeout = timeout.as_deref().map(value::duration).transpose().map_err(Failure::bad_request)?;
    Ok(Change::SetAdmin { name, admin, timeout })
}

pub(super) const fn set_limits(name: BackendName, SetLimits { max_clients, max_connections }: SetLimits) -> Change {
    Change::SetLimits { name, limits: Limits { clients: max_clients, connections: max_connections } }
}

/// The change to plan, with the name of the service.
pub(super) fn planned(request: PlanRequest) -> Result<(String, Change), Failure> {
    let of = |service: &String, backend: String| BackendName { service: service.clone(), backend };
    Ok(match request {
        PlanRequest::Add { service, backend } => (service.clone(), add(service, backend)?),
        PlanRequest::Remove { service, name, force } => {
            let name = of(&service, name);
            (service, Change::Remove { name, force })
        }
        PlanRequest::Admin { service, name, admin } => {
            let name = of(&service, name);
            (service, set_admin(name, admin)?)
        }
        PlanRequest::Weight { service, name, weight } => {
            let name = of(&service, name);
            (service, Change::SetWeight { name, weight })
        }
        PlanRequest::Limit { service, name, limits } => {
            let name = of(&service, name);
            (service, set_limits(name, limits))
        }
        PlanRequest::Steer { service, steer, force: _ } => (service.clone(), Change::SetSteer { service, steer }),
        PlanRequest::AddListener { service, listener } => {
            let listener = listener.parse().map_err(Failure::bad_request)?;
            (service.clone(), Change::AddListener { service, listener })
        }
        PlanRequest::RemoveListener { service, listener } => {
            let listener = listener.parse().map_err(Failure::bad_request)?;
            (service.clone(), Change::RemoveListener { service, listener })
        }
    })
}
