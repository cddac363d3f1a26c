//! Conversions of snapshots into the views that the API returns.

use std::collections::BTreeMap;

use balancer_common::{
    map_types::DropStats,
    verdict::{DropReason, Verdict},
};
use balancer_config::{
    config::{Protocol, forwarding_word},
    dns::Records,
};
use balancer_control::snapshot::{
    BackendSnapshot, CheckSnapshot, Coming, DeniedSnapshot, DiscoverSnapshot, FamilySnapshot, InterfaceSnapshot,
    ListenerSnapshot, ServiceSnapshot, Snapshot,
};

use crate::{
    model::{
        AgentView, BackendView, BoundView, ClientTableView, DenyView, DiscoverView, FamilyView, FlowTableView,
        HandshakesView, HealthView, InterfaceView, ListenerView, ServiceView, StatusView, UnansweredView, Verdicts,
        VipView,
    },
    one_by_one::OneByOne,
};

impl From<Snapshot> for StatusView {
    fn from(snapshot: Snapshot) -> Self {
        Self::of(snapshot.map(|services| services.into_iter().map(Into::into).collect()))
    }
}

impl From<Snapshot<Coming>> for StatusView<OneByOne<ServiceView>> {
    fn from(snapshot: Snapshot<Coming>) -> Self {
        Self::of(snapshot.map(|services| OneByOne::new(services.map(Into::into))))
    }
}

impl<Services> StatusView<Services> {
    fn of(snapshot: Snapshot<Services>) -> Self {
        Self {
            interfaces: snapshot.interfaces.into_iter().map(Into::into).collect(),
            redirect_errors: snapshot.redirect_errors,
            services: snapshot.services,
            generation: snapshot.generation,
            changed_at_run_time: snapshot.changed,
            ready: snapshot.member.readiness,
            withdrawn: snapshot.member.withdrawn,
            vips: (snapshot.member.vips.into_iter())
                .map(|(address, interface)| VipView { address, interface })
                .collect(),
            fleet: snapshot.fleet,
            client_table: ClientTableView {
                capacity: snapshot.memory.capacity,
                entries: snapshot.memory.entries,
                evictions: snapshot.memory.stats.evicted,
                unrecorded: snapshot.memory.stats.full,
            },
            flow_table: snapshot.flows.map(|flows| FlowTableView {
                capacity: flows.capacity,
                entries: flows.entries,
                full_pools: flows.full_pools.into_iter().map(|(name, part)| (name.to_string(), part)).collect(),
            }),
            drops: drops(&snapshot.drops),
        }
    }
}

fn drops(stats: &DropStats) -> BTreeMap<String, u64> {
    let counted =
        DropReason::ALL.iter().map(|reason| (reason, stats.reasons.get(reason.index()).copied().unwrap_or(0)));
    counted.filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.label().to_owned(), count)).collect()
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
                local: count(Verdict::Local),
            },
            name: interface.name,
            ifindex: interface.ifindex,
            xdp_mode: interface.xdp_mode.to_owned(),
        }
    }
}

impl From<ServiceSnapshot> for ServiceView {
    fn from(service: ServiceSnapshot) -> Self {
        let sharing = service.sharing_line();
        let rates: Vec<_> = service.backends.iter().map(|backend| service.rates_of(backend)).collect();
        Self {
            rates: service.rates(),
            silence: service.statistics.silence.clone(),
            expected: service.expected,
            name: service.name,
            drop_in: service.drop_in,
            address: service.listeners.first().map(|of| of.listener.place()).unwrap_or_default(),
            protocol: service.listeners.first().map(|of| of.listener.protocol.to_string()).unwrap_or_default(),
            listeners: service.listeners.into_iter().map(Into::into).collect(),
            forwarding: forwarding_word(service.forwarding).to_owned(),
            table_size: service.table_size,
            table_generation: service.table_generation,
            steer: service.share.now,
            watched: service.share.now == 0,
            unsteered_packets: service.passed.unsteered,
            host_connection_packets: service.passed.host_connections,
            sharing,
            quic: service.quic.map(Into::into),
            outage_seconds: service.outage.as_ref().map(|outage| outage.lasted.as_secs()),
            warnings: service.outage.map(|outage| outage.line).into_iter().chain(service.statistics.warnings).collect(),
            deny: service.denied.map(Into::into),
            discover: service.discover.into_iter().map(Into::into).collect(),
            backends: (service.backends.into_iter().zip(rates))
                .map(|(backend, rates)| BackendView { rates, ..backend.into() })
                .collect(),
        }
    }
}

impl From<DeniedSnapshot> for DenyView {
    fn from(snapshot: DeniedSnapshot) -> Self {
        Self {
            file: snapshot.file.display().to_string(),
            prefixes: snapshot.prefixes as u64,
            packets: snapshot.packets,
            read_seconds_ago: snapshot.read.map(|ago| ago.as_secs()),
            error: snapshot.error,
        }
    }
}

