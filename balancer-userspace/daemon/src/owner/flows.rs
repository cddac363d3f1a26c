//! The connections of `snat` services.

use std::collections::{BTreeMap, BTreeSet};

use balancer_common::map_types::Forwarding;
use balancer_config::{names::BackendName, snat::DrainUntil};
use balancer_control::{
    io::{BackendId, Event, PortsInUse, Refused},
    service::{Backend, Service},
    snapshot::FlowsSnapshot,
};
use balancer_dataplane::{Dataplane, FlowCounts};
use balancer_listeners::flow_look::FlowLook;
use tracing::warn;

use super::Owner;

/// The packets to backends whose drains wait for connections. Packets show what the table of connections does not: short
/// connections between two counts, and the connections of backends on this machine.
#[derive(Debug, Default)]
pub(super) struct Draining {
    /// The number of packets to each backend at the last count.
    packets: BTreeMap<BackendId, u64>,
    /// The backends that received packets between the last two counts, or that the last count counted first.
    active: BTreeSet<BackendId>,
}

impl Draining {
    /// Records the numbers of packets that the backends have received so far.
    fn count(&mut self, packets: BTreeMap<BackendId, u64>) {
        self.active = packets.iter().filter(|(id, now)| self.packets.get(id) != Some(now)).map(|(id, _)| *id).collect();
        self.packets = packets;
    }
}

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
            let text = format!("service {name} has no connections to list: only forwarding = \"snat\" keeps a table");
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
            full_pools: self.flow_counts.ports.keys().filter_map(pool).collect(),
        })
    }

    /// Records the numbers of connections of `snat` services.
    pub fn count_flows(&mut self, counts: FlowCounts) {
        let counters = self.dataplane.backend_counters();
        let packets = |backend: &Backend| (backend.id(), counters.read(backend.id()).packets);
        let packets = self.draining_until_connections().map(packets).collect();
        self.draining.count(packets);
        let (of, ports, active) = (counts.of_backends.clone(), counts.ports.clone(), self.draining.active.clone());
        self.handle(Event::Flows { of, ports, active });
        self.warn_of_full_pools(&counts);
        self.flow_counts = counts;
        self.flows_counted += 1;
    }

    /// The number of times that the connections have been counted.
    pub(crate) const fn flows_counted(&self) -> u64 {
        self.flows_counted
    }

    /// The backends whose drains wait for connections to end.
    fn draining_until_connections(&self) -> impl Iterator<Item = &Backend> {
        let services = self.controller.services().iter();
        services
            .filter(|service| service.drains_until() == DrainUntil::Connections)
            .flat_map(Service::backends)
            .filter(|backend| backend.drain_deadline().is_some())
    }

    /// The numbers of connections at draining backends, for drains that wait for connections to end; at least 1 if a
    /// backend has received packets since the previous count. `None` if there is no such drain.
    pub(crate) fn connections_waited_for(&self) -> Option<Vec<(BackendId, u64)>> {
        let mut drained = self.draining_until_connections().peekable();
        drained.peek()?;
        let of = |backend: &Backend| {
            let is_active = self.draining.active.contains(&backend.id());
            (backend.id(), backend.connections().unwrap_or(0).max(is_active.into()))
        };
        Some(drained.map(of).filter(|&(_, connections)| connections > 0).collect())
    }

    /// Warns once about each backend that has few free ports left.
    fn warn_of_full_pools(&self, counts: &FlowCounts) {
        for id in counts.ports.keys().filter(|id| full(&self.flow_counts, **id).is_none()) {
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
    counts.ports.get(&id).map(PortsInUse::part).filter(|&part| part >= LARGE)
}

fn full_pool(name: &BackendName, part: f64) -> String {
    format!(
        "{:.0}% of the ports for connections to backend {name} are taken; without a free port, new connections are \
         dropped (no_port): give more addresses in snat = {{ addresses = […] }}, or a wider range of ports",
        part * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_draining_backend_gets_packets_then_it_is_active_until_a_count_without_packets() {
        let (web, own) = (BackendId(1), BackendId(2));
        let mut draining = Draining::default();
        let mut active = |packets: &[(BackendId, u64)]| {
            draining.count(packets.iter().copied().collect());
            draining.active.iter().copied().collect::<Vec<_>>()
        };
        assert_eq!(active(&[(web, 7)]), [web], "the count before is not known");
        assert_eq!(active(&[(web, 7), (own, 0)]), [own]);
        assert_eq!(active(&[(web, 8), (own, 0)]), [web]);
        assert_eq!(active(&[(own, 0)]), []);
    }
}
