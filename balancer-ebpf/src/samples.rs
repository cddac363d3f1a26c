//! Samples of what is forwarded, for the controller to tell heavy clients by.
//!
//! Each packet costs a comparison with a number in the row that is counted in anyway. The gap to the next sample is drawn
//! at random when one is taken, so that traffic with a rhythm is seen as it is.

use aya_ebpf::{helpers::bpf_get_prandom_u32, macros::map, maps::RingBuf};
use balancer_common::map_types::Sample;

use crate::{control, parse::Ip, stats};

/// Half a second of samples at 14 million packets a second. Losing some when it is full does no harm but to precision.
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// The controller looks by itself, four times a second: waking it for each sample would cost more than the sample.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// Samples a packet of `bytes` that is on its way to `backend`, and draws which is next.
#[inline(always)]
pub(crate) fn take(ip: &Ip<'_>, service: u16, backend: u16, bytes: usize) {
    let [a, b, c, d] = ip.source;
    let low = u64::from(a) | u64::from(b) << 32;
    let high = u64::from(c) | u64::from(d) << 32;
    let which = u64::from(service) | u64::from(backend) << 16 | u64::from(ip.family) << 32;
    balancer_sample(low, high, which, bytes as u64);
}

/// A global function: the verifier looks at it once, and the path that leads here is as short as it was.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_sample(low: u64, high: u64, which: u64, bytes: u64) -> u64 {
    let Some(control) = control::words() else { return 0 };
    // SAFETY: a reference is valid for reads; the controller writes the word in one piece.
    let interval = unsafe { (&raw const control.sample_interval).read_volatile() };
    let backend = (which >> 16) as u16;
    if interval == 0 {
        // Look again later, when the controller may have changed its mind.
        stats::sample_after(backend, 1 << 16);
        return 0;
    }
    // From 1 to 2n - 1, each as often: n on average.
    // SAFETY: a plain helper call.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    let spread = u64::from(interval) * 2 - 1;
    let gap = 1 + ((random * spread) >> 32) as u32;
    if !stats::sample_after(backend, gap) {
        return 0;
    }
    let sample = Sample {
        source: [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32],
        bytes: bytes as u32,
        service: which as u16,
        backend,
        family: (which >> 32) as u8 as u32,
        reserved: 0,
    };
    let entry = SAMPLES.reserve::<Sample>(0);
    stats::count_sample(entry.is_some());
    if let Some(mut entry) = entry {
        entry.write(sample);
        entry.submit(BPF_RB_NO_WAKEUP);
    }
    0
}
