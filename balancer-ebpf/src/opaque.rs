//! Making the verifier forget.
//!
//! It follows every path through the headers on its own, with what that says of each offset, and again through all that
//! comes after. A number that has been through a map is just a number to it, so that it goes on once for all of them.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::{
    packet::Packet,
    parse::{self, Ip, Stopped},
};

#[map]
static OPAQUE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `number`, of which the verifier knows nothing.
#[inline(always)]
pub(crate) fn number(number: u64) -> Option<u64> {
    let place = OPAQUE.get_ptr_mut(0)?;
    // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe {
        place.write_volatile(number);
        Some(place.read_volatile())
    }
}

/// [`parse::follow`], forgetting.
#[inline(always)]
pub(crate) fn follow<'a>(frame: Packet<'a>, ip: &mut Ip<'a>) -> Result<(), Stopped> {
    parse::follow(frame, ip, number)
}
