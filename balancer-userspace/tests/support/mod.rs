//! A simulated controller without a data path, behind a real control socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use balancer_api::{
    model::{
        Changed, ClientView, DropInText, DropInView, ForgottenView, ImportedView, KnownClientView, KnownClientsView,
        RuleView,
    },
    tally::Tally,
};
use balancer_common::{
    map_types::{BackendStats, DropStats, Forwarding, InterfaceStats, ReplyStats, ShareStats},
    quic::QuicStats,
    share::Share,
};
use balancer_config::{
    config::{ClientPrefix, Protocol},
    fixture,
    listeners::Listener,
    quic::{Format, Keyed, QuicConfig, QuicKey},
    states::{Admin, BackendState},
};
use balancer_control::{
    health::Health,
    io::{BackendId, Change, CheckOutcome, Refused, ServiceId},
    plan::{ComingClients, Planned, PlannedMove, PlannedService},
    readiness::{Announcement, Fitness, Readiness},
    rules::Action,
    run_time::{RunTimeChange, What},
    served::HandshakeCounts,
    snapshot::{
        BackendSnapshot, CheckSnapshot, DeniedSnapshot, InterfaceSnapshot, ListenerSnapshot, MemberSnapshot,
        QuicSnapshot, ServiceSnapshot, ServiceStatistics, Snapshot,
    },
};
use balancer_fleet::documents;
use balancer_listeners::{
    api_server::{Answering, ControlSocket, serve, serve_readers},
    audit::Audit,
    call::{Call, ChangeRequest, Request, Tallies},
    configuration::Configurations,
    trace::Trace,
};
use balancer_runtime::{events::Events, supervisor::Supervisor};
use ipnet::IpNet;
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// All changes that the controller has received, each with the uid of the peer.
pub(crate) type Seen = Arc<Mutex<Vec<(ChangeRequest, Option<u32>)>>>;

pub(crate) struct Fake {
    pub(crate) seen: Seen,
    /// The events that `/v1/events` shows.
    pub(crate) events: Events,
    directory: TempDir,
    stop: oneshot::Sender<()>,
    server: JoinHandle<anyhow::Result<()>>,
    /// The task that serves the read-only socket.
    readers: JoinHandle<anyhow::Result<()>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    /// Starts a controller in the directory of a controller that was stopped.
    pub(crate) async fn start_in(directory: TempDir) -> Self {
        let socket = ControlSocket::bind(&directory.path().join("run/balancer.sock"), None).await.unwrap();
        let (calls, inbox) = mpsc::channel(8);
        let seen = Seen::default();
        let events = Events::new();
        events.note("attached to eth0 in native mode");
        tokio::spawn(controller(inbox, Arc::clone(&seen), events.clone()));
        let (stop, stopped) = oneshot::channel();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good_configs/minimal.toml");
        let answering = Answering::new(calls, Configurations::default().of(own), Audit::new(&Supervisor::default()));
        let readers = ControlSocket::bind(&directory.path().join("run/readers.sock"), None).await.unwrap();
        let changing = directory.path().join("run/balancer.sock");
        let readers =
            tokio::spawn(serve_readers(readers, changing.into(), answering.clone(), std::future::pending::<()>()));
        let server = tokio::spawn(serve(socket, answering, async {
            let _ = stopped.await;
        }));
        Self { seen, events, directory, stop, server, readers }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/balancer.sock")
    }

    pub(crate) fn change_requests(&self) -> Vec<ChangeRequest> {
        self.seen.lock().unwrap().iter().map(|(change_request, _)| change_request.clone()).collect()
    }

    pub(crate) fn changes(&self) -> Vec<Change> {
        let change =
            |change_request| if let ChangeRequest::Change(change) = change_request { Some(change) } else { None };
        self.change_requests().into_iter().filter_map(change).collect()
    }

    /// Stops the server, and returns the directory of the control socket.
    pub(crate) async fn stop(self) -> TempDir {
        self.stop.send(()).unwrap();
        self.server.await.unwrap().unwrap();
        self.readers.abort();
        let _ = self.readers.await;
        self.directory
    }
}

fn forgotten(forgotten: u64, moved: u64) -> ForgottenView {
    ForgottenView { message: format!("{forgotten} forgotten"), forgotten, moved }
}

