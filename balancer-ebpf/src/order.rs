//! Network byte order.

/// A length in network order, as a number of which the verifier knows that it has 16 bits.
///
/// Verifiers up to that of Linux 6.18.15 know nothing of a number after a byte swap, and the compiler takes a mask away
/// that changes nothing, unless it does not see it.
#[inline(always)]
pub(crate) fn length(field: u16) -> usize {
    let swapped = u64::from(u16::from_be(field));
    #[cfg(target_arch = "bpf")]
    let swapped = {
        let mut swapped = swapped;
        // SAFETY: one instruction, which changes nothing but its operand.
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
    fn a_length_is_in_network_order() {
        for length in [0u16, 1, 0x1234, 0xffff] {
            assert_eq!(super::length(length.to_be()), usize::from(length));
        }
    }
}
