//! Which ports of a pool the open connections of a backend hold: one bit for each port, so that the program finds a
//! port whose connection has ended, or a free one, among any number of ports that are held.
//!
//! The bits only guide the search: before the program takes a port, it looks at the connection that has the port.

use super::FlowWord;

/// The number of ports in a line of bits.
pub const PORTS_PER_LINE: u32 = 512;
/// The number of lines of a block: one with the position at which the next search begins, and those with the bits of
/// all ports of one address for one backend.
pub const LINES_PER_BLOCK: u32 = 1 + PORTS / PORTS_PER_LINE;

const PORTS: u32 = 1 << 16;
const BITS: u32 = u64::BITS;

/// The first line of the block for a backend and an address of its pool, out of `blocks` (a power of two). Backends
/// that share a block only find ports less surely.
#[inline(always)]
#[must_use]
pub const fn block(backend: u16, address: u32, blocks: u32) -> u32 {
    let number = (backend as u32).wrapping_add(address.wrapping_mul(0x9e37_79b1) >> 16);
    (number & blocks.wrapping_sub(1)) * LINES_PER_BLOCK
}

/// A bit of a block: the number of its line, of its word in the line, and its place in the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// The number of the line in the map.
    pub line: u32,
    /// The position of the word in its line.
    pub word: u32,
    /// The bit in the word.
    pub mask: u64,
}

/// The bit of a port (host order) in the block that begins at this line.
#[inline(always)]
#[must_use]
pub const fn bit(block: u32, port: u16) -> Bit {
    let port = port as u32;
    Bit { line: block + 1 + port / PORTS_PER_LINE, word: port % PORTS_PER_LINE / BITS, mask: 1 << (port % BITS) }
}

/// The first port from `from` to `last` whose bit is not set in the word of bits that begins at port `begin`.
#[inline(always)]
#[must_use]
pub const fn first_unheld(word: u64, begin: u32, from: u32, last: u32) -> Option<u32> {
    let unheld = !word & at_least(from, begin) & !at_least(last.wrapping_add(1), begin);
    if unheld == 0 { None } else { Some(begin + unheld.trailing_zeros()) }
}

/// The bits of the ports from `port` on, in the word of bits that begins at port `begin`.
#[inline(always)]
const fn at_least(port: u32, begin: u32) -> u64 {
    let place = port.saturating_sub(begin);
    if place >= BITS { 0 } else { u64::MAX << place }
}

impl FlowWord {
    /// Whether the flow holds its port: it never gives way.
    #[inline(always)]
    #[must_use]
    pub const fn holds(self) -> bool {
        matches!(self.phase(), super::Phase::Open)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn when_blocks_and_ports_differ_then_their_bits_differ() {
        let blocks = 16;
        let mut bits = HashSet::new();
        for backend in 0..16 {
            let block = block(backend, 0, blocks);
            for port in (0..=u16::MAX).step_by(if cfg!(miri) { 4099 } else { 31 }) {
                let Bit { line, word, mask } = bit(block, port);
                assert!(block < line && line < block + LINES_PER_BLOCK && word < 8 && mask.is_power_of_two());
                assert!(line < blocks * LINES_PER_BLOCK);
                assert!(bits.insert((line, word, mask)));
            }
        }
    }

    proptest! {
        #[test]
        fn when_a_word_is_searched_then_the_first_unheld_port_of_the_pool_is_found(
            word in prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), (0..64u32).prop_map(|bit| !(1 << bit))],
            begin in (0..1024u32).prop_map(|word| word * 64), from: u16, length in 0..200u16,
        ) {
            let from = u32::from(from);
            let last = (from + u32::from(length)).min(65_535);
            let expected = (begin..begin + 64)
                .find(|&port| from <= port && port <= last && word >> (port - begin) & 1 == 0);
            prop_assert_eq!(first_unheld(word, begin, from, last), expected);
        }

        #[test]
        fn when_a_pool_has_several_addresses_then_a_backends_blocks_are_in_the_map(backend: u16, address in 0..8u32, blocks in 0..12u32) {
            let blocks = 1 << blocks;
            prop_assert!(block(backend, address, blocks) + LINES_PER_BLOCK <= blocks * LINES_PER_BLOCK);
        }
    }
}
