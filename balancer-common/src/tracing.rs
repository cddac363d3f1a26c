//! Data that the tracing program shares with the controller. The tracing program is attached only while `balancer
//! trace` or `balancer capture` runs, and leaves no data behind.

use bytemuck::{Pod, Zeroable};

use crate::{
    map_types::{BackendStats, DropStats, MemoryStats, ReplyStats},
    verdict::{Decision, MOVE_COUNTERS},
};

/// The maximum number of bytes that the program reports of a frame: the length of a jumbo frame.
pub const MAX_KEPT: u32 = 9216;
/// The number of bytes at the start of a frame in which the program looks for addresses.
pub const SCANNED: usize = 128;
/// The maximum number of backends whose counters the program compares before and after a packet.
pub const MAX_WATCHED: u32 = 1024;
/// The maximum number of virtual addresses that the program distinguishes.
pub const MAX_VIPS: u32 = 4096;

/// The packets that the tracing program must report.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// The time on the monotonic clock, in nanoseconds, at which reporting stops; the controller keeps postponing this
    /// time.
    pub until: u64,
    /// The address prefix of the clients to report, network order; IPv4 in the first word.
    pub client: [u32; 4],
    /// The mask of the significant bits of `client`, network order.
    pub mask: [u32; 4],
    /// The family: [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: every
    /// client.
    pub family: u32,
    /// 1: the program reports only packets from or to an address in the map of VIPs; 0: it reports all packets that it
    /// handles.
    pub only_vips: u32,
    /// The number of bytes that the program reports of each frame, up to [`MAX_KEPT`].
    pub snaplen: u32,
    /// The number of backends in the map of watched backends.
    pub watched: u32,
}

/// A virtual address in the map of VIPs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Address {
    /// The address in network order; an IPv4 address is in the first word.
    pub words: [u32; 4],
    /// The family: [`FAMILY_V4`](crate::map_types::FAMILY_V4) or [`FAMILY_V6`](crate::map_types::FAMILY_V6); 0: no
    /// address.
    pub family: u32,
    /// This field is always zero.
    pub reserved: u32,
}

/// The addresses of a frame; family 0: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Found {
    /// The address of the frame's sender.
    pub source: Address,
    /// The address of the frame's receiver.
    pub destination: Address,
    /// The destination of the packet that an ICMP error in the frame quotes.
    pub quoted: Address,
}

/// A packet that the program is processing, and the counters of its CPU before the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Draft {
    /// The data that the program reports to the controller.
    pub head: Head,
    /// 1: the packet has arrived, and its outcome is not known yet.
    pub begun: u32,
    /// Whether the packet, on arrival, matches the client and the VIPs to report. If this field is 0, the program
    /// examines the packet again on departure.
    pub matches: u32,
    /// Whether the packet comes from a VIP or is addressed to a VIP.
    pub vip: u32,
    /// The number of watched backends whose counters the program compares.
    pub watched: u32,
    /// The drop counters before the packet.
    pub drops: DropStats,
    /// The counters of answers before the packet.
    pub replies: ReplyStats,
    /// The counters of the client table before the packet.
    pub memory: MemoryStats,
    /// The addresses in the current frame. The addresses are stored in this structure because the verifier does not
    /// allow whole words at unaligned places of the stack.
    pub found: Found,
    /// The first bytes of the current frame.
    pub scanned: [u64; SCANNED / 8],
}

/// A report about a packet on arrival or departure; the frame's bytes follow, padded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// The time in nanoseconds of the monotonic clock.
    pub time: u64,
    /// The stage of the packet: `CAME` or `LEFT`. The controller ignores an arrival that no departure on the same CPU
    /// directly follows.
    pub stage: u32,
    /// The interface by which the packet arrived.
    pub ifindex: u32,
    /// The receive queue of the packet.
    pub queue: u32,
    /// The length of the whole frame.
    pub length: u32,
    /// The number of frame bytes that follow this structure.
    pub kept: u32,
    /// The XDP action that the program returned. This field and the fields below have a value only on departure.
    pub action: u32,
    /// The drop reason: a [`DropReason`](crate::verdict::DropReason) index counted from 1; 0: the packet was not
    /// dropped.
    pub drop: u8,
    /// The kind of answer: one of `ANSWERED_*`, or 0.
    pub answered: u8,
    /// The flags: `MEMORY_*` bits.
    pub memory: u8,
    /// How the program chose the backend: a [`Decision`] index counted from 1; 0: no decision
    /// was counted.
    pub decision: u8,
    /// The id of the watched backend that counted the packet or the decision; 0: none.
    pub backend: u16,
    /// The id of the backend that the client was moved from; 0: none.
    pub moved_from: u16,
    /// The cause of the client's move: a [`MoveCause`](crate::verdict::MoveCause) index counted from 1; 0: no move.
    pub cause: u8,
    /// 1: the backend's counters count the packet as forwarded.
    pub forwarded: u8,
    /// The result of reading the QUIC connection ID: one of `QUIC_*`; 0: the packet is not for a QUIC listener.
    pub quic: u8,
    /// This field is always zero.
    pub reserved: [u8; 5],
}

/// `Head::stage`: the packet arrives.
pub const CAME: u32 = 1;
/// `Head::stage`: the packet departs with its outcome.
pub const LEFT: u32 = 2;
/// `Head::answered`: the program answered an echo request.
pub const ANSWERED_ECHO: u8 = 1;
/// `Head::answered`: the program told the sender that the packet is too big.
pub const ANSWERED_TOO_BIG: u8 = 2;
/// `Head::answered`: the program rejected the packet.
pub const ANSWERED_REJECTED: u8 = 3;
/// `Head::memory`: the program recorded the client.
pub const MEMORY_RECORDED: u8 = 1;
/// `Head::memory`: the program forgot another client to make room.
pub const MEMORY_EVICTED: u8 = 2;
/// `Head::memory`: the client table had no room to record the client.
pub const MEMORY_FULL: u8 = 4;
/// `Head::memory`: the program did not record the client, because too many new clients came at once.
pub const MEMORY_LIMITED: u8 = 8;

/// `Head::quic`: the packet has no connection ID that a server has issued.
pub const QUIC_NO_ID: u8 = 1;
/// `Head::quic`: the connection ID has a known format but names no server.
pub const QUIC_UNKNOWN: u8 = 2;
/// `Head::quic`: the connection ID names a backend that keeps no clients or cannot be reached.
pub const QUIC_GONE: u8 = 3;
/// `Head::quic`: the connection ID names the backend to which the packet goes.
pub const QUIC_NAMED: u8 = 4;
/// `Head::quic`: the connection ID names the packet's backend, and the program has recorded the client's address at
/// this backend.
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
    // SAFETY: the type derives `bytemuck::Pod`, which checks that it has no padding and that every bit pattern is
    // valid.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: the type derives `bytemuck::Pod`, which checks that it has no padding and that every bit pattern is
    // valid.
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
