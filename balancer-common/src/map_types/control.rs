//! Values that the kernel program reads for every packet.

use bytemuck::{Pod, Zeroable};

/// Values that the controller publishes and the kernel program reads for every packet.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Control {
    /// The view of the active table of listeners, a [`crate::service_table::TableView`].
    pub listeners: u64,
    /// The view of the active return table, a [`crate::service_table::TableView`].
    pub returns: u64,
    /// The salt that determines a client's bits in the filter of seen clients, see [`crate::seen`].
    pub seen_salt: u64,
    /// The flags: `CONTROL_*` bits.
    pub flags: u32,
    /// The value of [`LAYOUT_VERSION`](super::LAYOUT_VERSION).
    pub layout_version: u32,
    /// The number of new clients of one service that the program may record in a period, no matter how many clients
    /// other services have: see [`NewcomerBudget`](super::NewcomerBudget).
    pub newcomers_own: u32,
    /// The number of new clients of all services together that the program may record in a period beyond the services'
    /// own limits.
    pub newcomers_common: u32,
    /// On average, the program samples one of this many forwarded packets; 0: none.
    pub sample_interval: u32,
    /// The program does not watch handshakes from client ports that have one of these bits set (network order): see
    /// [`crate::signs`].
    pub unsampled: u32,
    /// Bit `ifindex % 64`: the map of devices may have a row for an interface with this index, and that row applies to
    /// frames in a single buffer; see `DEVICE_*`.
    pub devices: u64,
    /// A bit for each VIP, see [`crate::service_table::vip_bit`].
    pub vips: u64,
}

/// `Control::flags`: some listener has port 0 or a range, so the program looks up a key again if the first lookup
/// fails.
pub const CONTROL_PORT_WILDCARD: u32 = 1;
/// `Control::flags`: some service is `nat`, so the program looks up packets without a listener in the return table.
pub const CONTROL_RETURNS: u32 = 2;
/// `Control::flags`: some `nat` service has a listener with port 0 or a range.
pub const CONTROL_RETURN_WILDCARD: u32 = 4;
/// `Control::flags`: some service is `snat`, so the program looks up packets to the ports of a pool among the flows.
pub const CONTROL_FLOWS: u32 = 8;
/// `Control::flags`: this machine is a backend of some `dsr` or `nat` service, so the other backends of this service may
/// send packets to this machine.
pub const CONTROL_PEERS: u32 = 16;
/// `Control::flags`: this machine is a backend of some `nat` or `snat` service, so packets for no service may belong to
/// connections that clients make to this backend's own address.
pub const CONTROL_DIRECT: u32 = 32;

const _: () = assert!(size_of::<Control>() == 64);
