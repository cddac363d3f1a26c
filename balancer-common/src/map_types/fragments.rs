//! Memory of first fragments, by which later fragments without ports are forwarded.

use bytemuck::{Pod, Zeroable};

/// The fields that all fragments of a datagram share. The protocol is one of them, except in IPv6 (RFC 8200).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Network order.
    pub source: [u32; 4],
    /// Network order.
    pub destination: [u32; 4],
    /// The identification, in the byte order of the packet.
    pub id: u32,
    /// IANA protocol number; 0 for IPv6.
    pub protocol: u8,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u8,
    /// Zero.
    pub reserved: u16,
}

/// The destination of a datagram's first fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentRow {
    /// Time of the first fragment, in nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// A backend's id, a port or the name of a flow, depending on `way`.
    pub value: u32,
    /// `FRAGMENT_*`.
    pub way: u16,
    /// The layer-4 protocol, which later IPv6 fragments need not carry.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// `FragmentRow::way`: the fragments pass to the kernel.
pub const FRAGMENT_PASSED: u16 = 1;
/// `FragmentRow::way`: the fragments go to the backend with this id.
pub const FRAGMENT_TO_BACKEND: u16 = 2;
/// `FragmentRow::way`: the fragments go to the client of the `nat` backend that the return table has under this port
/// (network order).
pub const FRAGMENT_TO_CLIENT: u16 = 3;
/// `FragmentRow::way`: the fragments go to the backend of the flow with this name.
pub const FRAGMENT_OF_FLOW: u16 = 4;
/// `FragmentRow::way`: the fragments go to the client of the flow with this name.
pub const FRAGMENT_BACK_OF_FLOW: u16 = 5;
/// The maximum number of datagrams whose fragments are remembered; new ones replace the oldest.
pub const MAX_FRAGMENTS: u32 = 8192;
/// The time in nanoseconds for which fragments are remembered: receivers wait the same time for the rest (60 s, RFC
/// 8200 section 4.5).
pub const FRAGMENT_LIFETIME: u64 = 60_000_000_000;

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentRow>() == 16);
};
