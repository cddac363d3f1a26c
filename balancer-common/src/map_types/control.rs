//! Words that every packet reads.

use bytemuck::{Pod, Zeroable};

/// Words that the controller publishes and the kernel program reads on every packet.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Control {
    /// The active table of listeners, a [`crate::service_table::TableView`].
    pub listeners: u64,
    /// The active return table, a [`crate::service_table::TableView`].
    pub returns: u64,
    /// The salt that chooses a client's bits in the filter, see [`crate::seen`].
    pub seen_salt: u64,
    /// `CONTROL_*` bits.
    pub flags: u32,
    /// [`LAYOUT_VERSION`](super::LAYOUT_VERSION).
    pub layout_version: u32,
    /// The number of newcomers of one service that may be recorded in a period, no matter what other services do: see
    /// [`NewcomerBudget`](super::NewcomerBudget).
    pub newcomers_own: u32,
    /// The number of newcomers of all services together that may be recorded in a period beyond these shares.
    pub newcomers_common: u32,
    /// On average, one of this many forwarded packets is sampled; 0: none.
    pub sample_interval: u32,
    /// The program does not watch handshakes from client ports that have one of these bits set (network order): see
    /// [`crate::signs`].
    pub unsampled: u32,
    /// Bit `ifindex % 64`: the map of devices may have a row for that interface that applies to frames in one buffer,
    /// see `DEVICE_*`.
    pub devices: u64,
    /// A bit for each VIP, see [`crate::service_table::vip_bit`].
    pub vips: u64,
}

/// `Control::flags`: some listener has port 0 or a range, so the program looks up a missing key a second time.
pub const CONTROL_PORT_WILDCARD: u32 = 1;
/// `Control::flags`: some service is `nat`, so the program looks up packets without a listener in the return table.
pub const CONTROL_RETURNS: u32 = 2;
/// `Control::flags`: some `nat` service has a listener with port 0 or a range.
pub const CONTROL_RETURN_WILDCARD: u32 = 4;
/// `Control::flags`: some service is `snat`, so the program looks up packets to the ports of a pool among the flows.
pub const CONTROL_FLOWS: u32 = 8;
/// `Control::flags`: this machine is a backend of some `dsr` service, so others may send it packets of that service.
pub const CONTROL_PEERS: u32 = 16;

const _: () = assert!(size_of::<Control>() == 64);
