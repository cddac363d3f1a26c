//! Interfaces, the devices behind them, and neighbours.

use bytemuck::{Pod, Zeroable};

/// Rows of the interface map. A power of two.
pub const MAX_INTERFACES: u32 = 64;

/// Ethernet address.
pub type Mac = [u8; 6];

/// The destination MACs that an attached interface accepts, in one cache line at [`interface_row`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceRow {
    /// The interface's own MAC, then those of the devices stacked on it, each as a [`mac_word`]; unused places repeat
    /// the first.
    pub local_macs: [u64; LOCAL_MACS],
    /// Index of the interface. If the row holds another index, or 0, the program accepts every frame.
    pub ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

/// The maximum number of MACs accepted by one interface.
pub const LOCAL_MACS: usize = 7;
/// The maximum number of other backends recognized by their MACs, in services of which this machine is a backend.
pub const MAX_PEERS: u32 = 256;

/// The key of a backend of `service`. The word `sender` begins with the MAC from which the backend sends frames.
#[inline(always)]
#[must_use]
pub const fn peer(sender: u64, service: u16) -> u64 {
    let [a, b] = service.to_ne_bytes();
    sender & MAC_MASK | u64::from_ne_bytes([0, 0, 0, 0, 0, 0, a, b])
}

/// The bits of a frame's first eight bytes that are its destination.
pub const MAC_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
/// The bit of a [`mac_word`] word that marks a group address.
pub const MAC_GROUP: u64 = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);

/// A MAC as it appears in the first word of a frame for it, masked with [`MAC_MASK`].
#[must_use]
pub const fn mac_word([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// The row of an interface in the interface map: a perfect hash, whose multiplier the controller chooses at load.
#[inline(always)]
#[must_use]
pub const fn interface_row(ifindex: u32, multiplier: u32) -> u32 {
    ifindex.wrapping_mul(multiplier) >> (32 - MAX_INTERFACES.trailing_zeros())
}

/// The maximum number of interfaces with `DEVICE_*` flags.
pub const MAX_DEVICES: u32 = 4096;
/// `DEVICE_*`: the interface accepts no frames from XDP on other interfaces, so the kernel sends them.
pub const DEVICE_TAKES_NO_FRAMES: u32 = 1;
/// `DEVICE_*`: VLAN interfaces are stacked on the interface. A tag shows by which of them a frame came in, and the VLAN
/// interface by which the frame leaves writes its own tag.
pub const DEVICE_CARRIES_TAGS: u32 = 2;
/// `DEVICE_*`: the interface accepts only frames in one buffer from XDP on other interfaces, so the kernel sends
/// others.
pub const DEVICE_TAKES_NO_PARTS: u32 = 4;
/// The row of the map of devices that stands for every interface. It may have [`DEVICE_TAKES_NO_PARTS`].
pub const ANY_DEVICE: u32 = 0;

/// A neighbour that a `nat` reply needs and that stays unresolved in the kernel. The program sends it to the
/// controller.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NeighbourWanted {
    /// Network order.
    pub address: [u32; 4],
    /// The interface through which the neighbour is reached.
    pub ifindex: u32,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
}

/// The time for which a neighbour has been requested.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighbourAsked {
    /// Time of the first packet for the neighbour, in nanoseconds of the kernel's monotonic clock.
    pub first: u64,
    /// Time of the last packet.
    pub last: u64,
}

/// The maximum number of requested neighbours; new ones replace the oldest.
pub const MAX_ASKED: u32 = 4096;

/// Number of clients' next hops that each CPU caches briefly, if it was online at the start.
pub const CACHED_HOPS_OF_CPU: u32 = 2048;

const _: () = {
    assert!(size_of::<InterfaceRow>() == 64);
    assert!(size_of::<NeighbourWanted>() == 24);
};
