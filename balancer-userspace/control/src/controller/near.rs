//! Backends that may reply to some clients directly, so that the replies bypass this machine. A near backend belongs to
//! a `nat` service and is on one of this machine's links; its replies to clients on the same link need no router.

use std::time::Instant;

use balancer_common::map_types::Forwarding;
use balancer_config::names::BackendName;

use super::Controller;
use crate::{
    health::Verdict,
    io::{BackendId, ServiceId},
    next_hops::Hop,
};

/// A backend whose replies can reach clients without passing this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearBackend {
    /// The index of the backend's service.
    pub service: ServiceId,
    /// The index of the backend's row.
    pub id: BackendId,
    pub name: BackendName,
    /// The interface through which this machine reaches the backend.
    pub ifindex: u32,
    /// The time since which the backend has been passing its checks.
    pub up_since: Instant,
}

impl Controller {
    /// The near backends that pass their checks.
    pub fn near_backends(&self) -> impl Iterator<Item = NearBackend> {
        let services = self.services.iter().filter(|service| service.forwarding() == Forwarding::Nat);
        services.flat_map(|service| {
            service.backends().iter().filter_map(|backend| {
                let Hop::Resolved(next_hop) = self.hops.get(backend.address().ip()) else { return None };
                let is_up = matches!(backend.health().verdict(), Verdict::Up);
                (is_up && next_hop.gateway.is_none()).then(|| NearBackend {
                    service: service.id(),
                    id: backend.id(),
                    name: service.name_of(backend),
                    ifindex: next_hop.ifindex,
                    up_since: backend.verdict_since(),
                })
            })
        })
    }
}
