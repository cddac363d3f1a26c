//! Scratch space for each CPU: values that one step of a packet leaves to the next step, or that do not fit on the
//! stack. All modules share one map because the kernel allows a program only 64 maps.

use aya_ebpf::{macros::map, maps::PerCpuArray};

/// The scratch rows, each named after the module that uses the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Row {
    /// See [`crate::opaque`].
    Opaque,
    /// See [`crate::found`].
    Kept,
    /// See [`crate::found`].
    Quoted,
    /// See [`crate::memory`].
    Pending,
    /// See [`crate::share`].
    Shared,
    /// See [`crate::rules`].
    Rule,
    /// See [`crate::quic`].
    Quic,
    /// See [`crate::quic`].
    Block,
    /// See [`crate::forward::sockets`].
    Ends,
}

const ROWS: u32 = Row::Ends as u32 + 1;

type Words = [u64; 8];

#[map]
static SCRATCH: PerCpuArray<Words> = PerCpuArray::with_max_entries(ROWS, 0);

/// A scratch row of this CPU. Programs on one CPU do not interrupt each other in the receive path.
#[inline(always)]
pub(crate) fn place<T>(row: Row) -> Option<*mut T> {
    const { assert!(size_of::<T>() <= size_of::<Words>() && align_of::<T>() <= align_of::<Words>()) }
    Some(SCRATCH.get_ptr_mut(row as u32)?.cast())
}
