//! Connections of `snat` services, one row each: see [`crate::flows`].

use bytemuck::{Pod, Zeroable};

/// Rows of a bucket.
pub const FLOWS_PER_LINE: u32 = 8;
/// Rows, at most: a number of 24 bits.
pub const MAX_FLOW_ROWS: u32 = 1 << 24;
/// Pool addresses of a service and family, at most.
pub const MAX_POOL: usize = 8;

/// What of the flows of a bucket is replaced in place: a [`crate::flows::FlowWord`] for each of its rows; 0: there is none.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowLine {
    /// In no order.
    pub words: [u64; FLOWS_PER_LINE as usize],
}

/// A bucket of the index by which replies are found: a [`crate::flows::ReturnWord`] each; 0: there is none.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowReturns {
    /// In no order.
    pub words: [u64; FLOWS_PER_LINE as usize],
}

/// A flow: what does not change while it lives, and its counters. Two cache lines.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowRow {
    /// The client's address, network order; so below.
    pub client: [u32; 4],
    /// The address that the client speaks to.
    pub vip: [u32; 4],
    /// The backend's address.
    pub backend: [u32; 4],
    /// The address that the backend sees.
    pub pool: [u32; 4],
    /// Network order; so below.
    pub client_port: u16,
    /// The listener's.
    pub vip_port: u16,
    /// The one that the backend listens on.
    pub backend_port: u16,
    /// The one that the backend sees.
    pub pool_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u8,
    /// The backend's id.
    pub backend_id: u16,
    /// Index of the service.
    pub service: u16,
    /// What the change of addresses adds to a complemented checksum on the way to the backend, folded.
    pub there_addresses: u16,
    /// The same for addresses and ports.
    pub there_all: u16,
    /// The same for addresses, on the way back.
    pub back_addresses: u16,
    /// The same for addresses and ports, on the way back.
    pub back_all: u16,
    /// Which of the pool's addresses it is.
    pub pool_index: u16,
    /// The client's hash, as [`crate::client`] makes it.
    pub hash: u64,
    /// Where the word of [`FlowReturns`] is that leads here, counted in words.
    pub returns: u32,
    /// When it began, in [`crate::flows::ticks`].
    pub begun: u32,
    /// Bytes of IP packets to the backend.
    pub bytes_there: u64,
    /// Bytes of IP packets to the client.
    pub bytes_back: u64,
    /// The hash of both ends as the client sees them, of which the word has the high half.
    pub ends: u64,
}

/// What the flows of a service may use, and for how long.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowPool {
    /// Addresses for IPv4 backends, in the first word each; then those for IPv6 backends. Network order.
    pub addresses: [[[u32; 4]; MAX_POOL]; 2],
    /// How many of them there are, for each family; 0: [`BackendRow::tunnel_source`](super::BackendRow::tunnel_source) is the only one.
    pub count: [u16; 2],
    /// The first port, host order.
    pub first_port: u16,
    /// The last port, host order.
    pub last_port: u16,
    /// Ticks without a packet after which a flow ends, see [`crate::flows::IdleTicks`].
    pub idle: crate::flows::IdleTicks,
    /// Zero.
    pub reserved: [u32; 10],
}

/// What all flows have in common. One row.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowControl {
    /// The lowest port of all pools, host order.
    pub first_port: u32,
    /// The highest port of all pools, host order.
    pub last_port: u32,
    /// Buckets of rows.
    pub lines: u32,
    /// Buckets of the index of replies.
    pub returns: u32,
    /// The longest times of all services: what is older is nobody's.
    pub idle: crate::flows::IdleTicks,
    /// Zero.
    pub reserved: [u32; 8],
}

const _: () = {
    assert!(size_of::<FlowLine>() == 64 && size_of::<FlowReturns>() == 64 && size_of::<FlowRow>() == 128);
    assert!(size_of::<FlowPool>() == 320 && size_of::<FlowControl>() == 64);
};
