//! Switches an interface's offloads, which are work on checksums and segments that the interface does for the kernel
//! (`ethtool -K`).

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The offloads, each with the number of its `SIOCETHTOOL` command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The interface verifies the checksums of arriving frames.
    Receive = 0x15,
    /// The interface computes the checksums of departing frames.
    Transmit = 0x17,
    /// The interface merges arriving segments (GRO).
    Merging = 0x2c,
}

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Switches an offload of an interface in the calling thread's network namespace.
pub(crate) fn switch(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { cmd: offload as u32, data: u32::from(on) };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: the request names an interface and points to a value of the command's size; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
