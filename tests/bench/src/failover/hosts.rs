//! The hosts: one namespace with all clients, one namespace with all backends, and the balancer between clients and
//! backends.
//!
//! ```text
//! clients 10.1.0.0/16 ── 10.3.0.2 ── 10.3.0.1 eth0, balancer, eth1 10.0.0.1 ── 10.0.0.2 ── backends 10.4.0.0/16
//! ```

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::AsRawFd as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use balancer_demo::offload::Offload;
use balancer_testkit::namespace::{Namespace, join};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// The VIP and the port of the service.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 10), 80);
/// The source address of the balancer's checks.
pub const CHECKER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The port on which the backends' servers listen.
pub const PORT: u16 = 8080;
/// The destination port of `gue` packets.
pub const GUE: u16 = 6080;
/// The number of waiting connections of checks that a backend's socket allows.
const BACKLOG: i32 = 16;

/// The hosts; dropping the value removes the hosts.
pub struct Hosts {
    pub clients: Namespace,
    pub balancer: Namespace,
    pub backends: Namespace,
}

/// Returns the address of client `number`.
pub const fn client(number: u16) -> Ipv4Addr {
    in_net(1, number)
}

/// Returns the number of the client with the given address.
pub const fn client_number(address: Ipv4Addr) -> Option<u16> {
    number_in(1, address)
}

/// Returns the address of backend `number`.
pub const fn backend(number: u16) -> SocketAddrV4 {
    SocketAddrV4::new(in_net(4, number), PORT)
}

/// Returns the number of the backend with the given address.
pub const fn backend_number(address: Ipv4Addr) -> Option<u16> {
    number_in(4, address)
}

const fn in_net(net: u8, number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, net, high, low)
}

const fn number_in(net: u8, address: Ipv4Addr) -> Option<u16> {
    match address.octets() {
        [10, second, high, low] if second == net => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

/// Returns the beginning of a balancer's configuration, with the paths of the balancer's files in `files`, the two
/// interfaces, and a constant hash key.
#[must_use]
pub fn settings(files: &Path) -> String {
    let files = files.display();
    format!(
        "interfaces = [\"eth0\", \"eth1\"]\nxdp_mode = \"native\"\nstate_file = \"{files}/state.json\"\n\
         [control]\nsocket = \"{files}/balancer.sock\"\n\
         [hash]\nkey = \"hex:000102030405060708090a0b0c0d0e0f\"\n"
    )
}

impl Hosts {
    /// Creates the hosts and their routes.
    ///
    /// # Errors
    /// Fails if the process is not root, if `ip` is not installed, or if the kernel returns an error.
    pub fn new() -> Result<Self> {
        let [clients, balancer, backends] =
            [Namespace::new("clients")?, Namespace::new("balancer")?, Namespace::new("backends")?];
        join((&balancer, "eth0"), (&clients, "eth0"))?;
        join((&balancer, "eth1"), (&backends, "eth0"))?;
        for interface in ["eth0", "eth1"] {
            balancer.offload(interface, &[(Offload::Merging, false)])?;
        }
        clients.ip("addr add 10.3.0.2/24 dev eth0")?;
        clients.ip("route add default via 10.3.0.1")?;
        balancer.ip("addr add 10.3.0.1/24 dev eth0")?;
        balancer.ip("route add 10.1.0.0/16 via 10.3.0.2")?;
        balancer.ip("addr add 10.0.0.1/24 dev eth1")?;
        // The backends' addresses are behind a gateway, because the kernel's neighbour table has only about a thousand
        // entries.
        balancer.ip("route add 10.4.0.0/16 via 10.0.0.2")?;
        backends.ip("addr add 10.0.0.2/24 dev eth0")?;
        backends.ip("route add default via 10.0.0.1")?;
        backends.ip("route add local 10.4.0.0/16 dev lo")?;
        // The rules make the kernel discard clients' packets, because a reset would look like a refused check, and
        // would cost as much as a packet.
        backends.ip("rule add pref 10 lookup local")?;
        backends.ip("rule add pref 5 from 10.1.0.0/16 blackhole")?;
        // The rule makes the kernel discard tunnel packets, because no backend removes outer headers, and the kernel
        // would report an error for each tunnel packet.
        backends.ip("rule add pref 5 ipproto ipip blackhole")?;
        backends.ip(&format!("rule add pref 5 ipproto udp dport {GUE} blackhole"))?;
        backends.ip("rule del pref 0")?;
        Ok(Self { clients, balancer, backends })
    }

    /// Starts a listening server at each of the given backends.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn listen(&self, numbers: &[u16], servers: &mut Servers) -> Result<()> {
        self.backends.run_in_thread(|| {
            for &number in numbers {
                let server =
                    listen(backend(number), BACKLOG).with_context(|| format!("listening at {}", backend(number)))?;
                servers.0.insert(number, server);
            }
            Ok(())
        })?
    }

    /// Drops all packets to the backend, so that the backend does not even refuse connections.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn silence(&self, number: u16) -> Result<()> {
        self.backends.ip(&format!("rule add pref 4 to {}/32 blackhole", backend(number).ip())).map(drop)
    }
}

/// The listening servers, by backend number.
#[derive(Default)]
pub struct Servers(BTreeMap<u16, TcpListener>);

impl Servers {
    /// Closes the server of a backend. After this call, the kernel refuses connections to the backend.
    pub fn close(&mut self, number: u16) {
        self.0.remove(&number);
    }
}

/// A server without a thread that accepts connections. The kernel answers handshakes by itself, and waits for requests,
/// which checks do not send.
fn listen(address: SocketAddrV4, backlog: i32) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    let seconds: libc::c_int = 1;
    // SAFETY: the option is an integer, which the kernel reads only during the call.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    })?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}
