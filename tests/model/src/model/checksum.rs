//! Computes each checksum from scratch, over all bytes that the checksum covers.
//!
//! A router must not correct wrong checksums of packets. If a packet arrives with a wrong checksum, the packet must
//! leave with a checksum that is wrong by the same amount, so that the receiver notices the error. (The error is a
//! difference modulo 65535, like all sums in this module.)

use std::net::IpAddr;

/// The sum of 16-bit words of `bytes`, modulo 65535.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    words.fold(0, |sum, word| (sum + word) % 65535)
}

/// The input of a checksum: an optional pseudo-header, and bytes that include the checksum field.
pub(super) struct Covered<'a> {
    pub(super) pseudo: &'a [u8],
    pub(super) bytes: &'a [u8],
    /// The position of the checksum field in `bytes`.
    pub(super) check: usize,
}

impl Covered<'_> {
    fn field(&self) -> u32 {
        u32::from(self.bytes[self.check]) << 8 | u32::from(self.bytes[self.check + 1])
    }

    /// Returns the correct checksum, modulo 65535.
    fn right(&self) -> u32 {
        let all = sum(self.pseudo) + sum(self.bytes) + 2 * 65535;
        (2 * 65535 - (all - self.field()) % 65535) % 65535
    }
}

/// Returns the checksum for the packet `after`, which replaces the packet `before`. If `before` has a correct checksum,
/// the result is correct. Otherwise, the result is wrong by the same amount as the checksum of `before`. Zero has two
/// representations, 0 and 0xffff; a sum over nonzero bytes uses 0 (RFC 1071).
pub(super) fn carried(before: &Covered<'_>, after: &Covered<'_>) -> u16 {
    let error = before.field() + 65535 - before.right();
    ((after.right() + error) % 65535) as u16
}

/// Computes the checksum over `bytes`, whose checksum field is zero.
pub(super) fn fresh(pseudo: &[u8], bytes: &[u8]) -> u16 {
    match (65535 - (sum(pseudo) + sum(bytes)) % 65535) % 65535 {
        0 if bytes.iter().all(|&byte| byte == 0) && pseudo.iter().all(|&byte| byte == 0) => 0xffff,
        check => check as u16,
    }
}

/// Returns the pseudo-header of TCP, UDP or ICMPv6, which contains the addresses, the length and the protocol.
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}
