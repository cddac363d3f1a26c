//! Destinations of first fragments; the program forwards later fragments, which have no ports, to these destinations.

use bytemuck::{Pod, Zeroable};

/// The header fields that all fragments of a datagram have in common. In IPv4, all fragments of a datagram also have
/// the same protocol; in IPv6, the protocols may differ (RFC 8200).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// The source address in network order.
    pub source: [u32; 4],
    /// The destination address in network order.
    pub destination: [u32; 4],
    /// The identification of the datagram, in the packet's byte order.
    pub id: u32,
    /// IANA protocol number; 0 for IPv6.
    pub protocol: u8,
    /// The family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u8,
    /// This field is always zero.
    pub reserved: u16,
}

/// The destination of a datagram's first fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentRow {
    /// The arrival time of the first fragment, in nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// A backend's id, a port, or the name of a flow, depending on the field `way`.
    pub value: u32,
    /// One of the constants `FRAGMENT_*`.
    pub way: u16,
    /// The layer-4 protocol, which later IPv6 fragments need not contain.
    pub protocol: u8,
    /// This field is always zero.
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
/// The maximum number of datagrams whose fragments the program remembers; new datagrams replace the oldest.
pub const MAX_FRAGMENTS: u32 = 8192;
/// The time in nanoseconds for which the program remembers a datagram's destination: receivers wait the same time for
/// the remaining fragments (60 s, RFC 8200 section 4.5).
pub const FRAGMENT_LIFETIME: u64 = 60_000_000_000;

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentRow>() == 16);
};
