//! Counters with many rows for each CPU, in an array that the controller reads without a system call.
//!
//! The kernel's per-CPU arrays allocate each row separately, for every CPU that the machine could ever have, which
//! takes longer than all other work on maps at a start. In this module, each CPU that was online at the start has a
//! block of rows, and the first block is CPU 0's. CPUs that came online later use an array that all CPUs share, and so
//! do ids beyond the rows of a block.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, maps::Array};

/// The row of this CPU: number `row` of the `rows` rows in its block. `None`: this CPU has no such row.
#[inline(always)]
pub(crate) fn own<T>(map: &Array<T>, rows: u32, row: u32) -> Option<*mut T> {
    // A row beyond the block would belong to the next CPU.
    if row >= rows {
        return None;
    }
    // SAFETY: a plain helper call.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    map.get_ptr_mut(cpu.wrapping_mul(rows).wrapping_add(row))
}

/// Adds to a word that other CPUs also add to.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn add_shared(word: *mut u64, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, which changes only that word. The target offers atomic operations only in assembly.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) amount, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller guarantees it.
    unsafe {
        *word += amount;
    }
}

/// Sets bits of a word while other CPUs may set others.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn set_shared(word: *mut u64, bits: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, which changes that word, in assembly as above.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller guarantees it.
    unsafe {
        *word |= bits;
    }
}

/// Replaces a word that other CPUs may also replace, if the word is still `old`. Returns the previous word.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn swap_shared(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let was;
        // SAFETY: one instruction, which changes that word and the register, in assembly as above.
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
        // SAFETY: the caller guarantees it.
        let was = unsafe { *word };
        if was == old {
            // SAFETY: the caller guarantees it.
            unsafe { *word = new };
        }
        was
    }
}
