//! A snapshot in Prometheus' text format. Label values are names from the configuration, never a client's address.

use std::collections::BTreeMap;

use balancer_common::{
    map_types::ListenerStats,
    quic::QuicStats,
    verdict::{CauseIndex, Decision, DropReason, MOVE_COUNTERS, MoveCause, Signal, Verdict},
};
use balancer_core::{
    readiness::Fitness,
    run_time::What,
    snapshot::{BackendSnapshot, FlowsSnapshot, MemberSnapshot, MemorySnapshot, ServiceSnapshot, Snapshot},
    top::By,
};
use balancer_model::{config::Protocol, states::BackendState};

use super::{
    fleet,
    text::{Kind, Labels, Text, Value, Written},
};

/// Ranks of `top_client_share_ratio`.
const RANKS: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

/// The text of `snapshot` with every name prefixed by `balancer_`. `full` takes its pieces as they are written, and the
/// last piece is returned.
pub fn render(snapshot: &Snapshot, full: &mut dyn FnMut(String)) -> String {
    let mut text = Text::new(full);
    let encoder = &mut text;
    build(encoder);
    interfaces(encoder, snapshot);
    client_table(encoder, &snapshot.memory);
    if let Some(flows) = snapshot.flows {
        flow_table(encoder, flows);
    }
    member(encoder, &snapshot.member);
    let changed = |what| snapshot.changed.iter().filter(|change| change.what == what).count() as u64;
    gauges(
        encoder,
        "changed_at_run_time",
        "What is not as the configuration file says, because it was changed at run time.",
        What::ALL.into_iter().map(|what| ([("what", what.word())], changed(what))),
    );
    if let Some(of) = &snapshot.fleet {
        fleet::render(encoder, of, &snapshot.services);
    }
    services(encoder, &snapshot.services);
    heavy(encoder, &snapshot.services);
    let backends = backends(&snapshot.services);
    traffic(encoder, &snapshot.services, &backends);
    health(encoder, &backends);
    text.end()
}

pub(super) fn counters<L: Labels>(
    encoder: &mut Text<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (L, u64)>,
) {
    let name = format!("balancer_{name}_total");
    encoder.family(&name, help, Kind::Counter);
    samples.for_each(|(labels, value)| encoder.sample(&name, &labels, value));
}

pub(super) fn gauges<L: Labels, V: Value>(
    encoder: &mut Text<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (L, V)>,
) {
    let name = format!("balancer_{name}");
    encoder.family(&name, help, Kind::Gauge);
    samples.for_each(|(labels, value)| encoder.sample(&name, &labels, value));
}

fn build(encoder: &mut Text<'_>) {
    let labels = [("version", env!("CARGO_PKG_VERSION"))];
    gauges(encoder, "build_info", "The running program.", std::iter::once((labels, 1u32)));
}

fn interfaces(encoder: &mut Text<'_>, snapshot: &Snapshot) {
    gauges(
        encoder,
        "xdp_mode",
        "The XDP mode that the program is attached in.",
        snapshot.interfaces.iter().map(|i| ([("interface", i.name.as_str()), ("mode", i.xdp_mode)], 1u32)),
    );
    counters(
        encoder,
        "packets_seen",
        "Packets by what became of them.",
        snapshot.interfaces.iter().flat_map(|i| {
            Verdict::ALL.iter().map(|&verdict| {
                let labels = [("interface", i.name.as_str()), ("verdict", verdict.label())];
                (labels, i.stats.verdicts[verdict.index()])
            })
        }),
    );
    counters(
        encoder,
        "drops",
        "Packets dropped, by reason.",
        DropReason::ALL.iter().map(|&reason| ([("reason", reason.label())], snapshot.drops.reasons[reason.index()])),
    );
    counters(
        encoder,
        "redirect_errors",
        "Frames that were redirected to an interface and not sent.",
        snapshot.redirect_errors.iter().map(|(interface, &frames)| ([("interface", interface.as_str())], frames)),
    );
    let replies = [
        ("echo", snapshot.replies.echo),
        ("too_big", snapshot.replies.too_big),
        ("rejected", snapshot.replies.rejected),
    ];
    counters(
        encoder,
        "replies",
        "Packets answered by the program itself: pings to a VIP, packets too big for their way, and what nobody takes.",
        replies.into_iter().map(|(kind, count)| ([("kind", kind)], count)),
    );
    counters(
        encoder,
        "fragments_not_remembered",
        "First fragments forwarded without a note of where to, as too many came at once.",
        std::iter::once(([], snapshot.replies.fragments_not_remembered)),
    );
}

