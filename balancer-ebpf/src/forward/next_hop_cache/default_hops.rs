//! The default next hops that the controller publishes. With many clients, nearly every reply would find no cached next
//! hop, although nearly all clients are behind the same gateway. Before the program uses a published next hop, it
//! compares the destination with the prefixes that the default route may not serve; for such a destination, and when the
//! controller has not renewed the next hop in time, the program asks the kernel.

use balancer_common::map_types::{
    DefaultHopHeader, DefaultHopRow, EXCLUDED_ROWS, ExcludedPrefix, ExcludedRow, default_hop_header, default_hop_row,
    ingress_bit,
};

use super::NEXT_HOP_CACHE;

/// The row of the next hop that is published for a family at the time `now`.
#[inline(always)]
pub(super) fn row(family: u8, now: u64) -> Option<u32> {
    let header = NEXT_HOP_CACHE.get_ptr(default_hop_header(family))?.cast::<DefaultHopHeader>();
    // SAFETY: the pointer points to a row of the map.
    let until = unsafe { (&raw const (*header).until).read_volatile() };
    (now < until).then_some(default_hop_row(family, until as u32 & 1))
}

/// Whether the published next hop in the row `row` is that of a packet from the interface `ingress`; `destination` is
/// the key of the packet's destination. If not, the kernel must be asked.
#[inline(always)]
pub(super) fn leads(row: u32, hop: *const DefaultHopRow, ingress: u32, destination: u64) -> bool {
    // SAFETY: the pointer points to a row of the map; the controller changes a published row only after the program has
    // stopped using the row.
    let hop = unsafe { &*hop };
    if hop.ingresses & ingress_bit(ingress) == 0 || any_contains(&hop.excluded, destination) {
        return false;
    }
    for number in 0..EXCLUDED_ROWS as u32 {
        if hop.further == number {
            return true;
        }
        let Some(further) = NEXT_HOP_CACHE.get_ptr(row + 1 + number) else { return false };
        // SAFETY: as above.
        let further = unsafe { &*further.cast::<ExcludedRow>() };
        if any_contains(&further.prefixes, destination) {
            return false;
        }
    }
    true
}

#[inline(always)]
fn any_contains(prefixes: &[ExcludedPrefix], destination: u64) -> bool {
    for prefix in prefixes {
        if prefix.contains(destination) {
            return true;
        }
    }
    false
}
