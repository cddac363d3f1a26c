//! The entry point, and the one exhaustive table that turns an outcome into an XDP action and its counters.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
        helpers::{bpf_redirect, bpf_xdp_get_buff_len},
        macros::xdp,
        programs::XdpContext,
    };
    use balancer_common::verdict::Verdict;
    use balancer_ebpf::{Ingress, outcome::Outcome, packet::Packet, process, stats};

    struct Driver(XdpContext);

    impl Ingress for Driver {
        #[inline(always)]
        fn ifindex(&self) -> u32 {
            self.0.ingress_ifindex() as u32
        }

        #[inline(always)]
        fn frame_length(&self) -> usize {
            // SAFETY: the context is the driver's.
            unsafe { bpf_xdp_get_buff_len(self.0.ctx) as usize }
        }

        #[inline(always)]
        fn context(&self) -> *mut core::ffi::c_void {
            self.0.as_ptr()
        }
    }

    /// Steers one frame.
    #[xdp(frags)]
    fn balancer(context: XdpContext) -> u32 {
        let driver = Driver(context);
        // SAFETY: the driver hands the frame to this program alone, from `data` to `data_end`.
        let frame = unsafe { Packet::new(driver.0.data(), driver.0.data_end()) };
        let (action, verdict) = match process(&driver, frame) {
            Outcome::Pass => (XDP_PASS, Verdict::Pass),
            Outcome::Tx => (XDP_TX, Verdict::Tx),
            Outcome::Redirect { ifindex } => {
                // SAFETY: a plain helper call; an interface that is gone makes the kernel drop the frame.
                match unsafe { bpf_redirect(ifindex, 0) } as u32 {
                    XDP_REDIRECT => (XDP_REDIRECT, Verdict::Redirect),
                    _ => (XDP_DROP, Verdict::Aborted),
                }
            }
            Outcome::Drop(reason) => {
                stats::count_drop(reason);
                (XDP_DROP, Verdict::Drop)
            }
        };
        stats::count_verdict(driver.ifindex(), verdict);
        action
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // SAFETY: nothing that can panic is left in the program; the verifier would reject an endless loop.
        unsafe { core::hint::unreachable_unchecked() }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
