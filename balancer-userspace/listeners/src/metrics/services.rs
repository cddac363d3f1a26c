//! Metrics of services.

use std::collections::BTreeMap;

use balancer_common::{
    map_types::ListenerStats,
    quic::QuicStats,
    verdict::{CauseIndex, Decision, MOVE_COUNTERS, MoveCause},
};
use balancer_config::config::Protocol;
use balancer_control::{snapshot::ServiceSnapshot, top::By};

use super::text::{Text, Written, counters, gauges};

/// The label values for ranks in `top_client_share_ratio`.
pub(super) const RANKS: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

/// The listeners of a service that have counters, each with its text form.
fn listeners(service: &ServiceSnapshot) -> impl Iterator<Item = (&str, String, Protocol, ListenerStats)> {
    service
        .listeners
        .iter()
        .filter_map(|of| Some((service.name.as_str(), of.listener.to_string(), of.listener.protocol, of.stats?)))
}

/// The numbers of targets in the lists of a service, each with the list and the state of these targets.
fn lists(service: &ServiceSnapshot) -> impl Iterator<Item = (&str, String, &'static str, u64)> {
    service.discover.iter().flat_map(|list| {
        let counts = [
            ("listed", list.targets.unwrap_or_default()),
            ("missing", list.waiting.len()),
            ("left_out", list.left_out.len()),
        ];
        counts.map(|(state, count)| (service.name.as_str(), list.source.to_string(), state, count as u64))
    })
}

