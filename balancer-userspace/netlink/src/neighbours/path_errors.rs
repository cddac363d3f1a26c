//! Receives "packet too big" errors from routers on the path to tunnel endpoints.
//!
//! The kernel learns a path's MTU from such an error only if a socket of this machine could have sent the quoted
//! packet. XDP sends tunnel packets without a socket, so this module opens a raw socket for each outer protocol as the
//! apparent sender. The kernel then stores the MTU with the route, and forgets it after some time.

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

/// The time for which the task collects errors before it reports them.
const PAUSE: Duration = Duration::from_millis(50);
/// A classic BPF filter `return 0`, which makes the socket receive no packets.
const NOTHING: SockFilter = SockFilter::new(6, 0, 0, 0);
/// The protocol numbers for IPv4 in IP and for IPv6 in IP.
const IP_IN_IP: [i32; 2] = [libc::IPPROTO_IPIP, libc::IPPROTO_IPV6];
const UDP: [i32; 1] = [libc::IPPROTO_UDP];

/// The kinds of tunnels through which the balancer sends packets to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// Whether there are tunnels of IP in IP.
    pub ipip: bool,
    /// Whether there are tunnels of IP in UDP.
    pub gue: bool,
}

impl Tunnels {
    /// The kinds of tunnels that these services use.
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

/// The sockets for errors from routers: see the [module](self).
#[derive(Default)]
pub(super) struct PathErrors {
    sockets: BTreeMap<(i32, i32), AsyncFd<Socket>>,
    /// The time until which the task collects errors.
    pause: Option<Instant>,
}

impl PathErrors {
    /// Receives errors about tunnels of exactly these kinds from now on.
    ///
    /// # Errors
    /// Fails if this process lacks the permission to open a raw socket.
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
                // This kernel does not support IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for errors, and returns the destinations of the refused packets. If the caller cancels the wait, no error
    /// is lost.
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
                // The task clears the flag before it reads, so that it does not miss an error that arrives during the
                // read.
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
    // SAFETY: the socket owns its descriptor, which stays open and unchanged as long as the socket exists.
    unsafe { AsyncFd::register_with_interest(socket, Interest::ERROR) }.map_err(io::Error::other)
}

/// Reads all pending errors from the socket; the socket's buffer limits their number.
fn refused(socket: &Socket) -> Vec<IpAddr> {
    let mut quoted = [MaybeUninit::uninit(); 1];
    let mut next = || socket.recv_from_with_flags(&mut quoted, libc::MSG_ERRQUEUE).ok();
    let mut refused: Vec<IpAddr> =
        std::iter::from_fn(|| next().map(|(_, to)| to.as_socket().map(|to| to.ip()))).flatten().collect();
    refused.sort_unstable();
    refused.dedup();
    refused
}
