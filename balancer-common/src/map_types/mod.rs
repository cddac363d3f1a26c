//! Keys and values of the kernel maps. Every layout is defined only here.
//!
//! Addresses, ports and masks are in memory (network) order; everything else is native. An IPv4 address occupies the
//! first word of its four, the other words are zero.

mod backends;
mod budgets;
mod control;
mod counters;
mod decap;
mod flows;
mod fragments;
mod interfaces;
mod listeners;
mod rules;
mod services;
mod signs;
mod tables;

pub use self::{
    backends::*, budgets::*, control::*, counters::*, decap::*, flows::*, fragments::*, interfaces::*, listeners::*,
    rules::*, services::*, signs::*, tables::*,
};

/// Version of every layout in this module. See [`ADOPTED_LAYOUTS`].
pub const LAYOUT_VERSION: u32 = 14;

/// The layouts whose kept maps this program can take over.
pub const ADOPTED_LAYOUTS: [u32; 2] = [13, LAYOUT_VERSION];

/// `ServiceKey::family` of IPv4.
pub const FAMILY_V4: u8 = 4;
/// `ServiceKey::family` of IPv6.
pub const FAMILY_V6: u8 = 6;

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($type:ty),+ $(,)?) => {$(
            // SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
            unsafe impl aya::Pod for $type {}
        )+};
    }

    pod!(
        ListenerRow,
        ListenerStats,
        RangeRow,
        ServiceRow,
        SlotLine,
        BackendRows,
        ReturnRow,
        Signs,
        FlowLine,
        FlowReturns,
        FlowRow,
        FlowPool,
        FlowControl,
        Control,
        InterfaceRow,
        InterfaceStats,
        BackendStats,
        DropStats,
        MemoryStats,
        NewcomerBudget,
        SampleStats,
        ReplyStats,
        ShareStats,
        Budget,
        RuleKey,
        RuleRow,
        RuleStats,
        DecapKey,
        DecapPrefix,
        DecapStats,
        crate::quic::QuicRow,
        crate::quic::QuicServer,
        crate::quic::QuicStats
    );
}
