//! Making the verifier forget.
//!
//! It follows every path through the headers on its own, with what that says of each offset, and again through all that
//! comes after. A number that has been through a map is just a number to it, so that it goes on once for all of them.

use crate::{
    packet::Packet,
    parse::{self, Ip, Stopped},
    scratch::{self, Row},
};

/// `number`, of which the verifier knows nothing.
#[inline(always)]
pub(crate) fn number(number: u64) -> Option<u64> {
    let place = scratch::place::<u64>(Row::Opaque)?;
    // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe {
        place.write_volatile(number);
        Some(place.read_volatile())
    }
}

/// `number`, of which the verifier knows no more than of `unknown`.
#[inline(always)]
pub(crate) fn mixed(number: u64, unknown: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let number = {
        let mut number = number;
        // SAFETY: two instructions that change nothing but their operand, and leave it as it was.
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

/// [`parse::follow`], forgetting.
#[inline(always)]
pub(crate) fn follow<'a>(frame: Packet<'a>, ip: &mut Ip<'a>) -> Result<(), Stopped> {
    parse::follow(frame, ip, number)
}
