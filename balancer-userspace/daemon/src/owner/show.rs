//! Adds a service to a snapshot.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::{
    map_types::{BackendStats, ShareStats},
    verdict::MOVE_COUNTERS,
};
use balancer_config::bounded::Bound;
use balancer_control::{
    controller::Gone,
    last_changes::LastChange,
    served::HandshakeCounts,
    service::{Backend, Service},
    snapshot::{
        AgentSnapshot, BackendSnapshot, CheckSnapshot, DeniedSnapshot, DiscoverSnapshot, FamilySnapshot, GoneSnapshot,
        ListenerSnapshot, OutageSnapshot, QuicSnapshot, ServiceSnapshot, ServiceStatistics, SpreadHeavy, TableSnapshot,
        Unanswered,
    },
};

use super::suspects::Counts;

/// The signs of a backend's failure that are not results of checks, from packets or from other members.
pub(super) struct Passive {
    /// The number of resets that the program withheld from clients.
    pub(super) withheld: u64,
    pub(super) signals: Counts,
    /// The unfinished handshakes with the backend.
    pub(super) unanswered: Option<Unanswered>,
    /// The outcomes of handshakes in the last minute, and since the backend was added.
    pub(super) handshakes: [HandshakeCounts; 2],
    /// The interface without the program by which the backend's replies arrive.
    pub(super) unattached: Option<String>,
}

/// The state of a service that is not in the core.
pub(super) struct Aside {
    pub(super) last_change: Option<LastChange>,
    pub(super) listeners: Vec<ListenerSnapshot>,
    pub(super) rule_fallbacks: u64,
    pub(super) denied: Option<DeniedSnapshot>,
    pub(super) discover: Vec<DiscoverSnapshot>,
    /// The state of each backend's agent.
    pub(super) agents: Vec<Option<AgentSnapshot>>,
    pub(super) passed: ShareStats,
    pub(super) quic: Option<QuicSnapshot>,
    /// The signs of failure of each backend, apart from checks.
    pub(super) passive: Vec<Passive>,
    /// The counters of permanently removed backends, by name.
    pub(super) removed_backends: Vec<(String, BackendStats)>,
    /// The numbers of moves that other members of the fleet also count, by cause.
    pub(super) repeated_moves: [u64; MOVE_COUNTERS],
    pub(super) table_build: Duration,
    /// Conditions that need attention.
    pub(super) warnings: Vec<String>,
}

/// Shows a service at the moment `now`, with those `gone` backends that belonged to the service. The counters in the
/// result are all zero.
pub(super) fn show(service: &Service, aside: Aside, gone: &[Gone], now: Instant) -> ServiceSnapshot {
    let (slots_moved_required, slots_moved_needless) = service.slots_moved();
    let (live, base) = service.tables();
    let gone = gone.iter().filter(|gone| gone.row.service == service.id());
    // Formatting a check takes time, and nearly all backends share the check of their service.
    let check: Arc<str> = service.own_check().to_string().into();
    ServiceSnapshot {
        ids: vec![service.id()],
        client_prefix: service.client_prefixes(),
        last_change: aside.last_change,
        statistics: ServiceStatistics { warnings: aside.warnings, ..ServiceStatistics::default() },
        name: service.name().to_owned(),
        drop_in: service.drop_in().map(str::to_owned),
        listeners: aside.listeners,
        forwarding: service.forwarding(),
        table_size: service.table_size(),
        tables: vec![TableSnapshot { family: service.family(), live, base }],
        table_generation: service.table_generation(),
        slots_moved_required,
        slots_moved_needless,
        table_build: aside.table_build,
        outage: service.outage(now).map(|(lasted, line)| OutageSnapshot { lasted, line }),
        remembers: service.remembers(),
        share: service.share(),
        passed: aside.passed,
        quic: aside.quic,
        rule_fallbacks: aside.rule_fallbacks,
        expected: service.expected(),
        spread_heavy: service
            .spread_heavy()
            .map(|share| SpreadHeavy { share, ruled: service.rules().iter().map(|rule| rule.prefix).collect() }),
        denied: aside.denied,
        discover: aside.discover,
        removed_backends: aside.removed_backends,
        repeated_moves: aside.repeated_moves,
        gone: gone.map(show_gone).collect(),
        backends: (service.backends().iter().zip(aside.passive).zip(aside.agents))
            .map(|((backend, passive), agent)| BackendSnapshot {
                agent,
                ..show_backend(service, backend, passive, &check, now)
            })
            .collect(),
    }
}

fn show_gone(gone: &Gone) -> GoneSnapshot {
    GoneSnapshot { id: gone.row.id, name: gone.name.clone(), known_clients: gone.known, stats: BackendStats::default() }
}

fn show_backend(
    service: &Service,
    backend: &Backend,
    Passive { withheld, signals, unanswered, handshakes, unattached }: Passive,
    check: &Arc<str>,
    now: Instant,
) -> BackendSnapshot {
    BackendSnapshot {
        ids: vec![backend.id()],
        families: families(service, backend),
        name: backend.name().to_owned(),
        address: service.shown_address(backend),
        weight: backend.weight(),
        backup: backend.is_backup(),
        discovered: backend.config().discovered.is_some(),
        agent: None,
        bound: service.bounded_load().map(|_| backend.bound().unwrap_or(Bound::NONE)),
        limits: backend.config().limits,
        full: backend.full(),
        filled: service.may_be_full(backend).then(|| backend.filled()),
        admin: backend.admin(),
        health: backend.health_word(),
        state: backend.state(),
        reason: backend.reason().to_owned(),
        slots: backend.slots(),
        known_clients: backend.known_clients(),
        active: backend.connections(),
        drain_deadline: backend.drain_deadline().map(|at| at.saturating_duration_since(now)),
        eligible: backend.takes_new_clients(),
        stats: BackendStats::default(),
        withheld,
        signals,
        unanswered,
        handshakes: handshakes[0],
        handshakes_ended: handshakes[1],
        unattached,
        checks: backend.checks(),
        last_check: backend.last_check().map(|check| check.took),
        check: vec![check_snapshot(service, backend, check, now)],
        transitions: backend.transitions(),
    }
}

/// Returns the values of a backend for each address family, if the service has listeners of both families.
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

fn check_snapshot(service: &Service, backend: &Backend, words: &Arc<str>, now: Instant) -> CheckSnapshot {
    let ago = |then| now.saturating_duration_since(then);
    let own = backend.config().check.as_deref();
    let config = service.check_config(backend);
    CheckSnapshot {
        target: service.check_target(backend),
        words: own.map_or_else(|| Arc::clone(words), |own| own.to_string().into()),
        health: backend.health().clone(),
        verdict_age: ago(backend.verdict_since()),
        forced: backend.forced(),
        last: backend.last_check().map(|last| (last.outcome.clone(), ago(last.ended))),
        took: backend.last_check().map(|last| last.took),
        rise_fall: service.checked_at(backend).is_some().then_some((config.rise, config.fall)),
    }
}