/// Writes the readiness of this balancer, whether it is withdrawn, and its number of VIPs.
fn member(encoder: &mut Text<'_>, member: &MemberSnapshot) {
    let one = |value: u64| std::iter::once(([], value));
    let serves = u64::from(member.readiness.state.serves());
    gauges(encoder, "ready", "Whether it is fit to be sent clients: 1 ready or degraded, 0 not ready.", one(serves));
    let degraded = u64::from(member.readiness.state == Fitness::Degraded);
    gauges(encoder, "degraded", "Whether it steers, but somebody should look.", one(degraded));
    let withdrawn = u64::from(member.withdrawn);
    gauges(encoder, "withdrawn", "Whether the operator has taken its VIPs away.", one(withdrawn));
    gauges(encoder, "assigned_vips", "VIPs that the machine has from the balancer.", one(member.vips.len() as u64));
}

fn flow_table(encoder: &mut Text<'_>, flows: FlowsSnapshot) {
    let one = |value: u64| std::iter::once(([], value));
    let text = "Rows of the table of connections that are taken, by connections or by what is left of them.";
    gauges(encoder, "flow_table_entries", text, one(flows.entries));
    gauges(encoder, "flow_table_capacity", "Connections the table is made for.", one(flows.capacity));
}

fn client_table(encoder: &mut Text<'_>, memory: &MemorySnapshot) {
    let one = |value: u64| std::iter::once(([], value));
    gauges(encoder, "client_table_entries", "Known clients at the last sweep.", one(memory.entries));
    gauges(encoder, "client_table_capacity", "Known clients the table is made for.", one(memory.capacity));
    gauges(
        encoder,
        "table_exception_slots",
        "Slots of lookup tables with known clients elsewhere, whose entries are read for every packet.",
        one(memory.exceptions),
    );
    counters(encoder, "client_table_inserts", "Clients recorded.", one(memory.stats.inserted));
    counters(
        encoder,
        "client_table_evictions",
        "Clients forgotten to make room for others.",
        one(memory.stats.evicted),
    );
    counters(encoder, "samples", "Packets sampled to find heavy clients.", one(memory.samples.sent));
    counters(encoder, "samples_lost", "Samples lost because the controller was behind.", one(memory.samples.lost));
    counters(
        encoder,
        "client_table_unrecorded",
        "Newcomers steered without being recorded, by why.",
        [("full", memory.stats.full), ("limited", memory.stats.limited)]
            .into_iter()
            .map(|(reason, count)| ([("reason", reason)], count)),
    )
}

/// A service's counted listeners with their text.
fn listeners(service: &ServiceSnapshot) -> impl Iterator<Item = (&str, String, Protocol, ListenerStats)> {
    service
        .listeners
        .iter()
        .filter_map(|of| Some((service.name.as_str(), of.listener.to_string(), of.listener.protocol, of.stats?)))
}