/// Simulates a controller, which answers calls. After a withdrawal, the VIPs disappear after two more answers. The
/// controller has two services: `web` with the backends `web1` and `web2`, and `dns` without a backend. After a drain,
/// a backend shows `draining` twice.
async fn controller(mut inbox: mpsc::Receiver<Call>, seen: Seen, events: Events) {
    let mut admin = Admin::Ready;
    let mut looked = 0;
    let (mut withdrawn, mut looked_withdrawn) = (false, 0);
    while let Some(call) = inbox.recv().await {
        match call {
            Call::Snapshot { reply } => {
                looked += 1;
                let state = match admin {
                    Admin::Ready => BackendState::Up,
                    Admin::Drain if looked < 2 => BackendState::Draining,
                    Admin::Drain => BackendState::Drained,
                    Admin::Maint => BackendState::Maint,
                };
                let mut snapshot = snapshot(admin, state);
                snapshot.member.withdrawn = withdrawn;
                looked_withdrawn += u32::from(withdrawn);
                if looked_withdrawn > 2 {
                    snapshot.member.vips.clear();
                }
                let _ = reply.send(Ok(snapshot.into()));
            }
            Call::Flows { reply, .. } => {
                let _ = reply.send(Ok(Default::default()));
            }
            Call::Trace { reply, .. } => {
                let _ = reply.send(Ok(Arc::new(Trace::silent(7))));
            }
            Call::Traced { trace, reply } => {
                let trace = Arc::new(Trace::silent(trace));
                let _ = reply.send(Ok((trace, Vec::new())));
            }
            Call::Events { reply } => {
                let _ = reply.send(events.clone());
            }
            Call::Clients { query, reply } => {
                let view = |service: &str| ClientView {
                    service: service.to_owned(),
                    client: format!("{}/32", query.address),
                    slot: 12_345,
                    backend: (service == "web").then(|| "web1".to_owned()),
                    why: "table".to_owned(),
                    rule: None,
                    known: false,
                    last_seen_seconds_ago: None,
                };
                let _ = reply.send(match (&query.service, query.address.is_ipv4()) {
                    (Some(service), _) if service != "web" => {
                        Err(Refused::NotFound(format!("there is no service {service:?}")))
                    }
                    (_, false) => Ok(vec![]),
                    (Some(service), true) => Ok(vec![view(service)]),
                    (None, true) => Ok(vec![view("web"), view("dns")]),
                });
            }
            Call::Plan { change, reply } => {
                let added =
                    if let Change::AddListener { listener, .. } = &change { vec![*listener] } else { Vec::new() };
                let plan = PlannedService {
                    service: "web".to_owned(),
                    table_size_before: 65_537,
                    table_size: 65_537,
                    slots_moved: 16_384,
                    needless_slots_moved: 3,
                    known_clients_moved: 1_204,
                    known_clients_draining: 0,
                    known_clients_forgotten: 0,
                    forgotten_because: None,
                    steer: [100, 100],
                    known_clients_taken_over: 0,
                    coming: ComingClients::default(),
                    known_clients_sent_back: 0,
                    removed: false,
                    listeners_added: added,
                    listeners_removed: Vec::new(),
                    moves: vec![
                        PlannedMove {
                            from: Some("web1".to_owned()),
                            to: Some("web2".to_owned()),
                            slots: 16_384,
                            clients: 1_204,
                        },
                        PlannedMove { from: None, to: None, slots: 0, clients: 0 },
                    ],
                };
                let _ = reply.send(if matches!(change, Change::SetWeight { .. }) {
                    Err(Refused::Conflict(format!("{change:?} is refused")))
                } else {
                    Ok(Planned {
                        message: "would be done".to_owned(),
                        reports: Vec::new(),
                        changed: Vec::new(),
                        services: vec![plan],
                    })
                });
            }
            Call::DropIns { reply } => {
                let view = DropInView { name: "web".to_owned(), services: vec!["shop".to_owned()] };
                let _ = reply.send(vec![(view, DropInText { text: "[[service]]\n".to_owned() })]);
            }
            Call::Rules { service, reply } => {
                let rule = |service: &str| RuleView {
                    service: service.to_owned(),
                    prefix: "10.1.2.0/24".to_owned(),
                    action: Action::Pin { backend: "web1".to_owned() },
                    in_file: true,
                    active: true,
                    reason: String::new(),
                    expires_in_seconds: Some(300),
                    packets: 1_234,
                    fallbacks: 0,
                };
                let _ = reply.send(match service {
                    Some(service) if service != "web" => {
                        Err(Refused::NotFound(format!("there is no service {service:?}")))
                    }
                    _ => Ok(vec![rule("web")]),
                });
            }
            Call::Forget { query, reply, .. } => {
                let _ = reply.send(match query.service.as_deref() {
                    Some("dns") => {
                        Err(Refused::Conflict("no client to forget: dns has no memory of clients".to_owned()))
                    }
                    _ => Ok(forgotten(1, 0)),
                });
            }
            Call::ImportClients { service, clients, reply, .. } => {
                let new = clients.len() as u64;
                let _ = reply.send(match service.as_str() {
                    "web" => Ok(ImportedView { message: format!("{new} known"), new, ..ImportedView::default() }),
                    _ => Err(Refused::NotFound(format!("there is no service {service:?}"))),
                });
            }
            Call::ExportClients { service, within, reply } => {
                let known = |net: &IpNet| KnownClientView {
                    client: net.network(),
                    backend: "web1".to_owned(),
                    age_seconds: 40,
                };
                let clients: Vec<_> = within.iter().map(known).collect();
                let _ = reply.send(match service.as_str() {
                    "web" => Ok(KnownClientsView { service, known_clients: 3, prefix_v4: 32, prefix_v6: 64, clients }),
                    _ => Err(Refused::NotFound(format!("there is no service {service:?}"))),
                });
            }
            Call::ForgetAll { backend, reply, .. } => {
                let _ = reply.send(match backend.backend.as_str() {
                    "web1" | "web2" => Ok(forgotten(1_234, 56)),
                    _ => Err(Refused::NotFound(format!("there is no backend {backend}"))),
                });
            }
            Call::Change(Request { if_generation: Some(1), reply, .. }) => {
                let _ = reply.send(Err(Refused::Stale(2)));
            }
            Call::Tallies { reply } => {
                let _ = reply.send(Ok(tallies()));
            }
            Call::FileApplied { .. } => {}
            Call::FileRead { reply, .. } => {
                let _ = reply.send(Ok(None));
            }
            Call::OldestFile { reply, .. } => {
                let _ = reply.send(None);
            }
            Call::Ready { reply } => {
                let _ = reply.send(Announcement { readiness: readiness(admin), withdrawn });
            }
            Call::Change(Request { change_request, uid, reply, .. }) => {
                seen.lock().unwrap().push((change_request.clone(), uid));
                let change = match change_request {
                    ChangeRequest::Change(change) => change,
                    ChangeRequest::Reread(config) => Change::Reload(config),
                    ChangeRequest::Withdraw(withdraw) => {
                        withdrawn = withdraw;
                        let _ = reply.send(Ok(Changed::applied("done".to_owned())));
                        continue;
                    }
                };
                let answer = match change {
                    Change::Add { name, .. } if name.backend == "web1" => {
                        Err(Refused::Conflict(format!("backend {name} exists already; remove it first")))
                    }
                    Change::SetWeight { name, .. } if name.backend == "web9" => {
                        Err(Refused::NotFound(format!("there is no backend {name}; did you mean \"web1\"?")))
                    }
                    Change::SetWeight { weight: 13, .. } => Err(Refused::Invalid("13 is unlucky; give 14".to_owned())),
                    Change::SetAdmin { admin: wanted, .. } => {
                        (admin, looked) = (wanted, 0);
                        Ok(())
                    }
                    Change::Add { .. }
                    | Change::Remove { .. }
                    | Change::SetWeight { .. }
                    | Change::Agent { .. }
                    | Change::Bound { .. }
                    | Change::Full { .. }
                    | Change::SetLimits { .. }
                    | Change::ForceHealth { .. }
                    | Change::SetSteer { .. }
                    | Change::RotateQuicKey { .. }
                    | Change::AddListener { .. }
                    | Change::RemoveListener { .. }
                    | Change::AddRule { .. }
                    | Change::RemoveRule { .. }
                    | Change::SetDropIn { .. }
                    | Change::Reload(_)
                    | Change::Reset(_)
                    | Change::Discover { .. } => Ok(()),
                };
                let _ = reply.send(answer.map(|()| Changed::applied("done".to_owned())));
            }
        }
    }
}

