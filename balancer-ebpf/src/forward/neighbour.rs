//! Finds the path to a client in the kernel's routes and neighbours.

use core::{ffi::c_void, mem, ptr};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as FibLookup,
    },
    helpers::bpf_fib_lookup,
    macros::map,
    maps::PerCpuArray,
};
use balancer_common::{
    handover::Handed,
    map_types::{FAMILY_V4, FAMILY_V6, Mac, NeighbourWanted},
    verdict::DropReason,
};

use crate::{
    debug_log::{self, Oddity},
    devices,
    forward::{
        mark,
        next_hop_cache::{CachedHop, Question},
        waiting,
    },
    ingress::Ingress,
    parse::Ip,
    step::{IcmpError, Step},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The parameters of the route lookup in progress. On the stack, these parameters would take an eighth of the space,
/// and the verifier would forbid unaligned reads of the MAC words.
#[map]
static QUERY: PerCpuArray<FibLookup> = PerCpuArray::with_max_entries(1, 0);

/// Asks the kernel for the route of a packet from `source` to `destination` that arrived by `ifindex`.
#[inline(always)]
fn ask(
    context: *mut c_void,
    ifindex: u32,
    ip: &Ip<'_>,
    source: &[u32; 4],
    destination: &[u32; 4],
) -> Option<(u32, *const FibLookup)> {
    let place = QUERY.get_ptr_mut(0)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let query = unsafe { &mut *place };
    // The program writes only what the kernel reads, word by word: to clear or to copy whole arrays, the compiler would
    // call a loop over bytes, which the verifier follows once for each call.
    query.l4_protocol = ip.protocol;
    query.sport = 0;
    query.dport = 0;
    query.__bindgen_anon_1.tot_len = 0;
    query.ifindex = ifindex;
    query.__bindgen_anon_2.flowinfo = 0;
    if ip.family == FAMILY_V4 {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = source[0];
        query.__bindgen_anon_4.ipv4_dst = destination[0];
    } else {
        query.family = AF_INET6;
        let ([a, b, c, d], [e, f, g, h]) = (source, destination);
        query.__bindgen_anon_3.ipv6_src = [*a, *b, *c, *d];
        query.__bindgen_anon_4.ipv6_dst = [*e, *f, *g, *h];
    }
    // SAFETY: the context is the kernel's, the structure is a map value, and the call gives its size.
    let answer = unsafe { bpf_fib_lookup(context, &raw mut *query, mem::size_of::<FibLookup>() as i32, 0) };
    Some((answer as u32, ptr::from_ref(query)))
}

/// The neighbour that the kernel must resolve before a reply can be sent. This value is too big for the stack.
#[map]
static NEEDED: PerCpuArray<NeighbourWanted> = PerCpuArray::with_max_entries(1, 0);

/// The next hop in the result of a route lookup. The kernel has replaced the destination, and possibly the family, in
/// `query` by those of the next hop.
#[inline(always)]
fn next_hop(query: &FibLookup) -> Option<&'static NeighbourWanted> {
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let needed = unsafe { &mut *NEEDED.get_ptr_mut(0)? };
    needed.ifindex = query.ifindex;
    if query.family == AF_INET {
        needed.family = u32::from(FAMILY_V4);
        // SAFETY: the family says which member of the union the kernel has written.
        needed.address = [unsafe { query.__bindgen_anon_4.ipv4_dst }, 0, 0, 0];
    } else {
        needed.family = u32::from(FAMILY_V6);
        // SAFETY: the family says which member of the union the kernel has written. The program reads the words one by
        // one, because a copy of the whole array would call a function that needs a stack frame.
        let [a, b, c, d] = unsafe { &query.__bindgen_anon_4.ipv6_dst };
        needed.address = [*a, *b, *c, *d];
    }
    Some(needed)
}

/// The cached next hop of a packet in one buffer from `source` to `destination`, if XDP can send the packet.
#[inline(always)]
pub(crate) fn recent(
    ingress: Ingress,
    ip: &Ip<'_>,
    source: &[u32; 4],
    destination: &[u32; 4],
) -> Option<&'static CachedHop> {
    let hop = Question { ingress: ingress.ifindex(), ip, source }.recent(destination)?;
    let is_good =
        !devices::kernel_sends_whole(ip, ingress.ifindex(), hop.egress) && fits(ingress, ip, hop.egress, hop.mtu);
    is_good.then_some(hop)
}

