//! Notifications of the kernel about changes on this machine: links (names, MAC addresses, carriers and offloads),
//! addresses, and forwarding. The receiver reads the changed state again, so the contents of notifications do not
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
/// The time to wait for further notifications about the same change.
const TOGETHER: Duration = Duration::from_millis(20);
/// The delay before the task reopens a broken socket.
const AGAIN: Duration = Duration::from_secs(1);
/// The size of the receive buffer, which exceeds the kernel's longest datagram (32 KiB).
const DATAGRAM: usize = 1 << 16;

/// A socket for change notifications.
pub struct News {
    /// The socket for notifications; `None` if the socket broke and has not been reopened yet.
    socket: Option<TokioSocket>,
    buffer: BytesMut,
    /// Whether a notification has arrived since [`next`](Self::next) last returned.
    heard: bool,
}

impl News {
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Some(socket()?), buffer: BytesMut::new(), heard: false })
    }

    /// Waits for a change, and then briefly for further changes, because changes often come in groups. If the caller
    /// cancels the wait, no notification is lost.
    pub async fn next(&mut self) {
        if !self.heard {
            self.hear().await;
            self.heard = true;
        }
        sleep(TOGETHER).await;
        while self.hear().now_or_never().is_some() {}
        self.heard = false;
    }

    /// Receives one datagram with notifications. Lost datagrams also count as a notification.
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

    /// Tries to reopen the socket until an attempt succeeds. Periodic checks of the machine find changes that were
    /// missed without a socket.
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
