//! Publishes the default next hops, by which the kernel program sends replies without asking the kernel.
//!
//! A thread of its own follows the kernel's notifications, so that no other work delays the withdrawal of a next hop.
//! The thread withdraws a published next hop when a notification touches what the next hop rests on, reads the kernel's
//! tables again a moment later, and publishes the next hop that these tables say. Every [`RENEWAL`], the thread renews
//! the published next hops for [`LIFETIME`], if it has read all notifications. The kernel program uses no next hop that
//! is not renewed, so a controller that hangs or is killed cannot mislead replies for longer.

mod basis;
mod messages;
mod tables;

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use balancer_config::listeners::Family;
use balancer_control::default_hop::{DefaultHop, Obstacle};
use balancer_dataplane::{DefaultHops, coarse_now};
use balancer_runtime::supervisor::{Supervisor, Thread};
use bytes::BytesMut;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use self::basis::Basis;
use super::{monitor, tracker::Update};
use crate::interfaces::{self, Link};

/// The time for which a published next hop is valid. If the controller hangs, replies follow a change of routes after at
/// most this time, which is four times as long as the program caches a next hop.
const LIFETIME: Duration = Duration::from_millis(64);
/// The interval at which the thread renews next hops: three of four renewals may be late or missing.
const RENEWAL: Duration = Duration::from_millis(16);
/// The time between the withdrawal of a next hop and the next reading of the tables, so that several changes need one
/// reading, and no packet uses the former next hop any more.
const PAUSE: Duration = Duration::from_millis(20);
/// The time between two readings is at least this multiple of the time that a reading takes.
const SPARING: u32 = 20;
/// The interval at which the thread reads the tables without a notification, because the kernel announces neither the
/// end of a route's lifetime nor every setting of an interface.
const AGAIN: Duration = Duration::from_secs(10);
/// The time between a failed reading and the next.
const RECOVERY: Duration = Duration::from_secs(1);
/// The interval at which the thread looks whether it is needed.
const IDLE: Duration = Duration::from_millis(250);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

const fn number_of(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The published next hops, IPv4 and IPv6.
pub type PublishedHops = [Option<DefaultHop>; 2];

/// The thread that publishes default next hops; the thread ends when this value is dropped.
#[derive(Debug)]
pub struct DefaultHopThread {
    stop: Arc<AtomicBool>,
    thread: Thread,
    published: watch::Receiver<PublishedHops>,
}

impl Drop for DefaultHopThread {
    fn drop(&mut self) {
        self.thread.release();
        self.stop.store(true, Ordering::Release);
    }
}

impl DefaultHopThread {
    /// Starts the thread in the calling thread's network namespace.
    ///
    /// # Errors
    /// Fails if a netlink socket cannot be opened, or if the system allows no more threads.
    pub fn spawn(hops: DefaultHops, supervisor: &Supervisor) -> anyhow::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (told, published) = watch::channel(PublishedHops::default());
        let follower = Follower {
            hops,
            monitor: Some(open().context("opening a netlink socket")?),
            buffer: BytesMut::new(),
            links: HashMap::new(),
            states: FAMILIES.map(State::new),
            read_at: None,
            spared: Duration::ZERO,
            told,
            stop: Arc::clone(&stop),
        };
        let thread = supervisor.thread("the following of default routes", move || follower.run())?;
        Ok(Self { stop, thread, published })
    }

    /// The next hops that the kernel program uses.
    #[must_use]
    pub fn published(&self) -> PublishedHops {
        self.published.borrow().clone()
    }
}

/// The state of one family.
struct State {
    basis: Basis,
    published: Option<DefaultHop>,
    obstacle: Option<Obstacle>,
    /// Whether a notification has touched the basis since the last reading.
    touched: bool,
}

impl State {
    const fn new(family: Family) -> Self {
        Self { basis: Basis::nothing(family), published: None, obstacle: None, touched: false }
    }

    /// Notes why the kernel is asked for each packet, and logs a new reason.
    fn note(&mut self, obstacle: Option<Obstacle>) {
        if let Some(obstacle) = obstacle.filter(|_| self.obstacle != obstacle) {
            let family = self.basis.family().word();
            tracing::debug!("each {family} reply takes a route lookup in the kernel: {obstacle}");
        }
        self.obstacle = obstacle;
    }
}

struct Follower {
    hops: DefaultHops,
    /// The socket for the kernel's notifications; `None` if the socket broke and has not been reopened yet.
    monitor: Option<Socket>,
    buffer: BytesMut,
    /// The links as last read.
    links: HashMap<u32, Link>,
    states: [State; 2],
    /// The time of the next reading; `None` while no next hop is needed.
    read_at: Option<Duration>,
    /// The earliest time of the next reading, so that readings take little of the processor's time.
    spared: Duration,
    told: watch::Sender<PublishedHops>,
    stop: Arc<AtomicBool>,
}

