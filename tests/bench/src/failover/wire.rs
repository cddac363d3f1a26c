//! Observes packets at the backends with the kernel's time stamps: clients' packets when they arrive, and answers to
//! checks when they leave.

use std::{
    collections::HashMap,
    io::IoSliceMut,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use balancer_testkit::{
    frame::{ACK, SYN},
    namespace::Entrance,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket,
        sockopt,
    },
};

use super::hosts;

/// The size of the IP and TCP headers.
const HEADERS: usize = 40;
/// The size of an IP header.
const IP: usize = 20;
/// The size of a UDP header.
const UDP: usize = 8;
/// The size of the longest outer headers and the inner IP header together.
const ENCAPSULATED: usize = IP + UDP + IP;
/// The size of the socket's queue in bytes, which suffices for the packets of several seconds.
const QUEUE: usize = 64 << 20;
/// The interval at which the observer empties the queue. The interval does not affect time stamps, because the kernel
/// stamps packets when they arrive.
const PAUSE: Duration = Duration::from_millis(2);
const RST: u8 = 4;
const IPIP: u8 = 4;
const TCP: u8 = 6;
/// The protocol number of UDP, which carries `gue`.
const GUE: u8 = 17;

/// The observations about one backend.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The times of refused checks since the last successful check.
    pub refused: Vec<Duration>,
    /// The time of the last client packet at the backend.
    pub last: Option<Duration>,
    /// The time of the first packet that another backend received from this backend's clients after the last packet at
    /// this backend.
    pub elsewhere: Option<Duration>,
}

/// The observed checks of one backend.
#[derive(Debug, Default)]
struct Checked {
    /// The time of the last check of the backend.
    last: Duration,
    /// The longest time between two checks of the backend.
    pause: Duration,
}

/// The observations of all clients and backends, with wall-clock times.
#[derive(Debug, Default)]
pub struct Seen {
    /// The backend that received each client's last packet.
    pub clients: HashMap<u16, u16>,
    pub watched: HashMap<u16, Watched>,
    /// The watched backend of each client, for the clients that had a watched backend when the watch began.
    pub home: HashMap<u16, u16>,
    /// The checks of each backend since [`Self::forget_pauses`].
    checked: HashMap<u16, Checked>,
    /// The time of the last observed packet.
    pub now: Duration,
}

/// Observes packets until the value is dropped.
pub struct Wire {
    seen: Arc<Mutex<Seen>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Wire {
    /// Begins to observe packets on all interfaces of a namespace.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn tap(namespace: Entrance) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ended = Arc::new(AtomicBool::new(false));
        let (theirs, end) = (Arc::clone(&seen), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            namespace.enter()?;
            let socket = packets().context("seeing packets")?;
            while !end.load(Ordering::Relaxed) {
                receive(&socket, &mut lock(&theirs))?;
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        Ok(Self { seen, ended, thread: Some(thread) })
    }

    /// Returns all observations so far.
    ///
    /// # Errors
    /// Fails if the observer has missed packets, or the kernel returned an error.
    pub fn seen(&mut self) -> Result<MutexGuard<'_, Seen>> {
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            thread.join().map_err(|_| anyhow!("the thread that sees packets has panicked"))??;
            bail!("nobody sees packets any more");
        }
        Ok(lock(&self.seen))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn packets() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    Ok(socket)
}

/// Reads all packets that wait in the socket's queue.
fn receive(socket: &OwnedFd, seen: &mut Seen) -> Result<()> {
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec, u32);
    let mut packet = [0; ENCAPSULATED];
    loop {
        let mut buffer = [IoSliceMut::new(&mut packet)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::empty()) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("seeing packets"),
        };
        let (mut at, length) = (None, message.bytes);
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(time) = control {
                at = Some(Duration::from(time));
            } else if let ControlMessageOwned::RxqOvfl(lost) = control {
                ensure!(lost == 0, "{lost} packets were not seen");
            }
        }
        let at = at.context("a packet without a time stamp")?;
        seen.packet(packet.get(..length).unwrap_or(&packet), at);
    }
}

