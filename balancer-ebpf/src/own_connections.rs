//! The table of direct connections to `nat` and `snat` backends that are this machine: see [`balancer_common::direct`].

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_md},
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::Array,
};
use balancer_common::{
    client::HashKey,
    direct::{self, Event, KEY_LINE, LINES, TICK_SHIFT, Word},
    features::Features,
    map_types::{DIRECT_PER_LINE, DirectLine},
};

use crate::{features, found::Found, ingress::Ingress, opaque};

#[map]
static DIRECT: Array<DirectLine> = Array::with_max_entries(LINES + 1, BPF_F_MMAPABLE);

/// Whether the configuration may have such backends.
#[inline(always)]
pub(crate) fn may_exist() -> bool {
    features::uses(Features::LOCAL.and(Features::NAT))
}

/// Records a client's packet, whose destination is the backend's address and port.
#[inline(always)]
pub(crate) fn arrives(ingress: Ingress, event: Event) {
    let hash = balancer_direct_hash(ingress.context());
    if hash != 0 {
        balancer_direct(hash, event as u64);
    }
}

/// The hash of the connection of a client's packet; 0: the packet has no ports. This is a global function, so that the
/// verifier checks it only once, and it calls no other, so that its stack does not add to that of the others.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_direct_hash(context: *mut xdp_md) -> u64 {
    if !may_exist() {
        return 0;
    }
    // SAFETY: `arrives` passes the program's context.
    let Some(Found { ip, .. }) = Found::again(unsafe { Ingress::new(context) }) else { return 0 };
    let Some(ends) = ip.l4.load::<u32>(0) else { return 0 };
    // The destination is read again, because the program may have rewritten it.
    hash(&ip.source, &ip.destination, ends, ip.family, ip.protocol).unwrap_or(0)
}

/// The hash of a connection. `ends` contains the client's port and the backend's port, as in a client's packet.
#[inline(always)]
pub(crate) fn hash(client: &[u32; 4], backend: &[u32; 4], ends: u32, family: u8, protocol: u8) -> Option<u64> {
    let [k0, k1, ..] = DIRECT.get(KEY_LINE)?.words;
    Some(direct::hash(HashKey { k0, k1 }, client, backend, ends, family, protocol))
}

/// Records a packet of the connection with this hash. Returns whether the backend's packets keep their source.
#[inline(always)]
pub(crate) fn is_direct(hash: u64, event: Event) -> bool {
    balancer_direct(hash, event as u64) != 0
}

/// This is a global function, so that the verifier checks it once for all words of a line.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_direct_suits(word: u64, hash: u64, now: u64) -> u64 {
    if !may_exist() {
        return 0;
    }
    Word(word).suits(hash, now)
}

/// If two CPUs change a line at the same time, one change may be lost; the connection's next packet repeats it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_direct(hash: u64, event: u64) -> u64 {
    if !may_exist() {
        return 0;
    }
    let Some(line) = DIRECT.get_ptr_mut(direct::line(hash)) else { return 0 };
    // SAFETY: the helper takes no pointer.
    let now = unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT;
    // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
    let word = |index: usize| unsafe { &raw mut (*line).words[index & (DIRECT_PER_LINE - 1)] };
    // SAFETY: the pointer points to a word of a map value.
    let load = |index| Word(unsafe { word(index).read_volatile() });
    let mut best = 0;
    for index in 0..DIRECT_PER_LINE {
        let candidate = balancer_direct_suits(load(index).0, hash, now) * DIRECT_PER_LINE as u64 + index as u64;
        // The verifier would follow the rest of the loop for each word separately.
        best = opaque::mixed(best.max(candidate), hash);
    }
    let place = best as usize;
    let found = load(place);
    let before = if found.is_of(hash) { found } else { Word(0) };
    let Some(kind) = Event::of_number(event as u8).kind(before, now) else { return before.is_direct().into() };
    let after = Word::new(hash, kind, now);
    if after != before {
        // SAFETY: the pointer points to a word of a map value.
        unsafe { word(place).write_volatile(after.0) };
    }
    after.is_direct().into()
}
