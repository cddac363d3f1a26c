//! A cache of clients' next hops. A question to the kernel takes two to five times as long as all other work on a
//! reply, and most replies come in series. Changes of routes and neighbours take effect within [`LIFETIME`] plus a tick
//! of the kernel's clock, whether or not a controller runs.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::Array};
use balancer_common::map_types::{CACHED_HOPS_OF_CPU, Mac};

use crate::{cpu_rows, forward::rewrite, parse::Ip};

/// Lifetime of an entry in ns: 17 ms.
const LIFETIME: u64 = 1 << 24;

/// An answer of the kernel together with its question, in one cache line.
#[repr(C)]
pub(crate) struct CachedHop {
    source: [u32; 4],
    destination: [u32; 4],
    /// The time of the kernel's answer, by the coarse clock.
    asked: u64,
    ingress: u32,
    /// The egress interface.
    pub(super) egress: u32,
    pub(super) source_mac: Mac,
    pub(super) destination_mac: Mac,
    protocol: u8,
    family: u8,
    /// MTU of the path in bytes; 0: the kernel did not report it.
    pub(super) mtu: u16,
}

const _: () = assert!(size_of::<CachedHop>() == 64);

/// [`CACHED_HOPS_OF_CPU`] rows for each CPU that was online at the start; other CPUs ask the kernel each time. The flag
/// aligns rows to cache lines.
#[map]
static NEXT_HOP_CACHE: Array<CachedHop> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A question to the kernel.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) ingress: u32,
    pub(super) ip: &'a Ip<'a>,
    pub(super) source: &'a [u32; 4],
}

impl Question<'_> {
    /// The place in the cache for the answer to this question. Questions that share a place overwrite each other.
    #[inline(always)]
    fn place(&self, [a, b, c, d]: [u32; 4]) -> Option<*mut CachedHop> {
        let folded = u64::from(a ^ c) << 32 | u64::from(b ^ d);
        // Knuth, The Art of Computer Programming, volume 3, section 6.4: multiplicative hashing.
        let row = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        cpu_rows::own(&NEXT_HOP_CACHE, CACHED_HOPS_OF_CPU, row as u32 % CACHED_HOPS_OF_CPU)
    }

    #[inline(always)]
    fn is_of(&self, hop: &CachedHop, destination: &[u32; 4]) -> bool {
        let Self { ingress, ip, source } = *self;
        let differ = |a: &[u32; 4], b: &[u32; 4]| (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        let kinds = u32::from(hop.protocol ^ ip.protocol) | u32::from(hop.family ^ ip.family);
        differ(&hop.destination, destination) | differ(&hop.source, source) | (hop.ingress ^ ingress) | kinds == 0
    }

    /// The cached answer, if it is still valid.
    #[inline(always)]
    pub(super) fn recent(&self) -> Option<&'static CachedHop> {
        // The program reads the destination from the packet again, so that it does not occupy the stack from parsing
        // until here.
        let destination = rewrite::destination(self.ip)?;
        // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path.
        let hop = unsafe { &*self.place(destination)? };
        // SAFETY: a plain helper call.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        (now.wrapping_sub(hop.asked) < LIFETIME && self.is_of(hop, &destination)).then_some(hop)
    }

    /// Stores the answer in the cache.
    #[inline(always)]
    pub(super) fn answered(
        &self,
        destination: &[u32; 4],
        egress: u32,
        source_mac: Mac,
        destination_mac: Mac,
        mtu: u16,
    ) {
        let Some(place) = self.place(*destination) else { return };
        let Self { ingress, ip, source } = *self;
        // SAFETY: a row of this CPU, as above.
        let hop = unsafe { &mut *place };
        // SAFETY: a plain helper call.
        hop.asked = unsafe { bpf_ktime_get_coarse_ns() };
        hop.source = *source;
        hop.destination = *destination;
        hop.ingress = ingress;
        hop.egress = egress;
        hop.source_mac = source_mac;
        hop.destination_mac = destination_mac;
        hop.protocol = ip.protocol;
        hop.family = ip.family;
        hop.mtu = mtu;
    }
}
