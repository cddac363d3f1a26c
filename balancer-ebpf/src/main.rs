//! The entry points, and the exhaustive matches that turn an outcome into an XDP action and its counters.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
        helpers::bpf_redirect,
        macros::{classifier, raw_tracepoint, xdp},
        programs::{RawTracePointContext, TcContext, XdpContext},
    };
    use balancer_common::verdict::Verdict;
    use balancer_ebpf::{
        Ingress,
        debug_log::{self, Oddity},
        decap::{self, Decapsulated},
        handover, local_replies, process, redirects, stats,
        step::Outcome,
        tracing,
    };

    /// The XDP program, which steers a frame.
    #[xdp(frags)]
    #[inline(always)]
    fn balancer(context: XdpContext) -> u32 {
        steer(&context)
    }

    /// The XDP program with tracing, which is attached only while a user traces or captures packets.
    #[xdp(frags)]
    #[inline(always)]
    fn tell_and_steer(context: XdpContext) -> u32 {
        tracing::around(context.ctx, || steer(&context))
    }

    /// Steers a frame. The compiler inlines this function into the entry points, because a separate function would have
    /// a stack of its own.
    #[inline(always)]
    fn steer(context: &XdpContext) -> u32 {
        // SAFETY: the kernel passes a valid context.
        let ingress = unsafe { Ingress::new(context.ctx) };
        let end = process(ingress);
        let (action, verdict) = match end.outcome() {
            Outcome::Pass => (XDP_PASS, Verdict::Pass),
            Outcome::Tx => (XDP_TX, Verdict::Tx),
            Outcome::Redirect => {
                // SAFETY: the helper takes no pointer; the kernel drops the frame if the interface no longer exists.
                match unsafe { bpf_redirect(end.egress(), 0) } as u32 {
                    XDP_REDIRECT => (XDP_REDIRECT, Verdict::Redirect),
                    _ => {
                        debug_log::tell(Oddity::Redirect, end.egress());
                        (XDP_DROP, Verdict::Aborted)
                    }
                }
            }
            Outcome::Handed => (XDP_PASS, Verdict::Handed),
            Outcome::Drop => {
                stats::count_drop(end.reason());
                (XDP_DROP, Verdict::Drop)
            }
            Outcome::Abort => {
                debug_log::tell(Oddity::NoOutcome, end.kind());
                (XDP_ABORTED, Verdict::Aborted)
            }
        };
        stats::count_verdict(ingress.row(), verdict);
        action
    }

    /// Counts frames whose redirection the kernel refused.
    #[raw_tracepoint]
    fn redirect_refused(context: RawTracePointContext) -> i32 {
        redirects::refused(&context);
        0
    }

    /// Counts redirected frames that the driver of the egress interface did not accept.
    #[raw_tracepoint]
    fn redirect_lost(context: RawTracePointContext) -> i32 {
        redirects::lost(&context);
        0
    }

    /// Sends the frames that the XDP program has handed to the kernel.
    #[classifier]
    fn handover(context: TcContext) -> i32 {
        handover::process(context.skb.skb)
    }

    /// Writes the VIP as the source of replies that servers on this machine send.
    #[classifier]
    fn local_replies(context: TcContext) -> i32 {
        local_replies::process(context.skb.skb)
    }

    /// Removes the tunnel headers of a frame.
    #[xdp(frags)]
    fn decap(context: XdpContext) -> u32 {
        // SAFETY: the kernel passes a valid context.
        match decap::process(unsafe { Ingress::new(context.ctx) }) {
            Decapsulated::Stripped | Decapsulated::Passed => XDP_PASS,
            Decapsulated::Refused | Decapsulated::Malformed => XDP_DROP,
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // SAFETY: the program contains no code that can panic; the verifier would have rejected an endless loop at
        // load.
        unsafe { core::hint::unreachable_unchecked() }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
