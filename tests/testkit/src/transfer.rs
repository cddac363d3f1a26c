//! Bulk transfers over TCP and UDP. Sender and receiver know every byte in advance.
//!
//! The data is a fixed pseudo-random stream whose period is prime, so that a comparison finds lost, repeated, changed
//! and misplaced bytes. Every wait of a transfer has a time limit.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_api::model::ClientQuery;
use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    namespace::Namespace,
    site::{PATIENCE, Settings, Site},
    topology::{Family, Topology},
};

/// The port of the services that [`add_services`] adds.
pub const PORT: u16 = 5000;
/// The port on which `nat` and `snat` backends listen.
const NAT_PORT: u16 = 5001;
/// The number of bytes after which the stream repeats.
const PERIOD: usize = 1_048_573;
/// The largest number of bytes to write or compare at once.
const PIECE: usize = 256 << 10;
/// The number of datagrams sent before an acknowledgement. A veth queue and a socket's buffer must have room for this
/// many datagrams.
const WINDOW: u64 = 32;
/// How long the sender waits for the acknowledgement of a window before sending the window again.
const RESEND: Duration = Duration::from_millis(200);

/// Adds services for TCP and UDP at [`PORT`], with the backends of the settings: `tcp` and `udp` for IPv4, `tcp6` and
/// `udp6` for IPv6.
pub fn add_services(settings: &mut Settings, topology: &Topology) {
    let forwarding = forwarding_word(settings.forwarding);
    for family in Family::BOTH {
        for protocol in ["tcp", "udp"] {
            let (six, vip) = (if family == Family::V6 { "6" } else { "" }, target(topology, family));
            // Writing to a string cannot fail.
            let _ = write!(
                settings.lines,
                "[[service]]\nname = \"{protocol}{six}\"\naddress = \"{vip}\"\nprotocol = \"{protocol}\"\n\
                 forwarding = \"{forwarding}\"\nclient_prefix = {{ v4 = 32, v6 = 128 }}\nremember = \"60s\"\n\
                 check = {{ type = \"none\" }}\n"
            );
            for &(number, weight) in &settings.backends {
                let of = if settings.crossed { family.other() } else { family };
                let translated = matches!(settings.forwarding, Forwarding::Nat | Forwarding::Snat);
                let port = if translated { NAT_PORT } else { PORT };
                let address = SocketAddr::new(topology.backend_address(of, number - 1), port);
                let _ = write!(
                    settings.lines,
                    "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\nweight = {weight}\n"
                );
            }
        }
    }
}

/// Returns the address to which clients send.
#[must_use]
pub fn target(topology: &Topology, family: Family) -> SocketAddr {
    SocketAddr::new(topology.vip(family), PORT)
}

/// The address on which the server of `web{number}` listens.
#[must_use]
pub fn listens(topology: &Topology, forwarding: Forwarding, family: Family, number: u16) -> SocketAddr {
    match forwarding {
        Forwarding::Nat | Forwarding::Snat => SocketAddr::new(topology.backend_address(family, number - 1), NAT_PORT),
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => target(topology, family),
    }
}

/// A transfer between a client of a site and the client's backend. The site must have the services of [`add_services`].
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    pub site: &'a Site,
    pub forwarding: Forwarding,
    /// The address family of the VIP.
    pub family: Family,
    /// The address family in which the backend listens.
    pub served: Family,
    pub host: &'a Namespace,
    /// The source address of the client.
    pub source: IpAddr,
}

impl<'a> Transfer<'a> {
    #[must_use]
    pub fn new(site: &'a Site, forwarding: Forwarding, family: Family, client: u16) -> Self {
        let topology = site.topology();
        let translates = site.settings().crossed && forwarding == Forwarding::Snat;
        let served = if translates { family.other() } else { family };
        let (host, source) = (topology.client(), topology.client_address(family, client));
        Self { site, forwarding, family, served, host, source }
    }

