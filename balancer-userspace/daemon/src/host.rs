//! The task that keeps the balancer's changes to its machine and the listeners that may change while they serve.
//!
//! The task repeatedly brings the machine to the wanted state: when the wanted state changes, when the kernel
//! reports a change, after a failure, and periodically. Before the controller makes a configuration change, the task
//! prepares the machine ([`Host::prepare`]); if the preparation fails, the controller refuses the change.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use balancer_api::trace::HopView;
use balancer_common::features::Features;
use balancer_dataplane::{Growth, HostChanges, HostEnds, Larger, NotReplaced, telling::Filter};
use balancer_listeners::{
    api_server::{
        Answering, ControlSocket,
        socket::{self, SocketUsers},
    },
    audit::Audit,
    call::Calls,
    outlets::{Control, Distant, Metrics, Readers, Scrapes, give},
    trace::Trace,
};
use balancer_netlink::machine::{Machine, MachineState, MachineTarget, WantedVip, news::News};
use balancer_runtime::{
    events::Events,
    supervisor::{Supervisor, Task},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use crate::host_state::WantedMachine;

/// The interval at which the task checks the whole state of the machine.
const PERIOD: Duration = Duration::from_secs(10);
/// The delay before the task retries after a failure.
const AGAIN: Duration = Duration::from_secs(1);

impl From<&WantedMachine> for MachineTarget {
    fn from(wanted: &WantedMachine) -> Self {
        // The task applies the other fields of `WantedMachine` only when they change.
        let WantedMachine {
            interfaces,
            mode,
            features,
            v4,
            v6,
            vips,
            whole,
            reserved,
            vip_interfaces: _,
            guarded,
            keep,
            metrics: _,
            group: _,
            readers: _,
            remote: _,
            audit: _,
        } = wanted.clone();
        let first = interfaces.first();
        let vips = vips.into_iter().filter_map(|(on, address)| {
            let announced = on.is_none();
            Some(WantedVip { interface: on.or_else(|| first.cloned())?, address, announced })
        });
        let vips: BTreeSet<WantedVip> = vips.collect();
        let guarded = !keep && (guarded || vips.iter().any(|vip| !vip.announced));
        Self { vips, whole, reserved, interfaces, mode, features, v4, v6, guarded }
    }
}

enum Ask {
    /// Enforce this state from now on.
    Want(WantedMachine),
    /// Prepare this state in addition to the current state, because the caller may set this state soon.
    Prepare(WantedMachine, oneshot::Sender<anyhow::Result<()>>),
    /// Check whether this state could be prepared, as far as the task can check this without changes.
    Check(WantedMachine, oneshot::Sender<anyhow::Result<()>>),
    /// Discard the prepared state, because the caller no longer needs it.
    Cancel,
    /// Make sure that the program has these features.
    Extend(Features, oneshot::Sender<anyhow::Result<()>>),
    /// Load the program with larger maps.
    LoadLarger(Growth, oneshot::Sender<anyhow::Result<Larger>>),
    /// Replace the program by the one with larger maps.
    UseLarger(oneshot::Sender<Result<(), NotReplaced>>),
    /// Start to trace packets.
    Trace(Filter, oneshot::Sender<anyhow::Result<Arc<Trace>>>),
    /// Stop tracing, because the trace has ended.
    TraceEnded,
    End {
        leave: bool,
        done: oneshot::Sender<anyhow::Result<()>>,
    },
}

/// The resources that the task needs.
pub struct Surroundings {
    /// The handles of the data path that this task uses.
    pub ends: HostEnds,
    /// The state file; its path determines the names of pins.
    pub state_file: PathBuf,
    /// The changes that an earlier process made.
    pub inherited: HostChanges,
    /// The history of events, for the task's reports.
    pub events: Events,
    /// The channel to the owner, for requests of the metrics listener.
    pub calls: Calls,
    /// The bound metrics listener, if it is wanted.
    pub metrics: Option<TcpListener>,
    /// The path of the control socket; the socket file already has its group.
    pub socket: PathBuf,
    /// The read-only socket, already bound.
    pub readers: Option<ControlSocket>,
    /// Answers the requests on the control socket and the read-only socket.
    pub answering: Answering,
    /// The supervisor of tasks.
    pub supervisor: Supervisor,
}

/// The running task that manages the machine. The caller must [end](Self::end) the task, because otherwise addresses
/// stay on the machine.
pub struct Host {
    asks: mpsc::UnboundedSender<Ask>,
    wanted: WantedMachine,
    present: watch::Receiver<MachineState>,
    trace: PresentTrace,
    task: Task<()>,
}

/// A preparation of the machine for a change. Dropping the value without calling [`made`](Self::made) undoes the
/// preparation.
#[must_use]
#[derive(Debug)]
pub struct Prepared(Option<mpsc::UnboundedSender<Ask>>);

impl Prepared {
    /// Confirms that the controller has made the change; the caller sets the wanted state next.
    pub fn made(mut self) {
        self.0 = None;
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(asks) = self.0.take() {
            // If the task has already ended, the preparation has been undone.
            let _ = asks.send(Ask::Cancel);
        }
    }
}

/// A handle for checking whether the machine could be prepared for a state.
pub struct Checker {
    asks: mpsc::UnboundedSender<Ask>,
    wanted: WantedMachine,
}

impl Checker {
    /// Checks whether `wanted` could be prepared, as far as the task can check this without changes.
    ///
    /// # Errors
    /// Fails with the problem that would prevent the preparation.
    pub async fn check(self, wanted: WantedMachine) -> anyhow::Result<()> {
        if wanted == self.wanted {
            return Ok(());
        }
        let (reply, done) = oneshot::channel();
        let _ = self.asks.send(Ask::Check(wanted, reply));
        done.await.context("the balancer ends")?
    }
}

impl Host {
    /// Brings the machine to the state `wanted`, and starts the task that maintains this state.
    ///
    /// # Errors
    /// Fails with the problem that prevents the state `wanted`. After a failure, the machine is unchanged, and changes
    /// of an earlier process stay.
    pub async fn start(wanted: WantedMachine, surroundings: Surroundings) -> anyhow::Result<Self> {
        let Surroundings {
            ends,
            state_file,
            inherited,
            events,
            calls,
            metrics,
            socket,
            readers,
            answering,
            supervisor,
        } = surroundings;
        let news = News::open().context("opening a netlink socket")?;
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        tokio::spawn(connection);
        let mut machine = Machine::new(handle, ends, state_file, inherited, events);
        let (asks, asked) = mpsc::unbounded_channel();
        let (told, present) = watch::channel(MachineState::default());
        let trace = PresentTrace::default();
        let tracing = Tracing { present: Arc::clone(&trace), asks: asks.downgrade(), last: 0 };
        let (ready, started) = oneshot::channel::<anyhow::Result<()>>();
        let now = wanted.clone();
        // Attaching the program blocks the thread, and only a task of the runtime may block its thread.
        let watched = supervisor.clone();
        let task = supervisor.spawn("the task for this machine's settings", async move {
            let target = MachineTarget::from(&now);
            let audit = answering.audit().clone();
            audit.keep_in(now.audit.clone());
            let started = async {
                machine.begin(&target).await?;
                machine.take_over()?;
                let scrapes = Scrapes::start(Metrics(calls), now.metrics, metrics, watched.clone()).await?;
                // The control listener is bound in the first round.
                let control = Control(answering.clone());
                anyhow::Ok((scrapes, Distant::start(control, now.remote.clone(), None, watched.clone()).await?))
            };
            match started.await {
                Ok((scrapes, distant)) => {
                    let readers = Readers::start(&socket, now.readers.clone().zip(readers), answering, watched);
                    let mut this = Keeping {
                        machine,
                        scrapes,
                        socket,
                        readers,
                        distant,
                        audit,
                        wanted: now,
                        target,
                        soon: None,
                        well: false,
                        tracing,
                    };
                    this.settle().await;
                    told.send_replace(this.present());
                    let _ = ready.send(Ok(()));
                    this.serve(asked, news, told).await;
                }
                Err(error) => {
                    machine.undo_first().await;
                    let _ = ready.send(Err(error));
                }
            }
            Ok(())
        });
        started.await.context("the task for this machine's settings has ended")??;
        Ok(Self { asks, wanted, present, trace, task })
    }

    /// Waits until the state of the machine changes, and returns the new state.
    pub async fn changed(&mut self) -> MachineState {
        if self.present.changed().await.is_err() {
            std::future::pending().await
        }
        self.present.borrow_and_update().clone()
    }

    /// Returns the current state of the machine.
    #[must_use]
    pub fn present(&mut self) -> MachineState {
        self.present.borrow_and_update().clone()
    }

    /// Returns the state that the machine should have.
    #[must_use]
    pub const fn wanted(&self) -> &WantedMachine {
        &self.wanted
    }

    /// Sets the wanted state.
    pub fn want(&mut self, wanted: WantedMachine) {
        if self.wanted != wanted {
            self.wanted = wanted.clone();
            // Sending fails only while the process ends.
            let _ = self.asks.send(Ask::Want(wanted));
        }
    }

    /// Prepares the machine for the state `wanted` in addition to the current state.
    ///
    /// # Errors
    /// Fails with the problem that prevents the preparation. After a failure, the machine is unchanged.
    pub fn prepare(&self, wanted: WantedMachine) -> impl Future<Output = anyhow::Result<Prepared>> + Send + 'static {
        let asks = self.asks.clone();
        async move {
            let (reply, done) = oneshot::channel();
            let _ = asks.send(Ask::Prepare(wanted, reply));
            done.await.context("the balancer ends")??;
            Ok(Prepared(Some(asks)))
        }
    }

    /// Makes sure that the program has `features`.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program with these features; the present program then stays attached.
    pub fn extend(&self, features: Features) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let asks = self.asks.clone();
        async move {
            let (reply, done) = oneshot::channel();
            let _ = asks.send(Ask::Extend(features, reply));
            done.await.context("the balancer ends")?
        }
    }

    /// Loads the program with larger maps beside the present program.
    ///
    /// # Errors
    /// Fails if the kernel refuses a map or a program.
    pub fn load_larger(&self, growth: Growth) -> impl Future<Output = anyhow::Result<Larger>> + Send + 'static {
        let asks = self.asks.clone();
        async move {
            let (reply, done) = oneshot::channel();
            let _ = asks.send(Ask::LoadLarger(growth, reply));
            done.await.context("the balancer ends")?
        }
    }

    /// Replaces the program by the one with larger maps, while the caller writes to the present and to the larger maps.
    ///
    /// # Errors
    /// Fails if the kernel refuses the replacement.
    pub fn use_larger(&self) -> impl Future<Output = Result<(), NotReplaced>> + Send + 'static {
        let asks = self.asks.clone();
        async move {
            let (reply, done) = oneshot::channel();
            let _ = asks.send(Ask::UseLarger(reply));
            done.await.unwrap_or_else(|_| Err(NotReplaced::ends()))
        }
    }

    /// Starts a trace, which lasts as long as a client polls for the trace's packets. The counters of the backends in
    /// `hops` show to which backend each packet went.
    ///
    /// # Errors
    /// Fails if another trace is running, or if a system call fails.
    pub fn trace(
        &self,
        filter: Filter,
        hops: Vec<HopView>,
        uid: Option<u32>,
    ) -> impl Future<Output = anyhow::Result<Arc<Trace>>> + Send + 'static {
        let asks = self.asks.clone();
        async move {
            let whose = filter.client.map_or_else(|| "all clients".to_owned(), |client| client.to_string());
            let (reply, done) = oneshot::channel();
            let _ = asks.send(Ask::Trace(filter, reply));
            let trace = done.await.context("the balancer ends")??;
            trace.watch(&hops);
            let by = uid.map(|uid| format!(" (uid {uid})")).unwrap_or_default();
            info!("packets of {whose} are traced: trace {}{by}", trace.number);
            Ok(trace)
        }
    }

    /// Returns the trace with the number `number` if that trace is running.
    #[must_use]
    pub fn traced(&self, number: u64) -> Option<Arc<Trace>> {
        let present = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        present.clone().filter(|trace| trace.number == number && !trace.has_ended())
    }

    /// Returns a handle for checking whether the machine could be prepared for a change.
    pub fn checker(&self) -> Checker {
        Checker { asks: self.asks.clone(), wanted: self.wanted.clone() }
    }

    /// Ends the task that manages the machine. The task undoes all changes to the machine, unless `leave` keeps them
    /// for the next controller.
    ///
    /// # Errors
    /// Fails with the first interface from which the task could not detach the program.
    pub async fn end(self, leave: bool) -> anyhow::Result<()> {
        let (done, ended) = oneshot::channel();
        self.task.release();
        let _ = self.asks.send(Ask::End { leave, done });
        let ended = ended.await.context("the task for this machine's settings has ended")?;
        let _ = self.task.ended().await;
        ended
    }
}

