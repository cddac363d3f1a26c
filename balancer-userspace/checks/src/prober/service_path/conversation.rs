//! A TCP connection that the balancer handles itself, without the kernel's TCP stack.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use balancer_control::io::{BackendSpec, NextHop};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time,
    wire::{HardwareAddress, IpCidr},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{Instant, sleep},
};

use super::{
    outer::{overhead, wrap},
    wire::{Port, Wire},
};

/// The size in bytes of the connection's buffer for each direction.
const WINDOW: usize = 16 * 1024;
/// The smallest MTU that IPv6 permits.
const SMALLEST_MTU: usize = 1280;

/// A TCP connection that the balancer handles itself. Dropping the value resets the connection.
pub(in super::super) struct Conversation {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    packets: Packets,
    begun: Instant,
    port: Port,
    row: Arc<BackendSpec>,
    next_hop: NextHop,
}

impl Conversation {
    /// Prepares a connection from `own` to `vip` at the backend of `row`, but does not send a packet yet.
    ///
    /// # Errors
    /// Fails if this machine lacks the resources for the connection.
    pub(super) fn new(wire: &Arc<Wire>, row: Arc<BackendSpec>, own: IpAddr, vip: SocketAddr) -> io::Result<Self> {
        let next_hop = row.next_hop.ok_or_else(|| io::Error::other("the route to the backend is not known yet"))?;
        let port = wire.port(own, vip)?;
        let room = (next_hop.mtu as usize).min(usize::from(u16::MAX));
        let mtu = room.saturating_sub(overhead(row.forwarding, row.address.is_ipv4())).max(SMALLEST_MTU);
        let mut packets = Packets { mtu, came: VecDeque::new(), go: Vec::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = fastrand::u64(..);
        let mut interface = Interface::new(config, &mut packets, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The addition cannot fail, because the list has room for several addresses.
            let _ = addresses.push(IpCidr::new(own.into(), if own.is_ipv4() { 32 } else { 128 }));
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let (from, to) = ((own, port.number), (vip.ip(), vip.port()));
        socket.connect(interface.context(), to, from).map_err(|error| io::Error::other(error.to_string()))?;
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Ok(Self { interface, sockets, handle, packets, begun: Instant::now(), port, row, next_hop })
    }

    /// Establishes the connection to the VIP.
    ///
    /// # Errors
    /// Fails if the backend refuses the connection, or if this machine cannot send packets.
    pub(in super::super) async fn connect(&mut self) -> io::Result<()> {
        loop {
            let wake = self.turn()?;
            let state = self.socket().state();
            if state == tcp::State::Closed {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            if matches!(state, tcp::State::Established | tcp::State::CloseWait) {
                return Ok(());
            }
            tokio::select! {
                packet = self.port.answers.recv() => self.packets.came.extend(packet),
                () = pause(wake) => {}
            }
        }
    }

    /// Relays data between `stream` and the connection until one of the two has been closed.
    ///
    /// # Errors
    /// Fails if the backend resets the connection, or if this machine cannot send packets.
    pub(in super::super) async fn carry(&mut self, mut stream: DuplexStream) -> io::Result<()> {
        let (mut open, mut told) = (true, false);
        let mut buffer = vec![0; WINDOW];
        loop {
            let mut wake = self.turn()?;
            while self.socket().can_recv() {
                let length = self.socket().recv_slice(&mut buffer).unwrap_or(0);
                stream.write_all(&buffer[..length]).await?;
                // The receive window has opened, so the next call of `turn` may send a packet.
                wake = self.turn()?;
            }
            if !told && !self.socket().may_recv() {
                if self.socket().state() == tcp::State::Closed {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                told = true;
                stream.shutdown().await?;
            }
            let socket = self.socket();
            let room = if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 };
            tokio::select! {
                packet = self.port.answers.recv() => self.packets.came.extend(packet),
                read = stream.read(&mut buffer[..room]), if open && room > 0 => match read? {
                    0 => open = false,
                    // The buffer has room for all the data that was read.
                    length => {
                        let sent = self.socket().send_slice(&buffer[..length]);
                        sent.map_err(|error| io::Error::other(error.to_string()))?;
                    }
                },
                () = pause(wake) => {}
            }
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Processes received packets, and sends those packets that are due. The function returns the time at which the
    /// caller must call it again.
    fn turn(&mut self) -> io::Result<Option<time::Duration>> {
        let micros = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        let now = time::Instant::from_micros(micros);
        self.interface.poll(now, &mut self.packets, &mut self.sockets);
        let Self { packets, row, port, next_hop, .. } = self;
        let source = row.tunnel_source.unwrap_or_else(|| row.address.ip());
        for packet in packets.go.drain(..) {
            let packet = wrap(row.forwarding, source, row.address.ip(), port.number, &packet);
            port.wire.send(next_hop.ifindex, next_hop.destination_mac, &packet)?;
        }
        Ok(self.interface.poll_delay(now, &self.sockets))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.socket().abort();
        // This packet is the last one; if the peer misses it, the peer gives up after a while.
        let _ = self.turn();
    }
}

async fn pause(wake: Option<time::Duration>) {
    match wake {
        Some(wake) => sleep(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// The IP packets that the connection exchanges with the packet sockets.
struct Packets {
    mtu: usize,
    came: VecDeque<Vec<u8>>,
    go: Vec<Vec<u8>>,
}

impl Device for Packets {
    type RxToken<'a> = Came;
    type TxToken<'a> = Goes<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Came, Goes<'_>)> {
        let packet = self.came.pop_front()?;
        Some((Came(packet), Goes(&mut self.go)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Goes<'_>> {
        Some(Goes(&mut self.go))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // If the peer is on the same machine, its kernel leaves the checksum to hardware that does not exist, so
        // received checksums may be wrong.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Came(Vec<u8>);

impl RxToken for Came {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Goes<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Goes<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}
