//! Keys and values of the kernel maps. No other module defines layouts of maps.
//!
//! Addresses, ports and masks are in memory (network) order; all other fields are in native order. An IPv4 address
//! occupies the first of its four words; the other words are zero.

mod backends;
mod budgets;
mod control;
mod counters;
mod decap;
mod default_hops;
mod flows;
mod fragments;
mod interfaces;
mod listeners;
mod rules;
mod services;
mod signs;
mod tables;

pub use self::{
    backends::*, budgets::*, control::*, counters::*, decap::*, default_hops::*, flows::*, fragments::*, interfaces::*,
    listeners::*, rules::*, services::*, signs::*, tables::*,
};

/// The version of the map layouts in this module. The program takes over pinned maps of this version only.
pub const LAYOUT_VERSION: u32 = 15;

/// `ServiceKey::family` of IPv4.
pub const FAMILY_V4: u8 = 4;
/// `ServiceKey::family` of IPv6.
pub const FAMILY_V6: u8 = 6;

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($type:ty),+ $(,)?) => {$(
            // SAFETY: the type derives `bytemuck::Pod`, which checks that it has no padding and that every bit pattern
            // is valid.
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
        DirectLine,
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
