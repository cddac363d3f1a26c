//! The way to a client, asked of the kernel's routes and neighbours.

use core::mem;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
    },
    helpers::bpf_fib_lookup,
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use balancer_common::{
    map_types::{FAMILY_V4, FAMILY_V6, Mac, NeighbourWanted},
    verdict::DropReason,
};

use crate::{
    ingress::Ingress,
    parse::Ip,
    puzzles::{self, Puzzle},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Neighbours that replies had to be dropped for; the controller has them resolved. Losing some when it is full does
/// no harm: the next packet asks again.
#[map]
static NEIGHBOURS_WANTED: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

pub(crate) struct Hop {
    pub(crate) ifindex: u32,
    pub(crate) source_mac: Mac,
    pub(crate) destination_mac: Mac,
}

pub(crate) enum Route {
    Hop(Hop),
    /// The kernel takes it: this machine's own.
    Kernel,
    /// Nothing longer than this fits the way.
    TooBig(u32),
    None(DropReason),
}

/// The lookup under way. Not on the stack, of which it would take an eighth, and where the kernel does not allow words of
/// a MAC address to be read at any alignment.
#[map]
static QUERY: PerCpuArray<FibLookup> = PerCpuArray::with_max_entries(1, 0);

/// The next hop of a packet from `source` to `ip`'s destination.
#[inline(always)]
pub(crate) fn route(ingress: Ingress, ip: &Ip<'_>, source: &[u32; 4]) -> Route {
    let Some(place) = QUERY.get_ptr_mut(0) else { return Route::None(DropReason::NoRoute) };
    // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path. It is a plain C
    // structure without invalid bit patterns.
    let query = unsafe {
        place.write(mem::zeroed());
        &mut *place
    };
    query.l4_protocol = ip.protocol;
    query.ifindex = ingress.ifindex();
    if ip.family == FAMILY_V4 {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = source[0];
        query.__bindgen_anon_4.ipv4_dst = ip.destination[0];
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = *source;
        query.__bindgen_anon_4.ipv6_dst = ip.destination;
    }
    // SAFETY: the context is the driver's, the structure a map value and its size is given.
    let answer =
        unsafe { bpf_fib_lookup(ingress.untyped(), &raw mut *query, mem::size_of::<FibLookup>() as i32, 0) } as u32;
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS => {
            // SAFETY: a lookup that succeeds leaves the way's MTU here, or 0 (kernels before 5.12).
            let mtu = usize::from(unsafe { query.__bindgen_anon_1.mtu_result });
            if mtu != 0 && ip.length > mtu && query.ifindex != ingress.ifindex() {
                return Route::TooBig(mtu as u32);
            }
            Route::Hop(Hop { ifindex: query.ifindex, source_mac: query.smac, destination_mac: query.dmac })
        }
        BPF_FIB_LKUP_RET_NOT_FWDED => Route::Kernel,
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            // The lookup has replaced the destination by the neighbour that is missing, and perhaps the family.
            let wanted = if query.family == AF_INET {
                // SAFETY: the family says which member was written.
                let address = unsafe { query.__bindgen_anon_4.ipv4_dst };
                NeighbourWanted { address: [address, 0, 0, 0], ifindex: query.ifindex, family: u32::from(FAMILY_V4) }
            } else {
                // SAFETY: as above.
                let address = unsafe { query.__bindgen_anon_4.ipv6_dst };
                NeighbourWanted { address, ifindex: query.ifindex, family: u32::from(FAMILY_V6) }
            };
            if let Some(mut entry) = NEIGHBOURS_WANTED.reserve::<NeighbourWanted>(0) {
                entry.write(wanted);
                entry.submit(0);
            }
            Route::None(DropReason::NoNeighbour)
        }
        _ => {
            puzzles::tell(Puzzle::NoRoute, answer);
            Route::None(DropReason::NoRoute)
        }
    }
}
