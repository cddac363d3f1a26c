//! Packet sockets that send packets to an interface without the kernel's routes, and that receive answers before the
//! kernel processes them.

use std::{
    collections::HashMap,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use balancer_common::map_types::Mac;
use balancer_runtime::packet_socket::{self, link_address};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::mpsc, task::AbortHandle};

/// The maximum number of received packets that wait for one connection.
const WAITING: usize = 256;
/// The number of ports in the block that checks use. The number is a power of two, so that a filter in the kernel can
/// recognize answers by their port.
const PORTS: u16 = 1024;
/// The range of block numbers from which the balancer chooses.
const BLOCKS: std::ops::RangeInclusive<u16> = 32..=62;
/// The maximum size in bytes of a received packet, including packets that the kernel has merged.
const PACKET: usize = 65_600;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// The packet sockets, and the connections that wait for answers.
#[derive(Debug)]
pub(super) struct Wire {
    /// The socket that is used only for sending.
    out: Socket,
    first_port: u16,
    waiting: Mutex<HashMap<u16, Waiting>>,
    listening: OnceLock<Vec<AbortHandle>>,
}

#[derive(Debug)]
struct Waiting {
    packets: mpsc::Sender<Vec<u8>>,
    from: SocketAddr,
}

impl Wire {
    /// Opens the packet sockets, and starts the task that receives answers.
    ///
    /// # Errors
    /// Fails if this process lacks the permission to open packet sockets.
    pub(super) fn open() -> io::Result<Arc<Self>> {
        let explain = |error: io::Error| {
            let hint = match error.raw_os_error() {
                Some(libc::EPERM) => " (check = { via = \"service\" } needs CAP_NET_RAW)",
                Some(libc::EAFNOSUPPORT) => " (the service manager forbids AF_PACKET, see RestrictAddressFamilies=)",
                Some(_) | None => "",
            };
            io::Error::other(format!("cannot open a packet socket: {error}{hint}"))
        };
        let open = || packet_socket::open(Type::DGRAM);
        let first_port = fastrand::u16(BLOCKS) * PORTS;
        let wire =
            Self { out: open().map_err(explain)?, first_port, waiting: Mutex::default(), listening: OnceLock::new() };
        let wire = Arc::new(wire);
        let mut listening = Vec::new();
        for (protocol, filter) in [(ETH_P_IP, &answers_v4(first_port)[..]), (ETH_P_IPV6, &answers_v6(first_port)[..])] {
            let socket = open().map_err(explain)?;
            // The socket receives no packets before it is bound, so no packet bypasses the filter.
            socket.attach_filter(filter)?;
            socket.bind(&link_address(protocol, 0, None))?;
            // SAFETY: the socket owns its descriptor, which stays open and unchanged as long as the socket exists.
            let socket = unsafe { AsyncFd::register(socket) }?;
            listening.push(tokio::spawn(listen(socket, Arc::downgrade(&wire))).abort_handle());
        }
        wire.listening.get_or_init(|| listening);
        Ok(wire)
    }

    /// Whether the task still receives answers.
    pub(super) fn listens(&self) -> bool {
        self.listening.get().is_some_and(|tasks| !tasks.iter().any(AbortHandle::is_finished))
    }

