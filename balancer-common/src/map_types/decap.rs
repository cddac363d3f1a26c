//! What a backend takes out of tunnels.

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

/// Local addresses of a machine that strips tunnel headers, at most.
pub const MAX_DECAP_ADDRESSES: u32 = 4096;
/// An address of a machine that strips tunnel headers: a VIP, which packets inside are for.
pub const DECAP_VIP: u32 = 1;
/// An address of a machine that strips tunnel headers: its own, which tunnels end at.
pub const DECAP_OWN: u32 = 2;

/// A prefix that tunnels may come from. The data of a key of a longest-prefix-match trie, whose length counts from
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
/// Prefixes that tunnels may come from, at most.
pub const MAX_DECAP_PREFIXES: u32 = 1024;

/// Per-CPU counters of the program that strips tunnel headers. Their sum is the packets seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DecapStats {
    /// Stripped and handed to the kernel.
    pub stripped: u64,
    /// Dropped: the inner destination is no local VIP, the outer source none that tunnels may come from, or the outer
    /// header says congestion and the inner sender does not understand that (RFC 6040).
    pub refused: u64,
    /// Dropped: a tunnel packet that contradicts itself.
    pub malformed: u64,
    /// No tunnel packet, or one that does not end here: handed to the kernel unchanged.
    pub passed: u64,
}

const _: () = assert!(size_of::<DecapPrefix>() == 20);
