//! Packet sockets, which bypass the kernel's routes and neighbours.

use std::io;

use balancer_common::map_types::Mac;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// Opens a non-blocking socket that receives nothing until it is bound: with `RAW` for frames, with `DGRAM` for their
/// payload.
///
/// # Errors
/// If this process lacks the necessary permission.
pub(crate) fn open(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, kind, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The packet socket address of an interface; index 0: all interfaces. `protocol` is the Ethernet protocol in host
/// order; whole frames contain their own destination.
pub(crate) fn link_address(protocol: u16, ifindex: u32, to: Option<Mac>) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is one of the platform's address types, for which all bytes are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    if let Some(to) = to {
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
    }
    // SAFETY: an address of this length was just written.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
