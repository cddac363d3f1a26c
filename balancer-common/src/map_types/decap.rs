//! Maps of `balancer decap`, the program that removes tunnel headers on a backend.

use bytemuck::{Pod, Zeroable};

/// A local address of a machine that removes tunnel headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DecapKey {
    /// The address in network order; an IPv4 address is in the first word.
    pub address: [u32; 4],
    /// The family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
    /// This field is always zero.
    pub reserved: u32,
}

/// The maximum number of local addresses of a machine that removes tunnel headers.
pub const MAX_DECAP_ADDRESSES: u32 = 4096;
/// The address is a VIP: the destination of the packets inside a tunnel.
pub const DECAP_VIP: u32 = 1;
/// The address belongs to the machine itself, and tunnels end at this address.
pub const DECAP_OWN: u32 = 2;

/// A source prefix from which the program accepts tunnel packets: the data of a key in a longest-prefix-match trie. The
/// prefix length of the key includes the [`DECAP_PREFIX_BASE`] bits before the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DecapPrefix {
    /// The family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
    /// The address in network order; an IPv4 address is in the first word.
    pub address: [u32; 4],
}

/// The number of bits of a [`DecapPrefix`] before the address.
pub const DECAP_PREFIX_BASE: u32 = 32;
/// The number of bits of a whole [`DecapPrefix`].
pub const DECAP_PREFIX_BITS: u32 = DECAP_PREFIX_BASE + 128;
/// The maximum number of source prefixes from which the program accepts tunnel packets.
pub const MAX_DECAP_PREFIXES: u32 = 1024;

/// Counters on one CPU of the program that removes tunnel headers. Together, these counters count every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DecapStats {
    /// The number of packets whose tunnel headers the program removed before it handed them to the kernel.
    pub stripped: u64,
    /// The number of packets dropped for one of three reasons: the inner destination is no local VIP, the outer source
    /// is no accepted tunnel source, or the outer header signals congestion that the inner sender does not understand
    /// (RFC 6040).
    pub refused: u64,
    /// The number of tunnel packets dropped because their headers contradict each other.
    pub malformed: u64,
    /// The number of packets handed to the kernel unchanged: packets without a tunnel, or packets of a tunnel that ends
    /// on another machine.
    pub passed: u64,
}

const _: () = assert!(size_of::<DecapPrefix>() == 20);
