//! `balancer run`: start-up, the loop of the one task that owns the controller, and a clean end.

use std::{
    collections::VecDeque,
    fmt,
    future::{pending, ready},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use balancer_api::model::{Changed, ForgottenView};
use balancer_common::map_types::NeighbourWanted;
use balancer_core::{
    io::{Change, Event, Refused},
    plan::Planned,
};
use balancer_dataplane::{Capacity, KernelDataplane, Pins, privileges};
use balancer_model::{
    config::{Config, OnExit},
    names::BackendName,
    words::counted,
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};
use tracing::{info, warn};

use crate::{
    api_server::{self, ControlSocket},
    call::Call,
    events::Events,
    host::{Host, Prepared, Surroundings},
    interfaces,
    keeper::{Keeper, Ready, Request},
    metrics,
    neighbours::Neighbours,
    owner::{Forgetting, Owner},
    prober::Prober,
    puzzles, reload,
    resume::{Resumed, resume},
    service_manager::ServiceManager,
    shutdown::{self, ShutdownSignal},
    statistics::Statistics,
    supervisor::{Ended, Supervisor},
};

/// Events that may wait for the controller; whoever has more to say waits.
const EVENTS: usize = 1024;
/// Requests that may wait for the controller.
const CALLS: usize = 64;
/// How often a part of the client table is swept.
const SWEEP: Duration = Duration::from_millis(250);
/// How long start-up waits for the first answers about next hops, so that the first packet finds its way.
const FIRST_NEXT_HOPS: Duration = Duration::from_millis(1500);

/// What `balancer run` was asked for.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The configuration, with what the command line said instead.
    pub config: Config,
    /// The configuration as it is in the file.
    pub as_written: Config,
    /// The interfaces that the command line names; none if it leaves that to the configuration.
    pub named: Vec<String>,
    /// The file, to be read again.
    pub file: PathBuf,
}

