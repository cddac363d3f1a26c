//! The driver's side of one frame: where it lies, where it came in, and making it longer or shorter.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
};

use crate::packet::Packet;

/// The context that the program was called with.
#[derive(Clone, Copy, Debug)]
pub struct Ingress(*mut xdp_md);

impl Ingress {
    /// # Safety
    /// The context must be the one that the kernel called the program with.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(context: *mut xdp_md) -> Self {
        Self(context)
    }

    /// The context for helper and global functions.
    #[inline(always)]
    #[must_use]
    pub const fn context(self) -> *mut xdp_md {
        self.0
    }

    /// The context for helper functions that take any program's.
    #[inline(always)]
    pub(crate) const fn untyped(self) -> *mut c_void {
        self.0.cast()
    }

    /// The interface the frame came in by.
    #[inline(always)]
    #[must_use]
    pub fn ifindex(self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (&raw const (*self.0).ingress_ifindex).read_volatile() }
    }

    /// The linear part of the frame. Views taken before `grow_head` or `cut_tail` are void.
    #[inline(always)]
    #[must_use]
    pub fn frame(self) -> Packet<'static> {
        // SAFETY: the context is the kernel's, and the frame is this program's alone, from `data` to `data_end`. Each word
        // is read on its own, as the verifier demands.
        unsafe {
            let start = (&raw const (*self.0).data).read_volatile();
            let end = (&raw const (*self.0).data_end).read_volatile();
            Packet::new(start as usize, end as usize)
        }
    }

    /// Bytes of the whole frame, beyond the linear part as well.
    #[inline(always)]
    #[must_use]
    pub fn frame_length(self) -> usize {
        // SAFETY: the context is the kernel's.
        unsafe { bpf_xdp_get_buff_len(self.0) as usize }
    }

    /// Puts `by` bytes in front of the frame (with a negative number: takes them away). `None`: there is no room, and
    /// nothing has changed.
    #[inline(always)]
    pub(crate) fn grow_head(self, by: i32) -> Option<()> {
        // SAFETY: the context is the kernel's.
        (unsafe { bpf_xdp_adjust_head(self.0, -by) } == 0).then_some(())
    }

    /// Takes `by` bytes off the end of the frame. `None`: it is not that long.
    #[inline(always)]
    pub(crate) fn cut_tail(self, by: usize) -> Option<()> {
        // SAFETY: the context is the kernel's.
        (unsafe { bpf_xdp_adjust_tail(self.0, -(by as i32)) } == 0).then_some(())
    }
}
