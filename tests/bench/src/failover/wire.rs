//! Watches the backends' end of the wire, with the kernel's time stamps: clients' packets as they arrive, answers to
//! checks as they leave.

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
/// The size of the longest outer headers, with the inner IP header.
const ENCAPSULATED: usize = IP + UDP + IP;
/// The size of the socket's queue in bytes, enough for seconds.
const QUEUE: usize = 64 << 20;
/// How often the queue is emptied. The kernel stamps packets when they come.
const PAUSE: Duration = Duration::from_millis(2);
const RST: u8 = 4;
const IPIP: u8 = 4;
const TCP: u8 = 6;
/// UDP, which carries `gue`.
const GUE: u8 = 17;

/// The observations of one backend.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The times of refused checks since the last successful one.
    pub refused: Vec<Duration>,
    /// The time of the last packet of a client.
    pub last: Option<Duration>,
    /// The time when one of its clients first arrived at another backend after that.
    pub elsewhere: Option<Duration>,
}

/// The checks of one backend.
#[derive(Debug, Default)]
struct Checked {
    /// The time of the last one.
    last: Duration,
    /// The longest time between two of them.
    pause: Duration,
}

/// The observations of all clients and backends. Times are those of the wall clock.
#[derive(Debug, Default)]
pub struct Seen {
    /// The backend of each client's last packet.
    pub clients: HashMap<u16, u16>,
    /// The watched backends.
    pub watched: HashMap<u16, Watched>,
    /// The watched backend of each of their clients.
    pub home: HashMap<u16, u16>,
    /// The checks of each backend since the pauses were last forgotten.
    checked: HashMap<u16, Checked>,
    /// The time of the last packet.
    pub now: Duration,
}

/// Observes packets until it is dropped.
pub struct Wire {
    seen: Arc<Mutex<Seen>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Wire {
    /// Begins to observe all interfaces of a namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
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

    /// Returns the observations so far.
    ///
    /// # Errors
    /// If it has missed packets, or the kernel refused.
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

/// Reads all waiting packets.
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

/// The addresses and the protocol of an IPv4 header without options.
fn ip(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u8)> {
    let header = packet.first_chunk::<IP>()?;
    let [0x45, .., p0, p1, p2, p3, q0, q1, q2, q3] = *header else { return None };
    Some((Ipv4Addr::new(p0, p1, p2, p3), Ipv4Addr::new(q0, q1, q2, q3), header[9]))
}

impl Seen {
    /// Watches these backends from now on, and no others.
    pub fn watch(&mut self, backends: &[u16]) {
        self.watched = backends.iter().map(|&backend| (backend, Watched::default())).collect();
        let theirs = |&(_, backend): &(&u16, &u16)| self.watched.contains_key(backend);
        self.home = self.clients.iter().filter(theirs).map(|(&client, &backend)| (client, backend)).collect();
    }

    /// Forgets the pauses between checks; those that last count from their beginning.
    pub fn forget_pauses(&mut self) {
        self.checked.values_mut().for_each(|checked| checked.pause = Duration::ZERO);
    }

    /// The longest time without a check of each backend that is not watched.
    #[must_use]
    pub fn pauses(&self) -> Vec<Duration> {
        let others = self.checked.iter().filter(|(backend, _)| !self.watched.contains_key(backend));
        others.map(|(_, checked)| checked.pause.max(self.now.saturating_sub(checked.last))).collect()
    }

    /// Evaluates the beginning of an IPv4 packet.
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
            // Unlike the reset of a connection, a refusal has no sequence number.
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
