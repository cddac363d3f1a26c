//! Rows of the table of services, and forwarding modes.

use bytemuck::{Pod, Zeroable};

use super::SLOT_EXCEPTIONS;
use crate::{client::BegunHash, share::Share};

/// How packets reach the backends of a service. The modes with an outer header have the highest values.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Forwarding {
    /// The program rewrites the destination MAC; the backend's reply goes directly to the client.
    Dsr = 1,
    /// The program rewrites the destination address and port; the backend's reply passes through the balancer.
    Nat = 2,
    /// The program rewrites source and destination; the backend sees an address of the balancer as the source, and
    /// replies to this address. Connections of such services are flows, see [`crate::flows`].
    Snat = 3,
    /// The program wraps the packet in an IP packet of the backend's family (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 4,
    /// The program wraps the packet in a UDP datagram to port [`GUE_PORT`]: Generic UDP Encapsulation, variant 1.
    Gue = 5,
}

/// The UDP port of Generic UDP Encapsulation (IANA), in host order.
pub const GUE_PORT: u16 = 6080;

/// One row of the table of services: a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ServiceRow {
    /// Index of the service, below the number of services.
    pub id: u16,
    /// The flags: `SERVICE_*` bits.
    pub flags: u16,
    /// The service's current tick, modulo 2^14. The controller advances this tick with one store.
    pub tick: u32,
    /// The live table, as a [`LiveTable`](super::LiveTable) word. The controller replaces this 64-bit word with one
    /// store.
    pub table: u64,
    /// The initial state of client hashes under the service's key.
    pub hash: BegunHash,
    /// The number of ticks after which a client is forgotten.
    pub remember: u16,
    /// The number of ticks after which a datagram counts as a new connection.
    pub idle: u16,
    /// Index of the [`crate::quic::QuicRow`] for the service's QUIC listeners; 0: the service has none.
    pub quic: u8,
    /// The [`Share`] of steered clients, if the service is [shared](SERVICE_SHARED) with the host.
    pub steer: [u8; 3],
    /// The client prefix as a mask of one word of an address, in memory order. The mask applies to the first 64-bit
    /// word of an address (for IPv4, to its first four bytes), or to the second word if the prefix is longer than 64
    /// bits.
    pub client_mask: u64,
}

impl ServiceRow {
    /// Sets the prefix length by which the service distinguishes clients; the mask covers both words of an address, and
    /// an IPv4 mask is in the first four bytes.
    pub const fn set_client_mask(&mut self, [first, second]: [u64; 2]) {
        self.flags = self.flags & !SERVICE_LONG_PREFIX | if second == 0 { 0 } else { SERVICE_LONG_PREFIX };
        self.client_mask = if second == 0 { first } else { second };
    }

    /// Sets the share of steered clients.
    pub const fn set_share(&mut self, share: Share) {
        self.flags = self.flags & !SERVICE_SHARED | if share.is_all() { 0 } else { SERVICE_SHARED };
        self.steer = [share.now, share.least, share.most];
    }

    /// The share of steered clients.
    #[inline(always)]
    #[must_use]
    pub const fn share(&self) -> Share {
        if self.flags & SERVICE_SHARED == 0 {
            return Share::ALL;
        }
        let [now, least, most] = self.steer;
        Share { now, least, most }
    }

    /// The client that sent an IPv4 packet, given the first word of the packet's source address.
    #[inline(always)]
    #[must_use]
    pub const fn masked_v4(&self, address: u32) -> u32 {
        address & self.client_mask as u32
    }

    /// The client that sent a packet, given both words of the packet's source address.
    #[inline(always)]
    #[must_use]
    pub const fn masked(&self, [first, second]: [u64; 2]) -> [u64; 2] {
        if self.flags & SERVICE_LONG_PREFIX == 0 {
            [first & self.client_mask, 0]
        } else {
            [first, second & self.client_mask]
        }
    }
}

/// `ServiceRow::flags`: the service remembers its clients.
pub const SERVICE_REMEMBERS: u16 = 8;
/// `ServiceRow::flags`: clients that were moved away from their home backend return to it with their next new
/// connection.
pub const SERVICE_FAILBACK: u16 = 2;
/// `ServiceRow::flags`: the service has rules for client prefixes.
pub const SERVICE_RULES: u16 = 4;
/// `ServiceRow::flags`: the service remembers clients for so short a time that every packet reads its client's entry.
/// This bit also flags a slot, so one test covers the service and the slot.
pub const SERVICE_READS_ALWAYS: u16 = SLOT_EXCEPTIONS as u16;
/// `ServiceRow::flags`: if no backend takes a packet, the program answers with a rejection.
pub const SERVICE_REJECTS: u16 = 16;

/// `ServiceRow::flags`: the program does not steer all clients of the service, or has begun only recently to steer some
/// of them.
pub const SERVICE_SHARED: u16 = 32;
/// `ServiceRow::flags`: the service's connections are flows, see [`crate::flows`].
pub const SERVICE_FLOWS: u16 = 64;
/// `ServiceRow::flags`: this machine is one of the service's `dsr` or `snat` backends.
pub const SERVICE_LOCAL: u16 = 128;
/// `ServiceRow::flags`: the client prefix is longer than 64 bits, so `client_mask` masks the second word of an address.
pub const SERVICE_LONG_PREFIX: u16 = 256;
/// `ServiceRow::flags`: QUIC connection IDs may name the service's backends, see [`crate::quic`].
pub const SERVICE_QUIC: u16 = 512;

const _: () = assert!(size_of::<ServiceRow>() == 64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::{mask_v4, mask_v6};

    proptest! {
        #[test]
        fn when_a_client_is_masked_then_its_prefix_is_kept(prefix4 in 0u8..=32, prefix6 in 0u8..=128, address: [u64; 2]) {
            let mut row = ServiceRow::zeroed();
            let mask = mask_v6(prefix6);
            row.set_client_mask(mask);
            prop_assert_eq!(row.masked(address), [address[0] & mask[0], address[1] & mask[1]]);
            let mask = mask_v4(prefix4);
            row.set_client_mask([u64::from(mask), 0]);
            prop_assert_eq!(row.masked_v4(address[0] as u32), address[0] as u32 & mask);
            prop_assert_eq!(row.masked([u64::from(address[0] as u32), 0]), [u64::from(address[0] as u32 & mask), 0]);
        }
    }
}
