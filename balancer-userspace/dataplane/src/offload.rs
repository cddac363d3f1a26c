//! Network card offloads that change frames before the program sees them, and that must therefore be off.
//!
//! The generic XDP hook sees packets after generic receive offload has merged them. Merged packets are larger than any
//! MTU and have unfinished checksums, so an incremental update would make these checksums wrong. (The kernel itself
//! switches large receive offload off when a generic program is attached.)
//!
//! A card that strips VLAN tags passes the tags to the kernel outside of the frame, where the program does not see
//! them. Packets that the program sends back out of the same interface would therefore leave without a tag.
//!
//! The balancer switches off both offloads, and switches them on again when it ends.

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tracing::{info, warn};

const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// The structure `ethtool_value` of the kernel.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The kernel merges received packets.
    Merging,
    /// The network card strips VLAN tags.
    TagStripping,
}

impl Offload {
    const fn name(self) -> &'static str {
        match self {
            Self::Merging => "generic receive offload",
            Self::TagStripping => "the stripping of VLAN tags",
        }
    }

    const fn why(self) -> &'static str {
        match self {
            Self::Merging => "generic mode sees merged packets with it",
            Self::TagStripping => "the program does not see tags that the card takes off",
        }
    }

    const fn harm(self) -> &'static str {
        match self {
            Self::Merging => "merged packets will have wrong checksums or be too large; try `ethtool -K {} gro off`",
            Self::TagStripping => {
                "what goes back by the interface that it came in by leaves without a tag; name the VLAN's own interface \
                 instead, or try `ethtool -K {} rxvlan off`"
            }
        }
    }

    fn is_on(self, interface: &str) -> io::Result<bool> {
        match self {
            Self::Merging => ethtool(interface, ETHTOOL_GGRO, 0).map(|on| on != 0),
            Self::TagStripping => ethtool(interface, ETHTOOL_GFLAGS, 0).map(|flags| flags & ETH_FLAG_RXVLAN != 0),
        }
    }

    fn switch(self, interface: &str, on: bool) -> io::Result<()> {
        match self {
            Self::Merging => ethtool(interface, ETHTOOL_SGRO, u32::from(on))?,
            Self::TagStripping => {
                let others = ethtool(interface, ETHTOOL_GFLAGS, 0)? & !ETH_FLAG_RXVLAN;
                ethtool(interface, ETHTOOL_SFLAGS, others | if on { ETH_FLAG_RXVLAN } else { 0 })?
            }
        };
        // Some drivers ignore the request to switch an offload off.
        if self.is_on(interface)? == on { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }
}

/// An offload that this process has switched off; if this value is dropped, the process switches the offload on again.
#[derive(Debug)]
pub(super) struct SwitchedOff {
    offload: Offload,
    interface: String,
}

impl SwitchedOff {
    /// Switches an offload of an interface off. `None`: the offload was already off, or it cannot be switched off, in
    /// which case the function logs a warning.
    pub(super) fn new(offload: Offload, interface: &str) -> Option<Self> {
        let switched = offload.is_on(interface).and_then(|on| {
            if on {
                offload.switch(interface, false)?;
            }
            Ok(on)
        });
        match switched {
            Ok(true) => {
                info!("{} of {interface} switched off: {}", offload.name(), offload.why());
                Some(Self { offload, interface: interface.to_owned() })
            }
            Ok(false) => None,
            Err(error) => {
                let harm = offload.harm().replace("{}", interface);
                warn!("{} of {interface} cannot be switched off ({error}): {harm}", offload.name());
                None
            }
        }
    }

    /// An offload that an earlier process has left switched off.
    pub(super) const fn left_off(offload: Offload, interface: String) -> Self {
        Self { offload, interface }
    }

    /// Switches the offload off again if another program has switched it on.
    pub(super) fn again(&self) {
        let Self { offload, interface } = self;
        if offload.is_on(interface).unwrap_or(false) && offload.switch(interface, false).is_ok() {
            info!("{} of {interface} switched off again: {}", offload.name(), offload.why());
        }
    }

    /// Records the new name of the offload's interface.
    pub(super) fn follow(&mut self, name: &str) {
        name.clone_into(&mut self.interface);
    }

    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// Leaves the offload switched off when this process ends.
    pub(super) fn leave_off(mut self) {
        self.interface.clear();
    }
}

/// Switches on an offload that an earlier process has left switched off.
pub fn switch_on(offload: Offload, interface: String) {
    drop(SwitchedOff::left_off(offload, interface));
}

impl Drop for SwitchedOff {
    fn drop(&mut self) {
        let Self { offload, interface } = self;
        if interface.is_empty() {
            return;
        }
        if let Err(error) = offload.switch(interface, true) {
            warn!("{} of {interface} stays off: {error}", offload.name());
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
    // SAFETY: the request names an interface and points to a value with the size that the command requires; both live
    // until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
