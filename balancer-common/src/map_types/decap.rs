//! Maps of `balancer decap`, which removes tunnel headers on a backend.

use bytemuck::{Pod, Zeroable};

/// A local address of a machine that strips tunnel headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DecapKey {
    /// Network order; IPv4 in the first word.
    pub address: [u32; 4],
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

/// The maximum number of local addresses of a machine that strips tunnel headers.
pub const MAX_DECAP_ADDRESSES: u32 = 4096;
/// A VIP: the destination of the packets inside the tunnel.
pub const DECAP_VIP: u32 = 1;
/// An address of the machine itself, at which tunnels end.
pub const DECAP_OWN: u32 = 2;

/// A prefix from which tunnels are accepted: the data of a key in a longest-prefix-match trie, whose length counts from
/// [`DECAP_PREFIX_BASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DecapPrefix {
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
    /// Network order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// Bits of a [`DecapPrefix`] before its address.
pub const DECAP_PREFIX_BASE: u32 = 32;
/// Bits of a whole [`DecapPrefix`].
pub const DECAP_PREFIX_BITS: u32 = DECAP_PREFIX_BASE + 128;
/// The maximum number of prefixes from which tunnels are accepted.
pub const MAX_DECAP_PREFIXES: u32 = 1024;

/// Per-CPU counters of the program that strips tunnel headers. Together they count every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DecapStats {
    /// Packets that were stripped and handed to the kernel.
    pub stripped: u64,
    /// Packets dropped because the inner destination is no local VIP, because the outer source is not an accepted
    /// tunnel source, or because the outer header signals congestion that the inner sender does not understand (RFC
    /// 6040).
    pub refused: u64,
    /// Tunnel packets dropped because their headers contradict each other.
    pub malformed: u64,
    /// Packets handed to the kernel unchanged: frames that are no tunnel packets, or packets of a tunnel that does not
    /// end here.
    pub passed: u64,
}

const _: () = assert!(size_of::<DecapPrefix>() == 20);
