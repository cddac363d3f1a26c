//! Counters and samples.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::{verdict::DROP_COUNTERS, verdict::Decision, verdict::MOVE_COUNTERS, verdict::Verdict};

/// Per-CPU counters of one interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceStats {
    /// Packets by [`Verdict`].
    pub verdicts: [u64; Verdict::COUNT],
}

/// Counters of one backend on one CPU, in two cache lines. A packet that opens no connection touches only the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendStats {
    /// Known clients moved away from here, by [`crate::verdict::MoveCause`].
    pub moves: [u64; MOVE_COUNTERS],
    /// New connections by [`Decision`], including those that could not be forwarded.
    pub decisions: [u64; Decision::COUNT],
    /// New connections (TCP SYN) forwarded to the backend.
    pub connections: u64,
    /// Packets forwarded to the backend.
    pub packets: u64,
    /// Bytes of those packets, from the Ethernet header on.
    pub bytes: u64,
    /// The next packet to sample, by its number in `packets`; 0: not chosen yet. The number applies only to this row's
    /// CPU.
    pub next_sample: u64,
}

impl core::ops::AddAssign<&Self> for BackendStats {
    /// Adds the counters, but not `next_sample`, which applies only to its own CPU.
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
    /// The difference to the `earlier` counters.
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

/// A sampled packet that was forwarded to a backend. The controller uses these samples to find heavy clients.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sample {
    /// The source address, unmasked; network order, IPv4 in the first word.
    pub source: [u32; 4],
    /// Length in bytes, from the Ethernet header on.
    pub bytes: u32,
    /// Index of the service.
    pub service: u16,
    /// The backend's id.
    pub backend: u16,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6).
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

/// Per-CPU counters of samples.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SampleStats {
    /// Samples sent to the controller.
    pub sent: u64,
    /// Samples lost because the controller was too slow.
    pub lost: u64,
}

/// The default interval: one of this many forwarded packets is sampled.
pub const SAMPLE_INTERVAL: u32 = 1024;

/// Per-CPU counters of the client table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MemoryStats {
    /// Clients recorded.
    pub inserted: u64,
    /// Clients forgotten to make room for others.
    pub evicted: u64,
    /// Newcomers not recorded because their bucket was full of established clients.
    pub full: u64,
    /// Newcomers not recorded because too many came at once.
    pub limited: u64,
}

/// Per-CPU counters of packets of a service that pass to the host because the host serves some of its clients.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ShareStats {
    /// Packets of clients that are not steered.
    pub unsteered: u64,
    /// Packets of connections that steered clients still have to the host.
    pub host_connections: u64,
}

/// Per-CPU counters of dropped packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DropStats {
    /// Packets by [`crate::verdict::DropReason`].
    pub reasons: [u64; DROP_COUNTERS],
}

/// Per-CPU counters of packets that the program answers itself (with the verdict `tx`), and of fragments that it does
/// not remember.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReplyStats {
    /// Echo requests to a VIP that were answered.
    pub echo: u64,
    /// Packets too big for their path that were answered with fragmentation-needed or packet-too-big.
    pub too_big: u64,
    /// First fragments that were forwarded but not remembered, because too many came at once.
    pub fragments_not_remembered: u64,
    /// Packets without a listener or backend that were answered with a reset or "unreachable".
    pub rejected: u64,
}

const _: () = {
    assert!(size_of::<BackendStats>() == 128 && offset_of!(BackendStats, connections) >= 64);
    assert!(offset_of!(BackendStats, moves) == 0 && MOVE_COUNTERS <= 8);
    assert!(size_of::<Sample>() == 32);
};