    /// Returns the number of the backend to which the controller steers `address` in the service for `protocol` (`tcp`
    /// or `udp`).
    ///
    /// # Errors
    /// Fails if the controller refuses the query.
    pub fn home(&self, protocol: &str, address: IpAddr) -> Result<u16> {
        let six = if self.family == Family::V6 { "6" } else { "" };
        let query = ClientQuery { address, service: Some(format!("{protocol}{six}")) };
        let views = self.site.api(|api| async move { api.client(&query).await })?;
        let home = views.first().and_then(|view| view.backend.as_deref()).context("nobody takes the client")?;
        Ok(home.trim_start_matches("web").parse()?)
    }

    /// Sends `up` bytes to the backend and `down` bytes back over one TCP connection. The client and the backend
    /// compare all bytes. Returns the duration of the transfer.
    ///
    /// # Errors
    /// Fails if a byte is missing or wrong, if the backend sees a wrong client address, or if the time limit expires.
    pub fn tcp(&self, up: u64, down: u64) -> Result<Duration> {
        let topology = self.site.topology();
        let number = self.home("tcp", self.source)?;
        let listen = listens(topology, self.forwarding, self.served, number);
        let listener =
            topology.backends()[usize::from(number) - 1].run_in_thread(|| socket(listen, Type::STREAM))??;
        listener.listen(1)?;
        let start = Instant::now();
        thread::scope(|scope| {
            let server = scope.spawn(|| self.serve(&listener, up, down));
            let client = self.host.run_in_thread(|| self.connect(up, down));
            let server = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            client?.context("the client's end").and(server.context("the backend's end"))
        })?;
        Ok(start.elapsed())
    }

    fn serve(&self, listener: &Socket, up: u64, down: u64) -> Result<()> {
        let (stream, peer) = listener.accept().context("nobody connects")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let peer = peer.as_socket().context("no IP address")?.ip();
        self.seen_as(peer)?;
        let mut stream = TcpStream::from(stream);
        receive(&mut stream, up)?;
        send(&mut stream, down)
    }

    fn connect(&self, up: u64, down: u64) -> Result<()> {
        let target = target(self.site.topology(), self.family);
        let socket = socket(SocketAddr::new(self.source, 0), Type::STREAM)?;
        socket.connect_timeout(&target.into(), PATIENCE)?;
        let mut stream = TcpStream::from(socket);
        send(&mut stream, up)?;
        receive(&mut stream, down)?;
        ensure!(stream.read(&mut [0])? == 0, "more than was sent");
        Ok(())
    }

    /// Checks the address that the backend sees. Only with `snat`, the backend may see an address other than the
    /// client's.
    fn seen_as(&self, peer: IpAddr) -> Result<()> {
        let hidden = self.forwarding == Forwarding::Snat;
        ensure!((peer != self.source) == hidden, "{} was seen as {peer}", self.source);
        Ok(())
    }

    /// Sends `bytes` in datagrams of `size` bytes to the backend. The backend compares the bytes and acknowledges each
    /// window of 32 datagrams. Returns the duration of the transfer, and the number of repeated windows.
    ///
    /// # Errors
    /// Fails if a byte is wrong, or if the backend stops acknowledging.
    pub fn udp(&self, bytes: u64, size: usize) -> Result<(Duration, u64)> {
        let topology = self.site.topology();
        let number = self.home("udp", self.source)?;
        let listen = listens(topology, self.forwarding, self.served, number);
        let server = topology.backends()[usize::from(number) - 1].run_in_thread(|| socket(listen, Type::DGRAM))??;
        let client = self.host.run_in_thread(|| socket(SocketAddr::new(self.source, 0), Type::DGRAM))??;
        client.connect(&target(topology, self.family).into())?;
        client.set_read_timeout(Some(RESEND))?;
        server.set_read_timeout(Some(RESEND))?;
        let windows = bytes.div_ceil(size as u64 * WINDOW);
        let over = AtomicBool::new(false);
        let start = Instant::now();
        let again = thread::scope(|scope| {
            let server = scope.spawn(|| acknowledge(&UdpSocket::from(server), self, size, windows, &over));
            let again = send_windows(&UdpSocket::from(client), size, windows);
            over.store(true, Ordering::Relaxed);
            let server = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            server.context("the backend's end").and(again.context("the client's end"))
        })?;
        Ok((start.elapsed(), again))
    }
}