impl From<DiscoverSnapshot> for DiscoverView {
    fn from(snapshot: DiscoverSnapshot) -> Self {
        let name = |wanted: fn(&Records) -> bool| {
            snapshot.source.dns().filter(|dns| wanted(&dns.records)).map(|dns| dns.name.clone())
        };
        Self {
            file: snapshot.source.file().map(|file| file.display().to_string()),
            dns: name(|records| matches!(records, Records::Services)),
            dns_a: name(|records| matches!(records, Records::Addresses { .. })),
            etcd: snapshot.source.etcd().map(|etcd| etcd.prefix.clone()),
            address: name(|records| matches!(records, Records::Backend { .. })),
            targets: snapshot.targets.map(|targets| targets as u64),
            read_seconds_ago: snapshot.read.map(|ago| ago.as_secs()),
            error: snapshot.error,
            left_out: snapshot.left_out,
            waiting: snapshot.waiting,
            habit: snapshot.habit,
        }
    }
}

impl From<ListenerSnapshot> for ListenerView {
    fn from(snapshot: ListenerSnapshot) -> Self {
        let ListenerSnapshot { listener, stats } = snapshot;
        Self {
            listener: listener.to_string(),
            packets: stats.map(|stats| stats.packets),
            connections: stats.filter(|_| listener.protocol == Protocol::Tcp).map(|stats| stats.connections),
        }
    }
}

impl From<FamilySnapshot> for FamilyView {
    fn from(snapshot: FamilySnapshot) -> Self {
        let FamilySnapshot { family, address, health, state, reason, slots, known_clients } = snapshot;
        let (health, state) = (health.to_owned(), state.word().to_owned());
        Self { family, address, health, state, reason, slots, known_clients }
    }
}

impl HealthView {
    /// Lists the checks of a backend of `service`, one for each address family.
    #[must_use]
    pub fn all(mut backend: BackendSnapshot, service: &str) -> Vec<Self> {
        let checks = std::mem::take(&mut backend.check).into_iter();
        checks.map(|check| Self::of(&backend, check, service)).collect()
    }

    fn of(backend: &BackendSnapshot, check: CheckSnapshot, service: &str) -> Self {
        let BackendSnapshot { name, state, reason, .. } = backend.clone();
        let last = check.last.as_ref().map(|(outcome, _)| outcome.words());
        Self {
            service: service.to_owned(),
            backend: name,
            target: check.target.to_string(),
            check: check.words.as_ref().to_owned(),
            verdict: check.health.verdict().word().to_owned(),
            verdict_seconds: check.verdict_age.as_secs_f64(),
            forced: check.forced,
            state: state.word().to_owned(),
            reason,
            last_result: last.map(|(result, _)| result.to_owned()),
            last_reason: last.map(|(_, reason)| reason.to_owned()).unwrap_or_default(),
            last_duration_seconds: check.took.map(|took| took.as_secs_f64()),
            last_seconds_ago: check.last.as_ref().map(|(_, ago)| ago.as_secs_f64()),
            passes: check.health.streak().0,
            failures: check.health.streak().1,
            next_verdict: check.next_verdict(),
        }
    }
}

impl From<BackendSnapshot> for BackendView {
    fn from(backend: BackendSnapshot) -> Self {
        let reason = backend.shown_reason();
        Self {
            rates: None,
            name: backend.name,
            address: backend.address,
            families: backend.families.into_iter().map(Into::into).collect(),
            weight: backend.weight,
            agent: backend.agent.map(|agent| AgentView {
                says: agent.said.to_string(),
                weight_percent: agent.said.percent,
                admin: agent.said.admin.word().to_owned(),
                down: agent.said.down,
                heard_seconds_ago: agent.heard.map(|ago| ago.as_secs_f64()),
                silent: agent.silent,
            }),
            bound: backend.bound.filter(|bound| bound.keeps < 100).map(|bound| BoundView {
                keeps_percent: bound.keeps,
                given_slots: bound.given(backend.slots),
                load_ratio: f64::from(bound.load) / 100.0,
            }),
            max_clients: backend.limits.clients,
            max_connections: backend.limits.connections,
            full: backend.full.is_some(),
            backup: backend.backup,
            from: backend.discovered.then(|| "discover".to_owned()),
            admin: backend.admin.word().to_owned(),
            health: backend.health.to_owned(),
            state: backend.state.word().to_owned(),
            drain_seconds_left: backend.drain_deadline.map(|left| left.as_secs()),
            reason,
            slots: backend.slots,
            known_clients: backend.known_clients,
            active: backend.active,
            connections: backend.stats.connections,
            packets: backend.stats.packets,
            bytes: backend.stats.bytes,
            handshakes: (backend.handshakes.tries() != 0).then_some(HandshakesView {
                completed: backend.handshakes.completed,
                unanswered: backend.handshakes.unanswered,
            }),
            unattached: backend.unattached,
            unanswered: backend
                .unanswered
                .map(|of| UnansweredView { begun: of.begun, seconds: of.lasted.as_secs_f64() }),
        }
    }
}
