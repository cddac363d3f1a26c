//! The connections of `snat` services.

use balancer_common::map_types::Forwarding;
use balancer_core::{
    io::{Event, Refused},
    service::Service,
    snapshot::FlowsSnapshot,
};
use balancer_dataplane::{Dataplane, FlowCounts};
use tracing::warn;

use super::Owner;
use crate::flow_look::FlowLook;

impl<D: Dataplane> Owner<D> {
    /// Where the connections of a `snat` service, or of all, are found.
    ///
    /// # Errors
    /// When the service asked for does not exist, or knows no connections.
    pub fn flows(&self, service: Option<&str>) -> Result<FlowLook, Refused> {
        let is_snat = |service: &Service| service.forwarding() == Forwarding::Snat;
        if let Some(name) = service
            && !is_snat(self.controller.service(name)?)
        {
            let text = format!("service {name} knows no connections: only forwarding = \"snat\" does");
            return Err(Refused::Conflict(text));
        }
        let all = self.controller.services().iter().filter(|of| is_snat(of));
        let asked: Vec<_> = all.filter(|of| service.is_none_or(|name| of.name() == name)).collect();
        let backends = asked.iter().flat_map(|service| service.backends());
        Ok(FlowLook {
            table: Some(self.dataplane.flows()).filter(|table| table.capacity() > 0),
            backends: backends.map(|backend| (backend.id(), backend.name().to_owned())).collect(),
            services: asked.iter().map(|service| (service.id(), service.name().to_owned())).collect(),
        })
    }

    /// The table of connections. `None`: there is none.
    pub(super) fn flows_snapshot(&self) -> Option<FlowsSnapshot> {
        let capacity = u64::from(self.dataplane.flows().capacity());
        (capacity > 0).then_some(FlowsSnapshot { capacity, entries: self.flow_counts.entries })
    }

    /// Takes note of how many connections `snat` services have.
    pub fn count_flows(&mut self, counts: FlowCounts) {
        self.handle(Event::Flows { of: counts.of_backends.clone() });
        self.warn_of_full_pools(&counts);
        self.flow_counts = counts;
    }

    /// Says once of each backend that few ports are left for it.
    fn warn_of_full_pools(&mut self, counts: &FlowCounts) {
        const PART: f64 = 0.8;
        let full = |counts: &FlowCounts, id| counts.fullest.get(id).is_some_and(|&part| part >= PART);
        for id in counts.fullest.keys().filter(|id| full(counts, id) && !full(&self.flow_counts, id)) {
            let part = counts.fullest.get(id).copied().unwrap_or_default() * 100.0;
            let name = self.controller.name_of(*id).unwrap_or("-");
            warn!(
                "{part:.0}% of the ports under which backend {name} sees its clients are taken; more addresses in \
                 snat = {{ addresses = […] }} or a wider range of ports make room"
            );
        }
    }
}
