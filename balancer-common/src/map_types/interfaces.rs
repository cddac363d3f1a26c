//! Interfaces, the devices that belong to them, and neighbours.

use bytemuck::{Pod, Zeroable};

/// The number of rows of the interface map, which is a power of two.
pub const MAX_INTERFACES: u32 = 64;

/// An Ethernet address of six bytes.
pub type Mac = [u8; 6];

/// The destination MACs that an attached interface accepts, in one cache line at [`interface_row`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceRow {
    /// The interface's own MAC, followed by the MACs of the devices stacked on the interface, each as a [`mac_word`];
    /// unused entries repeat the first MAC.
    pub local_macs: [u64; LOCAL_MACS],
    /// Index of the interface. If the index in the row is 0 or that of another interface, the program accepts every
    /// frame.
    pub ifindex: u32,
    /// This field is always zero.
    pub reserved: u32,
}

/// The maximum number of MACs that one interface can accept.
pub const LOCAL_MACS: usize = 7;
/// The maximum number of backends on other machines that the program recognizes by their MACs, in services of which
/// this machine is a backend.
pub const MAX_PEERS: u32 = 256;

/// The map key of a backend of `service` that sends frames to this machine. The word `sender` begins with the MAC from
/// which this backend sends frames.
#[inline(always)]
#[must_use]
pub const fn peer(sender: u64, service: u16) -> u64 {
    let [a, b] = service.to_ne_bytes();
    sender & MAC_MASK | u64::from_ne_bytes([0, 0, 0, 0, 0, 0, a, b])
}

/// The bits of a frame's first eight bytes that belong to the destination MAC.
pub const MAC_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
/// The bit of a [`mac_word`] word that marks a group address.
pub const MAC_GROUP: u64 = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);

/// A MAC as it appears in the first word of a frame to this MAC, masked with [`MAC_MASK`].
#[must_use]
pub const fn mac_word([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// The row of an interface in the interface map: a perfect hash of the index; the controller chooses the hash's
/// multiplier when it loads the program.
#[inline(always)]
#[must_use]
pub const fn interface_row(ifindex: u32, multiplier: u32) -> u32 {
    ifindex.wrapping_mul(multiplier) >> (32 - MAX_INTERFACES.trailing_zeros())
}

/// The maximum number of interfaces that have `DEVICE_*` flags.
pub const MAX_DEVICES: u32 = 4096;
/// `DEVICE_*`: the interface accepts no frames that XDP redirects from other interfaces, so the kernel sends such
/// frames.
pub const DEVICE_TAKES_NO_FRAMES: u32 = 1;
/// `DEVICE_*`: VLAN interfaces are stacked on this interface. A frame's VLAN tag shows the VLAN interface by which the
/// frame came in, and the VLAN interface that sends the frame writes its own tag.
pub const DEVICE_CARRIES_TAGS: u32 = 2;
/// `DEVICE_*`: of the frames that XDP redirects from other interfaces, the interface accepts only those in a single
/// buffer, so the kernel sends frames in several buffers.
pub const DEVICE_TAKES_NO_PARTS: u32 = 4;
/// The row of the map of devices that applies to every interface. This row may have the flag [`DEVICE_TAKES_NO_PARTS`].
pub const ANY_DEVICE: u32 = 0;

/// A neighbour that a `nat` reply needs and that the kernel has not resolved. The program sends the controller a
/// message about each such neighbour.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NeighbourWanted {
    /// The neighbour's address in network order.
    pub address: [u32; 4],
    /// The interface through which this machine reaches the neighbour.
    pub ifindex: u32,
    /// The family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
}

/// The first and the last time at which a packet waited for a neighbour.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighbourAsked {
    /// The time of the first packet for the neighbour, in nanoseconds of the kernel's monotonic clock.
    pub first: u64,
    /// The time of the last packet for the neighbour.
    pub last: u64,
}

/// The maximum number of neighbours that packets wait for; new neighbours replace the oldest.
pub const MAX_ASKED: u32 = 4096;

/// The number of next hops that each CPU caches for a short time, if the CPU was online when the balancer started.
pub const CACHED_HOPS_OF_CPU: u32 = 2048;

const _: () = {
    assert!(size_of::<InterfaceRow>() == 64);
    assert!(size_of::<NeighbourWanted>() == 24);
};
