//! Many rows of counters for each CPU, in an array that the controller reads without a system call.
//!
//! A per-CPU array of the kernel's allocates each row by itself, which takes longer than all else that a start makes of
//! maps, and for every CPU that the machine could ever have. Here each CPU that was online at the start has a block of rows:
//! the first block is CPU 0's. CPUs that came online later, and rows beyond a block's, count in an array that all share.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, maps::Array};

/// The row of the CPU that asks, of `rows` that each has. `None`: it has none.
#[inline(always)]
pub(crate) fn own<T>(map: &Array<T>, rows: u32, row: u32) -> Option<*mut T> {
    // Beyond them is the next CPU's block.
    if row >= rows {
        return None;
    }
    // SAFETY: a plain helper call.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    map.get_ptr_mut(cpu.wrapping_mul(rows).wrapping_add(row))
}

/// Adds to a word that other CPUs add to as well.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn add_shared(word: *mut u64, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, which changes that word. The target has no atomic operations but in assembly.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) amount, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        *word += amount;
    }
}

/// Sets bits of a word of which others are changed at the same time.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn set_shared(word: *mut u64, bits: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, which changes that word. As above.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        *word |= bits;
    }
}

/// Replaces a word that other CPUs replace as well, if it is `old`. Returns what it was.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn swap_shared(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let was;
        // SAFETY: one instruction, which changes that word and the register. As above.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({0} + 0, r0, {1})",
                in(reg) word,
                in(reg) new,
                inout("r0") old => was,
                options(nostack, preserves_flags)
            );
        }
        was
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: the caller's.
        let was = unsafe { *word };
        if was == old {
            // SAFETY: the caller's.
            unsafe { *word = new };
        }
        was
    }
}
