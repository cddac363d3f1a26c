//! Tests of the metrics text that is made from a snapshot.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use balancer_common::{
    map_types::{BackendStats, DropStats, Forwarding, InterfaceStats, ListenerStats, ShareStats},
    share::Share,
    verdict::{CauseIndex, Decision, DropReason, MOVE_COUNTERS, MoveCause, Signal, Verdict},
};
use balancer_config::{
    agent::Said,
    bounded::Bound,
    config::ClientPrefix,
    limits::Limits,
    listeners::Family,
    states::{Admin, BackendState},
};
use balancer_control::{
    fleet::FleetSnapshot,
    health::{Health, Verdict as Found},
    io::{BackendId, CheckOutcome, ServiceId},
    readiness::{Fitness, Readiness},
    run_time::{RunTimeChange, What},
    snapshot::{
        AgentSnapshot, BackendSnapshot, CheckSnapshot, DeniedSnapshot, FlowsSnapshot, GoneSnapshot, InterfaceSnapshot,
        ListenerSnapshot, MemberSnapshot, MemorySnapshot, ServiceSnapshot, ServiceStatistics, Snapshot, TableSnapshot,
    },
};

use super::render::render;

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
        filled: Some([0, 0, 2]),
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
        handshakes: Default::default(),
        handshakes_ended: Default::default(),
        unattached: None,
        transitions: [1, 1, 0, 0, 0, 0, 0],
    }
}

/// A snapshot with a service `web` of 100 connections: web1 and web2 are up with weights 100 and 300, and web3 is down.
pub(super) fn snapshot() -> Snapshot {
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
        drop_in: None,
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
        expected: Some(2),
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
        removed_backends: Vec::new(),
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
        flows: Some(FlowsSnapshot { capacity: 1024, entries: 3, full_pools: Vec::new() }),
        memory: MemorySnapshot::default(),
        member: MemberSnapshot {
            readiness: Readiness { state: Fitness::Degraded, reasons: vec!["eth1".to_owned()] },
            withdrawn: false,
            vips: vec![("198.51.100.10".parse().unwrap(), "lo".to_owned())],
            unsaved: false,
        },
        fleet: Some(FleetSnapshot::example()),
    }
}

/// The whole metrics text of a snapshot.
pub(super) fn text(snapshot: &Snapshot) -> String {
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
        "balancer_backend_filled_total{service=\"web\",backend=\"web1\",reason=\"ports\"} 2",
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
    // The backend web2 was removed twice and added again each time; clients of the backend removed last are still
    // known.
    snapshot.services[0].removed_backends =
        vec![("web0".to_owned(), moved(5)), ("web2".to_owned(), moved(30)), ("web9".to_owned(), moved(0))];
    snapshot.services[0].gone =
        vec![GoneSnapshot { id: BackendId(9), name: "web2".to_owned(), known_clients: 7, stats: moved(4) }];
    let text = text(&snapshot);
    let of = |from: &str| {
        let series = format!("balancer_moves_total{{service=\"web\",from=\"{from}\",cause=\"removed\"}} ");
        samples(&text).filter_map(|line| line.strip_prefix(&series)).collect::<Vec<_>>()
    };
    assert_eq!([of("web0"), of("web1"), of("web2")], [["5"], ["0"], ["34"]]);
    let rows = |from: &str| samples(&text).filter(|line| line.contains(&format!("from=\"{from}\""))).count();
    assert_eq!([rows("web0"), rows("web9")], [1, 0], "a removed backend has no zeros");
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
    let mut top = balancer_control::top::Top::default();
    for (client, samples) in [("203.0.113.7", 60), ("203.0.113.8", 30), ("203.0.113.9", 10)] {
        (0..samples).for_each(|_| top.count(client.parse().unwrap(), BackendId(1), 100));
    }
    snapshot.services[0].statistics.top = std::sync::Arc::new(top);
    let text = text(&snapshot);
    let ranks: Vec<&str> = samples(&text).filter(|line| line.starts_with("balancer_top_client")).collect();
    let of =
        |rank: u32, share: &str| format!("balancer_top_client_share_ratio{{service=\"web\",rank=\"{rank}\"}} {share}");
    assert_eq!(ranks, [of(1, "0.6"), of(2, "0.3"), of(3, "0.1")]);
    assert!(!text.contains("203.0.113"), "{text}");
}
