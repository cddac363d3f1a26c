//! Counters with many rows for each CPU, in an array that the controller reads without a system call.
//!
//! The kernel allocates each row of its per-CPU arrays separately, for every CPU that the machine could ever have. This
//! allocation takes longer than all other map operations when the balancer starts. In this module, each CPU that was
//! online when the balancer started has a block of rows; CPU 0 has the first block. A second array, which all CPUs
//! share, serves CPUs that came online later and ids beyond the rows of a block.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, maps::Array};

/// The counter row with number `row` out of the `rows` rows in the block of this CPU. `None`: this CPU has no such row.
#[inline(always)]
pub(crate) fn own<T>(map: &Array<T>, rows: u32, row: u32) -> Option<*mut T> {
    // A row beyond the end of the block would belong to the next CPU.
    if row >= rows {
        return None;
    }
    map.get_ptr_mut(first(rows).wrapping_add(row))
}

/// The number of the first row of this CPU's block of `rows` rows.
#[inline(always)]
pub(crate) fn first(rows: u32) -> u32 {
    // SAFETY: the helper takes no pointer.
    unsafe { bpf_get_smp_processor_id() }.wrapping_mul(rows)
}

/// Adds atomically to a 32-bit word that other CPUs also add to; the word wraps around.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn add_shared_u32(word: *mut u32, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: this single instruction changes only the word at the pointer. The target offers atomic operations only in
    // assembly.
    unsafe {
        core::arch::asm!("lock *(u32 *)({0} + 0) += {1}", in(reg) word, in(reg) amount, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller guarantees that the pointer is valid.
    unsafe {
        *word = (*word).wrapping_add(amount as u32);
    }
}

/// Adds atomically to a 64-bit word that other CPUs also add to.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn add_shared(word: *mut u64, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: this single instruction changes only the word at the pointer. The target offers atomic operations only in
    // assembly.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) amount, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller guarantees that the pointer is valid.
    unsafe {
        *word += amount;
    }
}

/// Sets bits of a word atomically while other CPUs may set other bits of the word.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn set_shared(word: *mut u64, bits: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: this single assembly instruction changes only the word at the pointer.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller guarantees that the pointer is valid.
    unsafe {
        *word |= bits;
    }
}

/// Clears the bits of a word that `kept` does not have, atomically, while other CPUs may change other bits of the word.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn clear_shared(word: *mut u64, kept: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: this single assembly instruction changes only the word at the pointer.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) &= {1}", in(reg) word, in(reg) kept, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller guarantees that the pointer is valid.
    unsafe {
        *word &= kept;
    }
}

/// Replaces a word atomically if the word still equals `old`, although other CPUs may also replace the word. Returns
/// the value of the word before the call.
///
/// # Safety
/// The pointer is valid for reads and writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn swap_shared(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let was;
        // SAFETY: this single assembly instruction changes only the word at the pointer and the register.
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
        // SAFETY: the caller guarantees that the pointer is valid.
        let was = unsafe { *word };
        if was == old {
            // SAFETY: the caller guarantees that the pointer is valid.
            unsafe { *word = new };
        }
        was
    }
}
