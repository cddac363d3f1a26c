//! The loop of the task that owns the controller.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    future::{pending, ready},
    marker::PhantomData,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use balancer_checks::agents::Agents;
use balancer_common::{
    map_types::{NeighbourWanted, Sign},
    verdict::Signal,
};
use balancer_config::config::StatisticsConfig;
use balancer_control::io::{BackendId, Event};
use balancer_dataplane::{Devices, KernelDataplane, Layers};
use balancer_fleet::member::Input;
use balancer_listeners::{
    api_server::{self, Answering, ControlSocket},
    statistics::Statistics,
};
use balancer_netlink::neighbours::DefaultHopThread;
use balancer_runtime::{
    events::Events,
    service_manager::ServiceManager,
    shutdown::{ShutdownSignal, Signals},
    supervisor::{Attended, Ended, Endings, Supervisor, Task},
    tasks_by_key::want,
};
use balancer_sources::list_sources::ListSources;
use bytemuck::AnyBitPattern;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::warn;

use super::{
    calls::{Joining, answer, bound, discover, forget_part, make, note, note_load, note_read},
    inbox::{Inbox, Message},
    leaving::Leaving,
};
use crate::{fleet::Fleet, host::Host, owner::Owner, persistence::Persistence, task_call::TaskCalls};

/// The maximum number of events that wait for the controller; at this number, senders wait.
pub(super) const EVENTS: usize = 1024;
/// The maximum interval between two steps of a sweep of the client table.
const SWEEP: Duration = Duration::from_millis(250);
/// The approximate maximum duration of a whole sweep of the client table.
const SWEEP_ALL: Duration = Duration::from_secs(8);
/// The interval at which the owner retries work that has failed.
const UPKEEP: Duration = Duration::from_millis(250);

/// The components of a balancer that serves clients. Rust drops the fields in the order of their declaration.
pub(super) struct Running {
    pub(super) manager: ServiceManager,
    /// The configuration that the owner last passed to the statistics.
    pub(super) settings: StatisticsConfig,
    pub(super) state_file: PathBuf,
    pub(super) persistence: Persistence,
    pub(super) signals: Signals,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) inbox: Inbox,
    pub(super) layers: watch::Receiver<Layers>,
    pub(super) devices: watch::Receiver<Devices>,
    pub(super) wanted: Ring<NeighbourWanted>,
    pub(super) suspects: Ring<Sign>,
    pub(super) history: Events,
    pub(super) reloads: Attended<()>,
    /// The files with deny lists that a task follows.
    pub(super) deny_files: watch::Sender<BTreeSet<PathBuf>>,
    pub(super) denying: Attended<()>,
    pub(super) default_hops: DefaultHopThread,
    pub(super) lists: ListSources,
    /// The agents that a task queries.
    pub(super) agents: watch::Sender<Agents>,
    pub(super) asking: Attended<()>,
    /// The sending end of the channel for tasks that send their results later.
    pub(super) tasks: TaskCalls,
    pub(super) watching: Attended<()>,
    pub(super) finding: Attended<()>,
    pub(super) counting: Option<Attended<()>>,
    pub(super) telling: Option<Attended<()>>,
    pub(super) api: Api,
    pub(super) host: Host,
    pub(super) statistics: Arc<Statistics>,
    pub(super) fleet: Option<Fleet>,
    pub(super) owner: Owner<KernelDataplane>,
    pub(super) endings: Endings,
    pub(super) supervisor: Supervisor,
}

