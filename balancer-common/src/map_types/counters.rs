//! Counters of packets, and samples of packets.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::{verdict::DROP_COUNTERS, verdict::Decision, verdict::MOVE_COUNTERS, verdict::Verdict};

/// Counters of one interface on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceStats {
    /// The number of packets, by [`Verdict`].
    pub verdicts: [u64; Verdict::COUNT],
}

/// Counters of one backend on one CPU, in two cache lines. A packet that opens no connection changes only the second
/// line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendStats {
    /// The number of known clients moved away from this backend, by [`crate::verdict::MoveCause`].
    pub moves: [u64; MOVE_COUNTERS],
    /// The number of new connections by [`Decision`], including connections that the program could not forward.
    pub decisions: [u64; Decision::COUNT],
    /// The number of new connections (TCP SYN) forwarded to the backend.
    pub connections: u64,
    /// The number of packets forwarded to the backend.
    pub packets: u64,
    /// The number of bytes in the forwarded packets, from the Ethernet header on.
    pub bytes: u64,
    /// The next packet to sample, as a value of `packets`; 0: the program has not chosen this packet yet. This number
    /// applies only to the CPU of this row.
    pub next_sample: u64,
}

impl core::ops::AddAssign<&Self> for BackendStats {
    /// Adds up two rows of counters except `next_sample`, which applies only to its own CPU.
    fn add_assign(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.connections += other.connections;
        let counters = other.decisions.iter().chain(&other.moves);
        for (sum, value) in self.decisions.iter_mut().chain(&mut self.moves).zip(counters) {
            *sum += value;
        }
    }
}

impl BackendStats {
    /// The increase of the counters since the `earlier` counters.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut later = *self;
        later.packets = self.packets.saturating_sub(earlier.packets);
        later.bytes = self.bytes.saturating_sub(earlier.bytes);
        later.connections = self.connections.saturating_sub(earlier.connections);
        let counters = earlier.decisions.iter().chain(&earlier.moves);
        for (count, before) in later.decisions.iter_mut().chain(&mut later.moves).zip(counters) {
            *count = count.saturating_sub(*before);
        }
        later
    }
}

/// A sampled packet that was forwarded to a backend. The controller finds heavy clients in these samples.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sample {
    /// The source address, unmasked; network order, IPv4 in the first word.
    pub source: [u32; 4],
    /// The packet's length in bytes, from the Ethernet header on.
    pub bytes: u32,
    /// Index of the service.
    pub service: u16,
    /// The id of the backend.
    pub backend: u16,
    /// The family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
    /// This field is always zero.
    pub reserved: u32,
}

/// Counters of samples on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SampleStats {
    /// The number of samples sent to the controller.
    pub sent: u64,
    /// The number of samples lost because the controller was too slow.
    pub lost: u64,
}

/// The default sampling interval: the program samples one of this many forwarded packets.
pub const SAMPLE_INTERVAL: u32 = 1024;

/// Counters of the client table on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MemoryStats {
    /// The number of clients recorded.
    pub inserted: u64,
    /// The number of clients forgotten to make room for new clients.
    pub evicted: u64,
    /// The number of new clients not recorded because their bucket was full of established clients.
    pub full: u64,
    /// The number of new clients not recorded because too many new clients came at once.
    pub limited: u64,
}

/// Counters of a service on one CPU, for packets that pass to the host because the host serves some of the service's
/// clients.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ShareStats {
    /// The number of packets of clients that the program does not steer.
    pub unsteered: u64,
    /// The number of packets of steered clients whose connection is still with the host.
    pub host_connections: u64,
}

/// Counters of dropped packets on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DropStats {
    /// The number of packets, by [`crate::verdict::DropReason`].
    pub reasons: [u64; DROP_COUNTERS],
}

/// Counters on one CPU: packets that the program answers itself (with the verdict `tx`), and fragments that it does not
/// remember.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReplyStats {
    /// The number of echo requests to a VIP that the program answered.
    pub echo: u64,
    /// The number of packets too big for their path that the program answered with fragmentation-needed or
    /// packet-too-big.
    pub too_big: u64,
    /// The number of first fragments that the program forwarded but did not remember, because too many came at once.
    pub fragments_not_remembered: u64,
    /// The number of packets without a listener or backend that the program answered with a reset or "unreachable".
    pub rejected: u64,
}

const _: () = {
    assert!(size_of::<BackendStats>() == 128 && offset_of!(BackendStats, connections) >= 64);
    assert!(offset_of!(BackendStats, moves) == 0 && MOVE_COUNTERS <= 8);
    assert!(size_of::<Sample>() == 32);
};
