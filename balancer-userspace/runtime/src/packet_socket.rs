//! Packet sockets, which bypass the kernel's routes and neighbours.

use std::io;

use balancer_common::map_types::Mac;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// Opens a non-blocking packet socket that receives no packets until the caller binds it: `RAW` sends and receives
/// whole frames, and `DGRAM` only their payload.
///
/// # Errors
/// Fails if this process lacks the permission to open packet sockets.
pub fn open(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, kind, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The packet socket address of an interface; the index 0 means all interfaces. `protocol` is the Ethernet protocol in
/// host byte order; `to` is not needed for whole frames, which contain their destination.
pub fn link_address(protocol: u16, ifindex: u32, to: Option<Mac>) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is one of the platform's socket address types, for which all bit patterns are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    if let Some(to) = to {
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
    }
    // SAFETY: the code above has written an address of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