/// Attaches and serves until SIGTERM or SIGINT. Whatever it set up is gone when it returns, also on an error.
///
/// # Errors
/// One line that says what stands in the way.
pub async fn run(launch: Launch) -> anyhow::Result<()> {
    let Launch { config, as_written, named, file } = launch;
    privileges::check()?;
    let (supervisor, mut endings) = Supervisor::new();
    let shutdown = shutdown::listen().context("catching signals")?;
    let hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let interfaces = interfaces::resolve(&config.interfaces).await?;
    let socket = ControlSocket::bind(&config.socket, config.socket_group.as_deref()).await?;
    let pins = pins(&config)?;
    let outlives = pins.is_some();
    let resumed = resume(&config, as_written, pins.as_ref())?;
    let metrics_listener = match config.metrics_listen {
        Some(listen) => Some(metrics::bind(listen).await?),
        None => None,
    };
    let ifindexes: Vec<u32> = interfaces.iter().map(|interface| interface.ifindex).collect();
    let capacity = Capacity::for_services(&config, &resumed.controller.largest());
    let mut dataplane = KernelDataplane::load_kept(capacity, &ifindexes, pins, puzzles::wanted(), &supervisor)?;
    if let Some(notes) = dataplane.kept().notes() {
        info!("going on with the maps that process {} left: its clients, counters and traffic", notes.process);
    }
    let inherited = dataplane.kept().notes().map(|notes| notes.host.clone()).unwrap_or_default();
    if config.services.iter().any(|service| !service.remember.is_zero()) {
        match dataplane.room_for_clients() {
            clients if clients != capacity.clients => warn!(
                "client_table.capacity stays {clients}, not {}: the clients of the balancer before are known in a table \
                 of that size; stop the balancer and run `balancer detach`, which forgets them, to change it",
                capacity.clients
            ),
            _ => {
                let mebibytes = capacity.client_table_bytes() as f64 / f64::from(1 << 20);
                info!("client table for {} known clients: {mebibytes:.1} MiB", capacity.clients);
            }
        }
    }
    let neighbours_wanted = dataplane.take_neighbours_wanted()?;
    let samples = dataplane.take_samples()?;
    if puzzles::wanted() {
        puzzles::read(&mut dataplane, &supervisor)?;
    }
    dataplane.sample_every(config.statistics.sample_interval);
    let mut wanted = NeighbourRing::new(neighbours_wanted)?;

    let (events_in, mut events) = mpsc::channel(EVENTS);
    let (calls_in, mut calls) = mpsc::channel(CALLS);
    let Resumed { mut controller, departed, file: mut state_file } = resumed;
    controller.name_interfaces(named);
    let instance = controller.instance();
    let neighbours = Neighbours::spawn(events_in.clone(), &supervisor)?;
    let mut devices = neighbours.devices();
    let history = Events::beside(&config.state_file, &supervisor);
    let prober = Prober::new(events_in, &supervisor).context("starting the thread of the health checks")?;
    let mut layers = neighbours.layers();
    let mut owner = Owner::new(controller, dataplane, neighbours, prober, history.clone());
    owner.take_over_departed(departed);
    owner.start()?;
    await_next_hops(&mut owner, &mut events).await;
    owner.dataplane().set_layers(layers.borrow_and_update().clone());
    owner.dataplane().set_devices(&devices.borrow_and_update())?;
    // Before anything is pinned that could not be told apart without it.
    state_file.save(&owner.export())?;
    let ends = owner.dataplane().take_host_ends(instance, &config.state_file)?;
    let surroundings = Surroundings {
        ends,
        state_file: config.state_file.clone(),
        inherited,
        events: history.clone(),
        calls: calls_in.clone(),
        metrics: metrics_listener,
        socket: config.socket.clone(),
        supervisor: supervisor.clone(),
    };
    let mut host = Host::start(owner.wanted(), surroundings).await?;
    owner.dataplane().set_attached(host.attachments());
    let (mut settings, mut keeps) = (config.statistics, host.wanted().keep);
    let statistics = Arc::new(if outlives {
        Statistics::beside(settings, &config.state_file, owner.dataplane().kept().adopted(), &supervisor)
    } else {
        Statistics::new(settings)
    });
    let watch = Arc::clone(&statistics).watch(samples, calls_in.clone());
    let watching = supervisor.spawn("the keeping of statistics", async {
        watch.await;
        Ok(())
    });
    let (stop, stopped) = watch::channel(());
    let ended = |mut stopped: watch::Receiver<()>| async move {
        // An error says that the sender is gone, which is the end as well.
        let _ = stopped.changed().await;
    };
    let api = api_server::serve(socket, calls_in.clone(), ended(stopped));
    let api = supervisor.spawn("the control socket", api);
    let reloads = reload::follow(hangup, calls_in, file);
    let reloads = supervisor.spawn("the reading of the configuration", async {
        reloads.await;
        Ok(())
    });
    let services = counted(config.services.len(), "service");
    history.note(&format!("serving {services}, control socket {}", config.socket.display()));
    let mut manager = ServiceManager::ready(config.services.len());

    tokio::pin!(shutdown);
    let mut keeper = Keeper::new(state_file);
    let mut joining = Joining::default();
    let mut waiting = Vec::new();
    let mut passes = VecDeque::new();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        let deadline = owner.next_deadline();
        tokio::select! {
            biased;
            () = manager.keep_alive_due() => manager.keep_alive(),
            signal = &mut shutdown => break End::Asked(signal),
            ended = endings.next() => break End::Failed(ended),
            1.. = events.recv_many(&mut waiting, EVENTS) => owner.handle_all(waiting.drain(..)),
            () = until(deadline) => owner.handle(Event::Tick),
            () = until(joining.next_deadline()) => {}
            () = until(keeper.next_deadline()) => {}
            ready = keeper.progress() => {
                if let Some(ready) = ready {
                    make(&mut owner, &mut joining, ready);
                }
            }
            Some(call) = calls.recv() => answer(&mut owner, &mut keeper, &host, &mut passes, &statistics, call),
            _ = sweep.tick() => owner.sweep(),
            Ok(()) = layers.changed() => owner.dataplane().set_layers(layers.borrow_and_update().clone()),
            attached = host.attached() => owner.dataplane().set_attached(attached),
            () = ready(()), if !passes.is_empty() => forget_part(&mut owner, &mut passes),
            Ok(()) = devices.changed() => {
                let known = devices.borrow_and_update().clone();
                if let Err(error) = owner.dataplane().set_devices(&known) {
                    warn!("{error:#}");
                }
            }
            neighbours = wanted.next() => neighbours.iter().for_each(|neighbour| owner.neighbours().want(neighbour)),
        }
        joining.answer(&owner);
        if owner.take_changed() {
            keeper.note();
            manager.serves(owner.services());
            host.want(owner.wanted());
            if settings != owner.settings().statistics {
                settings = owner.settings().statistics;
                statistics.set(settings);
                owner.dataplane().sample_every(settings.sample_interval);
            }
            if keeps != host.wanted().keep {
                keeps = host.wanted().keep;
                statistics.keep(keeps.then_some(&config.state_file), &supervisor);
            }
        }
        keeper.advance(&owner, &host);
    };

    if let End::Failed(ended) = &end {
        history.warn(&format!("{ended}: this process is of no use without it"));
    }
    keeper.finish(&owner).await;
    manager.stopping("leaving");
    let leave = host.wanted().keep;
    history.note(&if leave {
        format!("{end}: leaving; the kernel goes on steering (on_exit = \"keep\")")
    } else {
        format!("{end}: detaching")
    });
    history.close();
    let detached = host.end(leave).await;
    reloads.abort();
    drop(stop);
    drop(calls);
    watching.abort();
    let _ = api.ended().await;
    match end {
        End::Asked(_) => detached,
        End::Failed(ended) => Err(ended.into()),
    }
}

