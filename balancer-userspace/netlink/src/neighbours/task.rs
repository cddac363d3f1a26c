//! The task that owns the netlink sockets and passes the kernel's data to the tracker.

use std::{
    collections::{BTreeSet, HashMap},
    future, io,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use balancer_common::map_types::DEVICE_TAKES_NO_FRAMES;
use balancer_control::io::Event;
use balancer_dataplane::{Devices, Layers};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    NearAsked, Wishes,
    devices::devices,
    monitor::{LostNotifications, Monitor},
    netlink::Netlink,
    path_errors::{PathErrors, Tunnels},
    resolve::NeighbourKey,
    tracker::{Tracker, Update},
};
use crate::{
    layers,
    xdp_features::{self, Changes},
};

/// The interval at which the task rereads links, neighbours and some routes, in case a notification was lost, and makes
/// the kernel confirm unconfirmed neighbours.
const RESYNC: Duration = Duration::from_secs(10);
/// The interval at which the task searches the routes for gateways, which may take long with many routes.
const GATEWAYS: Duration = Duration::from_secs(60);
/// The maximum number of addresses in an answer about the links of interfaces.
const NEAR: usize = 1000;
/// The delay before the task rereads everything after a failure.
const RECOVERY: Duration = Duration::from_secs(1);

/// The channels on which the task publishes findings about this machine's devices.
pub(super) struct DeviceChannels {
    pub(super) layers: watch::Sender<Layers>,
    pub(super) devices: watch::Sender<Devices>,
}

/// The requests of callers to the task.
pub(super) struct WantedBy {
    pub(super) wishes: Arc<Wishes>,
    pub(super) wanted: mpsc::Receiver<NeighbourKey>,
    pub(super) near: mpsc::Receiver<NearAsked>,
    pub(super) tunnels: watch::Receiver<Tunnels>,
}

pub(super) struct Task {
    callers: WantedBy,
    events: mpsc::Sender<Event>,
    told: DeviceChannels,
    /// The interfaces that accept no frames from XDP, as last reported; the kernel sends packets to the backends behind
    /// these interfaces.
    by_kernel: BTreeSet<u32>,
    netlink: Netlink,
    /// The socket for the kernel's notifications; `None` if the socket broke and has not been reopened yet.
    monitor: Option<Monitor>,
    /// The notifications of changed XDP features; also `None` if the kernel sends no such notifications.
    changes: Option<Changes>,
    path_errors: PathErrors,
    tracker: Tracker,
    limiter: Limiter,
    resync_at: Instant,
    /// Whether the task may have missed changes since it last read all tables.
    missed: bool,
    gateways_at: Instant,
}