/// Returns the controller's snapshot, in which `web1` has this state.
pub(crate) fn snapshot(admin: Admin, state: BackendState) -> Snapshot {
    let check = fixture::check();
    let mut health = Health::default();
    (0..10).for_each(|_| health.record(&CheckOutcome::Passed, &check));
    let backend = |name: &str, admin, state, slots| BackendSnapshot {
        agent: None,
        bound: None,
        limits: Default::default(),
        full: None,
        filled: None,
        ids: vec![BackendId(1)],
        families: Vec::new(),
        name: name.to_owned(),
        address: if name == "web2" { "10.0.0.12:8080" } else { "10.0.0.11:8080" }.to_owned(),
        weight: 100,
        backup: false,
        discovered: false,
        admin,
        health: "up",
        state,
        reason: String::new(),
        slots,
        active: None,
        known_clients: if state == BackendState::Draining { 214 } else { 0 },
        drain_deadline: (state == BackendState::Draining).then_some(Duration::from_secs(192)),
        eligible: true,
        stats: BackendStats { packets: 1_234_567, bytes: 89_000_000, connections: 4321, ..BackendStats::default() },
        withheld: 0,
        signals: [0; 4],
        unanswered: None,
        handshakes: HandshakeCounts { completed: 3, unanswered: 1 },
        handshakes_ended: Default::default(),
        unattached: None,
        checks: [10, 0, 1],
        last_check: Some(Duration::from_millis(3)),
        check: vec![CheckSnapshot {
            target: "10.0.0.11:8080".parse().unwrap(),
            words: check.to_string().into(),
            health: health.clone(),
            verdict_age: Duration::from_secs(60),
            forced: None,
            last: Some((CheckOutcome::Passed, Duration::from_secs(1))),
            rise_fall: Some((check.rise, check.fall)),
            took: Some(Duration::from_millis(3)),
        }],
        transitions: [1, 1, 0, 0, 0, 0, 0],
    };
    let service = |name: &str, protocol, backends| ServiceSnapshot {
        ids: vec![ServiceId(0)],
        client_prefix: ClientPrefix { v4: 32, v6: 64 },
        last_change: None,
        statistics: ServiceStatistics::default(),
        name: name.to_owned(),
        drop_in: None,
        listeners: vec![ListenerSnapshot {
            listener: Listener::at("198.51.100.10:80".parse().unwrap(), protocol),
            stats: None,
        }],
        forwarding: Forwarding::Nat,
        table_size: 65_537,
        tables: Vec::new(),
        table_generation: 7,
        slots_moved_required: 0,
        slots_moved_needless: 0,
        table_build: Duration::from_millis(1),
        outage: None,
        remembers: false,
        rule_fallbacks: 0,
        discover: Vec::new(),
        spread_heavy: None,
        expected: None,
        denied: Some(DeniedSnapshot {
            file: "/etc/balancer/deny.txt".into(),
            prefixes: 100_000,
            packets: 7,
            read: Some(Duration::from_secs(60)),
            error: Some("/etc/balancer/deny.txt:2: wrong".to_owned()),
        }),
        share: Share::ALL,
        passed: ShareStats::default(),
        quic: Some(QuicSnapshot {
            config: QuicConfig {
                format: Format::Draft,
                server_id_length: 8,
                nonce_length: 8,
                current: Keyed { config: 1, key: Some(QuicKey([7; 16])) },
                before: Some(Keyed { config: 0, key: None }),
                learn: true,
            },
            stats: QuicStats { steered: 9, unknown: 2, migrated: 1, reserved: 0 },
            servers: ["web1", "web2"].map(|name| (name.to_owned(), "0x0011223344556677".parse().unwrap(), 1)).to_vec(),
        }),
        removed_backends: Vec::new(),
        repeated_moves: Default::default(),
        gone: Vec::new(),
        backends,
    };
    Snapshot {
        memory: balancer_control::snapshot::MemorySnapshot::default(),
        flows: None,
        interfaces: vec![InterfaceSnapshot {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp_mode: "native",
            stats: InterfaceStats::default(),
        }],
        services: vec![
            service(
                "web",
                Protocol::Tcp,
                vec![backend("web1", admin, state, 32_769), backend("web2", Admin::Ready, BackendState::Up, 32_768)],
            ),
            service("dns", Protocol::Udp, vec![]),
        ],
        drops: DropStats::default(),
        redirect_errors: std::collections::BTreeMap::new(),
        replies: ReplyStats::default(),
        generation: 2,
        changed: vec![RunTimeChange {
            what: What::Backend,
            name: "web/web1".to_owned(),
            change: "weight 50 (file: 100)".to_owned(),
        }],
        member: MemberSnapshot {
            readiness: readiness(admin),
            withdrawn: false,
            vips: vec![("198.51.100.10".parse().unwrap(), "lo".to_owned())],
            unsaved: false,
        },
        fleet: Some(balancer_control::fleet::FleetSnapshot::example()),
    }
}

