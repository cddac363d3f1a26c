//! Checks along the path of clients: a connection to a service's VIP whose packets reach one backend in the same way as
//! clients' packets, by the same row.
//!
//! The kernel's TCP cannot make such checks. A VIP is often an address of this machine, so the kernel would connect to
//! itself and drop the answers as martian packets; and it would send by its own routes. Therefore the balancer makes
//! and parses a check's packets itself (`conversation.rs`), wraps them (`outer.rs`) and passes them to the interface
//! (`wire.rs`). However the process ends, no trace of this stays on the machine.

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

/// The interval for polling a path that is not known yet.
const PAUSE: Duration = Duration::from_millis(50);

/// The paths of the data path to each backend, as the owner last wrote them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    known: Arc<Mutex<Known>>,
    wire: Arc<Mutex<Option<Arc<Wire>>>>,
}

#[derive(Debug, Default)]
struct Known {
    rows: HashMap<BackendId, Arc<BackendSpec>>,
    vips: HashSet<IpAddr>,
}

impl Ways {
    pub(super) fn insert(&self, row: Arc<BackendSpec>) {
        self.known().rows.insert(row.id, row);
    }

    pub(super) fn remove(&self, id: BackendId) {
        self.known().rows.remove(&id);
    }

    /// Whether a backend is this machine itself.
    pub(super) fn lead_here(&self, id: BackendId) -> bool {
        self.known().rows.get(&id).and_then(|row| row.next_hop).is_some_and(|hop| hop.local)
    }

    /// Sets the addresses of services. No check uses one of them as its source, because backends have them as well.
    pub(super) fn set_vips(&self, vips: HashSet<IpAddr>) {
        self.known().vips = vips;
    }

    /// Prepares a connection to `vip` on the backend. Waits until `deadline` for a path.
    ///
    /// # Errors
    /// If this machine lacks the resources.
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
                    return Err(io::Error::other("the way to the backend is not known"));
                }
                None => sleep(PAUSE).await,
            }
        };
        let wire = self.wire()?;
        let own = self.own_address(&row, vip.is_ipv4())?;
        Conversation::new(&wire, row, own, vip)
    }

    /// The sockets, which the first check that needs them opens.
    fn wire(&self) -> io::Result<Arc<Wire>> {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        match &*wire {
            Some(wire) if wire.listens() => Ok(Arc::clone(wire)),
            Some(_) | None => Ok(Arc::clone(wire.insert(Wire::open()?))),
        }
    }

    /// An address that belongs only to this machine and to which the backend can reply: the source address of the path
    /// if it has the VIP's family, otherwise one of the interface's addresses, otherwise any.
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
        // A panicking thread did not hold the lock during a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source address that the kernel would choose; the function sends nothing.
fn source_to(address: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((address, 9))?;
    Ok(socket.local_addr()?.ip())
}