/// Why the loop has ended.
enum End {
    /// A signal asked for it.
    Asked(ShutdownSignal),
    /// Something that the balancer cannot be without has ended.
    Failed(Ended),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(signal) => signal.fmt(f),
            Self::Failed(ended) => ended.fmt(f),
        }
    }
}

/// The pins to go on with or to make; none if nothing outlives, or has outlived, a process.
fn pins(config: &Config) -> anyhow::Result<Option<Pins>> {
    let left = Pins::find(&config.state_file)?;
    match config.on_exit {
        OnExit::Keep if left.is_none() => Pins::create(&config.state_file).map(Some),
        OnExit::Keep | OnExit::Detach => Ok(left),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// A caller that has gone away does not want its answer.
fn answer(
    owner: &mut Owner<KernelDataplane>,
    keeper: &mut Keeper,
    host: &Host,
    passes: &mut VecDeque<ForgettingPass>,
    statistics: &Arc<Statistics>,
    call: Call,
) {
    match call {
        Call::Forget { query, uid, reply } => {
            let _ = reply.send(owner.forget(&query, uid));
        }
        Call::ForgetAll { backend, uid, reply } => match owner.forget_all(backend, uid) {
            Ok(forgetting) => passes.push_back(ForgettingPass { forgetting, reply }),
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        },
        Call::Snapshot { reply } => match owner.snapshot() {
            Ok(counting) => {
                let statistics = Arc::clone(statistics);
                // There may be ten thousand backends, and nobody else has to wait for their counters.
                tokio::task::spawn_blocking(move || {
                    let snapshot = counting.finish().map(|mut snapshot| {
                        statistics.complete(&mut snapshot);
                        snapshot
                    });
                    let _ = reply.send(snapshot);
                });
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        },
        Call::Events { reply } => {
            let _ = reply.send(owner.events().clone());
        }
        Call::Clients { query, reply } => {
            let _ = reply.send(owner.locate(&query));
        }
        Call::Plan { change, reply } => plan(owner, host, change, reply),
        Call::Rules { service, reply } => {
            let _ = reply.send(owner.rules(service.as_deref()));
        }
        Call::Change(request) => keeper.ask(request),
    }
}

/// Answers what a change would do, or why it would be refused.
fn plan(owner: &Owner<KernelDataplane>, host: &Host, change: Change, reply: oneshot::Sender<Result<Planned, Refused>>) {
    let wanted = owner.wanted_after(&change).ok().filter(|wanted| wanted != host.wanted());
    let check = wanted.map(|wanted| host.check(wanted));
    let planning = match owner.plan(change) {
        Ok(planning) => planning,
        Err(refused) => {
            let _ = reply.send(Err(refused));
            return;
        }
    };
    tokio::spawn(async move {
        if let Some(check) = check
            && let Err(error) = check.await
        {
            let _ = reply.send(Err(Refused::Conflict(format!("nothing was changed: {error:#}"))));
            return;
        }
        // The client table may be large, and nobody else has to wait for it.
        tokio::task::spawn_blocking(move || {
            let _ = reply.send(Ok(planning.finish()));
        });
    });
}

/// Makes a change that is on disk already.
fn make(owner: &mut Owner<KernelDataplane>, joining: &mut Joining, (request, prepared): Ready) {
    let Request { change, uid, reply, .. } = request;
    let name = if let Change::Add { name, .. } = &change { Some(name.clone()) } else { None };
    let before = name.as_ref().map(|name| owner.slots_moved(&name.service));
    let changed = owner.change(change, uid);
    if changed.is_ok() {
        prepared.into_iter().for_each(Prepared::made);
    }
    match (name, before) {
        (Some(name), Some(before)) if changed.is_ok() && owner.waits_for_next_hop(&name) => {
            joining.0.push(Join { name, before, uid, until: Instant::now() + FIRST_NEXT_HOPS, reply });
        }
        _ => {
            let _ = reply.send(changed);
        }
    }
}

/// A backend's clients being forgotten, and who wants to know.
struct ForgettingPass {
    forgetting: Forgetting,
    reply: oneshot::Sender<Result<ForgottenView, Refused>>,
}

/// Goes on with the first pass, by about a millisecond's work.
fn forget_part(owner: &mut Owner<KernelDataplane>, passes: &mut VecDeque<ForgettingPass>) {
    let Some(mut pass) = passes.pop_front() else { return };
    match owner.forget_more(&mut pass.forgetting) {
        Some(view) => {
            let _ = pass.reply.send(Ok(view));
        }
        None => passes.push_front(pass),
    }
}

/// Handles events until each backend's address has had an answer, or it takes too long.
async fn await_next_hops(owner: &mut Owner<KernelDataplane>, events: &mut mpsc::Receiver<Event>) {
    let mut missing: std::collections::HashSet<IpAddr> = owner.addresses().collect();
    let deadline = Instant::now() + FIRST_NEXT_HOPS;
    while !missing.is_empty() {
        match timeout_at(deadline, events.recv()).await {
            Ok(Some(event)) => {
                if let Event::NextHop { address, .. } = &event {
                    missing.remove(address);
                }
                owner.handle(event);
            }
            Ok(None) | Err(_) => {
                warn!("{} next hops are not resolved yet", missing.len());
                break;
            }
        }
    }
}

/// Backends that were added and wait for their next hops. The answer to whoever added one waits with it, so that it says
/// what has come of it.
#[derive(Default)]
struct Joining(Vec<Join>);

struct Join {
    name: BackendName,
    before: (u64, u64),
    uid: Option<u32>,
    until: Instant,
    reply: oneshot::Sender<Result<Changed, Refused>>,
}

impl Joining {
    fn next_deadline(&self) -> Option<Instant> {
        self.0.iter().map(|join| join.until).min()
    }

    /// Answers those whose wait, or whose time, is over.
    fn answer(&mut self, owner: &Owner<KernelDataplane>) {
        let now = Instant::now();
        for join in std::mem::take(&mut self.0) {
            if owner.waits_for_next_hop(&join.name) && now < join.until {
                self.0.push(join);
            } else {
                let _ = join.reply.send(Ok(owner.added(&join.name, join.before, join.uid)));
            }
        }
    }
}

/// The neighbours that the kernel program asks for.
struct NeighbourRing(AsyncFd<RingBuf<MapData>>);

impl NeighbourRing {
    fn new(ring: RingBuf<MapData>) -> anyhow::Result<Self> {
        // SAFETY: the ring buffer owns its descriptor, which stays the same and open for as long as it lives.
        Ok(Self(unsafe { AsyncFd::register(ring) }.context("watching the ring buffer")?))
    }

    async fn next(&mut self) -> Vec<NeighbourWanted> {
        let Ok(mut ready) = self.0.readable_mut().await else { return pending().await };
        let ring = ready.get_inner_mut();
        let mut wanted = Vec::new();
        while let Some(item) = ring.next() {
            wanted.extend(bytemuck::try_pod_read_unaligned::<NeighbourWanted>(&item).ok());
        }
        ready.clear_ready();
        wanted
    }
}
