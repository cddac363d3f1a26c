//! Frames that the program redirected but the kernel did not send, as the kernel's tracepoints report them.

use aya_ebpf::{
    Global, bindings::BPF_NOEXIST, helpers::bpf_probe_read_kernel, macros::map, maps::PerCpuHashMap,
    programs::RawTracePointContext,
};
use balancer_common::map_types::MAX_DEVICES;

use crate::local_mac;

/// The number of redirected frames that the kernel did not send, by egress interface.
#[map]
static REDIRECT_ERRORS: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(MAX_DEVICES, 0);

/// The cookie of the network namespace, and the offsets of the kernel's fields that identify the network namespace of a
/// frame; the controller takes these offsets from the kernel's type information.
#[unsafe(no_mangle)]
static NAMESPACE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static DEVICE_IFINDEX: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DEVICE_NAMESPACE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NAMESPACE_COOKIE: Global<u32> = Global::new(0);

/// Handles the tracepoint `xdp_redirect_err` (device, program, target, error, map type, map id, index): the kernel
/// refused the redirect immediately.
#[inline(always)]
pub fn refused(context: &RawTracePointContext) -> Option<()> {
    let device = Device(context.arg(0));
    if !device.is_ours()? {
        return None;
    }
    count(context.arg(6), 1)
}

/// Handles the tracepoint `xdp_devmap_xmit` (ingress device, egress device, sent, dropped, error): the driver did not
/// accept frames.
#[inline(always)]
pub fn lost(context: &RawTracePointContext) -> Option<()> {
    let dropped: i32 = context.arg(3);
    if dropped <= 0 || !Device(context.arg(0)).is_ours()? {
        return None;
    }
    count(Device(context.arg(1)).ifindex()?, dropped as u64)
}

/// A `net_device` structure of the kernel.
#[derive(Clone, Copy)]
struct Device(*const u8);

impl Device {
    /// Whether the program runs on this interface.
    #[inline(always)]
    fn is_ours(self) -> Option<bool> {
        // SAFETY: the helper reads any address, or returns an error.
        let cookie = unsafe {
            let namespace = self.0.wrapping_add(DEVICE_NAMESPACE.load() as usize).cast::<*const u8>();
            let namespace = bpf_probe_read_kernel(namespace).ok()?;
            bpf_probe_read_kernel(namespace.wrapping_add(NAMESPACE_COOKIE.load() as usize).cast::<u64>()).ok()?
        };
        Some(cookie == NAMESPACE.load() && local_mac::is_attached(self.ifindex()?))
    }

    #[inline(always)]
    fn ifindex(self) -> Option<u32> {
        // SAFETY: the helper reads any address, or returns an error.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(DEVICE_IFINDEX.load() as usize).cast()) }.ok()
    }
}

#[inline(always)]
fn count(egress: u32, frames: u64) -> Option<()> {
    if REDIRECT_ERRORS.get_ptr(egress).is_none() {
        // Another CPU may have inserted the row first; if the map is full, the program does not count the frame.
        let _there = REDIRECT_ERRORS.insert(egress, 0, u64::from(BPF_NOEXIST));
    }
    let count = REDIRECT_ERRORS.get_ptr_mut(egress)?;
    // SAFETY: the row belongs to this CPU; the CPU that received a frame also sends this frame, and the receive path
    // does not interrupt itself.
    unsafe { *count += frames };
    Some(())
}