/// The running trace, if there is one.
type PresentTrace = Arc<Mutex<Option<Arc<Trace>>>>;

/// Starts and ends traces.
struct Tracing {
    present: PresentTrace,
    asks: mpsc::WeakUnboundedSender<Ask>,
    /// The number of the last trace.
    last: u64,
}

impl Tracing {
    fn begin(&mut self, machine: &mut Machine, filter: &Filter) -> anyhow::Result<Arc<Trace>> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trace) = &*present {
            bail!("trace {} is running, and only one can run at a time: try again when it has ended", trace.number);
        }
        self.last += 1;
        let prepared = machine.trace(filter)?;
        let asks = self.asks.clone();
        let gone = move || {
            // The receiver of requests no longer exists when the process ends.
            if let Some(asks) = asks.upgrade() {
                let _ = asks.send(Ask::TraceEnded);
            }
        };
        let trace = Trace::begin(self.last, prepared, gone).inspect_err(|_| machine.trace_no_more())?;
        Ok(Arc::clone(present.insert(trace)))
    }

    fn end(&self, machine: &mut Machine) {
        machine.trace_no_more();
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The state of the task that keeps the machine in the wanted state.
struct Keeping {
    machine: Machine,
    scrapes: Scrapes,
    /// The path of the control socket.
    socket: PathBuf,
    readers: Readers,
    distant: Distant,
    audit: Audit,
    wanted: WantedMachine,
    target: MachineTarget,
    /// The wanted state of a prepared change, and the target for that state.
    soon: Option<(WantedMachine, MachineTarget)>,
    /// Whether the machine has the wanted state.
    well: bool,
    tracing: Tracing,
}

impl Keeping {
    async fn serve(
        mut self,
        mut asked: mpsc::UnboundedReceiver<Ask>,
        mut news: News,
        told: watch::Sender<MachineState>,
    ) {
        let mut looked = Instant::now();
        let mut audited = self.audit.trouble();
        loop {
            let next = looked + if self.well { PERIOD } else { AGAIN };
            let ask = tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => Some(ask),
                    None => return,
                },
                () = news.next() => None,
                Ok(()) = audited.changed() => None,
                () = sleep_until(next) => None,
            };
            match ask {
                Some(Ask::Want(wanted)) => self.make(wanted).await,
                Some(Ask::Prepare(wanted, reply)) => {
                    let prepared = self.prepare(&wanted).await;
                    told.send_replace(self.present());
                    let _ = reply.send(prepared);
                    continue;
                }
                Some(Ask::Check(wanted, reply)) => {
                    let _ = reply.send(self.check(&wanted).await);
                    continue;
                }
                Some(Ask::Cancel) => self.cancel().await,
                Some(Ask::Extend(features, reply)) => {
                    let _ = reply.send(self.machine.extend_program(features));
                    continue;
                }
                Some(Ask::LoadLarger(growth, reply)) => {
                    let _ = reply.send(self.machine.load_larger(growth));
                    continue;
                }
                Some(Ask::UseLarger(reply)) => {
                    let _ = reply.send(self.machine.use_larger());
                    continue;
                }
                Some(Ask::Trace(filter, reply)) => {
                    let _ = reply.send(self.tracing.begin(&mut self.machine, &filter));
                    continue;
                }
                Some(Ask::TraceEnded) => {
                    self.tracing.end(&mut self.machine);
                    continue;
                }
                Some(Ask::End { leave, done }) => {
                    let _ = done.send(self.end(leave).await);
                    return;
                }
                None => {}
            }
            looked = Instant::now();
            self.settle().await;
            told.send_if_modified(|present| {
                let now = self.present();
                let changed = *present != now;
                *present = now;
                changed
            });
        }
    }

    async fn settle(&mut self) {
        let target = self.soon.as_ref().map_or(&self.target, |(_, both)| both);
        let machine = self.machine.settle(target).await;
        let listeners = [self.scrapes.retry().await, self.distant.retry().await];
        self.well = machine && listeners == [true; 2];
    }

    /// Returns the state of the machine and of the listeners as of the last round.
    fn present(&self) -> MachineState {
        let mut present = self.machine.present();
        let troubles = [self.scrapes.trouble(), self.distant.trouble()];
        present.troubles.extend(troubles.into_iter().flatten().map(str::to_owned));
        present.troubles.extend(self.audit.trouble().borrow().clone());
        present
    }

    /// Prepares the machine for the state `wanted` in addition to the current state; if this fails, the machine is
    /// unchanged.
    async fn prepare(&mut self, wanted: &WantedMachine) -> anyhow::Result<()> {
        let target = MachineTarget::from(wanted);
        let (must, vip_interfaces) = self.new_interfaces(wanted);
        let both = target.and(&self.target);
        self.soon = Some((wanted.clone(), both.clone()));
        let prepared = async {
            self.machine.check(&must, &vip_interfaces).await?;
            self.scrapes.prepare(&wanted.metrics).await?;
            self.distant.prepare(&wanted.remote).await?;
            if wanted.keep && !self.wanted.keep {
                self.machine.pin()?;
            }
            self.readers.prepare(wanted.readers.as_deref()).await?;
            if wanted.group != self.wanted.group {
                give(&self.socket, wanted.group.as_deref(), SocketUsers::Changers).await?;
            }
            self.machine.extend(&both, &must, self.target.mode).await
        };
        let prepared = prepared.await;
        if prepared.is_err() {
            self.cancel().await;
            self.settle().await;
        }
        prepared
    }

    async fn check(&self, wanted: &WantedMachine) -> anyhow::Result<()> {
        let (interfaces, vip_interfaces) = self.new_interfaces(wanted);
        self.machine.check(&interfaces, &vip_interfaces).await?;
        self.scrapes.check(&wanted.metrics).await?;
        self.distant.check(&wanted.remote).await?;
        let (group, readers) = (wanted.group.clone(), wanted.readers.clone());
        let find = move || {
            socket::find(group.as_deref(), SocketUsers::Changers)?;
            socket::find(readers.as_deref(), SocketUsers::Readers).map(drop)
        };
        spawn_blocking(find).await?
    }

    /// The interfaces to which the task would attach the program, and the interfaces that may get VIPs.
    fn new_interfaces(&self, wanted: &WantedMachine) -> (Vec<String>, BTreeSet<String>) {
        let interfaces = wanted.interfaces.iter().filter(|name| !self.target.interfaces.contains(name)).cloned();
        (interfaces.collect(), &wanted.vip_interfaces - &self.wanted.vip_interfaces)
    }

    /// Completes a prepared change.
    async fn make(&mut self, wanted: WantedMachine) {
        self.soon = None;
        self.machine.keep_modes();
        self.scrapes.make().await;
        self.distant.make().await;
        self.readers.make();
        if wanted.keep != self.wanted.keep {
            self.machine.keep(wanted.keep);
        }
        if wanted.audit != self.wanted.audit {
            self.audit.keep_in(wanted.audit.clone());
        }
        self.target = MachineTarget::from(&wanted);
        self.wanted = wanted;
    }

    /// Cancels a prepared change.
    async fn cancel(&mut self) {
        let Some((wanted, _)) = self.soon.take() else { return };
        self.machine.undo_modes();
        self.scrapes.undo().await;
        self.machine.undo_pins();
        self.distant.undo().await;
        self.readers.undo().await;
        if wanted.group != self.wanted.group
            && let Err(error) = give(&self.socket, self.wanted.group.as_deref(), SocketUsers::Changers).await
        {
            warn!("{error:#}");
        }
    }

    async fn end(self, leave: bool) -> anyhow::Result<()> {
        let machine = async {
            if leave {
                self.machine.leave();
                Ok(())
            } else {
                self.machine.detach().await
            }
        };
        tokio::join!(machine, self.scrapes.end(), self.distant.end(), self.readers.end()).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balancer_config::config::XdpMode;
    use balancer_listeners::outlets::MetricsSettings;

    fn wanted(interfaces: &[&str], v4: bool, v6: bool, vips: &[&str]) -> WantedMachine {
        WantedMachine {
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            mode: XdpMode::Auto,
            features: if v6 { Features::V6 } else { Features::V4 },
            v4,
            v6,
            vips: vips
                .iter()
                .map(|vip| match vip.split_once(' ') {
                    Some((interface, vip)) => (Some(interface.to_owned()), vip.parse().unwrap()),
                    None => (None, vip.parse().unwrap()),
                })
                .collect(),
            whole: BTreeSet::new(),
            reserved: BTreeSet::new(),
            vip_interfaces: BTreeSet::new(),
            guarded: false,
            keep: false,
            metrics: MetricsSettings { at: None, page: false },
            group: None,
            readers: None,
            remote: None,
            audit: None,
        }
    }

    #[test]
    fn when_two_targets_are_joined_then_neither_loses_anything() {
        let old = MachineTarget::from(&wanted(&["a", "b"], true, false, &["192.0.2.1"]));
        let new = MachineTarget {
            mode: XdpMode::Native,
            ..MachineTarget::from(&wanted(&["b", "c"], false, true, &["192.0.2.1", "192.0.2.2", "lo 192.0.2.3"]))
        };
        let both = new.and(&old);
        assert_eq!(both.interfaces, ["b", "c", "a"]);
        assert_eq!((both.mode, both.v4, both.v6, both.guarded), (XdpMode::Native, true, true, true));
        assert_eq!(both.features, Features::V4 | Features::V6);
        let vips: Vec<String> = both
            .vips
            .iter()
            .map(|WantedVip { interface, address, announced }| format!("{interface} {address} {announced}"))
            .collect();
        assert_eq!(vips, ["a 192.0.2.1 true", "b 192.0.2.1 true", "b 192.0.2.2 true", "lo 192.0.2.3 false"]);
        assert!(MachineTarget::from(&wanted(&[], true, true, &["192.0.2.1"])).vips.is_empty());
    }
}