impl Task {
    pub(super) fn new(callers: WantedBy, events: mpsc::Sender<Event>, told: DeviceChannels) -> anyhow::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            callers,
            events,
            told,
            by_kernel: BTreeSet::new(),
            netlink: Netlink::connect()?,
            monitor: Some(Monitor::open().context("opening a netlink socket")?),
            changes: Changes::open(),
            path_errors: PathErrors::default(),
            tracker: Tracker::default(),
            limiter: Limiter::new(now),
            resync_at: now,
            missed: true,
            gateways_at: now,
        })
    }

    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        loop {
            if Instant::now() >= self.resync_at {
                self.resync().await;
            }
            self.take_wishes();
            if self.tracker.is_due(Instant::now())
                && let Err(error) = self.evaluate().await
            {
                self.recover(&error);
            }
            let wake = self.tracker.deadline().map_or(self.resync_at, |deadline| deadline.min(self.resync_at));
            tokio::select! {
                () = self.callers.wishes.changed.notified() => {}
                Some(key) = self.callers.wanted.recv() => self.ask_for_client(key).await,
                Some(NearAsked { ifindexes, reply }) = self.callers.near.recv() => {
                    let _ = reply.send(self.tracker.near(&ifindexes, NEAR));
                }
                Ok(()) = self.callers.tunnels.changed() => self.listen_for_path_errors(),
                refused = self.path_errors.next() => {
                    let now = Instant::now();
                    refused.into_iter().for_each(|address| self.tracker.apply(Update::PathError(address), now));
                }
                updates = next(&mut self.monitor) => self.hear(updates),
                heard = changed(&mut self.changes) => match heard {
                    Ok(()) => {
                        self.tell_devices();
                        self.tell_of_devices();
                    }
                    Err(_) => self.changes = None,
                },
                permit = events.reserve(), if self.tracker.has_news() => match permit {
                    Ok(permit) => if let Some(event) = self.tracker.next_news() {
                        permit.send(event);
                    },
                    Err(_) => return,
                },
                () = events.closed() => return,
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn take_wishes(&mut self) {
        let now = Instant::now();
        for (address, watched) in self.callers.wishes.take() {
            if watched {
                self.tracker.watch(address, now);
            } else {
                self.tracker.unwatch(address);
            }
        }
    }

    fn listen_for_path_errors(&mut self) {
        let tunnels = *self.callers.tunnels.borrow_and_update();
        if let Err(error) = self.path_errors.listen(tunnels) {
            tracing::warn!(
                "cannot receive ICMP errors about tunnel packets ({error}; CAP_NET_RAW is needed): if a path has a \
                 smaller MTU than the interface, set it with `ip route … mtu`"
            );
        }
    }

    fn hear(&mut self, updates: Result<Vec<Update>, LostNotifications>) {
        let now = Instant::now();
        match updates {
            Ok(updates) => {
                for update in updates {
                    if matches!(&update, Update::Routes(Some(prefix)) if prefix.prefix_len() == 0) {
                        // The default gateway may have changed, so the task searches for gateways now.
                        self.gateways_at = now;
                        self.resync_at = self.resync_at.min(now + RECOVERY);
                    }
                    self.tracker.apply(update, now);
                }
                if self.tell_layers() {
                    self.tell_devices();
                }
            }
            Err(lost) => {
                tracing::debug!("netlink: {lost}");
                self.missed = true;
                if matches!(lost, LostNotifications::Broken(_)) {
                    self.monitor = None;
                }
                self.resync_at = self.resync_at.min(now + RECOVERY);
            }
        }
    }

    /// Rereads the tables, and asks the kernel to confirm unconfirmed neighbours.
    async fn resync(&mut self) {
        self.resync_at = Instant::now() + RESYNC;
        if self.monitor.is_none() {
            self.missed = true;
            self.monitor = Monitor::open().ok();
        }
        if self.changes.is_none() {
            self.changes = Changes::open();
        }
        match self.read_tables().await {
            Ok(()) => {
                for key in self.tracker.unconfirmed() {
                    self.ask(key).await;
                }
            }
            Err(error) => self.recover(&error),
        }
    }

    async fn read_tables(&mut self) -> anyhow::Result<()> {
        let links = self.netlink.links().await?;
        let neighbours = self.netlink.neighbours().await?;
        let now = Instant::now();
        if now >= self.gateways_at {
            self.tracker.set_gateways(self.netlink.gateways().await?);
            self.gateways_at = now + GATEWAYS;
        }
        self.tracker.resync(links, neighbours, std::mem::take(&mut self.missed), Instant::now());
        self.tell_layers();
        // The task may also have missed a change of devices.
        self.tell_devices();
        Ok(())
    }

    /// Publishes this machine's links if they have changed. The function returns whether links have changed.
    fn tell_layers(&mut self) -> bool {
        let changed = self.tracker.take_links_changed();
        if changed {
            tell(&self.told.layers, layers::of(self.tracker.links()));
        }
        changed
    }

    fn tell_devices(&self) {
        tell(&self.told.devices, devices(self.tracker.links(), said().as_ref()));
    }

    /// Reports when XDP can no longer send to an interface with backends behind it, and when XDP can send to the
    /// interface again.
    fn tell_of_devices(&mut self) {
        let devices = self.told.devices.borrow();
        let takes_none = |ifindex: &u32| devices.get(ifindex).is_some_and(|flags| flags & DEVICE_TAKES_NO_FRAMES != 0);
        let (by_kernel, by_xdp): (BTreeSet<u32>, BTreeSet<u32>) =
            self.tracker.egresses().into_iter().partition(takes_none);
        drop(devices);
        for link in self.tracker.links() {
            let kind = link.kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
            if by_kernel.contains(&link.ifindex) && !self.by_kernel.contains(&link.ifindex) {
                tracing::info!(
                    "{}{kind} takes no frames from XDP: the kernel sends packets that arrive by another interface and \
                     leave by it",
                    link.name
                );
            } else if by_xdp.contains(&link.ifindex) && self.by_kernel.contains(&link.ifindex) {
                tracing::info!("{}{kind} takes frames from XDP now", link.name);
            }
        }
        self.by_kernel = by_kernel;
    }

    async fn evaluate(&mut self) -> anyhow::Result<()> {
        for address in self.tracker.stale_routes() {
            let route = self.netlink.route(address).await?;
            self.tracker.set_route(address, route);
        }
        for key in self.tracker.evaluate(Instant::now()) {
            self.ask(key).await;
        }
        self.tell_of_devices();
        Ok(())
    }

    async fn ask(&self, key: NeighbourKey) {
        if let Err(error) = self.netlink.ask(key).await {
            tracing::debug!("netlink: {error:#}");
        }
    }

    async fn ask_for_client(&mut self, key: NeighbourKey) {
        if self.tracker.is_unknown(key) && self.limiter.admits(key, Instant::now()) {
            self.ask(key).await;
        }
    }

    /// Starts again with a new netlink connection, after a pause.
    fn recover(&mut self, error: &anyhow::Error) {
        tracing::warn!("next hops may be out of date: {error:#}; trying again in {RECOVERY:?}");
        let at = Instant::now() + RECOVERY;
        self.tracker.postpone(at);
        self.resync_at = at;
        self.missed = true;
        if let Ok(netlink) = Netlink::connect() {
            self.netlink = netlink;
        }
    }
}

/// Publishes a value on the channel if the value has changed.
fn tell<T: PartialEq>(to: &watch::Sender<T>, what: T) {
    to.send_if_modified(|told| {
        let changed = *told != what;
        *told = what;
        changed
    });
}

/// The XDP features of interfaces; `None` if this kernel does not report them.
fn said() -> Option<HashMap<u32, u64>> {
    xdp_features::of_interfaces().map_err(|error| tracing::debug!("XDP features of interfaces: {error}")).ok()
}

async fn changed(changes: &mut Option<Changes>) -> io::Result<()> {
    match changes {
        Some(changes) => changes.next().await,
        None => future::pending().await,
    }
}

async fn next(monitor: &mut Option<Monitor>) -> Result<Vec<Update>, LostNotifications> {
    match monitor {
        Some(monitor) => monitor.next().await,
        None => future::pending().await,
    }
}

/// Limits the neighbour queries that clients can cause, with a token bucket for all queries and a pause for each
/// neighbour.
#[derive(Debug)]
struct Limiter {
    tokens: f64,
    filled: Instant,
    recent: HashMap<NeighbourKey, Instant>,
}

impl Limiter {
    const PER_SECOND: f64 = 100.0;
    const PAUSE: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { tokens: Self::PER_SECOND, filled: now, recent: HashMap::new() }
    }

    fn admits(&mut self, key: NeighbourKey, now: Instant) -> bool {
        let earned = now.duration_since(self.filled).as_secs_f64() * Self::PER_SECOND;
        self.tokens = (self.tokens + earned).min(Self::PER_SECOND);
        self.filled = now;
        // The number of tokens that the bucket gets during a pause limits the size of this set.
        self.recent.retain(|_, &mut asked| now.duration_since(asked) < Self::PAUSE);
        if self.tokens < 1.0 || self.recent.contains_key(&key) {
            return false;
        }
        self.tokens -= 1.0;
        self.recent.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn key(last: u8) -> NeighbourKey {
        NeighbourKey { ifindex: 2, address: IpAddr::from([10, 0, 0, last]) }
    }

    #[test]
    fn when_a_neighbour_is_wanted_often_then_it_is_asked_for_once_a_second() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        assert!(limiter.admits(key(1), now));
        assert!(!limiter.admits(key(1), now + Duration::from_millis(999)));
        assert!(limiter.admits(key(1), now + Limiter::PAUSE));
    }

    #[test]
    fn when_many_neighbours_are_wanted_then_requests_are_bounded() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        let admitted = (0..=255).filter(|&last| limiter.admits(key(last), now)).count();
        assert_eq!(admitted, 100);
        let later = now + Duration::from_millis(500);
        let admitted = (0..=255).filter(|&last| limiter.admits(key(last), later)).count();
        assert_eq!(admitted, 50);
        assert!(limiter.recent.len() <= 200);
    }
}
