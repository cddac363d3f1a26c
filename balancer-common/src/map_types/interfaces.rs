//! Interfaces, the devices behind them, and neighbours.

use bytemuck::{Pod, Zeroable};

/// Rows of the interface map. A power of two.
pub const MAX_INTERFACES: u32 = 64;

/// Ethernet address.
pub type Mac = [u8; 6];

/// Destinations of frames that an attached interface takes: a cache line, found by [`interface_row`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceRow {
    /// [`station`] of its own MAC, then of those of the devices above it; places left over repeat the first.
    pub stations: [u64; STATIONS],
    /// Its index. Where this is another's, or 0, every frame is taken.
    pub ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

/// MACs that are told apart on one interface.
pub const STATIONS: usize = 7;
/// Backends of services of which this machine is one that are told by their MACs, at most.
pub const MAX_PEERS: u32 = 256;

/// The key of a backend of `service` that sends frames from a MAC, which begins the word `sender`.
#[inline(always)]
#[must_use]
pub const fn peer(sender: u64, service: u16) -> u64 {
    let [a, b] = service.to_ne_bytes();
    sender & STATION_MASK | u64::from_ne_bytes([0, 0, 0, 0, 0, 0, a, b])
}

/// What of the first eight bytes of a frame is its destination.
pub const STATION_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
/// The bit of a [`station`] that says that it is a group's.
pub const STATION_GROUP: u64 = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);

/// A MAC as the word that a frame for it begins with, under [`STATION_MASK`].
#[must_use]
pub const fn station([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// The row of an interface in the interface map: a perfect hash, whose multiplier the controller chooses at load.
#[inline(always)]
#[must_use]
pub const fn interface_row(ifindex: u32, multiplier: u32) -> u32 {
    ifindex.wrapping_mul(multiplier) >> (32 - MAX_INTERFACES.trailing_zeros())
}

/// Interfaces of which `DEVICE_*` is known, at most.
pub const MAX_DEVICES: u32 = 4096;
/// What is known of an interface: it takes no frames from XDP (of another interface), so the kernel sends them.
pub const DEVICE_TAKES_NO_FRAMES: u32 = 1;
/// What is known of an interface: there are VLAN interfaces upon it, so a tag says which one a frame came in by, and the
/// one that it leaves by writes its own.
pub const DEVICE_CARRIES_TAGS: u32 = 2;

/// A neighbour that a `nat` reply needs and the kernel has not resolved: sent to the controller, if it stays so.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NeighbourWanted {
    /// Network order.
    pub address: [u32; 4],
    /// The interface it is a neighbour on.
    pub ifindex: u32,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
}

/// For how long a neighbour has been asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighbourAsked {
    /// The first packet for it, in nanoseconds on the kernel's monotonic clock.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// Neighbours that are asked for, at most; the oldest make room.
pub const MAX_ASKED: u32 = 4096;

/// Next hops of clients that each CPU keeps for a moment, if it was online at the start.
pub const RECENT_HOPS_OF_CPU: u32 = 2048;

const _: () = {
    assert!(size_of::<InterfaceRow>() == 64);
    assert!(size_of::<NeighbourWanted>() == 24);
};
