//! Hears that the kernel tells of a change of what this machine is kept at: links (their names, MAC addresses, carriers
//! and offloads), addresses, and forwarding. What has changed is read anew, so news is not looked into.

use std::{io, time::Duration};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;
use tokio::time::sleep;
use tracing::debug;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
];
/// How long more news of the same change is waited for.
const TOGETHER: Duration = Duration::from_millis(20);
/// How soon a socket that broke is opened again.
const AGAIN: Duration = Duration::from_secs(1);
/// Longer than the kernel's longest datagram (32 KiB).
const DATAGRAM: usize = 1 << 16;

/// A socket that hears of changes.
pub(super) struct News {
    /// `None` after it broke, until it is opened again.
    socket: Option<TokioSocket>,
    buffer: BytesMut,
    /// Whether news has come that [`next`](Self::next) has not told of.
    heard: bool,
}

impl News {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: Some(socket()?), buffer: BytesMut::new(), heard: false })
    }

    /// Waits for a change, and a moment more, because changes seldom come alone. May be cancelled without losing any.
    pub(super) async fn next(&mut self) {
        if !self.heard {
            self.hear().await;
            self.heard = true;
        }
        sleep(TOGETHER).await;
        while self.hear().now_or_never().is_some() {}
        self.heard = false;
    }

    /// One datagram. A loss of some is news as well.
    async fn hear(&mut self) {
        let Some(socket) = &mut self.socket else { return self.reopen().await };
        self.buffer.clear();
        self.buffer.reserve(DATAGRAM);
        match socket.recv(&mut self.buffer).await {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                debug!("netlink: {error}");
                self.socket = None;
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Opens the socket again, as often as it takes. Changes missed meanwhile are found by looking at everything, which
    /// is done now and then.
    async fn reopen(&mut self) {
        loop {
            sleep(AGAIN).await;
            if let Ok(socket) = socket() {
                self.socket = Some(socket);
                return;
            }
        }
    }
}

fn socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS.iter().fold(0u32, |groups, &group| groups | 1 << (group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}
