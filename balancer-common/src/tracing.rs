//! What the programs that observe the XDP program share with the command that loads them. They are attached only while
//! `balancer trace` or `balancer capture` runs, and none of this is kept.

use bytemuck::{Pod, Zeroable};

use crate::map_types::{BackendStats, DropStats, MemoryStats, ReplyStats};

/// Bytes of one frame that an observation holds, at most: a jumbo frame.
pub const MAX_KEPT: usize = 9216;
/// Bytes of a frame that the programs look for addresses in.
pub const SCANNED: usize = 128;
/// Backends whose counters are compared before and after a packet, at most.
pub const MAX_WATCHED: u32 = 256;
/// Virtual addresses that are told apart, at most.
pub const MAX_VIPS: u32 = 4096;

/// What is observed, and where in the kernel's structures things are found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Observations to make; a few more may be made by CPUs that do so at the same moment.
    pub limit: u64,
    /// The client's prefix, network order; IPv4 in the first word.
    pub client: [u32; 4],
    /// The bits of `client` that count.
    pub mask: [u32; 4],
    /// [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: every client.
    pub family: u32,
    /// 1: only packets from or for an address in the map of VIPs; 0: all packets that the program does something with.
    pub only_vips: u32,
    /// Bytes of each frame to keep, up to [`MAX_KEPT`].
    pub snaplen: u32,
    /// Backends in the map of watched ones.
    pub watched: u32,
    /// Rows of backends that each CPU counts for itself.
    pub rows: u32,
    /// The place of `rxq` in `struct xdp_buff`.
    pub rxq: u32,
    /// The place of `dev` in `struct xdp_rxq_info`.
    pub device: u32,
    /// The place of `queue_index` in `struct xdp_rxq_info`.
    pub queue: u32,
    /// The place of `ifindex` in `struct net_device`.
    pub ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

/// An address in the map of VIPs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Address {
    /// Network order; IPv4 in the first word.
    pub words: [u32; 4],
    /// [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: no address.
    pub family: u32,
}

/// Counts of the observing itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Observed {
    /// Observations handed to the reader.
    pub sent: u64,
    /// Observations lost because the reader was behind.
    pub lost: u64,
}

/// Counters of one CPU before a packet, and what is known of the packet by then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Before {
    /// The kernel's buffer of the packet that is being observed; 0: none.
    pub buffer: u64,
    /// Whether the packet concerns the client and, so far, the VIPs; otherwise its end is looked at.
    pub matches: u32,
    /// Whether the packet is from or for a VIP.
    pub vip: u32,
    /// How many of the watched backends are compared.
    pub watched: u32,
    /// Zero.
    pub reserved: u32,
    /// As before the packet.
    pub drops: DropStats,
    /// As before the packet.
    pub replies: ReplyStats,
    /// As before the packet.
    pub memory: MemoryStats,
}

/// One packet as it came and as it left, with what changed on the way. The bytes of both follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// When it came, in nanoseconds of the monotonic clock.
    pub came: u64,
    /// When it left.
    pub left: u64,
    /// The interface that it came in by.
    pub ifindex: u32,
    /// The receive queue.
    pub queue: u32,
    /// The XDP action.
    pub action: u32,
    /// The length of the frame that came.
    pub came_length: u32,
    /// Bytes of it that follow.
    pub came_kept: u32,
    /// The length of the frame that left.
    pub left_length: u32,
    /// Bytes of it that follow those.
    pub left_kept: u32,
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
    pub reserved: [u8; 10],
}

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

/// Where an observation is put together: a row of each CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Draft {
    /// What precedes the bytes.
    pub head: Head,
    /// Both frames, one right behind the other.
    pub bytes: [u8; 2 * MAX_KEPT],
    /// The beginning of the frame that is being looked at.
    pub scanned: [u64; SCANNED / 8],
}

const _: () = {
    assert!(size_of::<Head>() == 64 && size_of::<BackendStats>() == 128);
    // What a per-CPU array can hold.
    assert!(size_of::<Draft>() <= 32 << 10);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Observed {}
}
