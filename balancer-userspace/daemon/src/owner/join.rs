//! Joins the two snapshots of a service with both address families: the core and the data path treat it as two
//! services, but users see one service.

use std::iter;

use balancer_config::states::BackendState;
use balancer_control::snapshot::{BackendSnapshot, OutageSnapshot, ServiceSnapshot, Unanswered};

/// Joins adjacent snapshots of the same service.
pub(super) fn join(services: impl Iterator<Item = ServiceSnapshot>) -> impl Iterator<Item = ServiceSnapshot> {
    let mut services = services.peekable();
    iter::from_fn(move || {
        let mut first = services.next()?;
        while let Some(other) = services.next_if(|other| other.name == first.name) {
            add(&mut first, other);
        }
        Some(first)
    })
}

fn add(first: &mut ServiceSnapshot, other: ServiceSnapshot) {
    first.ids.extend(other.ids);
    first.tables.extend(other.tables);
    first.table_generation += other.table_generation;
    first.slots_moved_required += other.slots_moved_required;
    first.slots_moved_needless += other.slots_moved_needless;
    first.table_build = first.table_build.max(other.table_build);
    first.rule_fallbacks += other.rule_fallbacks;
    if let (Some(first), Some(other)) = (&mut first.spread_heavy, other.spread_heavy) {
        first.ruled.extend(other.ruled);
    }
    if let (Some(first), Some(other)) = (&mut first.denied, other.denied) {
        first.prefixes += other.prefixes;
        first.packets += other.packets;
    }
    first.passed.unsteered += other.passed.unsteered;
    first.passed.host_connections += other.passed.host_connections;
    if let (Some(first), Some(other)) = (&mut first.quic, other.quic) {
        first.stats += &other.stats;
        for ((_, _, sum), (_, _, moved)) in first.servers.iter_mut().zip(other.servers) {
            *sum += moved;
        }
    }
    first.statistics.warnings.extend(other.statistics.warnings);
    first.outage = match (first.outage.take(), other.outage) {
        (Some(one), Some(other)) => {
            Some(OutageSnapshot { lasted: one.lasted.max(other.lasted), line: format!("{}; {}", one.line, other.line) })
        }
        (one, other) => one.or(other),
    };
    if other.last_change.as_ref().map(|change| change.at) > first.last_change.as_ref().map(|change| change.at) {
        first.last_change = other.last_change;
    }
    for listener in other.listeners {
        // Each of the two snapshots has counters only for the listeners of its own address family.
        let same = first.listeners.iter_mut().find(|known| known.listener == listener.listener);
        if let Some(known) = same.filter(|known| known.stats.is_none()) {
            known.stats = listener.stats;
        }
    }
    for (sum, moves) in first.repeated_moves.iter_mut().zip(other.repeated_moves) {
        *sum += moves;
    }
    for (name, stats) in other.removed_backends {
        match first.removed_backends.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += &stats,
            None => first.removed_backends.push((name, stats)),
        }
    }
    first.gone.extend(other.gone);
    for backend in other.backends {
        match first.backends.iter_mut().find(|known| known.name == backend.name) {
            Some(known) => add_backend(known, backend),
            None => first.backends.push(backend),
        }
    }
}

fn add_backend(first: &mut BackendSnapshot, other: BackendSnapshot) {
    first.ids.extend(other.ids);
    first.families.extend(other.families);
    first.check.extend(other.check);
    first.known_clients += other.known_clients;
    first.active = first.active.zip(other.active).map(|(one, other)| one + other).or(first.active).or(other.active);
    first.stats += &other.stats;
    first.drain_deadline = first.drain_deadline.max(other.drain_deadline);
    first.eligible |= other.eligible;
    first.checks.iter_mut().zip(other.checks).for_each(|(sum, count)| *sum += count);
    first.withheld += other.withheld;
    first.signals.iter_mut().zip(other.signals).for_each(|(sum, count)| *sum += count);
    first.unanswered = match (first.unanswered, other.unanswered) {
        (Some(a), Some(b)) => {
            Some(Unanswered { begun: a.begun.saturating_add(b.begun), lasted: a.lasted.max(b.lasted) })
        }
        (a, b) => a.or(b),
    };
    first.handshakes += other.handshakes;
    first.handshakes_ended += other.handshakes_ended;
    first.unattached = first.unattached.take().or(other.unattached);
    first.transitions.iter_mut().zip(other.transitions).for_each(|(sum, count)| *sum += count);
    if first.reason != other.reason {
        let reasons = [&first.reason, &other.reason].map(String::as_str);
        first.reason = reasons.into_iter().filter(|reason| !reason.is_empty()).collect::<Vec<_>>().join("; ");
    }
    if severity(other.state) > severity(first.state) {
        (first.state, first.health) = (other.state, other.health);
    }
}

/// Ranks the states of a backend. If a backend has a different state in each address family, the balancer shows the
/// state with the higher rank, because users should see it first.
const fn severity(state: BackendState) -> u8 {
    match state {
        BackendState::Up => 0,
        BackendState::Checking => 1,
        BackendState::Drained => 2,
        BackendState::Draining => 3,
        BackendState::DrainingHealth => 4,
        BackendState::Maint => 5,
        BackendState::Down => 6,
    }
}