    /// Sends an IP packet through an interface.
    ///
    /// # Errors
    /// Fails if the interface refuses the packet. A packet that is lost later is not an error.
    pub(super) fn send(&self, ifindex: u32, to: Mac, packet: &[u8]) -> io::Result<()> {
        let v4 = packet.first().is_none_or(|byte| byte >> 4 == 4);
        let protocol = if v4 { ETH_P_IP } else { ETH_P_IPV6 };
        match self.out.send_to(packet, &link_address(protocol, ifindex, Some(to))) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reserves a port of the address `own` for a connection to `peer`, and starts to receive packets to this port.
    ///
    /// # Errors
    /// Fails if no port in the block is free.
    pub(super) fn port(self: &Arc<Self>, own: IpAddr, peer: SocketAddr) -> io::Result<Port> {
        let begin = fastrand::u16(..PORTS);
        let mut waiting = self.waiting();
        for offset in 0..PORTS {
            let number = self.first_port + (begin + offset) % PORTS;
            if waiting.contains_key(&number) {
                continue;
            }
            let Ok(silent) = silent(SocketAddr::new(own, number)) else { continue };
            let (packets, answers) = mpsc::channel(WAITING);
            waiting.insert(number, Waiting { packets, from: peer });
            return Ok(Port { number, answers, wire: Arc::clone(self), _silent: silent });
        }
        Err(io::Error::other("no port is left for the check"))
    }

    /// Passes a received packet to the packet's connection. If packets arrive too fast, some packets are lost, as in
    /// any network.
    fn deliver(&self, packet: &[u8]) {
        let Some((source, port)) = ends(packet) else { return };
        let waiting = self.waiting();
        if let Some(waiting) = waiting.get(&port).filter(|waiting| waiting.from == source) {
            let _ = waiting.packets.try_send(packet.to_vec());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u16, Waiting>> {
        // The data is consistent even if the lock is poisoned, because no thread panics while it changes the data.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port of this machine that the balancer uses without the kernel's TCP stack.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) answers: mpsc::Receiver<Vec<u8>>,
    pub(super) wire: Arc<Wire>,
    _silent: OwnedFd,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.wire.waiting().remove(&self.number);
    }
}

/// Reserves a port so that no other socket can take it. If the VIP is not an address of this machine, the kernel's TCP
/// stack also receives the answers. The kernel does not know the connections of checks, but it does not reset them
/// while a socket that accepts no packets holds the port.
fn silent(at: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
    socket.bind(&at.into())?;
    socket.listen(1)?;
    Ok(socket.into())
}

async fn listen(socket: AsyncFd<Socket>, wire: Weak<Wire>) {
    let mut buffer = vec![0; PACKET];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let Some(wire) = wire.upgrade() else { return };
        while let Ok(read) = ready.try_io(|socket| socket.get_ref().read(&mut buffer)) {
            // An error means that an interface has disappeared, which does not affect the next packet.
            if let Ok(length) = read {
                wire.deliver(buffer.get(..length).unwrap_or_default());
            }
        }
    }
}

/// Returns the source and the destination port of a TCP packet.
fn ends(packet: &[u8]) -> Option<(SocketAddr, u16)> {
    let version = packet.first()? >> 4;
    let (source, header): (IpAddr, usize) = if version == 4 {
        let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
        (source.into(), usize::from(packet.first()? & 15) * 4)
    } else {
        let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
        (source.into(), 40)
    };
    let port = |at: usize| Some(u16::from_be_bytes(packet.get(header + at..header + at + 2)?.try_into().ok()?));
    Some((SocketAddr::new(source, port(0)?), port(2)?))
}

const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_HALF_BEHIND: u16 = 0x48;
const HEADER_LENGTH: u16 = 0xb1;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const TCP: u32 = 6;

/// A filter for unfragmented TCP packets whose destination port is in the block.
fn answers_v4(first_port: u16) -> [SockFilter; 10] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 9),
        SockFilter::new(IF_EQUAL, 0, 7, TCP),
        SockFilter::new(LOAD_HALF, 0, 0, 6),
        // The packet is a fragment: its fragment offset is not zero, or more fragments follow.
        SockFilter::new(IF_ANY_BIT, 5, 0, 0x3fff),
        SockFilter::new(HEADER_LENGTH, 0, 0, 0),
        SockFilter::new(LOAD_HALF_BEHIND, 0, 0, 2),
        SockFilter::new(AND, 0, 0, u32::from(!(PORTS - 1))),
        SockFilter::new(IF_EQUAL, 0, 1, u32::from(first_port)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn answers_v6(first_port: u16) -> [SockFilter; 7] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 6),
        SockFilter::new(IF_EQUAL, 0, 4, TCP),
        SockFilter::new(LOAD_HALF, 0, 0, 42),
        SockFilter::new(AND, 0, 0, u32::from(!(PORTS - 1))),
        SockFilter::new(IF_EQUAL, 0, 1, u32::from(first_port)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