impl Follower {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            self.wait();
            // What the kernel has changed before this time is in the tables or in the notifications.
            let now = coarse_now().unwrap_or_default();
            self.hear(now);
            if !self.hops.are_needed() {
                self.withdraw_all();
                self.read_at = None;
            } else if now >= *self.read_at.get_or_insert(now + PAUSE) {
                self.read(now);
            } else {
                self.renew(now);
            }
            self.tell();
        }
        self.withdraw_all();
        self.tell();
    }

    /// Waits until a notification arrives, a renewal is due or the tables are to be read.
    fn wait(&self) {
        let renewal = self.states.iter().any(|state| state.published.is_some()).then_some(RENEWAL);
        let now = coarse_now().unwrap_or_default();
        let reading = self.read_at.map(|at| at.saturating_sub(now).max(Duration::from_millis(1)));
        let time = [renewal, reading].into_iter().flatten().fold(IDLE, Duration::min);
        let mut sockets: Vec<_> =
            self.monitor.iter().map(|monitor| PollFd::new(monitor.as_fd(), PollFlags::POLLIN)).collect();
        // A failed wait ends early, which does no harm.
        let _ = poll(&mut sockets, PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO));
    }

    /// Reads all waiting notifications, and withdraws the next hops that they touch.
    fn hear(&mut self, now: Duration) {
        while let Some(monitor) = &self.monitor {
            self.buffer.clear();
            self.buffer.reserve(monitor::DATAGRAM);
            match monitor.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {
                    for update in monitor::updates(&mut self.buffer) {
                        self.apply(&update, now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!("default next hops: reading the netlink socket: {error}");
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        self.monitor = None;
                    }
                    self.apply(&Update::Routes(None), now);
                }
            }
        }
        // Without notifications, no next hop is valid.
        self.apply(&Update::Routes(None), now);
    }

    fn apply(&mut self, update: &Update, now: Duration) {
        for number in 0..self.states.len() {
            let State { basis, obstacle, .. } = &self.states[number];
            if basis.is_touched(update, &self.links) {
                // With very many routes, routes change all the time, and a reading takes long.
                let is_crowded = *obstacle == Some(Obstacle::TooManyRoutes);
                self.withdraw(number);
                self.states[number].touched = true;
                let soon = self.spared.max(now + PAUSE);
                self.read_at = self.read_at.map(|at| if is_crowded { at } else { at.min(soon) });
            }
        }
    }

    fn withdraw(&mut self, number: usize) {
        let state = &mut self.states[number];
        state.published = None;
        self.hops.withdraw(state.basis.family());
    }

    fn withdraw_all(&mut self) {
        (0..self.states.len()).for_each(|number| self.withdraw(number));
    }

    fn renew(&self, now: Duration) {
        for state in self.states.iter().filter(|state| state.published.is_some()) {
            self.hops.renew(state.basis.family(), now + LIFETIME);
        }
    }

    /// Reads the kernel's tables, and publishes or withdraws next hops.
    fn read(&mut self, begun: Duration) {
        if self.monitor.is_none() {
            self.monitor = open().ok();
        }
        let found = tables::read();
        // What the kernel has changed before this time is in the tables or in the notifications.
        let now = coarse_now().unwrap_or(begun);
        self.spared = now + (now.saturating_sub(begun) * SPARING).max(PAUSE);
        self.read_at = Some(self.spared.max(now + AGAIN));
        match found {
            Ok(found) => {
                self.links = found.links;
                let wanted = found.families.map(|(basis, hop)| {
                    let state = &mut self.states[number_of(basis.family())];
                    state.basis = basis;
                    state.touched = false;
                    state.note(hop.as_ref().err().copied());
                    hop.ok()
                });
                // A notification that arrived during the reading may touch what has just been read.
                self.hear(now);
                for (number, hop) in wanted.into_iter().enumerate() {
                    self.publish(number, hop, now);
                }
                self.renew(now);
            }
            Err(error) => {
                tracing::debug!("default next hops: {error:#}");
                self.withdraw_all();
                self.read_at = Some(self.spared.max(now + RECOVERY));
            }
        }
    }

    /// Publishes a next hop that has just been found, unless a notification has touched it since.
    fn publish(&mut self, number: usize, hop: Option<DefaultHop>, now: Duration) {
        let State { basis, published, touched, .. } = &mut self.states[number];
        if *touched {
            return;
        }
        match (&published, hop) {
            (None, None) => {}
            (None, Some(hop)) => {
                tracing::debug!(
                    "{} replies leave by {} through {:?}",
                    basis.family().word(),
                    interfaces::name(hop.ifindex),
                    hop.destination_mac
                );
                self.hops.publish(basis.family(), &hop, now + LIFETIME);
                *published = Some(hop);
            }
            (Some(published), Some(hop)) if *published == hop => {}
            (Some(_), _) => {
                // The packets that use the former next hop must have left before another is published.
                self.withdraw(number);
                self.read_at = Some(self.spared);
            }
        }
    }

    fn tell(&self) {
        let published = [0, 1].map(|family| self.states[family].published.clone());
        self.told.send_if_modified(|told| {
            let changed = *told != published;
            *told = published;
            changed
        });
    }
}

/// Opens a socket for the notifications about everything on which a default next hop rests.
fn open() -> io::Result<Socket> {
    // A switch of forwarding has its own notification.
    let groups = monitor::GROUPS.into_iter().chain([MulticastGroup::Ipv4Netconf, MulticastGroup::Ipv6Netconf]);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups.fold(0, |groups, group| groups | 1 << (group as u32 - 1))))?;
    socket.set_rx_buf_sz(monitor::RECEIVE_BUFFER)?;
    Ok(socket)
}
