//! Data that the program that tells of packets shares with the controller. The program is attached only while `balancer trace`
//! or `balancer capture` runs, and none of this is kept.

use bytemuck::{Pod, Zeroable};

use crate::map_types::{BackendStats, DropStats, MemoryStats, ReplyStats};

/// Bytes of one frame that are told, at most: a jumbo frame.
pub const MAX_KEPT: u32 = 9216;
/// Bytes of a frame that the program looks for addresses in.
pub const SCANNED: usize = 128;
/// Backends whose counters are compared before and after a packet, at most.
pub const MAX_WATCHED: u32 = 64;
/// Virtual addresses that are told apart, at most.
pub const MAX_VIPS: u32 = 4096;

/// Which packets are told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Nothing is told from this moment of the monotonic clock on, in nanoseconds: the controller puts it off.
    pub until: u64,
    /// The client's prefix, network order; IPv4 in the first word.
    pub client: [u32; 4],
    /// The bits of `client` that count.
    pub mask: [u32; 4],
    /// [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: every client.
    pub family: u32,
    /// 1: only packets from or for an address in the map of VIPs; 0: all packets that the program does something with.
    pub only_vips: u32,
    /// Bytes of each frame to tell, up to [`MAX_KEPT`].
    pub snaplen: u32,
    /// Backends in the map of watched ones.
    pub watched: u32,
}

/// An address in the map of VIPs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Address {
    /// Network order; IPv4 in the first word.
    pub words: [u32; 4],
    /// [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: no address.
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

/// The addresses of a frame; of family 0: there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Found {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// The destination of the packet that an ICMP error is about.
    pub quoted: Address,
}

/// A packet that is on its way through the program, and the counters of its CPU before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Draft {
    /// The part that is told.
    pub head: Head,
    /// 1: it came, and what becomes of it is looked at.
    pub begun: u32,
    /// Whether the packet concerns the client and, so far, the VIPs; otherwise its end is looked at.
    pub matches: u32,
    /// Whether the packet is from or for a VIP.
    pub vip: u32,
    /// How many of the watched backends are compared.
    pub watched: u32,
    /// As before the packet.
    pub drops: DropStats,
    /// As before the packet.
    pub replies: ReplyStats,
    /// As before the packet.
    pub memory: MemoryStats,
    /// The addresses of the frame that is being looked at: here, because the verifier takes no whole words at odd places of
    /// the stack.
    pub found: Found,
    /// The beginning of that frame.
    pub scanned: [u64; SCANNED / 8],
}

/// A packet as it came or as it left; the bytes of the frame follow, padded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// When, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// `CAME` or `LEFT`; a packet that came and does not leave next, on the same CPU, is of no concern.
    pub stage: u32,
    /// The interface that it came in by.
    pub ifindex: u32,
    /// The receive queue.
    pub queue: u32,
    /// The length of the frame.
    pub length: u32,
    /// Bytes of it that follow.
    pub kept: u32,
    /// The XDP action. This and all below: of a packet that leaves.
    pub action: u32,
    /// Counted as dropped: the [`DropReason`](crate::verdict::DropReason)'s index, counted from 1; 0: not counted.
    pub drop: u8,
    /// `ANSWERED_*`, or 0.
    pub answered: u8,
    /// `MEMORY_*` bits.
    pub memory: u8,
    /// How the backend was chosen: the [`Decision`](crate::verdict::Decision)'s index, counted from 1; 0: not counted.
    pub decision: u8,
    /// The id of the backend that counted the packet, or the decision; 0: none that is watched.
    pub backend: u16,
    /// The id of the backend that the client was moved from; 0: none.
    pub moved_from: u16,
    /// Why it was moved: the [`MoveCause`](crate::verdict::MoveCause)'s index, counted from 1; 0: it was not.
    pub cause: u8,
    /// 1: the backend counted the packet as forwarded.
    pub forwarded: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// `Head::stage`: a packet as it came.
pub const CAME: u32 = 1;
/// `Head::stage`: a packet as it left, with what became of it.
pub const LEFT: u32 = 2;
/// `Head::answered`: an echo request was answered.
pub const ANSWERED_ECHO: u8 = 1;
/// `Head::answered`: the sender was told that the packet is too big.
pub const ANSWERED_TOO_BIG: u8 = 2;
/// `Head::answered`: the packet was rejected.
pub const ANSWERED_REJECTED: u8 = 3;
/// `Head::memory`: the client was recorded.
pub const MEMORY_RECORDED: u8 = 1;
/// `Head::memory`: another client was forgotten to make room.
pub const MEMORY_EVICTED: u8 = 2;
/// `Head::memory`: there was no room to record the client.
pub const MEMORY_FULL: u8 = 4;
/// `Head::memory`: too many newcomers at once to record the client.
pub const MEMORY_LIMITED: u8 = 8;

const _: () = assert!(size_of::<Head>() == 48 && size_of::<BackendStats>() == 128);

#[cfg(feature = "user")]
mod user {
    // SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Address {}
}
