//! Services.

use bytemuck::{Pod, Zeroable};

use super::SLOT_EXCEPTIONS;
use crate::{client::BegunHash, share::Share};

/// How packets reach the backends of a service. What needs an outer header comes last.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Forwarding {
    /// Destination MAC rewritten; the reply goes straight to the client.
    Dsr = 1,
    /// Destination address and port rewritten; the reply passes the balancer.
    Nat = 2,
    /// Both ends rewritten: the backend sees an address of the balancer, and answers there. See [`crate::flows`].
    Snat = 3,
    /// The packet in an IP packet of the backend's family (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 4,
    /// The packet behind UDP to port [`GUE_PORT`]: Generic UDP Encapsulation, variant 1.
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
    /// The service's clock, in ticks modulo 2^14. Advanced with one store.
    pub tick: u32,
    /// The live table, a [`LiveTable`](super::LiveTable). Swapped with one store.
    pub table: u64,
    /// This service's client hash, begun under its key.
    pub hash: BegunHash,
    /// Ticks after which a client is forgotten.
    pub remember: u16,
    /// Ticks after which a datagram counts as a new connection.
    pub idle: u16,
    /// The row of what its QUIC listeners understand, a [`crate::quic::QuicRow`]; 0: there is none.
    pub quic: u8,
    /// The [`Share`] of clients that are steered, of a [shared](SERVICE_SHARED) service.
    pub steer: [u8; 3],
    /// The client prefix as a mask of the word of an address in which it ends, in memory order: of the first one, for IPv4 its
    /// first four bytes, unless it is a long one.
    pub client_mask: u64,
}

impl ServiceRow {
    /// Has clients be told apart by this prefix, as a mask of both words of an address; for IPv4 in the first four bytes.
    pub const fn set_client_mask(&mut self, [first, second]: [u64; 2]) {
        self.flags = self.flags & !SERVICE_LONG_PREFIX | if second == 0 { 0 } else { SERVICE_LONG_PREFIX };
        self.client_mask = if second == 0 { first } else { second };
    }

    /// Has this share of clients be steered.
    pub const fn set_share(&mut self, share: Share) {
        self.flags = self.flags & !SERVICE_SHARED | if share.is_all() { 0 } else { SERVICE_SHARED };
        self.steer = [share.now, share.least, share.most];
    }

    /// Which clients are steered.
    #[inline(always)]
    #[must_use]
    pub const fn share(&self) -> Share {
        if self.flags & SERVICE_SHARED == 0 {
            return Share::ALL;
        }
        let [now, least, most] = self.steer;
        Share { now, least, most }
    }

    /// An IPv4 client, of the first word of an address.
    #[inline(always)]
    #[must_use]
    pub const fn masked_v4(&self, address: u32) -> u32 {
        address & self.client_mask as u32
    }

    /// A client, of both words of an address.
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

/// `ServiceRow::flags`: clients are remembered.
pub const SERVICE_REMEMBERS: u16 = 8;
/// `ServiceRow::flags`: clients that were moved away go home with a new connection.
pub const SERVICE_FAILBACK: u16 = 2;
/// `ServiceRow::flags`: it has rules for client prefixes.
pub const SERVICE_RULES: u16 = 4;
/// `ServiceRow::flags`: the memory is so short that every packet reads its client's entry. The bit that says the same in a
/// slot, so that both are looked at at once.
pub const SERVICE_READS_ALWAYS: u16 = SLOT_EXCEPTIONS as u16;
/// `ServiceRow::flags`: what nobody takes is answered.
pub const SERVICE_REJECTS: u16 = 16;

/// `ServiceRow::flags`: not all clients are steered, or some have come to be only recently.
pub const SERVICE_SHARED: u16 = 32;
/// `ServiceRow::flags`: its connections are flows, see [`crate::flows`].
pub const SERVICE_FLOWS: u16 = 64;
/// `ServiceRow::flags`: this machine is one of its `dsr` or `snat` backends.
pub const SERVICE_LOCAL: u16 = 128;
/// `ServiceRow::flags`: the client prefix is longer than 64 bits, so that `client_mask` is that of the second word of an
/// address.
pub const SERVICE_LONG_PREFIX: u16 = 256;
/// `ServiceRow::flags`: connection IDs of QUIC may name its backends, see [`crate::quic`].
pub const SERVICE_QUIC: u16 = 512;

const _: () = assert!(size_of::<ServiceRow>() == 64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::{mask_v4, mask_v6};

    proptest! {
        #[test]
        fn a_row_masks_as_the_prefix_does(prefix4 in 0u8..=32, prefix6 in 0u8..=128, address: [u64; 2]) {
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
