//! The entry points.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        bindings::xdp_action::XDP_PASS,
        macros::{map, xdp},
        maps::Array,
        programs::XdpContext,
    };
    use balancer_common::map_types::ServiceRow;

    #[map]
    static SERVICES: Array<ServiceRow> = Array::with_max_entries(16, 1 << 10);

    /// Steers.
    #[xdp(frags)]
    pub fn balancer(_ctx: XdpContext) -> u32 {
        if let Some(row) = SERVICES.get(1)
            && row.id == 77
        {
            return 1;
        }
        XDP_PASS
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
