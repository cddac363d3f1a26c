//! Notifications of the kernel about changes on this machine: links (names, MAC addresses, carriers and offloads),
//! addresses, and forwarding. The receiver reads the changed state anew, so the contents of notifications do not
//! matter.

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
/// How long to wait for more notifications about the same change.
const TOGETHER: Duration = Duration::from_millis(20);
/// The delay before a broken socket is reopened.
const AGAIN: Duration = Duration::from_secs(1);
/// The size of the buffer, which exceeds the kernel's longest datagram (32 KiB).
const DATAGRAM: usize = 1 << 16;

/// A socket for change notifications.
pub(crate) struct News {
    /// The socket; `None` after it broke, until it is reopened.
    socket: Option<TokioSocket>,
    buffer: BytesMut,
    /// Whether a notification has arrived for which [`next`](Self::next) has not returned yet.
    heard: bool,
}

impl News {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Some(socket()?), buffer: BytesMut::new(), heard: false })
    }

    /// Waits for a change and a little longer, because changes often come together. Cancelling the wait loses nothing.
    pub(crate) async fn next(&mut self) {
        if !self.heard {
            self.hear().await;
            self.heard = true;
        }
        sleep(TOGETHER).await;
        while self.hear().now_or_never().is_some() {}
        self.heard = false;
    }

    /// Receives one datagram. Lost datagrams count as a notification as well.
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

    /// Reopens the socket, however many attempts this takes. Periodic checks find changes that were missed in between.
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
