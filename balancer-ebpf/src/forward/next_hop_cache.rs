//! A cache of clients' next hops. A route lookup by the kernel takes two to five times as long as all other work on a
//! reply, and most replies arrive in series. Changes of routes and neighbours take effect within [`LIFETIME`] plus a
//! tick of the kernel's clock, whether or not a controller runs. In front of the cached next hops, the map contains the
//! default next hops that the controller publishes: see [`default_hops`].

mod default_hops;

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::Array};
use balancer_common::map_types::{CACHED_HOPS_OF_CPU, DEFAULT_HOP_ROWS, DefaultHopRow, Mac, address_key};

use crate::{cpu_rows, forward::rewrite, ingress::Ingress, packet::Packet, parse::Ip, step::Step, words::by_words};

/// Lifetime of a cached next hop in ns: 17 ms.
const LIFETIME: u64 = 1 << 24;

/// The key and the result of a route lookup by the kernel, in one cache line.
#[repr(C)]
pub(crate) struct CachedHop {
    source: [u32; 4],
    destination: [u32; 4],
    /// The time of the kernel's route lookup, by the coarse clock.
    asked: u64,
    ingress: u32,
    /// The egress interface of the path.
    pub(super) egress: u32,
    source_mac: Mac,
    destination_mac: Mac,
    protocol: u8,
    family: u8,
    /// MTU of the path in bytes; 0: the kernel did not report the MTU.
    pub(super) mtu: u16,
}

const _: () = {
    assert!(size_of::<CachedHop>() == 64);
    assert!(offset_of!(CachedHop, egress) == offset_of!(DefaultHopRow, egress));
    assert!(offset_of!(CachedHop, source_mac) == offset_of!(DefaultHopRow, source_mac));
    assert!(offset_of!(CachedHop, destination_mac) == offset_of!(DefaultHopRow, destination_mac));
    assert!(offset_of!(CachedHop, mtu) == offset_of!(DefaultHopRow, mtu));
};

impl CachedHop {
    /// Writes the link-layer addresses of a frame to this next hop, and returns the step that sends the frame. `None`:
    /// the frame is too short.
    #[inline(always)]
    pub(crate) fn send(&self, ingress: Ingress, frame: Packet<'_>) -> Option<Step> {
        rewrite::macs(frame, self.destination_mac, self.source_mac)?;
        Some(Step::send(ingress.ifindex(), self.egress))
    }
}

/// The rows of the default next hops, and [`CACHED_HOPS_OF_CPU`] rows for each CPU that was online at the start; other
/// CPUs ask the kernel for each packet. The flag aligns the rows to cache lines.
#[map]
static NEXT_HOP_CACHE: Array<CachedHop> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The key of a route lookup by the kernel.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) ingress: u32,
    pub(super) ip: &'a Ip<'a>,
    pub(super) source: &'a [u32; 4],
}

impl Question<'_> {
    /// The number of the cache row for the result of this lookup. Two lookups with the same cache row overwrite each
    /// other's results.
    #[inline(always)]
    fn row(&self, [a, b, c, d]: [u32; 4]) -> u32 {
        let folded = u64::from(a ^ c) << 32 | u64::from(b ^ d);
        // Knuth, The Art of Computer Programming, volume 3, section 6.4: multiplicative hashing.
        let row = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        DEFAULT_HOP_ROWS + cpu_rows::first(CACHED_HOPS_OF_CPU) + row as u32 % CACHED_HOPS_OF_CPU
    }

    #[inline(always)]
    fn is_of(&self, hop: &CachedHop, destination: &[u32; 4]) -> bool {
        let Self { ingress, ip, source } = *self;
        let differ = |a: &[u32; 4], b: &[u32; 4]| (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        let kinds = u32::from(hop.protocol ^ ip.protocol) | u32::from(hop.family ^ ip.family);
        differ(&hop.destination, destination) | differ(&hop.source, source) | (hop.ingress ^ ingress) | kinds == 0
    }

    /// The published or cached result of this lookup, if the result is still valid.
    #[inline(always)]
    pub(super) fn recent(&self, destination: &[u32; 4]) -> Option<&'static CachedHop> {
        // SAFETY: the helper takes no pointer.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        if let Some(row) = default_hops::row(self.ip.family, now) {
            let hop = NEXT_HOP_CACHE.get_ptr(row)?;
            if default_hops::leads(row, hop.cast(), self.ingress, address_key(destination)) {
                // SAFETY: the controller changes a published row only after the program has stopped using the row. The
                // fields that the caller uses are those of a published row as well.
                return Some(unsafe { &*hop });
            }
        }
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        let hop = unsafe { &*NEXT_HOP_CACHE.get_ptr(self.row(*destination))? };
        (now.wrapping_sub(hop.asked) < LIFETIME && self.is_of(hop, destination)).then_some(hop)
    }

    /// Stores the result of the lookup in the cache.
    #[inline(always)]
    pub(super) fn answered(
        &self,
        destination: &[u32; 4],
        egress: u32,
        source_mac: Mac,
        destination_mac: Mac,
        mtu: u16,
    ) {
        let Some(place) = NEXT_HOP_CACHE.get_ptr_mut(self.row(*destination)) else { return };
        let Self { ingress, ip, source } = *self;
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        let hop = unsafe { &mut *place };
        // SAFETY: the helper takes no pointer.
        hop.asked = unsafe { bpf_ktime_get_coarse_ns() };
        hop.source = by_words(source);
        hop.destination = by_words(destination);
        hop.ingress = ingress;
        hop.egress = egress;
        hop.source_mac = source_mac;
        hop.destination_mac = destination_mac;
        hop.protocol = ip.protocol;
        hop.family = ip.family;
        hop.mtu = mtu;
    }
}