fn services(encoder: &mut Text<'_>, services: &[ServiceSnapshot]) {
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
            .flat_map(|(labels, moves)| {
                MoveCause::ALL
                    .iter()
                    .map(move |&cause| ((labels, [("cause", cause.label())]), moves[CauseIndex::from(cause).counter()]))
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
    gauges(
        encoder,
        "service_steer_percent",
        "The share of clients that are steered; the host serves the others.",
        services.iter().map(|s| (service(s), u64::from(s.share.now))),
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

/// Clients that a connection moved to another backend, by the name of the backend they left.
fn migrated(service: &ServiceSnapshot) -> impl Iterator<Item = (Written, u64)> {
    let servers = service.quic.iter().flat_map(|quic| &quic.servers);
    servers
        .map(|(name, _, moves)| (Written::new(&[("service", service.name.as_str()), ("from", name.as_str())]), *moves))
}

fn quic(encoder: &mut Text<'_>, services: &[ServiceSnapshot]) {
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

/// Clients moved, by the name of the backend they left. Counts of a removed backend continue under its name.
fn moves(service: &ServiceSnapshot) -> impl Iterator<Item = (Written, [u64; MOVE_COUNTERS])> {
    let present = service.backends.iter().map(|backend| (backend.name.as_str(), &backend.stats));
    let gone = service.gone.iter().map(|gone| (gone.name.as_str(), &gone.stats));
    let departed = service.departed.iter().map(|(name, stats)| (name.as_str(), stats));
    let mut by_name = BTreeMap::new();
    for (name, stats) in present.chain(gone).chain(departed) {
        let sums = by_name.entry(name).or_insert([0; MOVE_COUNTERS]);
        sums.iter_mut().zip(stats.moves).for_each(|(sum, moves)| *sum += moves);
    }
    let labels = |from| Written::new(&[("service", service.name.as_str()), ("from", from)]);
    by_name.into_iter().map(move |(from, moves)| (labels(from), moves))
}

/// A backend with its labels.
type Labelled<'a> = (Written, &'a BackendSnapshot);

fn backends(services: &[ServiceSnapshot]) -> Vec<Labelled<'_>> {
    let all = services.iter().flat_map(|service| {
        let labels = |backend: &str| Written::new(&[("service", service.name.as_str()), ("backend", backend)]);
        service.backends.iter().map(move |backend| (labels(&backend.name), backend))
    });
    all.collect()
}

fn traffic(encoder: &mut Text<'_>, services: &[ServiceSnapshot], backends: &[Labelled<'_>]) {
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

/// Shares of the heaviest clients by rank, without revealing their addresses.
fn heavy(encoder: &mut Text<'_>, services: &[ServiceSnapshot]) {
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

fn health(encoder: &mut Text<'_>, backends: &[Labelled<'_>]) {
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
        "Whether a backend with a limit takes no new clients, because it is at it.",
        backends
            .iter()
            .filter(|(_, backend)| !backend.limits.is_none())
            .map(|(labels, backend)| (labels, u64::from(backend.full.is_some()))),
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

#[cfg(test)]
pub(super) mod tests {
    use std::{
        collections::{BTreeSet, HashSet},
        time::Duration,
    };

    use balancer_common::{
        map_types::{BackendStats, DropStats, Forwarding, InterfaceStats, ShareStats},
        share::Share,
    };
    use balancer_core::{
        fleet::FleetSnapshot,
        health::{Health, Verdict as Found},
        io::{BackendId, CheckOutcome, ServiceId},
        readiness::Readiness,
        snapshot::{
            AgentSnapshot, CheckSnapshot, DeniedSnapshot, GoneSnapshot, InterfaceSnapshot, ListenerSnapshot,
            ServiceStatistics, TableSnapshot,
        },
    };
    use balancer_model::{
        agent::Said, bounded::Bound, config::ClientPrefix, limits::Limits, listeners::Family, states::Admin,
    };

    use super::*;
    use balancer_core::run_time::RunTimeChange;

    fn backend(id: u16, name: &str, weight: u16, state: BackendState, connections: u64) -> BackendSnapshot {
        let mut decisions = [0; Decision::COUNT];
        decisions[Decision::Stateless.index()] = connections;
        BackendSnapshot {
            ids: vec![BackendId(id)],
            families: Vec::new(),
            name: name.to_owned(),
            address: "10.0.0.11:8080".to_owned(),
            weight,
            backup: false,
            discovered: false,
            bound: Some(Bound { keeps: 50, load: 150 }),
            limits: Limits { clients: Some(1000), connections: None },
            full: None,
            agent: Some(AgentSnapshot { said: Said::default(), heard: Some(Duration::from_secs(1)), silent: None }),
            admin: Admin::Ready,
            health: "up",
            state,
            reason: String::new(),
            slots: 20_000,
            known_clients: 0,
            active: Some(2),
            drain_deadline: None,
            eligible: state == BackendState::Up,
            stats: BackendStats {
                packets: connections * 10,
                bytes: connections * 1000,
                connections,
                decisions,
                ..BackendStats::default()
            },
            checks: [5, 2, 1],
            last_check: (state == BackendState::Up).then_some(Duration::from_micros(1500)),
            check: vec![CheckSnapshot {
                target: "10.0.0.11:8080".parse().unwrap(),
                words: "tcp".into(),
                health: Health::agreed(Found::Up),
                verdict_age: Duration::ZERO,
                forced: None,
                last: None,
                took: None,
                rise_fall: None,
            }],
            withheld: 0,
            signals: [0; Signal::COUNT],
            unanswered: None,
            transitions: [1, 1, 0, 0, 0, 0, 0],
        }
    }

    /// A service `web`: web1 and web2 up with weights 100 and 300, web3 down, 100 connections.
    pub(in crate::metrics) fn snapshot() -> Snapshot {
        let mut verdicts = [0; Verdict::COUNT];
        verdicts[Verdict::Tx.index()] = 1000;
        verdicts[Verdict::Pass.index()] = 7;
        let mut reasons = DropStats::default().reasons;
        reasons[DropReason::Malformed.index()] = 3;
        let interface = InterfaceSnapshot {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp_mode: "native",
            stats: InterfaceStats { verdicts },
        };
        let table = (0..60_000).map(|slot| slot / 20_000).collect();
        let service = ServiceSnapshot {
            ids: vec![ServiceId(0)],
            client_prefix: ClientPrefix { v4: 32, v6: 64 },
            last_change: None,
            statistics: ServiceStatistics::default(),
            name: "web".to_owned(),
            listeners: vec![
                ListenerSnapshot {
                    listener: "198.51.100.10:80".parse().unwrap(),
                    stats: Some(ListenerStats { packets: 900, connections: 90 }),
                },
                ListenerSnapshot {
                    listener: "198.51.100.10:443/udp".parse().unwrap(),
                    stats: Some(ListenerStats { packets: 100, connections: 0 }),
                },
            ],
            forwarding: Forwarding::Nat,
            table_size: 60_000,
            tables: vec![TableSnapshot { family: Family::V4, live: table, base: None }],
            table_generation: 4,
            slots_moved_required: 20_000,
            slots_moved_needless: 12,
            table_build: Duration::from_micros(1800),
            outage: None,
            remembers: false,
            rule_fallbacks: 0,
            discover: Vec::new(),
            spread_heavy: None,
            denied: Some(DeniedSnapshot {
                file: "/etc/balancer/deny.txt".into(),
                prefixes: 100_000,
                packets: 7,
                read: None,
                error: None,
            }),
            share: Share::ALL,
            passed: ShareStats::default(),
            quic: None,
            departed: Vec::new(),
            repeated_moves: [3, 0, 0, 0, 0, 0, 0],
            gone: Vec::new(),
            backends: vec![
                backend(0, "web1", 100, BackendState::Up, 30),
                backend(1, "web2", 300, BackendState::Up, 60),
                backend(2, "web3", 100, BackendState::Down, 10),
            ],
        };
        Snapshot {
            generation: 0,
            changed: vec![RunTimeChange {
                what: What::Backend,
                name: "web/web1".to_owned(),
                change: "weight 50 (file: 100)".to_owned(),
            }],
            interfaces: vec![interface],
            services: vec![service],
            drops: DropStats { reasons },
            redirect_errors: [("eth1".to_owned(), 9)].into(),
            replies: balancer_common::map_types::ReplyStats {
                echo: 5,
                too_big: 6,
                fragments_not_remembered: 7,
                rejected: 8,
            },
            flows: Some(FlowsSnapshot { capacity: 1024, entries: 3 }),
            memory: MemorySnapshot::default(),
            member: MemberSnapshot {
                readiness: Readiness { state: Fitness::Degraded, reasons: vec!["eth1".to_owned()] },
                withdrawn: false,
                vips: vec![("198.51.100.10".parse().unwrap(), "lo".to_owned())],
            },
            fleet: Some(FleetSnapshot::example()),
        }
    }

    /// The whole text.
    pub(in crate::metrics) fn text(snapshot: &Snapshot) -> String {
        let mut pieces = Vec::new();
        let last = render(snapshot, &mut |piece| pieces.push(piece));
        pieces.concat() + &last
    }

    fn samples(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter(|line| !line.starts_with('#'))
    }

    fn sum(text: &str, name: &str) -> u64 {
        let prefix = format!("{name}{{");
        samples(text)
            .filter(|line| line.starts_with(&prefix))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum()
    }

    #[test]
    fn when_a_snapshot_is_rendered_then_its_lines_are_exact() {
        let text = text(&snapshot());
        let lines: HashSet<&str> = text.lines().collect();
        let version = format!("balancer_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        for expected in [
            version.as_str(),
            "# TYPE balancer_decisions_total counter",
            "balancer_decisions_total{service=\"web\",result=\"stateless\"} 100",
            "balancer_decisions_total{service=\"web\",result=\"kept\"} 0",
            "balancer_connections_total{service=\"web\",backend=\"web2\"} 60",
            "balancer_packets_total{service=\"web\",backend=\"web2\"} 600",
            "balancer_bytes_total{service=\"web\",backend=\"web2\"} 60000",
            "balancer_backend_share_ratio{service=\"web\",backend=\"web1\"} 0.3",
            "balancer_backend_expected_share_ratio{service=\"web\",backend=\"web1\"} 0.25",
            "balancer_backend_expected_share_ratio{service=\"web\",backend=\"web2\"} 0.75",
            "balancer_backend_expected_share_ratio{service=\"web\",backend=\"web3\"} 0",
            "balancer_imbalance_ratio{service=\"web\"} 1.3333333333333335",
            "# TYPE balancer_table_slots gauge",
            "balancer_table_slots{service=\"web\",backend=\"web3\"} 20000",
            "balancer_outage{service=\"web\"} 0",
            "balancer_table_generation{service=\"web\"} 4",
            "balancer_table_slots_moved_total{service=\"web\",kind=\"required\"} 20000",
            "balancer_table_slots_moved_total{service=\"web\",kind=\"needless\"} 12",
            "balancer_table_build_seconds{service=\"web\"} 0.0018",
            "balancer_backend_state{service=\"web\",backend=\"web3\",state=\"down\"} 1",
            "balancer_backend_state{service=\"web\",backend=\"web3\",state=\"up\"} 0",
            "balancer_backend_transitions_total{service=\"web\",backend=\"web1\",to=\"checking\"} 1",
            "balancer_health_checks_total{service=\"web\",backend=\"web1\",result=\"passed\"} 5",
            "balancer_health_checks_total{service=\"web\",backend=\"web1\",result=\"soft\"} 2",
            "balancer_health_checks_total{service=\"web\",backend=\"web1\",result=\"hard\"} 1",
            "balancer_health_check_duration_seconds{service=\"web\",backend=\"web1\"} 0.0015",
            "balancer_checks_hindered{service=\"web\",backend=\"web1\"} 0",
            "balancer_agent_weight_ratio{service=\"web\",backend=\"web1\"} 1",
            "balancer_agent_silent{service=\"web\",backend=\"web1\"} 0",
            "balancer_backend_full{service=\"web\",backend=\"web1\"} 0",
            "balancer_drops_total{reason=\"malformed\"} 3",
            "balancer_drops_total{reason=\"no_backend\"} 0",
            "balancer_replies_total{kind=\"echo\"} 5",
            "balancer_replies_total{kind=\"too_big\"} 6",
            "balancer_replies_total{kind=\"rejected\"} 8",
            "balancer_fragments_not_remembered_total 7",
            "balancer_redirect_errors_total{interface=\"eth1\"} 9",
            "balancer_packets_seen_total{interface=\"eth0\",verdict=\"tx\"} 1000",
            "balancer_fleet_epoch 7",
            "balancer_fleet_members{state=\"ready\"} 1",
            "balancer_fleet_members{state=\"not_ready\"} 0",
            "balancer_fleet_lag_seconds{member=\"lb2\"} 2.5",
            "balancer_fleet_records_total{kind=\"told\"} 90",
            "balancer_fleet_records_dropped_total{reason=\"full\"} 1",
            "balancer_fleet_votes_differ{service=\"web\",backend=\"web2\"} 1",
            "balancer_fleet_engine_reachable 1",
            "balancer_fleet_engine_bytes_total{direction=\"received\"} 9000",
            "balancer_fleet_commit_seconds 0.125",
            "balancer_fleet_conflicts_total 2",
            "balancer_fleet_moves_repeated_total{service=\"web\",cause=\"down\"} 3",
            "balancer_xdp_mode{interface=\"eth0\",mode=\"native\"} 1",
        ] {
            assert!(lines.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("health_check_duration_seconds{service=\"web\",backend=\"web3\"}"));
    }

    #[test]
    fn when_there_is_no_fleet_then_no_metric_mentions_one() {
        assert!(!text(&Snapshot { fleet: None, ..snapshot() }).contains("fleet"));
    }

    #[test]
    fn when_a_backend_cannot_be_checked_then_it_is_said_as_long_as_it_should_be() {
        let mut snapshot = snapshot();
        let series = "balancer_checks_hindered{service=\"web\",backend=\"web1\"}";
        let check = &mut snapshot.services[0].backends[0].check[0];
        check.last = Some((CheckOutcome::Hindered("no sockets".to_owned()), Duration::ZERO));
        assert!(text(&snapshot).contains(&format!("{series} 0")), "nothing is checked");
        snapshot.services[0].backends[0].check[0].rise_fall = Some((2, 3));
        assert!(text(&snapshot).contains(&format!("{series} 1")));
        assert_eq!(snapshot.services[0].backends[0].shown_reason(), "cannot be checked here: no sockets");
    }

    #[test]
    fn when_counters_are_rendered_then_their_sums_agree() {
        let text = text(&snapshot());
        assert_eq!(sum(&text, "balancer_decisions_total"), sum(&text, "balancer_connections_total"));
        assert_eq!(sum(&text, "balancer_table_slots"), 60_000);
        assert_eq!(sum(&text, "balancer_packets_seen_total"), 1007);
        assert_eq!(sum(&text, "balancer_backend_state"), 3);
    }

    #[test]
    fn when_a_backend_is_removed_and_added_then_its_moves_count_on() {
        let mut snapshot = snapshot();
        let moved = |count| {
            let mut moves = [0; MOVE_COUNTERS];
            moves[CauseIndex::from(MoveCause::Removed).counter()] = count;
            BackendStats { moves, ..BackendStats::default() }
        };
        // web2 was removed twice, recently with clients still known there, and added again each time.
        snapshot.services[0].departed = vec![("web0".to_owned(), moved(5)), ("web2".to_owned(), moved(30))];
        snapshot.services[0].gone =
            vec![GoneSnapshot { id: BackendId(9), name: "web2".to_owned(), known_clients: 7, stats: moved(4) }];
        let text = text(&snapshot);
        let of = |from: &str| {
            let series = format!("balancer_moves_total{{service=\"web\",from=\"{from}\",cause=\"removed\"}} ");
            samples(&text).filter_map(|line| line.strip_prefix(&series)).collect::<Vec<_>>()
        };
        assert_eq!([of("web0"), of("web1"), of("web2")], [["5"], ["0"], ["34"]]);
    }

    #[test]
    fn when_metrics_are_rendered_then_every_series_is_unique_and_names_no_client() {
        let text = text(&snapshot());
        let mut seen = HashSet::new();
        for line in samples(&text) {
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(seen.insert(series), "{series} twice");
            assert!(series.starts_with("balancer_"), "{series}");
        }
        assert!(!text.contains("client="));
    }

    #[test]
    fn when_a_metric_exists_then_the_book_has_it_and_no_other() {
        let text = text(&snapshot());
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE balancer_"));
        let exported: BTreeSet<_> = types.filter_map(|line| line.split(' ').next()).collect();
        let chapter = include_str!("../../../../docs/src/metrics.md");
        let first_cells = chapter.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        let described: BTreeSet<_> = first_cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
        assert_eq!(exported, described);
    }

    #[test]
    fn when_a_value_is_not_known_yet_then_it_is_left_out() {
        let mut snapshot = snapshot();
        for backend in &mut snapshot.services[0].backends {
            backend.stats = BackendStats::default();
            backend.eligible = false;
            backend.agent = None;
        }
        let text = text(&snapshot);
        assert!(!samples(&text).any(|line| line.contains("_ratio{")), "{text}");
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn when_clients_are_heavy_then_they_are_shown_by_rank() {
        let mut snapshot = snapshot();
        let mut top = balancer_core::top::Top::default();
        for (client, samples) in [("203.0.113.7", 60), ("203.0.113.8", 30), ("203.0.113.9", 10)] {
            (0..samples).for_each(|_| top.count(client.parse().unwrap(), BackendId(1), 100));
        }
        snapshot.services[0].statistics.top = std::sync::Arc::new(top);
        let text = text(&snapshot);
        let ranks: Vec<&str> = samples(&text).filter(|line| line.starts_with("balancer_top_client")).collect();
        let of = |rank: u32, share: &str| {
            format!("balancer_top_client_share_ratio{{service=\"web\",rank=\"{rank}\"}} {share}")
        };
        assert_eq!(ranks, [of(1, "0.6"), of(2, "0.3"), of(3, "0.1")]);
        assert!(!text.contains("203.0.113"), "{text}");
    }
}
