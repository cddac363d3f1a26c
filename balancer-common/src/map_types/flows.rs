//! Connections of `snat` services; each connection has one row: see [`crate::flows`].

use bytemuck::{Pod, Zeroable};

pub use crate::flows::FLOWS_PER_LINE;
use crate::flows::Numbers;

/// The maximum number of rows: row numbers have 24 bits.
pub const MAX_FLOW_ROWS: u32 = 1 << 24;
/// The maximum number of pool addresses of a service and family.
pub const MAX_POOL: usize = 8;

/// The changing words of the flows in a bucket: one [`crate::flows::FlowWord`] for each row; 0: the row is empty.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowLine {
    /// The words of the rows, in any order.
    pub words: [u64; FLOWS_PER_LINE as usize],
}

/// A bucket of the index that finds flows by their replies: each word is a [`crate::flows::ReturnWord`]; 0: the entry
/// is empty.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowReturns {
    /// The index entries, in any order.
    pub words: [u64; FLOWS_PER_LINE as usize],
}

/// A line of a block that says which ports the open flows of a backend hold: see [`crate::flows::held`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HeldLine {
    /// In the first line of a block: the port (host order) behind which the next search begins. In all others: one bit
    /// for each port.
    pub words: [u64; 8],
}

/// The data of a flow that does not change during the flow's lifetime, the flow's sequence numbers and counters. One
/// row fills two cache lines.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowRow {
    /// The client's address, in network order like all fields below.
    pub client: [u32; 4],
    /// The address to which the client connects.
    pub vip: [u32; 4],
    /// The address of the backend.
    pub backend: [u32; 4],
    /// The address that the backend sees as the packet's source.
    pub pool: [u32; 4],
    /// The client's port, in network order like all ports below.
    pub client_port: u16,
    /// The port of the listener.
    pub vip_port: u16,
    /// The port on which the backend listens.
    pub backend_port: u16,
    /// The port that the backend sees as the packet's source port.
    pub pool_port: u16,
    /// The IANA number of the protocol.
    pub protocol: u8,
    /// The client's family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u8,
    pub backend_id: u16,
    /// Index of the service.
    pub service: u16,
    /// The amount, folded to 16 bits, that the change of addresses adds to a complemented checksum in packets to the
    /// backend.
    pub there_addresses: u16,
    /// The amount, folded to 16 bits, that the change of addresses and ports adds to a complemented checksum in packets
    /// to the backend.
    pub there_all: u16,
    /// The amount, folded to 16 bits, that the change of addresses adds to a complemented checksum in packets to the
    /// client.
    pub back_addresses: u16,
    /// The amount, folded to 16 bits, that the change of addresses and ports adds to a complemented checksum in packets
    /// to the client.
    pub back_all: u16,
    /// The index of the flow's address in the pool.
    pub pool_index: u8,
    /// The bits in which the backend's family differs from the client's family; 0: both have the same family.
    pub crosses: u8,
    /// The sequence numbers, which change during the flow's lifetime.
    pub numbers: Numbers,
    /// The position of this flow's [`FlowReturns`] word in the index, counted in words.
    pub returns: u32,
    /// The start time of the flow, in [`crate::flows::ticks`].
    pub begun: u32,
    /// The number of bytes of IP packets to the backend.
    pub bytes_there: u64,
    /// The number of bytes of IP packets to the client.
    pub bytes_back: u64,
    /// The hash of both endpoints that the client sees; the flow's state word contains the high half of this hash.
    pub ends: u64,
}

impl FlowRow {
    /// The family of the backend and of the pool's address.
    #[inline(always)]
    #[must_use]
    pub const fn backend_family(&self) -> u8 {
        self.family ^ self.crosses
    }
}

/// The address pool of a service, and the idle times of the service's flows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowPool {
    /// Addresses for IPv4 backends, each in the first word, then addresses for IPv6 backends, all in network order.
    pub addresses: [[[u32; 4]; MAX_POOL]; 2],
    /// The number of addresses for each family; 0: the pool has only the address
    /// [`BackendRow::tunnel_source`](super::BackendRow::tunnel_source).
    pub count: [u16; 2],
    /// The first port of the pool in host order.
    pub first_port: u16,
    /// The last port of the pool in host order.
    pub last_port: u16,
    /// The number of ticks without a packet after which a flow ends, see [`crate::flows::IdleTicks`].
    pub idle: crate::flows::IdleTicks,
    /// This field is always zero.
    pub reserved: [u32; 9],
}

/// The settings that all flows share. The map has one row.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowControl {
    /// The lowest port of all pools in host order.
    pub first_port: u32,
    /// The highest port of all pools in host order.
    pub last_port: u32,
    /// The number of buckets of rows.
    pub lines: u32,
    /// The number of buckets in the index that finds flows by their replies.
    pub returns: u32,
    /// The longest idle times of any service: a flow that was idle for longer has ended, whichever service it belongs
    /// to.
    pub idle: crate::flows::IdleTicks,
    /// The number of blocks of [`HeldLine`]s, a power of two.
    pub held_blocks: u32,
    /// This field is always zero.
    pub reserved: [u32; 6],
}

const _: () = {
    assert!(size_of::<FlowLine>() == 64 && size_of::<FlowReturns>() == 64 && size_of::<FlowRow>() == 128);
    assert!(size_of::<HeldLine>() == 64);
    assert!(size_of::<FlowPool>() == 320 && size_of::<FlowControl>() == 64);
};
