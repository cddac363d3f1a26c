//! Metrics of backends.

use balancer_common::verdict::Signal;
use balancer_config::{limits::Enough, states::BackendState};
use balancer_control::{
    served::HandshakeCounts,
    snapshot::{BackendSnapshot, ServiceSnapshot},
};

use super::text::{Text, Written, counters, gauges};

/// A backend together with its labels.
pub(super) type Labelled<'a> = (Written, &'a BackendSnapshot);

pub(super) fn backends(services: &[ServiceSnapshot]) -> Vec<Labelled<'_>> {
    let all = services.iter().flat_map(|service| {
        let labels = |backend: &str| Written::new(&[("service", service.name.as_str()), ("backend", backend)]);
        service.backends.iter().map(move |backend| (labels(&backend.name), backend))
    });
    all.collect()
}

pub(super) fn traffic(encoder: &mut Text<'_>, services: &[ServiceSnapshot], backends: &[Labelled<'_>]) {
    let counted =
        |count: fn(&BackendSnapshot) -> u64| backends.iter().map(move |(labels, backend)| (labels, count(backend)));
    counters(encoder, "connections", "New connections forwarded.", counted(|b| b.stats.connections));
    counters(encoder, "packets", "Packets forwarded.", counted(|b| b.stats.packets));
    counters(encoder, "bytes", "Bytes forwarded, from the Ethernet header on.", counted(|b| b.stats.bytes));
    let flows = backends.iter().filter_map(|(labels, backend)| Some((labels, backend.active?)));
    gauges(encoder, "flows", "Connections that live, of services with forwarding = \"snat\".", flows);
    counters(
        encoder,
        "withheld",
        "Resets of refused connections that were not sent to clients while the backend was checked.",
        counted(|backend| backend.withheld),
    );
    counters(
        encoder,
        "signals",
        "Signals that the backend may have failed, which had it checked at once.",
        backends.iter().flat_map(|(labels, backend)| {
            let counts = Signal::ALL.iter().zip(backend.signals);
            counts.map(move |(signal, count)| ((labels, [("signal", signal.label())]), count))
        }),
    );
    counters(
        encoder,
        "handshakes",
        "Handshakes of watched clients: those that clients completed, and those that they did not continue within 2 s.",
        backends.iter().flat_map(|(labels, backend)| {
            let HandshakeCounts { completed, unanswered } = backend.handshakes_ended;
            let counts = [("completed", completed), ("unanswered", unanswered)];
            counts.map(|(outcome, count)| ((labels, [("outcome", outcome)]), count))
        }),
    );
    gauges(
        encoder,
        "table_slots",
        "Slots of the lookup table.",
        backends.iter().map(|(labels, backend)| (labels, backend.slots)),
    );
    gauges(encoder, "known_clients", "Entries in the client table.", counted(|backend| backend.known_clients));
    let draining = || {
        let all = backends.iter();
        all.filter_map(|(labels, backend)| Some((labels, backend.known_clients, backend.drain_deadline?)))
    };
    gauges(
        encoder,
        "backend_drain_remaining_clients",
        "Known clients of a backend that is being drained.",
        draining().map(|(labels, clients, _)| (labels, clients)),
    );
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    gauges(
        encoder,
        "backend_drain_deadline_timestamp_seconds",
        "When a drain under way ends at the latest.",
        draining().map(|(labels, _, left)| (labels, (now + left).as_secs_f64())),
    );
    let shares: Vec<_> = services.iter().flat_map(ServiceSnapshot::shares).collect();
    let shares = || backends.iter().zip(&shares).map(|((labels, _), shares)| (labels, shares));
    gauges(
        encoder,
        "backend_share_ratio",
        "Share of the service's known clients, or of its connections without memory.",
        shares().filter_map(|(labels, (share, _))| Some((labels, (*share)?))),
    );
    gauges(
        encoder,
        "backend_expected_share_ratio",
        "Weight over the weight of all backends that take new clients.",
        shares().filter_map(|(labels, (_, expected))| Some((labels, (*expected)?))),
    );
}

pub(super) fn health(encoder: &mut Text<'_>, backends: &[Labelled<'_>]) {
    gauges(
        encoder,
        "backend_state",
        "1 for the state that the backend is in, 0 for the others.",
        backends.iter().flat_map(|(labels, backend)| {
            BackendState::ALL.map(|state| ((labels, [("state", state.word())]), u32::from(backend.state == state)))
        }),
    );
    counters(
        encoder,
        "backend_transitions",
        "How often the backend entered a state.",
        backends.iter().flat_map(|(labels, backend)| {
            let counts = BackendState::ALL.into_iter().zip(backend.transitions);
            counts.map(move |(state, times)| ((labels, [("to", state.word())]), times))
        }),
    );
    counters(
        encoder,
        "health_checks",
        "Health checks, by result.",
        backends.iter().flat_map(|(labels, backend)| {
            let counts = ["passed", "soft", "hard"].into_iter().zip(backend.checks);
            counts.map(move |(result, checks)| ((labels, [("result", result)]), checks))
        }),
    );
    gauges(
        encoder,
        "health_check_duration_seconds",
        "How long the last health check took.",
        backends.iter().filter_map(|(labels, backend)| Some((labels, backend.last_check?.as_secs_f64()))),
    );
    gauges(
        encoder,
        "checks_hindered",
        "Whether this machine could not make the last health check.",
        backends
            .iter()
            .filter(|(_, backend)| backend.last_check.is_some())
            .map(|(labels, backend)| (labels, u64::from(backend.hindered().is_some()))),
    );
    gauges(
        encoder,
        "backend_full",
        "Whether a backend takes no new clients, because it is at its limit or has hardly any port left.",
        backends
            .iter()
            .filter(|(_, backend)| backend.filled.is_some())
            .map(|(labels, backend)| (labels, u64::from(backend.full.is_some()))),
    );
    counters(
        encoder,
        "backend_filled",
        "How often the backend became full, by what it had enough of.",
        backends.iter().filter_map(|(labels, backend)| Some((labels, backend.filled?))).flat_map(|(labels, filled)| {
            let counts = Enough::ALL.into_iter().zip(filled);
            counts.map(move |(of, count)| ((labels, [("reason", of.word())]), count))
        }),
    );
    gauges(
        encoder,
        "bounded_slots",
        "Slots that the backend gives away because of its load.",
        backends.iter().filter_map(|(labels, backend)| Some((labels, backend.bound?.given(backend.slots)))),
    );
    let agents = || backends.iter().filter_map(|(labels, backend)| Some((labels, backend.agent.as_ref()?)));
    gauges(
        encoder,
        "agent_weight_ratio",
        "The part of its weight that the agent of a backend leaves it.",
        agents().map(|(labels, agent)| (labels, f64::from(agent.said.percent) / 100.0)),
    );
    gauges(
        encoder,
        "agent_silent",
        "Whether the agent of a backend gave no right answer when it was last asked.",
        agents().map(|(labels, agent)| (labels, u64::from(agent.silent.is_some()))),
    );
}
