//! Samples of forwarded packets; the controller uses them to find heavy clients.
//!
//! For each packet, the program only compares a number in a counter row that the program updates anyway. The gap to the
//! next sample is random, so that periodic traffic is represented fairly.

use core::mem::offset_of;

use aya_ebpf::{bindings::xdp_md, helpers::bpf_get_prandom_u32, macros::map, maps::RingBuf};
use balancer_common::map_types::{FAMILY_V4, Sample};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{control, ingress::Ingress, packet::Packet, parse, stats};

/// The buffer holds half a second of samples at 14 million packets a second. If the buffer is full, samples are lost,
/// which only reduces precision.
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// The controller polls the buffer four times a second, because a wakeup for each sample would cost more than the
/// sample itself.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// Samples a packet of `bytes` on its way to `backend`, and chooses the next sample. The packet's IP header, of
/// `family`, is at offset `at` of the frame.
#[inline(always)]
pub(crate) fn take(ingress: Ingress, at: usize, family: u8, service: u16, backend: u16, bytes: usize) {
    let which = u64::from(service) | u64::from(backend) << 16 | u64::from(family) << 32 | (at as u64) << 48;
    balancer_sample(ingress.context(), which, bytes as u64);
}

/// The source address of a packet in network order; an IPv4 address is in the first word.
#[inline(always)]
fn source(header: Packet<'_>, family: u8) -> Option<[u32; 4]> {
    if family == FAMILY_V4 {
        Some([header.load(offset_of!(Ipv4Hdr, src_addr))?, 0, 0, 0])
    } else {
        header.load(offset_of!(Ipv6Hdr, src_addr))
    }
}

/// This is a global function: the verifier checks it only once, and its caller needs fewer instructions. The function
/// reads the source address from the packet again, because most packets no longer need this address after the choice of
/// the backend.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_sample(context: *mut xdp_md, which: u64, bytes: u64) -> u64 {
    let Some(control) = control::words() else { return 0 };
    // SAFETY: a Rust reference is always valid for reads; the controller writes the word in one store.
    let interval = unsafe { (&raw const control.sample_interval).read_volatile() };
    let backend = (which >> 16) as u16;
    if interval == 0 {
        // The program reads the interval again some packets later, because the controller may have changed the interval
        // by then.
        stats::sample_after(backend, 1 << 16);
        return 0;
    }
    // The gap between samples is uniform from 1 to 2n - 1, with mean n. SAFETY: the helper takes no pointer.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    let spread = u64::from(interval) * 2 - 1;
    let gap = 1 + ((random * spread) >> 32) as u32;
    if !stats::sample_after(backend, gap) {
        return 0;
    }
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else {
        stats::count_sample(false);
        return 0;
    };
    stats::count_sample(true);
    let family = (which >> 32) as u8;
    // SAFETY: `take` passes the program's context on.
    let frame = unsafe { Ingress::new(context) }.frame();
    let Some(source) = source(frame.skip((which >> 48 & parse::L3_OFFSET_MASK) as usize), family) else {
        entry.discard(BPF_RB_NO_WAKEUP);
        return 0;
    };
    entry.write(Sample {
        source,
        bytes: bytes as u32,
        service: which as u16,
        backend,
        family: u32::from(family),
        reserved: 0,
    });
    entry.submit(BPF_RB_NO_WAKEUP);
    0
}
