//! Per-CPU counters.

use aya_ebpf::{Global, macros::map, maps::PerCpuArray};
use balancer_common::{
    map_types::{BackendStats, DropStats, InterfaceStats, MAX_BACKENDS, MAX_INTERFACES, interface_row},
    verdict::{Decision, DropReason, Verdict},
};

#[map]
static INTERFACE_STATS: PerCpuArray<InterfaceStats> = PerCpuArray::with_max_entries(MAX_INTERFACES, 0);

#[map]
static BACKEND_STATS: PerCpuArray<BackendStats> = PerCpuArray::with_max_entries(MAX_BACKENDS, 0);

#[map]
static DROP_STATS: PerCpuArray<DropStats> = PerCpuArray::with_max_entries(1, 0);

/// Chosen at load so that no two attached interfaces share a row.
#[unsafe(no_mangle)]
static INTERFACE_MULTIPLIER: Global<u32> = Global::new(1 << 26);

/// Counts what became of a packet that came in by `ifindex`.
#[inline(always)]
pub fn count_verdict(ifindex: u32, verdict: Verdict) {
    if let Some(stats) = INTERFACE_STATS.get_ptr_mut(interface_row(ifindex, INTERFACE_MULTIPLIER.load())) {
        // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).verdicts[verdict.index()] += 1 };
    }
}

/// Counts a drop.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(stats) = DROP_STATS.get_ptr_mut(0) {
        // SAFETY: as in `count_verdict`.
        unsafe { (*stats).reasons[reason.index()] += 1 };
    }
}

/// Counts a packet of `bytes` forwarded to a backend; `opens`: the first of a connection, decided by `decision`.
#[inline(always)]
pub(crate) fn count_forwarded(backend: u16, bytes: usize, opens: bool, decision: Decision) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(u32::from(backend)) {
        // SAFETY: as in `count_verdict`.
        let stats = unsafe { &mut *stats };
        stats.packets += 1;
        stats.bytes += bytes as u64;
        if opens {
            stats.connections += 1;
            stats.decisions[decision.index()] += 1;
        }
    }
}
