//! Rows of the table of services, and forwarding modes.

use bytemuck::{Pod, Zeroable};

use super::SLOT_EXCEPTIONS;
use crate::{client::BegunHash, share::Share};

/// How packets reach the backends of a service. Modes with an outer header come last.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Forwarding {
    /// The program rewrites the destination MAC; the reply goes straight to the client.
    Dsr = 1,
    /// The program rewrites the destination address and port; the reply passes through the balancer.
    Nat = 2,
    /// The program rewrites source and destination: the backend sees an address of the balancer and replies to it. See
    /// [`crate::flows`].
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
    /// `SERVICE_*` bits.
    pub flags: u16,
    /// The service's clock, in ticks modulo 2^14. The controller advances it with one store.
    pub tick: u32,
    /// The live table, as a [`LiveTable`](super::LiveTable) word. The controller replaces it with one store.
    pub table: u64,
    /// The hash state under the service's key.
    pub hash: BegunHash,
    /// Ticks after which a client is forgotten.
    pub remember: u16,
    /// Ticks after which a datagram counts as a new connection.
    pub idle: u16,
    /// Index of the [`crate::quic::QuicRow`] of the service's QUIC listeners; 0: none.
    pub quic: u8,
    /// The [`Share`] of steered clients, in a [shared](SERVICE_SHARED) service.
    pub steer: [u8; 3],
    /// The client prefix as a mask of one word of an address, in memory order. It applies to the first word (for IPv4,
    /// to its first four bytes), or to the second word if the prefix is longer than 64 bits.
    pub client_mask: u64,
}

impl ServiceRow {
    /// Sets the prefix that distinguishes clients, given as a mask of both words of an address; an IPv4 mask is in the
    /// first four bytes.
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

    /// The client of an IPv4 packet, given the first word of its source address.
    #[inline(always)]
    #[must_use]
    pub const fn masked_v4(&self, address: u32) -> u32 {
        address & self.client_mask as u32
    }

    /// The client of a packet, given both words of its source address.
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
/// `ServiceRow::flags`: clients that were moved away return home with their next new connection.
pub const SERVICE_FAILBACK: u16 = 2;
/// `ServiceRow::flags`: the service has rules for client prefixes.
pub const SERVICE_RULES: u16 = 4;
/// `ServiceRow::flags`: the memory is so short that every packet reads its client's entry. The same bit flags a slot,
/// so the program tests both at once.
pub const SERVICE_READS_ALWAYS: u16 = SLOT_EXCEPTIONS as u16;
/// `ServiceRow::flags`: the program answers packets that no backend takes with a rejection.
pub const SERVICE_REJECTS: u16 = 16;

/// `ServiceRow::flags`: the program does not steer all clients, or steers some only since recently.
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