/// Finds the route of a packet from `source` to `destination`. Returns a step that sends the packet to the addresses
/// that [`macs`] gives after this call, or another outcome. A packet that the kernel would deliver locally passes; if
/// the kernel's answer does not say whether it would, `Step::OWN` decides.
#[inline(always)]
pub(crate) fn route(ingress: Ingress, ip: &Ip<'_>, source: &[u32; 4], destination: &[u32; 4]) -> Step {
    let Some((answer, query)) = ask(ingress.untyped(), ingress.ifindex(), ip, source, destination) else {
        return Step::drop(DropReason::NoRoute);
    };
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS => {
            // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
            // A successful lookup writes the path's MTU to this field, or 0 (kernels before 5.12).
            let (egress, mtu) = unsafe { ((*query).ifindex, (*query).__bindgen_anon_1.mtu_result) };
            if devices::kernel_sends(ingress, ip, egress) {
                return handed_if_it_fits(ingress, ip, egress, mtu);
            }
            // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
            let (source_mac, destination_mac) = unsafe { ((*query).smac, (*query).dmac) };
            Question { ingress: ingress.ifindex(), ip, source }.answered(
                destination,
                egress,
                source_mac,
                destination_mac,
                mtu,
            );
            sent(ingress, ip, egress, mtu)
        }
        BPF_FIB_LKUP_RET_NO_NEIGH if balancer_hand_over_waiting() != 0 => Step::HANDED,
        BPF_FIB_LKUP_RET_NO_NEIGH => Step::drop(DropReason::NoNeighbour),
        BPF_FIB_LKUP_RET_NOT_FWDED => Step::PASS,
        BPF_FIB_LKUP_RET_FWD_DISABLED => {
            debug_log::tell(Oddity::NoRoute, answer);
            Step::OWN
        }
        _ => {
            debug_log::tell(Oddity::NoRoute, answer);
            Step::drop(DropReason::NoRoute)
        }
    }
}

#[inline(always)]
fn sent(ingress: Ingress, ip: &Ip<'_>, egress: u32, mtu: u16) -> Step {
    if fits(ingress, ip, egress, mtu) {
        Step::send(ingress.ifindex(), egress)
    } else {
        Step::to(IcmpError::TooBig(mtu.into()))
    }
}

#[inline(always)]
fn handed_if_it_fits(ingress: Ingress, ip: &Ip<'_>, egress: u32, mtu: u16) -> Step {
    if !fits(ingress, ip, egress, mtu) {
        Step::to(IcmpError::TooBig(mtu.into()))
    } else if balancer_hand_over() == 0 {
        Step::drop(DropReason::NoRoute)
    } else {
        Step::HANDED
    }
}

/// Whether a packet fits the MTU of its path (0: the MTU is unknown).
#[inline(always)]
fn fits(ingress: Ingress, ip: &Ip<'_>, egress: u32, mtu: u16) -> bool {
    mtu == 0 || ip.length <= usize::from(mtu) || egress == ingress.ifindex()
}

/// The MAC addresses for a frame whose path [`route`] has found, destination first. For a frame that the program hands
/// to the kernel, these addresses are the frame's mark.
#[inline(always)]
pub(crate) fn macs() -> Option<(Mac, Mac)> {
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let query = unsafe { &*QUERY.get_ptr(0)? };
    Some((query.dmac, query.smac))
}

/// The MTU of the path that [`route`] has found; 0: the MTU is unknown.
#[inline(always)]
pub(crate) fn mtu() -> u32 {
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path. Every
    // lookup writes this field of the union.
    QUERY.get_ptr(0).map_or(0, |query| u32::from(unsafe { (*query).__bindgen_anon_1.mtu_result }))
}

/// The egress interface of the path that [`route`] has found.
#[inline(always)]
pub(crate) fn egress() -> u32 {
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    QUERY.get_ptr(0).map_or(0, |query| unsafe { (*query).ifindex })
}

/// Replaces the MAC addresses from the lookup with the mark of a frame that the kernel must send. This is a separate
/// function, so that the verifier checks the code after the call only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_hand_over() -> u64 {
    let Some(place) = QUERY.get_ptr_mut(0) else { return 0 };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    mark(unsafe { &mut *place });
    1
}

/// Like [`balancer_hand_over`], for a frame whose next hop is an unresolved neighbour that may still answer.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_hand_over_waiting() -> u64 {
    let Some(place) = QUERY.get_ptr_mut(0) else { return 0 };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let query = unsafe { &mut *place };
    match next_hop(query) {
        Some(neighbour) if waiting::may_wait(neighbour) => {
            mark(query);
            1
        }
        _ => 0,
    }
}

#[inline(always)]
fn mark(query: &mut FibLookup) {
    query.smac = mark::own_source();
    query.dmac = Handed::Client.destination();
}

/// Looks up the route of a packet that the kernel has received, even if the MAC of the next hop is unknown.
#[inline(always)]
pub(crate) fn way(context: *mut c_void, ifindex: u32, ip: &Ip<'_>) -> Option<&'static NeighbourWanted> {
    let (answer, query) = ask(context, ifindex, ip, &ip.source, &ip.destination)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let query = unsafe { &*query };
    if matches!(answer, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH) { next_hop(query) } else { None }
}
