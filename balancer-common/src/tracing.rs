//! Data that the tracing program shares with the controller. The program is attached only while `balancer trace` or
//! `balancer capture` runs, and no data is left afterwards.

use bytemuck::{Pod, Zeroable};

use crate::{
    map_types::{BackendStats, DropStats, MemoryStats, ReplyStats},
    verdict::{Decision, MOVE_COUNTERS},
};

/// The maximum number of bytes reported of a frame: a jumbo frame.
pub const MAX_KEPT: u32 = 9216;
/// Number of bytes of a frame in which the program looks for addresses.
pub const SCANNED: usize = 128;
/// The maximum number of backends whose counters the program compares before and after a packet.
pub const MAX_WATCHED: u32 = 1024;
/// The maximum number of virtual addresses that the program distinguishes.
pub const MAX_VIPS: u32 = 4096;

/// The packets to report.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Time on the monotonic clock, in nanoseconds, at which reporting stops; the controller keeps postponing it.
    pub until: u64,
    /// The client's prefix, network order; IPv4 in the first word.
    pub client: [u32; 4],
    /// The significant bits of `client`.
    pub mask: [u32; 4],
    /// [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: every client.
    pub family: u32,
    /// 1: only packets from or to an address in the map of VIPs; 0: all packets that the program handles.
    pub only_vips: u32,
    /// The number of bytes to report of each frame, up to [`MAX_KEPT`].
    pub snaplen: u32,
    /// Number of backends in the map of watched backends.
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

/// The addresses of a frame; family 0: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Found {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// The destination in the packet that an ICMP error quotes.
    pub quoted: Address,
}

/// A packet inside the program, and the counters of its CPU before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Draft {
    /// The part that is reported.
    pub head: Head,
    /// 1: the packet arrived, and its outcome is awaited.
    pub begun: u32,
    /// Whether the arriving packet concerns the client and the VIPs. If not, the program examines the departing packet.
    pub matches: u32,
    /// Whether the packet is from or for a VIP.
    pub vip: u32,
    /// Number of watched backends that are compared.
    pub watched: u32,
    /// Drop counters before the packet.
    pub drops: DropStats,
    /// Reply counters before the packet.
    pub replies: ReplyStats,
    /// Memory counters before the packet.
    pub memory: MemoryStats,
    /// The addresses of the current frame. They are stored here because the verifier does not allow whole words at
    /// unaligned places of the stack.
    pub found: Found,
    /// The first bytes of the current frame.
    pub scanned: [u64; SCANNED / 8],
}

/// A packet on arrival or departure; the padded bytes of the frame follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// Time in nanoseconds of the monotonic clock.
    pub time: u64,
    /// `CAME` or `LEFT`. An arrival without a departure directly after it on the same CPU is ignored.
    pub stage: u32,
    /// The interface by which the packet arrived.
    pub ifindex: u32,
    /// The receive queue.
    pub queue: u32,
    /// The length of the frame.
    pub length: u32,
    /// Number of bytes that follow.
    pub kept: u32,
    /// The XDP action. This field and those below have a value only on departure.
    pub action: u32,
    /// The drop reason: a [`DropReason`](crate::verdict::DropReason) index counted from 1; 0: not dropped.
    pub drop: u8,
    /// `ANSWERED_*`, or 0.
    pub answered: u8,
    /// `MEMORY_*` bits.
    pub memory: u8,
    /// How the backend was chosen: a [`Decision`](crate::verdict::Decision) index counted from 1; 0: not counted.
    pub decision: u8,
    /// Id of the watched backend that counted the packet or the decision; 0: none.
    pub backend: u16,
    /// The id of the backend that the client was moved from; 0: none.
    pub moved_from: u16,
    /// The cause of the move: a [`MoveCause`](crate::verdict::MoveCause) index counted from 1; 0: no move.
    pub cause: u8,
    /// 1: the backend counted the packet as forwarded.
    pub forwarded: u8,
    /// `QUIC_*`, or 0: the packet is not for a listener of QUIC.
    pub quic: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// `Head::stage`: the packet arrives.
