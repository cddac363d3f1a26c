//! What is shown of a snapshot.

use balancer_common::verdict::Verdict;
use balancer_core::snapshot::{BackendSnapshot, InterfaceSnapshot, ServiceSnapshot, Snapshot};
use balancer_model::config::forwarding_word;

use crate::model::{BackendView, HealthView, InterfaceView, ServiceView, StatusView, Verdicts};

impl From<Snapshot> for StatusView {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            interfaces: snapshot.interfaces.into_iter().map(Into::into).collect(),
            redirect_errors: snapshot.redirect_errors,
            services: snapshot.services.into_iter().map(Into::into).collect(),
            generation: snapshot.generation,
        }
    }
}

impl From<InterfaceSnapshot> for InterfaceView {
    fn from(interface: InterfaceSnapshot) -> Self {
        let count = |verdict: Verdict| interface.stats.verdicts[verdict.index()];
        Self {
            packets_seen: Verdicts {
                tx: count(Verdict::Tx),
                redirect: count(Verdict::Redirect),
                pass: count(Verdict::Pass),
                drop: count(Verdict::Drop),
                aborted: count(Verdict::Aborted),
                handed: count(Verdict::Handed),
            },
            name: interface.name,
            ifindex: interface.ifindex,
            xdp_mode: interface.xdp_mode.to_owned(),
        }
    }
}

impl From<ServiceSnapshot> for ServiceView {
    fn from(service: ServiceSnapshot) -> Self {
        Self {
            name: service.name,
            address: service.address.to_string(),
            protocol: service.protocol.to_string(),
            forwarding: forwarding_word(service.forwarding).to_owned(),
            table_size: service.table_size,
            table_generation: service.table_generation,
            warnings: service.statistics.warnings,
            backends: service.backends.into_iter().map(Into::into).collect(),
        }
    }
}

impl HealthView {
    /// How a backend of `service` is checked.
    #[must_use]
    pub fn of(backend: BackendSnapshot, service: &str) -> Self {
        let BackendSnapshot { name, state, reason, last_check, check, .. } = backend;
        let last = check.last.as_ref().map(|(outcome, _)| outcome.words());
        Self {
            service: service.to_owned(),
            backend: name,
            target: check.target.to_string(),
            check: check.words,
            verdict: check.verdict.to_owned(),
            verdict_seconds: check.verdict_age.as_secs_f64(),
            forced: check.forced,
            state: state.word().to_owned(),
            reason,
            last_result: last.map(|(result, _)| result.to_owned()),
            last_reason: last.map(|(_, reason)| reason.to_owned()).unwrap_or_default(),
            last_duration_seconds: last_check.map(|took| took.as_secs_f64()),
            last_seconds_ago: check.last.as_ref().map(|(_, ago)| ago.as_secs_f64()),
            passes: check.streak.0,
            failures: check.streak.1,
            next_verdict: check.next_verdict,
        }
    }
}

impl From<BackendSnapshot> for BackendView {
    fn from(backend: BackendSnapshot) -> Self {
        Self {
            name: backend.name,
            address: backend.address.to_string(),
            weight: backend.weight,
            backup: backend.backup,
            admin: backend.admin.word().to_owned(),
            health: backend.health.to_owned(),
            state: backend.state.word().to_owned(),
            drain_seconds_left: backend.drain_deadline.map(|left| left.as_secs()),
            reason: backend.reason,
            slots: backend.slots,
            known_clients: backend.known_clients,
            connections: backend.stats.connections,
            packets: backend.stats.packets,
            bytes: backend.stats.bytes,
        }
    }
}
