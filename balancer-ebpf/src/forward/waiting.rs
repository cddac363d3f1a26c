//! Replies to clients whose neighbour the kernel has not resolved: it keeps them while it asks, as any router does. Where
//! nobody has answered for longer than it asks, or there are very many, they are dropped instead, and the controller has
//! the kernel ask again.

use aya_ebpf::{
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{LruHashMap, RingBuf},
};
use balancer_common::map_types::{MAX_ASKED, NeighbourAsked, NeighbourWanted};

use crate::budget;

/// Neighbours that replies had to be dropped for; the controller has them resolved. Losing some when it is full does
/// no harm: the next packet asks again.
#[map]
static NEIGHBOURS_WANTED: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Neighbours that packets wait for, and since when.
#[map]
static ASKED: LruHashMap<NeighbourWanted, NeighbourAsked> = LruHashMap::with_max_entries(MAX_ASKED, 0);

/// The kernel gives a neighbour up after three questions, a second apart.
const ASKING: u64 = 3_000_000_000;
/// Packets further apart than this begin anew: the neighbour may have answered in between.
const PAUSE: u64 = 2_500_000_000;

/// Whether a packet for a neighbour that is not resolved is to wait for it, in the kernel. If not, it is asked for.
#[inline(always)]
pub(crate) fn may_wait(neighbour: &NeighbourWanted) -> bool {
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let may = is_answering(neighbour, now) && budget::may_wait();
    if !may && let Some(mut entry) = NEIGHBOURS_WANTED.reserve::<NeighbourWanted>(0) {
        // Word by word: copied whole, it is copied by a function, which takes a stack of its own.
        let NeighbourWanted { address: [a, b, c, d], ifindex, family } = neighbour;
        entry.write(NeighbourWanted { address: [*a, *b, *c, *d], ifindex: *ifindex, family: *family });
        entry.submit(0);
    }
    may
}

/// Whether a neighbour may still be about to answer.
#[inline(always)]
fn is_answering(neighbour: &NeighbourWanted, now: u64) -> bool {
    if let Some(asked) = ASKED.get_ptr_mut(neighbour) {
        // SAFETY: a map value; what another CPU writes meanwhile is a time like this one.
        let asked = unsafe { &mut *asked };
        let last = asked.last;
        asked.last = now;
        if now.wrapping_sub(last) < PAUSE {
            return now.wrapping_sub(asked.first) < ASKING;
        }
        asked.first = now;
        return true;
    }
    // Without room it counts as new each time.
    let _full = ASKED.insert(neighbour, NeighbourAsked { first: now, last: now }, 0);
    true
}
