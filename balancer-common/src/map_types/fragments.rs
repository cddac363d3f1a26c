//! Where fragments without ports go.

use bytemuck::{Pod, Zeroable};

/// What a datagram's fragments have in common: all but IPv6 (RFC 8200) names the protocol.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Network order.
    pub source: [u32; 4],
    /// Network order.
    pub destination: [u32; 4],
    /// The identification, as it is in the packet.
    pub id: u32,
    /// IANA protocol number; 0 for IPv6.
    pub protocol: u8,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u8,
    /// Zero.
    pub reserved: u16,
}

/// Where a datagram's first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentRow {
    /// Nanoseconds on the kernel's monotonic clock.
    pub seen: u64,
    /// What the way needs: a backend's id, a port, or what names a flow.
    pub value: u32,
    /// `FRAGMENT_*`.
    pub way: u16,
    /// The layer-4 protocol, which a later IPv6 fragment need not name.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// `FragmentRow::way`: to the kernel.
pub const FRAGMENT_PASSED: u16 = 1;
/// `FragmentRow::way`: to the backend with this id.
pub const FRAGMENT_TO_BACKEND: u16 = 2;
/// `FragmentRow::way`: to the client of the `nat` backend that the return table has under this port (network order).
pub const FRAGMENT_TO_CLIENT: u16 = 3;
/// `FragmentRow::way`: to the backend of the flow of this name.
pub const FRAGMENT_OF_FLOW: u16 = 4;
/// `FragmentRow::way`: to the client of the flow of this name.
pub const FRAGMENT_BACK_OF_FLOW: u16 = 5;
/// Datagrams whose fragments are remembered; the oldest make room.
pub const MAX_FRAGMENTS: u32 = 8192;
/// How long, in nanoseconds: as long as receivers wait for the rest (60 s, RFC 8200 section 4.5).
pub const FRAGMENT_LIFETIME: u64 = 60_000_000_000;

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentRow>() == 16);
};
