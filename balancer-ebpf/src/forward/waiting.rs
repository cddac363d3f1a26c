//! Replies to clients whose neighbour the kernel has not resolved. The kernel keeps such packets while it resolves the
//! neighbour, as any router does. If the neighbour is still silent after all of the kernel's requests, or if there are
//! very many such packets, the program drops them, and the controller makes the kernel ask again.

use aya_ebpf::{
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{LruHashMap, RingBuf},
};
use balancer_common::map_types::{MAX_ASKED, NeighbourAsked, NeighbourWanted};

use crate::budget;

/// Neighbours for which the program had to drop replies; the controller makes the kernel resolve them. A full buffer
/// does no harm, because the next packet asks again.
#[map]
static NEIGHBOURS_WANTED: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Neighbours that packets wait for, with the time of the first and the last such packet.
#[map]
static ASKED: LruHashMap<NeighbourWanted, NeighbourAsked> = LruHashMap::with_max_entries(MAX_ASKED, 0);

/// The time in which the kernel asks for a neighbour: three requests, one second apart.
const ASKING: u64 = 3_000_000_000;
/// Packets that are further apart than this begin a new wait, because the neighbour may have answered in between.
const PAUSE: u64 = 2_500_000_000;

/// Whether a packet for an unresolved neighbour waits in the kernel. If not, the program asks the controller to have
/// the neighbour resolved.
#[inline(always)]
pub(crate) fn may_wait(neighbour: &NeighbourWanted) -> bool {
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let may = is_answering(neighbour, now) && budget::may_wait();
    if !may && let Some(mut entry) = NEIGHBOURS_WANTED.reserve::<NeighbourWanted>(0) {
        // The program copies the words one by one, because a copy of the whole array would call a function with a stack
        // of its own.
        let NeighbourWanted { address: [a, b, c, d], ifindex, family } = neighbour;
        entry.write(NeighbourWanted { address: [*a, *b, *c, *d], ifindex: *ifindex, family: *family });
        entry.submit(0);
    }
    may
}

/// Whether the neighbour may still answer.
#[inline(always)]
fn is_answering(neighbour: &NeighbourWanted, now: u64) -> bool {
    if let Some(asked) = ASKED.get_ptr_mut(neighbour) {
        // SAFETY: this is a map value, and another CPU could only write a similar time at the same moment.
        let asked = unsafe { &mut *asked };
        let last = asked.last;
        asked.last = now;
        if now.wrapping_sub(last) < PAUSE {
            return now.wrapping_sub(asked.first) < ASKING;
        }
        asked.first = now;
        return true;
    }
    // If the map has no room for the neighbour, each packet treats it as new.
    let _full = ASKED.insert(neighbour, NeighbourAsked { first: now, last: now }, 0);
    true
}
