//! Snapshots of the state: the owner copies the state that only the owner can access, and the requester adds the state
//! that tasks share.

use std::{collections::BTreeMap, sync::Arc};

use balancer_common::kept::{BackendHistory, ServiceHistory};
use balancer_control::{
    controller::{Gone, Services},
    fleet::FleetSnapshot,
    io::{BackendId, QuicSpec},
    service::{Backend, Service},
    snapshot::{Coming, InterfaceSnapshot, ListenerSnapshot, QuicSnapshot, Snapshot},
};
use balancer_dataplane::{BackendCounters, Dataplane};
use balancer_netlink::interfaces;
use tokio::time::Instant;

use super::{
    Owner,
    join::join,
    show::{Aside, Passive, show},
    unattached::Unattached,
};

/// The data for a snapshot, as of one moment.
pub struct Counting {
    now: std::time::Instant,
    services: Services,
    /// The state of each service that is not in the core.
    aside: Vec<Aside>,
    gone: Vec<Gone>,
    counters: Arc<BackendCounters>,
    /// The snapshot without the services.
    rest: Snapshot<()>,
}

impl Counting {
    /// Adds the state of the fleet, if the balancer belongs to a fleet.
    #[must_use]
    pub fn with_fleet(mut self, fleet: Option<FleetSnapshot>) -> Self {
        self.rest.fleet = fleet;
        self
    }

    /// Makes the snapshot, service by service; the duration depends on the numbers of backends and of CPUs.
    #[must_use]
    pub fn finish(self) -> Snapshot<Coming> {
        let Self { now, services, aside, gone, counters, rest } = self;
        let shown = aside.into_iter().enumerate().filter_map(move |(index, aside)| {
            let mut service = show(services.get(index)?, aside, &gone, now);
            service.stats_mut().for_each(|(id, stats)| *stats = counters.read(id));
            Some(service)
        });
        rest.map(|()| Coming::new(join(shown)))
    }
}

impl<D: Dataplane> Owner<D> {
    /// Stores the counters that only the controller updates, so that the displayed values are preserved, however this
    /// process ends.
    fn keep_histories(&self) {
        for service in self.controller.services() {
            let (slots_moved_required, slots_moved_needless) = service.slots_moved();
            let table_generation = service.table_generation();
            let history = ServiceHistory {
                table_generation,
                slots_moved_required,
                slots_moved_needless,
                ..ServiceHistory::default()
            };
            self.dataplane.keep_service_history(service.id(), &history);
            for backend in service.backends() {
                let (checks, transitions) = (backend.checks(), backend.transitions());
                let history = BackendHistory { checks, transitions, ..BackendHistory::default() };
                self.dataplane.keep_backend_history(backend.id(), &history);
            }
        }
    }

    /// Returns the data for a snapshot as of this moment.
    ///
    /// # Errors
    /// Fails if a counter cannot be read.
    pub fn snapshot(&self) -> anyhow::Result<Counting> {
        let now = Instant::now().into_std();
        self.keep_histories();
        let interfaces = self
            .dataplane
            .attached()
            .iter()
            .map(|interface| {
                Ok(InterfaceSnapshot {
                    name: interface.name.clone(),
                    ifindex: interface.ifindex,
                    xdp_mode: interface.mode(),
                    stats: self.dataplane.interface_stats(interface.ifindex)?,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let rest = Snapshot {
            interfaces,
            services: (),
            drops: self.dataplane.drop_stats()?,
            replies: self.dataplane.reply_stats()?,
            redirect_errors: self.redirect_errors()?,
            memory: self.dataplane.memory()?,
            flows: self.flows_snapshot(),
            generation: self.controller.generation(),
            changed: self.controller.changed_at_run_time(),
            member: self.member_snapshot(),
            fleet: None,
        };
        let services = self.controller.services().clone();
        let unattached = self.unattached();
        let aside = services.iter().map(|service| self.aside(service, &unattached)).collect::<anyhow::Result<_>>()?;
        let (gone, counters) = (self.controller.gone().to_vec(), self.dataplane.backend_counters());
        Ok(Counting { now, services, aside, gone, counters, rest })
    }

    fn aside(&self, service: &Service, unattached: &Unattached) -> anyhow::Result<Aside> {
        let id = service.id();
        let passive = |backend: &Backend| self.passive(backend.id(), unattached.of(service, backend, &self.dataplane));
        Ok(Aside {
            last_change: self.last_changes.of(id),
            listeners: self.listeners(service)?,
            rule_fallbacks: self.dataplane.rule_fallbacks(id)?,
            denied: self.denied_snapshot(service),
            discover: self.discover_snapshots(service),
            agents: self.agent_snapshots(service),
            passed: self.dataplane.share_stats(id),
            quic: self.quic(service)?,
            passive: service.backends().iter().map(passive).collect(),
            removed_backends: self.removed_backends.of(id).map(|(name, stats)| (name.to_owned(), *stats)).collect(),
            repeated_moves: self.repeated_moves.get(&id).copied().unwrap_or_default(),
            table_build: self.builds.get(&id).copied().unwrap_or_default(),
            warnings: self.full_pools(service),
        })
    }

    fn quic(&self, service: &Service) -> anyhow::Result<Option<QuicSnapshot>> {
        let Some(QuicSpec { config, servers }) = service.quic_spec() else { return Ok(None) };
        let servers = service
            .backends()
            .iter()
            .zip(&*servers)
            .map(|(backend, (id, server))| (backend.name().to_owned(), *server, self.dataplane.migrated(*id)));
        let stats = self.dataplane.quic_stats(service.id())?;
        Ok(Some(QuicSnapshot { config, stats, servers: servers.collect() }))
    }

    fn passive(&self, id: BackendId, unattached: Option<&str>) -> Passive {
        Passive {
            withheld: self.dataplane.withheld(id),
            signals: self.suspects.counts(id),
            unanswered: self.dataplane.unanswered(id),
            handshakes: self.outcomes.of(id),
            unattached: unattached.map(str::to_owned),
        }
    }

    /// Returns the listeners of a service; listeners of the other address family have no counters in the result.
    fn listeners(&self, service: &Service) -> anyhow::Result<Vec<ListenerSnapshot>> {
        let several = service.listeners().count() > 1;
        service
            .listeners()
            .map(|(listener, id)| {
                let id = id.filter(|_| several);
                let stats = id.map(|id| self.dataplane.listener_stats(id)).transpose()?;
                Ok(ListenerSnapshot { listener, stats })
            })
            .collect()
    }

    /// The numbers of redirect errors by interface name, or by interface index if the interface was removed.
    fn redirect_errors(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let errors = self.dataplane.redirect_errors()?.into_iter();
        Ok(errors.map(|(index, frames)| (interfaces::name(index), frames)).collect())
    }
}
