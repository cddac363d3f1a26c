//! Replies to clients whose next hop is a neighbour that the kernel has not resolved. While the kernel resolves a
//! neighbour, the kernel keeps the packets for this neighbour, as any router does. The program drops the packets if the
//! neighbour stays silent after all of the kernel's requests, or if very many packets wait for neighbours; the
//! controller then makes the kernel ask again.

use aya_ebpf::{
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{LruHashMap, RingBuf},
};
use balancer_common::map_types::{MAX_ASKED, NeighbourAsked, NeighbourWanted};

use crate::budget;

/// Neighbours for which the program had to drop replies; the controller makes the kernel resolve these neighbours. A
/// full buffer does no harm, because the next packet reports the neighbour again.
#[map]
static NEIGHBOURS_WANTED: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Neighbours that packets wait for, with the times of the first and the last waiting packet.
#[map]
static ASKED: LruHashMap<NeighbourWanted, NeighbourAsked> = LruHashMap::with_max_entries(MAX_ASKED, 0);

/// The time in which the kernel asks for a neighbour: three requests, one second apart.
const ASKING: u64 = 3_000_000_000;
/// If two packets are further apart than this time, the second packet begins a new wait, because the neighbour may have
/// answered in between.
const PAUSE: u64 = 2_500_000_000;

/// Whether a packet for an unresolved neighbour waits in the kernel. If the packet cannot wait, the program asks the
/// controller to have the neighbour resolved.
#[inline(always)]
pub(crate) fn may_wait(neighbour: &NeighbourWanted) -> bool {
    // SAFETY: the helper takes no pointer.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let may = is_answering(neighbour, now) && budget::may_wait();
    if !may && let Some(mut entry) = NEIGHBOURS_WANTED.reserve::<NeighbourWanted>(0) {
        // The program copies the words one by one, because a copy of the whole array would call a function that needs a
        // stack frame.
        let NeighbourWanted { address: [a, b, c, d], ifindex, family } = neighbour;
        entry.write(NeighbourWanted { address: [*a, *b, *c, *d], ifindex: *ifindex, family: *family });
        entry.submit(0);
    }
    may
}

/// Whether the neighbour may still answer the kernel's requests.
#[inline(always)]
fn is_answering(neighbour: &NeighbourWanted, now: u64) -> bool {
    if let Some(asked) = ASKED.get_ptr_mut(neighbour) {
        // SAFETY: the pointer points to a map value; another CPU could write only a similar time at the same moment.
        let asked = unsafe { &mut *asked };
        let last = asked.last;
        asked.last = now;
        if now.wrapping_sub(last) < PAUSE {
            return now.wrapping_sub(asked.first) < ASKING;
        }
        asked.first = now;
        return true;
    }
    // If the map has no room for the neighbour, the program treats each packet for this neighbour as the first.
    let _full = ASKED.insert(neighbour, NeighbourAsked { first: now, last: now }, 0);
    true
}
