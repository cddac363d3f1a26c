//! Connections of `snat` services, one row each: see [`crate::flows`].

use bytemuck::{Pod, Zeroable};

/// Rows of a bucket.
pub const FLOWS_PER_LINE: u32 = 8;
/// The maximum number of rows: row numbers have 24 bits.
pub const MAX_FLOW_ROWS: u32 = 1 << 24;
/// The maximum number of pool addresses of a service and family.
pub const MAX_POOL: usize = 8;

/// The changing words of the flows in a bucket: one [`crate::flows::FlowWord`] for each row; 0: empty.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowLine {
    /// The words, in any order.
    pub words: [u64; FLOWS_PER_LINE as usize],
}

/// A bucket of the index that finds flows by their replies: [`crate::flows::ReturnWord`]s; 0: empty.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowReturns {
    /// The words, in any order.
    pub words: [u64; FLOWS_PER_LINE as usize],
}

/// The part of a flow that does not change while it lives, and its counters. Two cache lines.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowRow {
    /// The client's address, network order like all fields below.
    pub client: [u32; 4],
    /// The address that the client connects to.
    pub vip: [u32; 4],
    /// The backend's address.
    pub backend: [u32; 4],
    /// The address that the backend sees.
    pub pool: [u32; 4],
    /// The client's port, network order like all ports below.
    pub client_port: u16,
    /// The listener's port.
    pub vip_port: u16,
    /// The port that the backend listens on.
    pub backend_port: u16,
    /// The port that the backend sees as source.
    pub pool_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u8,
    /// The backend's id.
    pub backend_id: u16,
    /// Index of the service.
    pub service: u16,
    /// The amount that the change of addresses adds to a complemented checksum towards the backend, folded.
    pub there_addresses: u16,
    /// The amount that the change of addresses and ports adds towards the backend, folded.
    pub there_all: u16,
    /// The amount that the change of addresses adds towards the client, folded.
    pub back_addresses: u16,
    /// The amount that the change of addresses and ports adds towards the client, folded.
    pub back_all: u16,
    /// Index of the address in the pool.
    pub pool_index: u16,
    /// The client's hash, as [`crate::client`] makes it.
    pub hash: u64,
    /// Position of this flow's [`FlowReturns`] word, counted in words.
    pub returns: u32,
    /// Start of the flow, in [`crate::flows::ticks`].
    pub begun: u32,
    /// Bytes of IP packets to the backend.
    pub bytes_there: u64,
    /// Bytes of IP packets to the client.
    pub bytes_back: u64,
    /// The hash of both endpoints as the client sees them; the flow's word has its high half.
    pub ends: u64,
}

/// The pool of a service, and the idle times of its flows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowPool {
    /// Addresses for IPv4 backends, each in the first word, then addresses for IPv6 backends. Network order.
    pub addresses: [[[u32; 4]; MAX_POOL]; 2],
    /// Number of addresses for each family; 0: [`BackendRow::tunnel_source`](super::BackendRow::tunnel_source) is the
    /// only one.
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

/// Settings common to all flows. The map has one row.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowControl {
    /// The lowest port of all pools, host order.
    pub first_port: u32,
    /// The highest port of all pools, host order.
    pub last_port: u32,
    /// Number of buckets of rows.
    pub lines: u32,
    /// Number of buckets in the index of replies.
    pub returns: u32,
    /// The longest idle times of all services: an older flow has ended in every service.
    pub idle: crate::flows::IdleTicks,
    /// Zero.
    pub reserved: [u32; 8],
}

const _: () = {
    assert!(size_of::<FlowLine>() == 64 && size_of::<FlowReturns>() == 64 && size_of::<FlowRow>() == 128);
    assert!(size_of::<FlowPool>() == 320 && size_of::<FlowControl>() == 64);
};
