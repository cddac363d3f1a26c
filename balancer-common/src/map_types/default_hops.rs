//! The default next hops: where packets leave whose destination has no route but the default route. The controller
//! publishes one for each family in the first rows of the map of cached next hops, whose rows all have 64 bytes.
//!
//! The first two rows are a [`DefaultHopHeader`] for each family. For each family follow two forms of the next hop, of
//! which the header names one: a [`DefaultHopRow`], and [`EXCLUDED_ROWS`] rows of [`ExcludedRow`]. The controller writes
//! the form that the header does not name, and then the header's word.

use bytemuck::{Pod, Zeroable};

use super::{FAMILY_V4, Mac};

/// The word that makes the program use a default next hop.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DefaultHopHeader {
    /// The time at which the next hop stops being valid, by the kernel's coarse monotonic clock, in ns. The lowest bit
    /// is not part of the time: it says which form is valid.
    pub until: u64,
    /// These words are always zero.
    pub reserved: [u64; 7],
}

/// A next hop, whose last fields are at the positions that they have in a cached next hop.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DefaultHopRow {
    /// Bit `ifindex % 64` says that the kernel would forward packets that arrive on an interface with this index, by the
    /// ordinary tables.
    pub ingresses: u64,
    /// The first excluded prefixes.
    pub excluded: [ExcludedPrefix; EXCLUDED_HERE],
    /// The number of the following rows that have further excluded prefixes.
    pub further: u32,
    /// The egress interface.
    pub egress: u32,
    /// The MAC of the egress interface.
    pub source_mac: Mac,
    /// The MAC of the gateway.
    pub destination_mac: Mac,
    /// These bytes are always zero.
    pub reserved: [u8; 2],
    /// The MTU of the egress interface, in bytes.
    pub mtu: u16,
}

/// The first 64 bits of an address, or of a prefix and its mask, as they are in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ExcludedPrefix {
    pub address: u64,
    pub mask: u64,
}

/// Destinations that the default route may not serve.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ExcludedRow {
    pub prefixes: [ExcludedPrefix; EXCLUDED_OF_ROW],
}

/// The number of excluded prefixes in a [`DefaultHopRow`].
pub const EXCLUDED_HERE: usize = 2;
/// The number of prefixes in an [`ExcludedRow`].
pub const EXCLUDED_OF_ROW: usize = 4;
/// The number of rows with further prefixes.
pub const EXCLUDED_ROWS: usize = 2;
/// The number of prefixes of one form.
pub const EXCLUDED: usize = EXCLUDED_HERE + EXCLUDED_ROWS * EXCLUDED_OF_ROW;

const FORM_ROWS: u32 = 1 + EXCLUDED_ROWS as u32;
/// The number of rows before the rows of the first CPU.
pub const DEFAULT_HOP_ROWS: u32 = 2 + 4 * FORM_ROWS;

/// The row of a family's [`DefaultHopHeader`].
#[inline(always)]
#[must_use]
pub const fn default_hop_header(family: u8) -> u32 {
    (family != FAMILY_V4) as u32
}

/// The first row of the form `form` (0 or 1), a [`DefaultHopRow`]; the rows of prefixes follow.
#[inline(always)]
#[must_use]
pub const fn default_hop_row(family: u8, form: u32) -> u32 {
    2 + (2 * default_hop_header(family) + form) * FORM_ROWS
}

/// The bit of an interface in [`DefaultHopRow::ingresses`].
#[inline(always)]
#[must_use]
pub const fn ingress_bit(ifindex: u32) -> u64 {
    1 << (ifindex % 64)
}

impl ExcludedPrefix {
    /// The prefix in an unused place, which contains no client: only 0.0.0.0 and `::/64`.
    pub const UNUSED: Self = Self { address: 0, mask: !0 };

    /// The prefix of `length` bits (at most 64) whose first 64 bits are `bits`, the first of them the highest.
    #[must_use]
    pub const fn new(bits: u64, length: u8) -> Self {
        let mask = if length == 0 { 0 } else { !0 << (64 - length as u32) };
        Self { address: in_memory(bits & mask), mask: in_memory(mask) }
    }

    /// Whether the prefix contains an address, of which `key` is the [`address_key`].
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, key: u64) -> bool {
        (key ^ self.address) & self.mask == 0
    }
}

const fn in_memory(bits: u64) -> u64 {
    u64::from_ne_bytes(bits.to_be_bytes())
}

/// The first 64 bits of an address as they are in memory.
#[inline(always)]
#[must_use]
pub const fn address_key(address: &[u32; 4]) -> u64 {
    let [first, second] = [address[0] as u64, address[1] as u64];
    if cfg!(target_endian = "little") { second << 32 | first } else { first << 32 | second }
}

const _: () = {
    assert!(size_of::<DefaultHopHeader>() == 64);
    assert!(size_of::<DefaultHopRow>() == 64);
    assert!(size_of::<ExcludedRow>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_rows_are_numbered_then_no_two_forms_overlap() {
        let forms = [(4, 0), (4, 1), (6, 0), (6, 1)].map(|(family, form)| default_hop_row(family, form));
        assert_eq!(forms, [2, 5, 8, 11]);
        assert_eq!([default_hop_header(4), default_hop_header(6), DEFAULT_HOP_ROWS], [0, 1, 14]);
    }

    #[test]
    fn when_a_prefix_is_made_then_it_contains_its_addresses() {
        let key = |text: &str| {
            let octets: [u8; 4] = text.parse::<core::net::Ipv4Addr>().unwrap().octets();
            address_key(&[u32::from_ne_bytes(octets), 0, 0, 0])
        };
        let prefix = ExcludedPrefix::new(0x0a01_0000_0000_0000, 16);
        for (address, inside) in
            [("10.1.0.0", true), ("10.1.255.255", true), ("10.0.255.255", false), ("10.2.0.0", false)]
        {
            assert_eq!(prefix.contains(key(address)), inside, "{address}");
        }
        assert!(ExcludedPrefix::new(1 << 63, 0).contains(key("203.0.113.7")));
    }
}
