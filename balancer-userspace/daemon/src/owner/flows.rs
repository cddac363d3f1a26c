//! The connections of `snat` services.

use balancer_common::map_types::Forwarding;
use balancer_config::{names::BackendName, snat::DrainUntil};
use balancer_control::{
    io::{BackendId, Event, Refused},
    service::{Backend, Service},
    snapshot::FlowsSnapshot,
};
use balancer_dataplane::{Dataplane, FlowCounts};
use tracing::warn;

use super::Owner;
use crate::flow_look::FlowLook;

impl<D: Dataplane> Owner<D> {
    /// Returns a view of the connections of one `snat` service, or of all such services.
    ///
    /// # Errors
    /// Fails if the requested service does not exist, or is not a `snat` service.
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

    /// The state of the flow table; `None` if no flow table exists.
    pub(super) fn flows_snapshot(&self) -> Option<FlowsSnapshot> {
        let capacity = u64::from(self.dataplane.flows().capacity());
        let pool = |id: &BackendId| Some((self.controller.full_name_of(*id)?, full(&self.flow_counts, *id)?));
        (capacity > 0).then(|| FlowsSnapshot {
            capacity,
            entries: self.flow_counts.entries,
            full_pools: self.flow_counts.fullest.keys().filter_map(pool).collect(),
        })
    }

    /// Records the numbers of connections of `snat` services.
    pub fn count_flows(&mut self, counts: FlowCounts) {
        self.handle(Event::Flows { of: counts.of_backends.clone() });
        self.warn_of_full_pools(&counts);
        self.flow_counts = counts;
        self.flows_counted += 1;
    }

    /// The number of times that the connections have been counted.
    pub(crate) const fn flows_counted(&self) -> u64 {
        self.flows_counted
    }

    /// The numbers of connections at draining backends, for drains that wait for connections to end; `None` if there is
    /// no such drain.
    pub(crate) fn connections_waited_for(&self) -> Option<Vec<(BackendId, u64)>> {
        let services = self.controller.services().iter();
        let services = services.filter(|service| service.drains_until() == DrainUntil::Connections);
        let mut drained = services
            .flat_map(|service| service.backends())
            .filter(|backend| backend.drain_deadline().is_some())
            .peekable();
        drained.peek()?;
        let of = |backend: &Backend| (backend.id(), backend.connections().unwrap_or(0));
        Some(drained.map(of).filter(|&(_, connections)| connections > 0).collect())
    }

    /// Warns once about each backend that has few free ports left.
    fn warn_of_full_pools(&self, counts: &FlowCounts) {
        for id in counts.fullest.keys().filter(|id| full(&self.flow_counts, **id).is_none()) {
            if let (Some(part), Some(name)) = (full(counts, *id), self.controller.full_name_of(*id)) {
                warn!("{}", full_pool(&name, part));
            }
        }
    }

    /// The current warnings about backends of a service that have few free ports left.
    pub(super) fn full_pools(&self, service: &Service) -> Vec<String> {
        let of = |backend: &Backend| {
            let part = full(&self.flow_counts, backend.id())?;
            Some(full_pool(&service.name_of(backend), part))
        };
        if service.forwarding() == Forwarding::Snat {
            service.backends().iter().filter_map(of).collect()
        } else {
            Vec::new()
        }
    }
}

/// The fraction of a backend's ports that are in use; `None` if the fraction is small.
fn full(counts: &FlowCounts, id: BackendId) -> Option<f64> {
    const LARGE: f64 = 0.8;
    counts.fullest.get(&id).copied().filter(|&part| part >= LARGE)
}

fn full_pool(name: &BackendName, part: f64) -> String {
    format!(
        "{:.0}% of the ports under which backend {name} sees its clients are taken (no_port); more addresses in \
         snat = {{ addresses = […] }} or a wider range of ports make room",
        part * 100.0
    )
}
