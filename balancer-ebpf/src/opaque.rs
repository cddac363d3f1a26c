//! Hiding values from the verifier.
//!
//! The verifier follows every path through the header parser separately, with its knowledge about each offset, and
//! checks all following code again for each path. The verifier knows nothing about a number that the program reads back
//! from a map, so after such a read, the verifier no longer distinguishes the paths.

use crate::{
    packet::Packet,
    parse::{self, Ip, Stopped},
    scratch::{self, Row},
};

/// Returns `number` as a value that is unknown to the verifier.
#[inline(always)]
pub(crate) fn number(number: u64) -> Option<u64> {
    let place = scratch::place::<u64>(Row::Opaque)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe {
        place.write_volatile(number);
        Some(place.read_volatile())
    }
}

/// Returns `number` unchanged; the verifier knows as little about the result as about `unknown`.
#[inline(always)]
pub(crate) fn mixed(number: u64, unknown: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let number = {
        let mut number = number;
        // SAFETY: the two instructions change only their operand and together restore the operand's value.
        unsafe {
            core::arch::asm!(
                "{0} ^= {1}",
                "{0} ^= {1}",
                inout(reg) number,
                in(reg) unknown,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        number
    };
    #[cfg(not(target_arch = "bpf"))]
    let _ = unknown;
    number
}

/// Returns the offset of the IP header in a frame with tags unchanged. For the verifier, frames with one tag and frames
/// with two tags are the same after this call.
#[inline(always)]
pub(crate) fn offset(offset: usize, unknown: u16) -> usize {
    /// A mask that limits the offset for the verifier.
    const MOST: usize = 31;
    mixed(offset as u64, unknown.into()) as usize & MOST
}

/// Calls [`parse::follow`] in such a form that the verifier does not know the offsets.
#[inline(always)]
pub(crate) fn follow<'a>(frame: Packet<'a>, ip: &mut Ip<'a>) -> Result<(), Stopped> {
    parse::follow(frame, ip, number)
}
