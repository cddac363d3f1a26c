//! Errors from routers on the path to tunnel endpoints which say that packets are too big.
//!
//! The kernel learns a path's MTU from such an error only if a socket of this machine may have sent the quoted packet.
//! XDP sends tunnel packets without a socket, so a raw socket of each outer protocol stands in for the sender. The
//! kernel then stores the MTU with the route, and forgets it after a while.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    future, io,
    mem::MaybeUninit,
    net::IpAddr,
};

use balancer_common::map_types::Forwarding;
use balancer_control::io::ServiceSpec;
use futures_util::future::select_all;
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Duration, Instant, sleep_until},
};

/// How long the task collects errors before it reports them.
const PAUSE: Duration = Duration::from_millis(50);
/// A filter `return 0` in classic BPF, with which the socket receives nothing.
const NOTHING: SockFilter = SockFilter::new(6, 0, 0, 0);
/// The protocol numbers of IPv4 and IPv6 inside IP.
const IP_IN_IP: [i32; 2] = [libc::IPPROTO_IPIP, libc::IPPROTO_IPV6];
const UDP: [i32; 1] = [libc::IPPROTO_UDP];

/// The kinds of tunnels that lead to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// Whether tunnels of IP in IP exist.
    pub ipip: bool,
    /// Whether tunnels of IP in UDP exist.
    pub gue: bool,
}

impl Tunnels {
    /// The kinds of tunnels of these services.
    #[must_use]
    pub fn of(services: &[ServiceSpec]) -> Self {
        let any = |forwarding| services.iter().any(|service| service.forwarding == forwarding);
        Self { ipip: any(Forwarding::Ipip), gue: any(Forwarding::Gue) }
    }

    /// The protocols of the tunnels' outer headers.
    fn protocols(self) -> impl Iterator<Item = i32> {
        let ipip = if self.ipip { &IP_IN_IP[..] } else { &[] };
        let gue = if self.gue { &UDP[..] } else { &[] };
        ipip.iter().chain(gue).copied()
    }
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct PathErrors {
    sockets: BTreeMap<(i32, i32), AsyncFd<Socket>>,
    /// The time until which the task collects errors.
    pause: Option<Instant>,
}

impl PathErrors {
    /// Listens for errors about exactly these tunnels.
    ///
    /// # Errors
    /// If this process lacks the necessary permission.
    pub(super) fn listen(&mut self, tunnels: Tunnels) -> io::Result<()> {
        let both = |protocol| [(libc::AF_INET, protocol), (libc::AF_INET6, protocol)];
        let wanted: Vec<(i32, i32)> = tunnels.protocols().flat_map(both).collect();
        self.sockets.retain(|key, _| wanted.contains(key));
        for key in wanted {
            let Entry::Vacant(closed) = self.sockets.entry(key) else { continue };
            match open(key) {
                Ok(socket) => {
                    closed.insert(socket);
                }
                // The kernel has no IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the destinations of packets that some router has refused. Cancelling the wait loses nothing.
    pub(super) async fn next(&mut self) -> Vec<IpAddr> {
        if self.sockets.is_empty() {
            return future::pending().await;
        }
        if let Some(pause) = self.pause {
            sleep_until(pause).await;
        }
        let ready = self.sockets.values().map(|socket| Box::pin(socket.ready(Interest::ERROR)));
        let (ready, ..) = select_all(ready).await;
        self.pause = Some(Instant::now() + PAUSE);
        match ready {
            Ok(mut ready) => {
                // The flag is cleared first, so that an error that arrives meanwhile is not missed.
                ready.clear_ready();
                refused(ready.get_inner())
            }
            Err(_) => Vec::new(),
        }
    }
}

fn open((domain, protocol): (i32, i32)) -> io::Result<AsyncFd<Socket>> {
    let domain = Domain::from(domain);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.attach_filter(&[NOTHING])?;
    socket.set_nonblocking(true)?;
    if domain == Domain::IPV4 {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    // SAFETY: the socket owns its descriptor, which stays the same and open for as long as it lives.
    unsafe { AsyncFd::register_with_interest(socket, Interest::ERROR) }.map_err(io::Error::other)
}

/// Reads all pending errors; the socket's buffer limits their number.
fn refused(socket: &Socket) -> Vec<IpAddr> {
    let mut quoted = [MaybeUninit::uninit(); 1];
    let mut next = || socket.recv_from_with_flags(&mut quoted, libc::MSG_ERRQUEUE).ok();
    let mut refused: Vec<IpAddr> =
        std::iter::from_fn(|| next().map(|(_, to)| to.as_socket().map(|to| to.ip()))).flatten().collect();
    refused.sort_unstable();
    refused.dedup();
    refused
}
