//! Hiding values from the verifier.
//!
//! The verifier follows every path through the headers separately, with what it knows about each offset, and repeats
//! the check of all code that follows. It knows nothing about a number that the program reads back from a map, so the
//! paths join again at that point.

use crate::{
    packet::Packet,
    parse::{self, Ip, Stopped},
    scratch::{self, Row},
};

/// Returns `number` as a value that is unknown to the verifier.
#[inline(always)]
pub(crate) fn number(number: u64) -> Option<u64> {
    let place = scratch::place::<u64>(Row::Opaque)?;
    // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe {
        place.write_volatile(number);
        Some(place.read_volatile())
    }
}

/// Returns `number`; the verifier knows as little about the result as about `unknown`.
#[inline(always)]
pub(crate) fn mixed(number: u64, unknown: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let number = {
        let mut number = number;
        // SAFETY: two instructions that change only their operand and together restore its value.
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

/// Calls [`parse::follow`], hiding offsets from the verifier.
#[inline(always)]
pub(crate) fn follow<'a>(frame: Packet<'a>, ip: &mut Ip<'a>) -> Result<(), Stopped> {
    parse::follow(frame, ip, number)
}