/// The simulated balancer is degraded while `web1` is drained, and not ready while `web1` is in maintenance.
fn readiness(admin: Admin) -> Readiness {
    let (state, reasons) = match admin {
        Admin::Ready => (Fitness::Ready, Vec::new()),
        Admin::Drain => (Fitness::Degraded, vec!["the program is not on eth1".to_owned()]),
        Admin::Maint => (Fitness::NotReady, vec!["it is ending".to_owned(), "and more".to_owned()]),
    };
    Readiness { state, reasons }
}

/// Returns the tallies of two other members: one member has counted a thousand connections of `web`, and the other
/// member none.
fn tallies() -> Tallies {
    let period = r#"{"period": "start", "seconds": null, "stickiness_ratio": null, "connections": 1000, "decisions": {}, "moves": {}}"#;
    let tally = format!(
        r#"{{"format": 1, "services": {{"web": {{"periods": [{period}], "backends": {{}}, "top_clients": []}}}}}}"#
    );
    let tally: Tally = serde_json::from_str(&tally).unwrap();
    let others = [
        ("lb2".to_owned(), documents::pack(&tally, "a tally")),
        ("lb3".to_owned(), Err("it has published no statistics yet".to_owned())),
    ];
    Tallies { others: others.into(), shared: true }
}
