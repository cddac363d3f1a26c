//! Adds up the bytes of a message for a checksum that no incremental update can produce.

use aya_ebpf::bindings::xdp_md;
use balancer_common::checksum;

use crate::{ingress::Ingress, packet::Packet};

/// The length of the longest message that [`of`] adds up.
pub(crate) const LONGEST: usize = 1240;
/// The number of bytes that one step of the loop adds.
const STEP: usize = 8;
const STEPS: usize = LONGEST / STEP;
/// A bound for the offset of a message, as a bit mask for the verifier: the headers before the message are shorter.
const MAX_AT: usize = 0x7f;
/// A bound for the length of a message, in the same form.
const MAX_LENGTH: usize = 0x7ff;

/// The unfolded sum of `length` bytes of the frame, from 8 to [`LONGEST`], as 16-bit words. The bytes begin at the
/// offset `at`, which is below 128.
#[inline(always)]
pub(crate) fn of(ingress: Ingress, at: usize, length: usize) -> u64 {
    balancer_sum(ingress.context(), at as u64, length as u64)
}

/// The sum of the pseudo-header of IPv6 for a message of `length` bytes (RFC 8200 section 8.1). The addresses are in
/// network order.
#[inline(always)]
pub(crate) fn pseudo_header(source: &[u32; 4], destination: &[u32; 4], length: usize, protocol: u8) -> u64 {
    let rest = u64::from((length as u16).to_be()) + u64::from(u16::from(protocol).to_be());
    checksum::sum_address(source) + checksum::sum_address(destination) + rest
}

/// This is a global function, so the verifier, which follows every step of the loop, checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_sum(context: *mut xdp_md, at: u64, length: u64) -> u64 {
    // SAFETY: `of` passes the program's context.
    let bytes = unsafe { Ingress::new(context) }.frame().skip(at as usize & MAX_AT);
    let mut sum = rest(bytes, length);
    for step in 0..=STEPS {
        if step as u64 >= length / STEP as u64 {
            break;
        }
        let Some(words) = bytes.load(step * STEP) else { break };
        sum += halves(words);
    }
    sum
}

/// The sum of the bytes after the last whole step. The last eight bytes include these and some of earlier steps.
#[inline(always)]
fn rest(bytes: Packet<'_>, length: u64) -> u64 {
    let count = length as u32 % STEP as u32;
    if count == 0 {
        return 0;
    }
    let word = bytes.skip((length as usize).wrapping_sub(STEP) & MAX_LENGTH).load(0).map_or(0, u64::from_le_bytes);
    let word = word >> (8 * (STEP as u32 - count));
    (word & u64::from(u32::MAX)) + (word >> 32)
}

#[inline(always)]
fn halves([low, high]: [u32; 2]) -> u64 {
    u64::from(low) + u64::from(high)
}
