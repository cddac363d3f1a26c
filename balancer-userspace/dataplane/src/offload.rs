//! Receive offload of interfaces in generic mode.
//!
//! The generic hook sees packets after generic receive offload has merged them: larger than any MTU, and with the
//! checksum of a merged packet left unfinished, which an incremental update would ruin. So it is switched off, and on
//! again at the end. (Large receive offload goes off by itself when a generic program is attached.)

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tracing::{info, warn};

const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Generic receive offload that was switched off; dropping this switches it on again.
#[derive(Debug)]
pub(super) struct ReceiveOffload {
    interface: String,
}

impl ReceiveOffload {
    /// Switches it off. `None`: it was off, or cannot be switched, which is warned of.
    pub(super) fn off(interface: &str) -> Option<Self> {
        let switched = ethtool(interface, ETHTOOL_GGRO, 0).and_then(|on| {
            if on != 0 {
                ethtool(interface, ETHTOOL_SGRO, 0)?;
            }
            Ok(on != 0)
        });
        match switched {
            Ok(true) => {
                info!("generic receive offload of {interface} switched off: generic mode sees merged packets with it");
                Some(Self { interface: interface.to_owned() })
            }
            Ok(false) => None,
            Err(error) => {
                warn!(
                    "generic receive offload of {interface} cannot be switched off ({error}): merged packets \
                     will have wrong checksums or be too large; try `ethtool -K {interface} gro off`"
                );
                None
            }
        }
    }

    /// As an earlier process left it.
    pub(super) const fn left_off(interface: String) -> Self {
        Self { interface }
    }

    /// Leaves it off.
    pub(super) fn leave_off(mut self) {
        self.interface.clear();
    }
}

/// Switches the generic receive offload of an interface on again that an earlier process left off.
pub fn switch_on(interface: String) {
    drop(ReceiveOffload::left_off(interface));
}

impl Drop for ReceiveOffload {
    fn drop(&mut self) {
        if self.interface.is_empty() {
            return;
        }
        if let Err(error) = ethtool(&self.interface, ETHTOOL_SGRO, 1) {
            warn!("generic receive offload of {} stays off: {error}", self.interface);
        }
    }
}

fn ethtool(interface: &str, cmd: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { cmd, data };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: the request names an interface and points to a value of the command's size; both live through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
