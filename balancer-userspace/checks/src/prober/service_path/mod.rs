//! Health checks that take the path of clients' packets: the prober connects to the VIP of a service. The packets of the
//! connection reach the backend on the same path as clients' packets, because both use the same row.
//!
//! The kernel's TCP stack is unable to make such connections. A VIP is often an address of this machine, so the kernel
//! would connect to itself, and would drop the backend's answers as martian packets. In addition, the kernel would use
//! its own routes. The balancer itself makes and parses the packets of a check (`conversation.rs`), encapsulates them
//! (`outer.rs`), and passes them to the interface (`wire.rs`). No changes to the machine remain, however the process
//! ends.

mod conversation;
mod outer;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use balancer_control::io::{BackendId, BackendSpec};
use nix::{ifaddrs::getifaddrs, net::if_::if_indextoname};
use tokio::time::{Instant, sleep};

pub(super) use self::conversation::Conversation;
use self::wire::Wire;

/// The interval at which a check polls for a path that is not known yet.
const PAUSE: Duration = Duration::from_millis(50);

/// The data path's path to each backend, as the owner last wrote it.
#[derive(Clone, Debug, Default)]
pub(super) struct BackendPaths {
    known: Arc<Mutex<Known>>,
    wire: Arc<Mutex<Option<Arc<Wire>>>>,
}

#[derive(Debug, Default)]
struct Known {
    rows: HashMap<BackendId, Arc<BackendSpec>>,
    vips: HashSet<IpAddr>,
}

impl BackendPaths {
    pub(super) fn insert(&self, row: Arc<BackendSpec>) {
        self.known().rows.insert(row.id, row);
    }

    pub(super) fn remove(&self, id: BackendId) {
        self.known().rows.remove(&id);
    }

    /// Whether this machine itself is the backend.
    pub(super) fn lead_here(&self, id: BackendId) -> bool {
        self.known().rows.get(&id).and_then(|row| row.next_hop).is_some_and(|hop| hop.local)
    }

    /// Sets the VIPs of all services. No check uses a VIP as its source address, because backends also have the VIPs.
    pub(super) fn set_vips(&self, vips: HashSet<IpAddr>) {
        self.known().vips = vips;
    }

    /// Prepares a connection to `vip` at a backend. If there is no path to the backend yet, the function waits for one
    /// until `deadline`.
    ///
    /// # Errors
    /// Fails if this machine lacks the resources for the connection.
    pub(super) async fn connect(
        &self,
        backend: BackendId,
        vip: SocketAddr,
        deadline: Instant,
    ) -> io::Result<Conversation> {
        let row = loop {
            let row = self.known().rows.get(&backend).filter(|row| row.next_hop.is_some()).cloned();
            match row {
                Some(row) => break row,
                None if Instant::now() + PAUSE >= deadline => {
                    return Err(io::Error::other("the route to the backend is not known yet"));
                }
                None => sleep(PAUSE).await,
            }
        };
        let wire = self.wire()?;
        let own = self.own_address(&row, vip.is_ipv4())?;
        Conversation::new(&wire, row, own, vip)
    }

    /// Returns the packet sockets; opens them if no check has needed them before.
    fn wire(&self) -> io::Result<Arc<Wire>> {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        match &*wire {
            Some(wire) if wire.listens() => Ok(Arc::clone(wire)),
            Some(_) | None => Ok(Arc::clone(wire.insert(Wire::open()?))),
        }
    }

    /// An address that only this machine has and to which the backend can reply: the source address of the path if its
    /// address family is that of the VIP, otherwise an address of the interface, otherwise any address of this machine.
    fn own_address(&self, row: &BackendSpec, v4: bool) -> io::Result<IpAddr> {
        let known = self.known();
        let usable = |address: &IpAddr| {
            let scoped = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            address.is_ipv4() == v4 && !address.is_loopback() && !scoped && !known.vips.contains(address)
        };
        if let Some(own) = source_to(row.address.ip()).ok().filter(usable) {
            return Ok(own);
        }
        let ifindex = row.next_hop.map_or(0, |hop| hop.ifindex);
        let interface = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
        let all: Vec<(bool, IpAddr)> = getifaddrs()?
            .filter_map(|of| {
                let address = of.address?;
                let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                    (Some(v4), _) => IpAddr::V4(v4.ip()),
                    (None, Some(v6)) => IpAddr::V6(v6.ip()),
                    (None, None) => return None,
                };
                Some((Some(of.interface_name) == interface, address))
            })
            .filter(|(_, address)| usable(address))
            .collect();
        let nearest = all.iter().find(|(near, _)| *near).or(all.first());
        nearest.map(|(_, address)| *address).ok_or_else(|| {
            let family = if v4 { "IPv4" } else { "IPv6" };
            io::Error::other(format!("no {family} address that is not a VIP"))
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // The data is consistent even if the lock is poisoned, because no thread panics while it changes the data.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source address that the kernel would choose for packets to `address`; the function sends no packet.
fn source_to(address: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((address, 9))?;
    Ok(socket.local_addr()?.ip())
}
