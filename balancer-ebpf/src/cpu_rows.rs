//! Many rows of counters for each CPU, in an array that the controller reads without a system call.
//!
//! A per-CPU array of the kernel's allocates each row by itself, which takes longer than all else that a start makes of
//! maps. Here each CPU has a block of rows: the first block is CPU 0's.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, maps::Array};

/// The row of the CPU that asks, of `rows` that each has.
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