pub(super) fn services(encoder: &mut Text<'_>, services: &[ServiceSnapshot]) {
    fn service(service: &ServiceSnapshot) -> [(&'static str, &str); 1] {
        [("service", &service.name)]
    }
    counters(
        encoder,
        "decisions",
        "New connections, by how their backend was chosen.",
        services.iter().flat_map(|service| {
            Decision::ALL.iter().map(|&decision| {
                let of_all = service.total(|stats| stats.decisions[decision.index()]);
                ([("service", service.name.as_str()), ("result", decision.label())], of_all)
            })
        }),
    );
    let moves: Vec<_> = services.iter().flat_map(moves).collect();
    let migrated: Vec<_> = services.iter().flat_map(migrated).collect();
    counters(
        encoder,
        "moves",
        "Known clients moved, by the backend they left and why.",
        moves
            .iter()
            .flat_map(|(labels, is_present, moves)| {
                let counts = MoveCause::ALL.iter().map(|&cause| (cause, moves[CauseIndex::from(cause).counter()]));
                counts
                    .filter(|(_, count)| *is_present || *count > 0)
                    .map(move |(cause, count)| ((labels, [("cause", cause.label())]), count))
            })
            .chain(migrated.iter().map(|(labels, moves)| ((labels, [("cause", "migrated")]), *moves))),
    );
    quic(encoder, services);
    counters(
        encoder,
        "rule_fallbacks",
        "Packets steered as without a rule, as the backend that it pins to took no clients.",
        services.iter().map(|s| (service(s), s.rule_fallbacks)),
    );
    gauges(
        encoder,
        "denied_prefixes",
        "Prefixes of the service's list of denied clients.",
        services.iter().filter_map(|s| Some((service(s), s.denied.as_ref()?.prefixes as u64))),
    );
    counters(
        encoder,
        "denied_by_list",
        "Packets that the service's list of denied clients has dropped.",
        services.iter().filter_map(|s| Some((service(s), s.denied.as_ref()?.packets))),
    );
    let lists: Vec<_> = services.iter().flat_map(lists).collect();
    gauges(
        encoder,
        "discover_targets",
        "Targets of a list: taken over, missing while their backends wait, and left out because they cannot be backends.",
        lists.iter().map(|(service, source, state, count)| {
            ([("service", *service), ("source", source.as_str()), ("state", *state)], *count)
        }),
    );
    gauges(
        encoder,
        "service_steer_percent",
        "The share of clients that are steered; the host serves the others.",
        services.iter().map(|s| (service(s), u64::from(s.share.now))),
    );
    gauges(
        encoder,
        "service_expected_backends",
        "Backends that are up in normal operation, where the configuration says how many.",
        services.iter().filter_map(|s| Some((service(s), u64::from(s.expected?)))),
    );
    gauges(
        encoder,
        "service_watched",
        "Whether every packet passes to the host, and what is counted of the service and its backends is what would be.",
        services.iter().map(|s| (service(s), u64::from(s.is_watched()))),
    );
    counters(
        encoder,
        "unsteered_packets",
        "Packets that passed to the host, by why: their clients are not steered, or the host has their connection.",
        services.iter().flat_map(|s| {
            let passed = [("unsteered", s.passed.unsteered), ("host_connection", s.passed.host_connections)];
            passed.map(|(reason, count)| ([("service", s.name.as_str()), ("reason", reason)], count))
        }),
    );
    let listening: Vec<_> = services.iter().flat_map(listeners).collect();
    counters(
        encoder,
        "listener_packets",
        "Packets with ports that came for a listener, where its service has several.",
        listening.iter().map(|(service, listener, _, stats)| {
            ([("service", *service), ("listener", listener.as_str())], stats.packets)
        }),
    );
    counters(
        encoder,
        "listener_connections",
        "TCP connections opened to a listener, where its service has several.",
        listening.iter().filter(|(_, _, protocol, _)| *protocol == Protocol::Tcp).map(
            |(service, listener, _, stats)| {
                ([("service", *service), ("listener", listener.as_str())], stats.connections)
            },
        ),
    );
    gauges(
        encoder,
        "stickiness_ratio",
        "Kept over kept and moved among the new connections of known clients, since start.",
        services.iter().filter_map(|s| Some((service(s), s.counted().stickiness()?))),
    );
    gauges(
        encoder,
        "outage",
        "Whether so many backends fail that known clients stay where they are.",
        services.iter().map(|s| (service(s), u64::from(s.outage.is_some()))),
    );
    gauges(
        encoder,
        "table_generation",
        "How often the lookup table was replaced.",
        services.iter().map(|s| (service(s), s.table_generation)),
    );
    counters(
        encoder,
        "table_slots_moved",
        "Slots of the lookup table that changed backend, by whether the old one could have kept them.",
        services.iter().flat_map(|service| {
            [("required", service.slots_moved_required), ("needless", service.slots_moved_needless)]
                .map(|(kind, slots)| ([("service", service.name.as_str()), ("kind", kind)], slots))
        }),
    );
    gauges(
        encoder,
        "table_build_seconds",
        "How long the last build of the lookup table took.",
        services.iter().map(|s| (service(s), s.table_build.as_secs_f64())),
    );
    gauges(
        encoder,
        "imbalance_ratio",
        "The largest share (of known clients, or of connections without memory) over expected share among the backends.",
        services.iter().filter_map(|s| s.imbalance().map(|ratio| (service(s), ratio))),
    )
}

/// The numbers of clients that moved because of a QUIC connection ID, by the name of the backend that they left.
fn migrated(service: &ServiceSnapshot) -> impl Iterator<Item = (Written, u64)> {
    let servers = service.quic.iter().flat_map(|quic| &quic.servers);
    servers
        .map(|(name, _, moves)| (Written::new(&[("service", service.name.as_str()), ("from", name.as_str())]), *moves))
}

pub(super) fn quic(encoder: &mut Text<'_>, services: &[ServiceSnapshot]) {
    type Count = fn(&QuicStats) -> u64;
    let families: [(&str, &str, Count); 3] = [
        ("quic_steered", "Packets that were steered by their connection ID.", |stats| stats.steered),
        ("quic_unknown_id", "Packets whose connection ID named no backend, steered by their address.", |stats| {
            stats.unknown
        }),
        ("quic_migrated", "Addresses that were remembered at a backend because of a connection ID.", |stats| {
            stats.migrated
        }),
    ];
    for (name, help, count) in families {
        let all =
            services.iter().filter_map(|of| Some(([("service", of.name.as_str())], count(&of.quic.as_ref()?.stats))));
        counters(encoder, name, help, all);
    }
}

/// The numbers of clients that moved, by the name of the backend that they left, and whether this backend is present.
/// The counts of a removed backend continue under the name of this backend.
fn moves(service: &ServiceSnapshot) -> impl Iterator<Item = (Written, bool, [u64; MOVE_COUNTERS])> {
    let present = service.backends.iter().map(|backend| (backend.name.as_str(), true, &backend.stats));
    let gone = service.gone.iter().map(|gone| (gone.name.as_str(), false, &gone.stats));
    let removed_backends = service.removed_backends.iter().map(|(name, stats)| (name.as_str(), false, stats));
    let mut by_name = BTreeMap::new();
    for (name, is_present, stats) in present.chain(gone).chain(removed_backends) {
        let (present, sums) = by_name.entry(name).or_insert((false, [0; MOVE_COUNTERS]));
        *present |= is_present;
        sums.iter_mut().zip(stats.moves).for_each(|(sum, moves)| *sum += moves);
    }
    let labels = |from| Written::new(&[("service", service.name.as_str()), ("from", from)]);
    by_name.into_iter().map(move |(from, (is_present, moves))| (labels(from), is_present, moves))
}

/// The shares of the heaviest clients by rank, without the clients' addresses.
pub(super) fn heavy(encoder: &mut Text<'_>, services: &[ServiceSnapshot]) {
    gauges(
        encoder,
        "top_client_share_ratio",
        "Share of the service's bytes of about the last minute of its heaviest clients, by sampling.",
        services.iter().flat_map(|service| {
            let top = &service.statistics.top;
            let heaviest = top.heaviest(By::Bytes).into_iter().zip(RANKS);
            heaviest.map(|(heavy, rank)| {
                ([("service", service.name.as_str()), ("rank", rank)], top.share(&heavy.seen, By::Bytes))
            })
        }),
    );
}