/// Returns the addresses and the protocol of an IPv4 header without options.
fn ip(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u8)> {
    let header = packet.first_chunk::<IP>()?;
    let [0x45, .., p0, p1, p2, p3, q0, q1, q2, q3] = *header else { return None };
    Some((Ipv4Addr::new(p0, p1, p2, p3), Ipv4Addr::new(q0, q1, q2, q3), header[9]))
}

impl Seen {
    /// After this call, the observer watches only the given backends.
    pub fn watch(&mut self, backends: &[u16]) {
        self.watched = backends.iter().map(|&backend| (backend, Watched::default())).collect();
        let theirs = |&(_, backend): &(&u16, &u16)| self.watched.contains_key(backend);
        self.home = self.clients.iter().filter(theirs).map(|(&client, &backend)| (client, backend)).collect();
    }

    /// Forgets the measured pauses between checks. A pause that has not ended yet keeps its start time.
    pub fn forget_pauses(&mut self) {
        self.checked.values_mut().for_each(|checked| checked.pause = Duration::ZERO);
    }

    /// Returns, for each backend that is not watched, the longest time without a check.
    #[must_use]
    pub fn pauses(&self) -> Vec<Duration> {
        let others = self.checked.iter().filter(|(backend, _)| !self.watched.contains_key(backend));
        others.map(|(_, checked)| checked.pause.max(self.now.saturating_sub(checked.last))).collect()
    }

    /// Evaluates an IPv4 packet by its first bytes.
    fn packet(&mut self, packet: &[u8], at: Duration) {
        let Some((source, destination, protocol)) = ip(packet) else { return };
        self.now = self.now.max(at);
        let inner = match protocol {
            IPIP => packet.get(IP..),
            GUE if packet.get(IP + 2..IP + 4) == Some(&hosts::GUE.to_be_bytes()) => packet.get(IP + UDP..),
            _ => None,
        };
        if let Some((client, ..)) = inner.and_then(ip) {
            if let (Some(client), Some(backend)) = (hosts::client_number(client), hosts::backend_number(destination)) {
                self.arrived(client, backend, at);
            }
            return;
        }
        let Some(packet) = packet.first_chunk::<HEADERS>().filter(|_| protocol == TCP) else { return };
        if let (Some(client), Some(backend)) = (hosts::client_number(source), hosts::backend_number(destination)) {
            self.arrived(client, backend, at);
        } else if let (hosts::CHECKER, Some(backend)) = (source, hosts::backend_number(destination)) {
            if packet[33] & (SYN | ACK) == SYN {
                self.checked(backend, at);
            }
        } else if let (Some(backend), hosts::CHECKER) = (hosts::backend_number(source), destination)
            && let Some(watched) = self.watched.get_mut(&backend)
        {
            // A reset that refuses a connection has the sequence number 0, unlike a reset of an open connection.
            match packet[33] {
                flags if flags & RST != 0 && packet[24..28] == [0; 4] => watched.refused.push(at),
                flags if flags & (SYN | ACK) == SYN | ACK => watched.refused.clear(),
                _ => {}
            }
        }
    }

    fn checked(&mut self, backend: u16, at: Duration) {
        let checked = self.checked.entry(backend).or_insert(Checked { last: at, pause: Duration::ZERO });
        checked.pause = checked.pause.max(at.saturating_sub(checked.last));
        checked.last = at;
    }

    fn arrived(&mut self, client: u16, backend: u16, at: Duration) {
        self.clients.insert(client, backend);
        let Some(home) = self.home.get(&client) else { return };
        let Some(watched) = self.watched.get_mut(home) else { return };
        if backend == *home {
            watched.last = Some(at);
            watched.elsewhere = None;
        } else {
            watched.elsewhere.get_or_insert(at);
        }
    }
}
