//! Access to a received frame through the driver: memory, ingress interface, and changes of the frame's length.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
};

use crate::{packet::Packet, parse::Ip, stats};

/// The context that the kernel passed to the program, and the index of the ingress interface, which takes three loads
/// to find.
#[derive(Clone, Copy, Debug)]
pub struct Ingress {
    context: *mut xdp_md,
    ifindex: u32,
}

impl Ingress {
    /// # Safety
    /// The context must be the kernel's argument to the program.
    #[inline(always)]
    #[must_use]
    pub unsafe fn new(context: *mut xdp_md) -> Self {
        // SAFETY: the context is the kernel's.
        let ifindex = unsafe { (*context).ingress_ifindex };
        Self { context, ifindex }
    }

    /// The row index of the interface in maps that have one row for each interface. The program computes the index each
    /// time, because it needs it only at the beginning and at the end, and has few registers in between.
    #[inline(always)]
    #[must_use]
    pub fn row(self) -> u32 {
        stats::row(self.ifindex)
    }

    /// The context for helper and global functions.
    #[inline(always)]
    #[must_use]
    pub const fn context(self) -> *mut xdp_md {
        self.context
    }

    /// The context for helper functions that accept the context of any program type.
    #[inline(always)]
    pub(crate) const fn untyped(self) -> *mut c_void {
        self.context.cast()
    }

    /// The interface by which the frame arrived.
    #[inline(always)]
    #[must_use]
    pub const fn ifindex(self) -> u32 {
        self.ifindex
    }

    /// The linear part of the frame. Calls of `grow_head` and `cut_tail` invalidate earlier views of the frame.
    #[inline(always)]
    #[must_use]
    pub fn frame(self) -> Packet<'static> {
        // SAFETY: the context is the kernel's, and only this program uses the frame, from `data` to `data_end`. The
        // program reads each word separately, because the verifier requires separate reads.
        unsafe {
            let start = (&raw const (*self.context).data).read_volatile();
            let end = (&raw const (*self.context).data_end).read_volatile();
            Packet::new(start as usize, end as usize)
        }
    }

    /// Length of the whole frame in bytes, including the bytes beyond the linear part.
    #[inline(always)]
    #[must_use]
    pub fn frame_length(self) -> usize {
        // SAFETY: the context is the kernel's.
        unsafe { bpf_xdp_get_buff_len(self.context) as usize }
    }

    /// Whether the frame is in several buffers; [`Ingress::frame`] is the first of them.
    #[inline(always)]
    #[must_use]
    pub(crate) fn is_in_parts(self) -> bool {
        self.frame_length() > self.frame().len()
    }

    /// Whether the linear part of the frame, or the whole frame, is at least as long as the IP header says.
    #[inline(always)]
    pub(crate) fn holds_all(self, ip: &Ip<'_>) -> bool {
        ip.header.holds(ip.length) || ip.l3_offset + ip.length <= self.frame_length()
    }

    /// Adds `by` bytes in front of the frame, or removes bytes if `by` is negative. `None`: the driver has no room, and
    /// the frame is unchanged.
    #[inline(always)]
    pub(crate) fn grow_head(self, by: i32) -> Option<()> {
        // SAFETY: the context is the kernel's.
        (unsafe { bpf_xdp_adjust_head(self.context, -by) } == 0).then_some(())
    }

    /// Removes `by` bytes from the end of the frame. `None`: the frame is shorter than `by` bytes.
    #[inline(always)]
    pub(crate) fn cut_tail(self, by: usize) -> Option<()> {
        // SAFETY: the context is the kernel's.
        (unsafe { bpf_xdp_adjust_tail(self.context, -(by as i32)) } == 0).then_some(())
    }
}
