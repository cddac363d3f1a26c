//! Network byte order.

/// Converts a length from network order. The verifier knows that the result is below 2^16.
///
/// Verifiers up to Linux 6.18.15 know nothing about a number after a byte swap. The program hides the mask from the
/// compiler, which would otherwise remove a mask that never changes the value.
#[inline(always)]
pub(crate) fn length(field: u16) -> usize {
    let swapped = u64::from(u16::from_be(field));
    #[cfg(target_arch = "bpf")]
    let swapped = {
        let mut swapped = swapped;
        // SAFETY: this single instruction changes only its operand.
        unsafe {
            core::arch::asm!("{0} &= 0xffff", inout(reg) swapped, options(pure, nomem, nostack, preserves_flags));
        }
        swapped
    };
    swapped as usize
}

#[cfg(test)]
mod tests {
    #[test]
    fn when_a_length_is_in_network_order_then_it_is_converted() {
        for length in [0u16, 1, 0x1234, 0xffff] {
            assert_eq!(super::length(length.to_be()), usize::from(length));
        }
    }
}