impl Running {
    /// Serves until a signal arrives or an essential task ends.
    pub(super) async fn serve(&mut self) -> End {
        let Self {
            manager,
            settings,
            persistence,
            signals,
            events,
            inbox,
            layers,
            devices,
            wanted,
            suspects,
            host,
            statistics,
            fleet,
            owner,
            deny_files,
            lists,
            agents,
            tasks,
            ..
        } = self;
        let mut keeps = host.wanted().keep;
        let mut joining = Joining::default();
        let mut leaving: Option<Leaving> = None;
        let mut asked = fleet.is_none();
        let mut waiting = Vec::new();
        let mut passes = VecDeque::new();
        let [mut sweep, mut upkeep] = [sweeps(owner.dataplane().sweep_parts()), UPKEEP].map(|every| {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        loop {
            let (deadline, sweeps, rescans) = (owner.next_deadline(), owner.sweeps_at(), owner.rescans_at());
            tokio::select! {
                biased;
                () = manager.keep_alive_due() => manager.keep_alive(),
                signal = signals.next() => {
                    leaving = if leaving.is_none() { Leaving::begin(signal, owner, host, manager) } else { None };
                    if leaving.is_none() {
                        return End::Asked(signal);
                    }
                }
                () = until(leaving.as_ref().map(|leaving| leaving.until)), if leaving.is_some() => {
                    if let Some(leaving) = leaving {
                        return End::Asked(leaving.signal);
                    }
                }
                ended = self.endings.next() => return End::Failed(ended),
                1.. = events.recv_many(&mut waiting, EVENTS) => owner.handle_all(waiting.drain(..)),
                () = until(deadline) => owner.handle(Event::Tick),
                () = until(joining.next_deadline()) => {}
                () = until(persistence.next_deadline()) => {}
                ready = persistence.progress() => {
                    if let Some(ready) = ready {
                        make(owner, &mut joining, ready);
                    }
                    owner.set_unsaved(persistence.trouble());
                }
                input = heard(fleet) => {
                    if let Some(fleet) = fleet {
                        fleet.handle(input, owner);
                    }
                }
                message = inbox.next() => match message {
                    Message::Call(call) => {
                        answer(owner, persistence, fleet.as_mut(), host, &mut passes, statistics, call);
                    }
                    Message::Load(report) => note_load(owner, persistence, fleet.as_mut(), report),
                    Message::Read(read) => note_read(owner, read),
                    Message::Task(call) => note(owner, fleet.as_mut(), call),
                },
                _ = upkeep.tick() => {
                    owner.keep_up();
                    discover(owner, fleet.as_mut(), persistence, tasks);
                    bound(owner, fleet.as_mut(), persistence);
                }
                _ = sweep.tick() => owner.sweep(),
                () = until(sweeps) => owner.sweep(),
                Ok(()) = layers.changed() => owner.dataplane().set_layers(layers.borrow_and_update().clone()),
                present = host.changed() => {
                    owner.set_present(present);
                    if let Some(leaving) = &mut leaving {
                        Leaving::look(leaving, owner);
                    }
                }
                Ok(()) = devices.changed() => {
                    let known = devices.borrow_and_update().clone();
                    if let Err(error) = owner.dataplane().set_devices(&known) {
                        warn!("{error:#}");
                    }
                }
                neighbours = wanted.next() => neighbours.iter().for_each(|neighbour| owner.neighbours().want(neighbour)),
                signs = suspects.next() => signs.iter().for_each(|sign| suspect(owner, *sign)),
                // The branch for remaining client table work is always ready while work remains, so it comes after all
                // other branches.
                () = until(rescans) => owner.rescan(),
                () = ready(()), if owner.has_list_steps() => owner.step_lists(),
                () = ready(()), if !passes.is_empty() => forget_part(owner, &mut passes),
            }
            joining.answer(owner);
            if let Some(fleet) = fleet {
                fleet.look(owner);
                fleet.extend_program(owner, host);
            }
            let asks = fleet.as_ref().is_none_or(|fleet| fleet.leads());
            owner.read_lists(asks);
            let is_changed = owner.take_changed();
            if is_changed || asks != asked {
                asked = asks;
                let wanted = owner.agents(asks);
                owner.forget_agents(&wanted);
                want(agents, wanted);
            }
            if is_changed {
                persistence.note();
                manager.serves(owner.services());
                host.want(owner.wanted());
                owner.tell_lists();
                want(deny_files, owner.deny_files());
                lists.want(owner.wanted_lists());
                owner.tell_readiness();
                if *settings != owner.settings().statistics {
                    *settings = owner.settings().statistics;
                    statistics.set(*settings);
                    owner.dataplane().sample_every(settings.sample_interval);
                }
                if keeps != host.wanted().keep {
                    keeps = host.wanted().keep;
                    statistics.keep(keeps.then_some(&self.state_file), &self.supervisor);
                }
            }
            persistence.advance(owner, host);
        }
    }
}

fn suspect(owner: &mut Owner<KernelDataplane>, sign: Sign) {
    if let Some(signal) = Signal::ALL.get(usize::from(sign.signal)) {
        owner.suspect(BackendId(sign.backend), *signal);
    }
}

/// The reason why the loop has ended.
pub(super) enum End {
    /// A signal has requested the end.
    Asked(ShutdownSignal),
    /// An essential task has ended.
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

/// The server of the control socket. The server runs until this value is dropped.
pub(super) struct Api {
    task: Task<()>,
    /// Tells the server to stop.
    stop: watch::Sender<()>,
}

impl Api {
    pub(super) fn serve(socket: ControlSocket, answering: Answering, supervisor: &Supervisor) -> Self {
        let (stop, mut stopped) = watch::channel(());
        let ended = async move {
            // An error means that the sender was dropped, which also ends the server.
            let _ = stopped.changed().await;
        };
        Self { task: supervisor.spawn("the control socket", api_server::serve(socket, answering, ended)), stop }
    }

    /// Stops accepting requests, and waits until the pending answers are complete.
    pub(super) async fn end(self) {
        let Self { task, stop } = self;
        drop(stop);
        let _ = task.ended().await;
    }
}

/// Waits for the next input from the fleet; waits forever if there is no fleet.
async fn heard(fleet: &mut Option<Fleet>) -> Input {
    match fleet {
        Some(fleet) => fleet.next().await,
        None => pending().await,
    }
}

/// The interval between two steps of a sweep if the client table has `parts` sections.
fn sweeps(parts: usize) -> Duration {
    let parts = u32::try_from(parts).unwrap_or(u32::MAX).max(1);
    SWEEP.min(SWEEP_ALL / parts)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        // A deadline in the past needs no timer, which has a resolution of only one millisecond.
        Some(deadline) if deadline <= Instant::now() => {}
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// A ring buffer that contains reports from the kernel program.
pub(super) struct Ring<T> {
    ring: AsyncFd<RingBuf<MapData>>,
    tells: PhantomData<T>,
}

impl<T: AnyBitPattern> Ring<T> {
    pub(super) fn new(ring: RingBuf<MapData>) -> anyhow::Result<Self> {
        // SAFETY: the ring buffer owns its descriptor, which stays open and unchanged as long as the ring buffer
        // exists.
        let ring = unsafe { AsyncFd::register(ring) }.context("watching the ring buffer")?;
        Ok(Self { ring, tells: PhantomData })
    }

    async fn next(&mut self) -> Vec<T> {
        let Ok(mut ready) = self.ring.readable_mut().await else { return pending().await };
        let ring = ready.get_inner_mut();
        let mut told = Vec::new();
        while let Some(item) = ring.next() {
            told.extend(bytemuck::try_pod_read_unaligned::<T>(&item).ok());
        }
        ready.clear_ready();
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_table_has_parts_then_a_sweep_takes_a_quarter_of_a_second_to_eight_seconds() {
        for (parts, milliseconds) in [(0, 250), (1, 250), (4, 1000), (32, 8000), (64, 8000), (1024, 8000)] {
            let all = sweeps(parts) * u32::try_from(parts.max(1)).unwrap();
            let off = all.abs_diff(Duration::from_millis(milliseconds));
            assert!(off < Duration::from_millis(10), "{parts} parts take {all:?}");
        }
    }
}
