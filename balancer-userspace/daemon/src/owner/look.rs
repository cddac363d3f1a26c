//! Everything there is to see, copied for whoever asks.

use std::{collections::BTreeMap, sync::Arc};

use balancer_common::{
    kept::{BackendHistory, ServiceHistory},
    map_types::BackendStats,
};
use balancer_core::{
    fleet::FleetSnapshot,
    service::{Backend, Service},
    snapshot::{
        BackendSnapshot, CheckSnapshot, FamilySnapshot, GoneSnapshot, InterfaceSnapshot, ListenerSnapshot,
        ServiceSnapshot, ServiceStatistics, Snapshot, TableSnapshot,
    },
};
use balancer_dataplane::{BackendCounters, Dataplane};
use nix::net::if_::if_indextoname;
use tokio::time::Instant;

use super::{Owner, join::join};

/// A snapshot for which the backends' counters have still to be read.
pub struct Counting {
    snapshot: Snapshot,
    counters: Arc<BackendCounters>,
}

impl Counting {
    /// What is to be seen of the fleet as well.
    #[must_use]
    pub fn with_fleet(mut self, fleet: Option<FleetSnapshot>) -> Self {
        self.snapshot.fleet = fleet;
        self
    }

    /// Reads them: as much to copy as there are backends and CPUs.
    #[must_use]
    pub fn finish(mut self) -> Snapshot {
        for (id, stats) in self.snapshot.services.iter_mut().flat_map(ServiceSnapshot::stats_mut) {
            *stats = self.counters.read(id);
        }
        self.snapshot.services = join(self.snapshot.services);
        self.snapshot
    }
}

impl<D: Dataplane> Owner<D> {
    /// Keeps what only the controller counts: whatever was shown stays counted, however this process ends.
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

    /// Everything there is to see, but for the backends' counters.
    ///
    /// # Errors
    /// When a counter cannot be read.
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
        let services = self
            .controller
            .services()
            .iter()
            .map(|service| {
                let backends = service
                    .backends()
                    .iter()
                    .map(|backend| BackendSnapshot {
                        ids: vec![backend.id()],
                        families: families(service, backend),
                        name: backend.name().to_owned(),
                        address: service.shown_address(backend),
                        weight: backend.weight(),
                        backup: backend.is_backup(),
                        admin: backend.admin(),
                        health: backend.health_word(),
                        state: backend.state(),
                        reason: backend.reason().to_owned(),
                        slots: backend.slots(),
                        known_clients: backend.known_clients(),
                        drain_deadline: backend.drain_deadline().map(|at| at.saturating_duration_since(now)),
                        eligible: backend.takes_new_clients(),
                        stats: BackendStats::default(),
                        checks: backend.checks(),
                        last_check: backend.last_check().map(|check| check.took),
                        check: vec![check_snapshot(service, backend, now)],
                        transitions: backend.transitions(),
                    })
                    .collect();
                let (slots_moved_required, slots_moved_needless) = service.slots_moved();
                Ok(ServiceSnapshot {
                    ids: vec![service.id()],
                    client_prefix: service.client_prefixes(),
                    last_change: self.last_changes.of(service.id()),
                    statistics: ServiceStatistics::default(),
                    name: service.name().to_owned(),
                    listeners: self.listeners(service)?,
                    forwarding: service.forwarding(),
                    table_size: service.table_size(),
                    tables: vec![table(service)],
                    table_generation: service.table_generation(),
                    slots_moved_required,
                    slots_moved_needless,
                    remembers: service.remembers(),
                    rule_fallbacks: self.dataplane.rule_fallbacks(service.id())?,
                    departed: self.departed.of(service.id()).map(|(name, stats)| (name.to_owned(), *stats)).collect(),
                    repeated_moves: self.repeated_moves.get(&service.id()).copied().unwrap_or_default(),
                    gone: self
                        .controller
                        .gone()
                        .iter()
                        .filter(|gone| gone.row.service == service.id())
                        .map(|gone| GoneSnapshot {
                            id: gone.row.id,
                            name: gone.name.clone(),
                            known_clients: gone.known,
                            stats: BackendStats::default(),
                        })
                        .collect(),
                    table_build: self.builds.get(&service.id()).copied().unwrap_or_default(),
                    backends,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let (drops, replies) = (self.dataplane.drop_stats()?, self.dataplane.reply_stats()?);
        let snapshot = Snapshot {
            interfaces,
            services,
            drops,
            replies,
            redirect_errors: self.redirect_errors()?,
            memory: self.dataplane.memory()?,
            generation: self.controller.generation(),
            member: self.member_snapshot(),
            fleet: None,
        };
        Ok(Counting { snapshot, counters: self.dataplane.backend_counters() })
    }

    /// Its listeners; those of the other family without counters.
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

    /// By the interfaces' names; one that is gone has its index.
    fn redirect_errors(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let name = |index| {
            let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
            name.unwrap_or_else(|| index.to_string())
        };
        Ok(self.dataplane.redirect_errors()?.into_iter().map(|(index, frames)| (name(index), frames)).collect())
    }
}

fn table(service: &Service) -> TableSnapshot {
    let (live, base) = service.tables();
    TableSnapshot { family: service.family(), live, base }
}

/// What is a backend's own in this part of a service of both families.
fn families(service: &Service, backend: &Backend) -> Vec<FamilySnapshot> {
    let of = || FamilySnapshot {
        family: service.family(),
        address: backend.address().ip().to_string(),
        health: backend.health_word(),
        state: backend.state(),
        reason: backend.reason().to_owned(),
        slots: backend.slots(),
        known_clients: backend.known_clients(),
    };
    if service.is_one_of_two() { vec![of()] } else { Vec::new() }
}

fn check_snapshot(service: &Service, backend: &Backend, now: std::time::Instant) -> CheckSnapshot {
    let ago = |then| now.saturating_duration_since(then);
    let config = service.check_config(backend);
    let checked = service.check(backend).is_some();
    CheckSnapshot {
        target: service.check_target(backend),
        words: config.to_string(),
        verdict: backend.health().verdict().word(),
        verdict_age: ago(backend.verdict_since()),
        forced: backend.forced(),
        last: backend.last_check().map(|last| (last.outcome.clone(), ago(last.ended))),
        took: backend.last_check().map(|last| last.took),
        streak: backend.health().streak(),
        next_verdict: if checked { backend.health().next_verdict(config) } else { String::new() },
    }
}
