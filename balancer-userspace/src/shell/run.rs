//! `balancer run`: start-up, the loop of the one task that owns the controller, and a clean end.

use std::{future::pending, net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use balancer_common::{
    client::HashKey,
    map_types::{Forwarding, NeighbourWanted},
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};
use tracing::{info, warn};

use crate::{
    api::model::Changed,
    config::model::{Config, OnExit},
    core::{
        controller::Controller,
        io::{BackendName, Change, Event, Refused},
    },
    shell::{
        api_server::{self, ControlSocket},
        call::Call,
        dataplane::{Capacity, KernelDataplane, Pins},
        forwarding::IpForwarding,
        interfaces, metrics,
        neighbours::Neighbours,
        owner::Owner,
        privileges,
        prober::Prober,
        shutdown,
        statistics::Statistics,
    },
    words::counted,
};

/// Events that may wait for the controller; whoever has more to say waits.
const EVENTS: usize = 1024;
/// Requests that may wait for the controller.
const CALLS: usize = 64;
/// How often a part of the client table is swept.
const SWEEP: Duration = Duration::from_millis(250);
/// How long start-up waits for the first answers about next hops, so that the first packet finds its way.
const FIRST_NEXT_HOPS: Duration = Duration::from_millis(1500);

/// Attaches and serves until SIGTERM or SIGINT. Whatever it set up is gone when it returns, also on an error.
///
/// # Errors
/// One line that says what stands in the way.
pub async fn run(config: Config) -> anyhow::Result<()> {
    privileges::check()?;
    let shutdown = shutdown::listen().context("catching signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let interfaces = interfaces::resolve(&config.interfaces).await?;
    let socket = ControlSocket::bind(&config.socket).await?;
    let metrics_listener = match config.metrics_listen {
        Some(listen) => Some(metrics::bind(listen).await?),
        None => None,
    };
    let ifindexes: Vec<u32> = interfaces.iter().map(|interface| interface.ifindex).collect();
    let capacity = Capacity::for_config(&config);
    let mut dataplane = KernelDataplane::load_kept(capacity, &ifindexes, pins(&config)?)?;
    let instance = match dataplane.kept().notes() {
        Some(notes) => {
            info!("going on with the maps that process {} left: its clients, counters and traffic", notes.process);
            notes.instance
        }
        None => random_number()?,
    };
    let inherited = dataplane.kept().notes().map(|notes| notes.host.clone()).unwrap_or_default();
    if config.services.iter().any(|service| !service.remember.is_zero()) {
        let mebibytes = capacity.client_table_bytes() as f64 / f64::from(1 << 20);
        info!("client table for {} known clients: {mebibytes:.1} MiB", capacity.clients);
    }
    let neighbours_wanted = dataplane.take_neighbours_wanted()?;
    let samples = dataplane.take_samples()?;
    dataplane.sample_every(config.statistics.sample_interval);
    let translates = |v4: bool| {
        config.services.iter().any(|service| service.forwarding == Forwarding::Nat && service.address.is_ipv4() == v4)
    };
    let forwarding = IpForwarding::ensure(&interfaces, translates(true), translates(false))?;

    let (events_in, mut events) = mpsc::channel(EVENTS);
    let (calls_in, mut calls) = mpsc::channel(CALLS);
    let key = config.hash_key.map_or_else(random_key, Ok)?;
    let controller = Controller::new(config.clone(), key);
    let mut owner = Owner::new(controller, dataplane, Neighbours::spawn(events_in.clone())?, Prober::new(events_in));
    owner.start()?;
    await_next_hops(&mut owner, &mut events, &config).await;
    for interface in &interfaces {
        let attached = owner.dataplane().attach(&interface.name, interface.ifindex, config.xdp_mode)?;
        let how = if attached.adopted { "replaced the program on" } else { "attached to" };
        info!("{how} {} in {} mode", attached.name, attached.mode());
    }
    let host = inherited.clone().and(forwarding.changes(), owner.dataplane().receive_offload_off());
    owner.dataplane().write_notes(instance, &config.state_file, host)?;
    owner.dataplane().kept().finish(&ifindexes)?;
    let mut wanted = Wanted::new(neighbours_wanted)?;

    let statistics = Arc::new(Statistics::new(config.statistics));
    let watching = tokio::spawn(Arc::clone(&statistics).watch(samples, calls_in.clone()));
    let (stop, stopped) = watch::channel(());
    let ended = |mut stopped: watch::Receiver<()>| async move {
        // An error says that the sender is gone, which is the end as well.
        let _ = stopped.changed().await;
    };
    let api = tokio::spawn(api_server::serve(socket, calls_in.clone(), ended(stopped.clone())));
    let scrapes = metrics_listener.map(|listener| tokio::spawn(metrics::serve(listener, calls_in, ended(stopped))));
    let services = counted(config.services.len(), "service");
    info!("serving {services}, control socket {}", config.socket.display());

    tokio::pin!(shutdown);
    let mut joining = Joining::default();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let signal = loop {
        let deadline = owner.next_deadline();
        tokio::select! {
            biased;
            _ = hangup.recv() => {
                warn!("SIGHUP ignored: the configuration cannot be reloaded yet; change backends with `balancer backend`");
            }
            signal = &mut shutdown => {
                break signal;
            }
            Some(event) = events.recv() => owner.handle(event),
            () = until(deadline) => owner.handle(Event::Tick),
            () = until(joining.next_deadline()) => {}
            Some(call) = calls.recv() => answer(&mut owner, &mut joining, &statistics, call),
            _ = sweep.tick() => owner.sweep(),
            neighbours = wanted.next() => neighbours.iter().for_each(|neighbour| owner.neighbours().want(neighbour)),
        }
        joining.answer(&owner);
    };

    let detached = match config.on_exit {
        OnExit::Detach => {
            info!("{signal}: detaching");
            let detached = owner.dataplane().detach();
            drop(forwarding);
            inherited.put_back();
            detached
        }
        OnExit::Keep => {
            info!("{signal}: leaving; the kernel goes on steering (on_exit = \"keep\")");
            owner.dataplane().leave();
            forwarding.leave();
            Ok(())
        }
    };
    drop(stop);
    drop(calls);
    watching.abort();
    let _ = api.await;
    if let Some(scrapes) = scrapes {
        let _ = scrapes.await;
    }
    detached
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
fn answer(owner: &mut Owner<KernelDataplane>, joining: &mut Joining, statistics: &Arc<Statistics>, call: Call) {
    match call {
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
        Call::Clients { query, reply } => {
            let _ = reply.send(owner.locate(&query));
        }
        Call::Plan { change, service, reply } => match owner.plan(change, &service) {
            Ok(planning) => {
                // The client table may be large, and nobody else has to wait for it.
                tokio::task::spawn_blocking(move || {
                    let _ = reply.send(Ok(planning.finish()));
                });
            }
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        },
        Call::Change { change, uid, reply } => {
            let name = if let Change::Add { name, .. } = &change { Some(name.clone()) } else { None };
            let before = name.as_ref().map(|name| owner.slots_moved(&name.service));
            let changed = owner.change(change, uid);
            match (name, before) {
                (Some(name), Some(before)) if changed.is_ok() && owner.waits_for_next_hop(&name) => {
                    joining.0.push(Join { name, before, until: Instant::now() + FIRST_NEXT_HOPS, reply });
                }
                _ => {
                    let _ = reply.send(changed);
                }
            }
        }
    }
}

/// Handles events until each backend's address has had an answer, or it takes too long.
async fn await_next_hops(owner: &mut Owner<KernelDataplane>, events: &mut mpsc::Receiver<Event>, config: &Config) {
    let mut missing: std::collections::HashSet<IpAddr> =
        config.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address.ip()).collect();
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
                let _ = join.reply.send(Ok(owner.added(&join.name, join.before)));
            }
        }
    }
}

fn random_key() -> anyhow::Result<HashKey> {
    Ok(HashKey { k0: random_number()?, k1: random_number()? })
}

fn random_number() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|error| anyhow::anyhow!("the kernel has no random numbers: {error}"))
}

/// The neighbours that the kernel program asks for.
struct Wanted(AsyncFd<RingBuf<MapData>>);

impl Wanted {
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