/// Creates a socket with the time limit [`PATIENCE`], bound to an address of the calling thread's namespace.
///
/// # Errors
/// Fails if the kernel returns an error.
pub fn socket(bind: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(bind), kind, Some(protocol))?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    if kind == Type::DGRAM {
        // The kernel reduces the buffer's size to the system's limit.
        socket.set_recv_buffer_size(8 << 20)?;
    }
    socket.bind(&bind.into())?;
    Ok(socket)
}

/// Returns `length` bytes of the stream from `offset` on, at most 256 KiB.
#[must_use]
pub fn piece(offset: u64, length: usize) -> &'static [u8] {
    static STREAM: OnceLock<Vec<u8>> = OnceLock::new();
    let stream = STREAM.get_or_init(|| {
        // The pseudo-random numbers come from Xorshift (Marsaglia 2003).
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(PERIOD)
        .collect();
        bytes.extend_from_within(..PIECE);
        bytes
    });
    let start = (offset % PERIOD as u64) as usize;
    &stream[start..start + length]
}

fn send(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(PIECE as u64) as usize;
        stream.write_all(piece(offset, length)).with_context(|| format!("after {offset} of {bytes} bytes"))?;
        offset += length as u64;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < bytes {
        let wanted = (bytes - offset).min(PIECE as u64) as usize;
        let length = stream.read(&mut buffer[..wanted]).with_context(|| format!("after {offset} of {bytes} bytes"))?;
        ensure!(length > 0, "the end after {offset} of {bytes} bytes");
        ensure!(buffer[..length] == *piece(offset, length), "other bytes after {offset}");
        offset += length as u64;
    }
    Ok(())
}

fn send_windows(socket: &UdpSocket, size: usize, windows: u64) -> Result<u64> {
    let deadline = Instant::now() + 3 * PATIENCE;
    let mut again = 0;
    for window in 0..windows {
        loop {
            for number in window * WINDOW..(window + 1) * WINDOW {
                let mut datagram = number.to_le_bytes().to_vec();
                datagram.extend(piece(number * size as u64, size - datagram.len()));
                socket.send(&datagram).with_context(|| format!("datagram {number} of {size} bytes"))?;
            }
            if acknowledged(socket, window)? {
                break;
            }
            again += 1;
            ensure!(Instant::now() < deadline, "no end: window {window} of {windows}, {again} sent again");
        }
    }
    Ok(again)
}

/// Waits for a window's acknowledgement; skips acknowledgements of other windows.
fn acknowledged(socket: &UdpSocket, window: u64) -> Result<bool> {
    let mut number = [0; 8];
    loop {
        match socket.recv(&mut number) {
            Ok(8) if u64::from_le_bytes(number) == window => return Ok(true),
            Ok(8) => {}
            Ok(length) => bail!("an acknowledgement of {length} bytes"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("waiting for an acknowledgement"),
        }
    }
}

fn acknowledge(
    socket: &UdpSocket,
    transfer: &Transfer<'_>,
    size: usize,
    windows: u64,
    over: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; size + 1];
    let mut window = 0;
    let mut missing = u32::MAX;
    while !over.load(Ordering::Relaxed) {
        let (length, sender) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("receiving"),
        };
        transfer.seen_as(sender.ip())?;
        ensure!(length == size, "{length} of {size} bytes");
        let (number, rest) = buffer[..size].split_first_chunk::<8>().context("a datagram without a number")?;
        let number = u64::from_le_bytes(*number);
        ensure!(rest == piece(number * size as u64, rest.len()), "other bytes in datagram {number}");
        let of = number / WINDOW;
        ensure!(of <= window && of < windows, "a datagram of window {of} in window {window}");
        if of == window {
            missing &= !(1 << (number % WINDOW));
            if missing > 0 {
                continue;
            }
            window += 1;
            missing = u32::MAX;
        } else if number % WINDOW != WINDOW - 1 {
            continue;
        }
        socket.send_to(&of.to_le_bytes(), sender)?;
    }
    ensure!(window == windows, "{window} of {windows} windows");
    Ok(())
}
