//! Finds `nat` and `snat` backends whose replies arrive by an interface to which the program is not attached. The
//! clients of such a backend get no replies.

use std::collections::{BTreeMap, BTreeSet};

use balancer_common::map_types::Forwarding;
use balancer_control::service::{Backend, Service};
use balancer_dataplane::Dataplane;
use balancer_netlink::interfaces;

use super::Owner;

/// The names of the interfaces, without the program, towards backends, by index.
#[derive(Debug, Default)]
pub(super) struct Unattached(BTreeMap<u32, String>);

impl Unattached {
    /// The interface by which the replies of a backend arrive without reaching the program; `None` if the program sees
    /// the replies, or if the backend does not reply through this machine.
    pub(super) fn of(&self, service: &Service, backend: &Backend, dataplane: &impl Dataplane) -> Option<&str> {
        if self.0.is_empty() || !matches!(service.forwarding(), Forwarding::Nat | Forwarding::Snat) {
            return None;
        }
        self.0.get(&dataplane.egress(backend.id())?).map(String::as_str)
    }
}

impl<D: Dataplane> Owner<D> {
    /// The interfaces towards backends from which the program gets no packets. While the program is missing on a wanted
    /// interface, the readiness names that interface, and the result is empty.
    pub(super) fn unattached(&self) -> Unattached {
        if self.dataplane.attached().is_empty() || !self.missing().is_empty() {
            return Unattached::default();
        }
        let missed = self.dataplane.missed();
        Unattached(missed.into_iter().map(|ifindex| (ifindex, interfaces::name(ifindex))).collect())
    }

    /// The interfaces by which replies arrive without reaching the program, each with the backends that send them.
    pub(super) fn unseen_replies(&self) -> BTreeMap<String, Vec<String>> {
        let unattached = self.unattached();
        // Most balancers have no such interface, and up to 65,534 backends.
        if unattached.0.is_empty() {
            return BTreeMap::new();
        }
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for service in self.controller.services() {
            for backend in service.backends() {
                if let Some(interface) = unattached.of(service, backend, &self.dataplane) {
                    // A service with both address families is listed twice.
                    found.entry(interface.to_owned()).or_default().insert(service.name_of(backend).to_string());
                }
            }
        }
        found.into_iter().map(|(interface, names)| (interface, names.into_iter().collect())).collect()
    }
}