pub const CAME: u32 = 1;
/// `Head::stage`: the packet departs, with its outcome.
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
/// `Head::memory`: too many newcomers came at once, so the client was not recorded.
pub const MEMORY_LIMITED: u8 = 8;

/// `Head::quic`: the packet has no connection ID that a server has given.
pub const QUIC_NO_ID: u8 = 1;
/// `Head::quic`: the connection ID has a known format but names no server.
pub const QUIC_UNKNOWN: u8 = 2;
/// `Head::quic`: the connection ID names a backend that keeps no clients, or cannot be reached.
pub const QUIC_GONE: u8 = 3;
/// `Head::quic`: the connection ID names the backend that the packet goes to.
pub const QUIC_NAMED: u8 = 4;
/// `Head::quic`: the same, and the program has recorded the client's address at that backend.
pub const QUIC_TAUGHT: u8 = 5;

/// The number of bits of each counter in a [`digest`].
const DIGIT: usize = 4;

const _: () = assert!((1 + Decision::COUNT + MOVE_COUNTERS) * DIGIT <= u64::BITS as usize);

/// Sums a backend's counters into one word, so that [`Risen`] can tell from two such words which counters have risen.
/// The result wraps around.
#[inline(always)]
#[must_use]
pub fn digest(stats: &BackendStats) -> u64 {
    let counters = stats.decisions.iter().chain(&stats.moves);
    let sum = |sum: u64, (at, counter): (usize, &u64)| sum.wrapping_add(counter << (DIGIT * (at + 1)));
    counters.enumerate().fold(stats.packets, sum)
}

/// The counters of a backend that have risen between two digests, none of them more than 15 times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Risen(u64);

impl Risen {
    /// Compares the digests from before and after a packet.
    #[inline(always)]
    #[must_use]
    pub const fn between(before: u64, after: u64) -> Self {
        Self(after.wrapping_sub(before))
    }

    /// Adds the decision, the move and the forwarded packet that this backend has counted.
    #[inline(always)]
    pub fn describe(self, backend: u16, head: &mut Head) {
        if self.digit(0) != 0 {
            (head.backend, head.forwarded) = (backend, 1);
        }
        for index in 0..Decision::COUNT {
            if self.digit(1 + index) != 0 {
                (head.backend, head.decision) = (backend, index as u8 + 1);
            }
        }
        for index in 0..MOVE_COUNTERS {
            if self.digit(1 + Decision::COUNT + index) != 0 {
                (head.moved_from, head.cause) = (backend, index as u8 + 1);
            }
        }
    }

    #[inline(always)]
    const fn digit(self, at: usize) -> u64 {
        self.0 >> (DIGIT * at) & ((1 << DIGIT) - 1)
    }
}

const _: () = assert!(size_of::<Head>() == 48 && size_of::<BackendStats>() == 128);

#[cfg(feature = "user")]
mod user {
    // SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Address {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_counters_rise_then_their_digests_tell_which(
            counters: [u64; 16], forwarded: bool, decision in 0..=Decision::COUNT, cause in 0..=MOVE_COUNTERS
        ) {
            let before: BackendStats = bytemuck::cast(counters);
            let mut after = before;
            after.packets = after.packets.wrapping_add(forwarded.into());
            if let Some(index) = decision.checked_sub(1) {
                after.decisions[index] = after.decisions[index].wrapping_add(1);
            }
            if let Some(index) = cause.checked_sub(1) {
                after.moves[index] = after.moves[index].wrapping_add(1);
            }
            prop_assert_eq!(digest(&before) == digest(&after), !forwarded && decision == 0 && cause == 0);
            let mut head = Head::default();
            Risen::between(digest(&before), digest(&after)).describe(7, &mut head);
            prop_assert_eq!((head.forwarded, head.decision, head.cause), (forwarded.into(), decision as u8, cause as u8));
            prop_assert_eq!(head.backend, if forwarded || decision > 0 { 7 } else { 0 });
            prop_assert_eq!(head.moved_from, if cause > 0 { 7 } else { 0 });
        }
    }
}
