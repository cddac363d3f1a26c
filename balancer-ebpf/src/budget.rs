//! Limits for each CPU on the work that outsiders can cause: a maximum number of actions in each period of 2^30 ns.

use aya_ebpf::{Global, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::PerCpuArray};
use balancer_common::map_types::{BUDGETS, Budget};

const PERIOD_BITS: u32 = 30;

#[map]
static BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(BUDGETS, 0);

/// The number of "too big" errors that may be sent in a period. The controller divides this limit of the machine, and
/// each of the limits below, by the number of CPUs.
#[unsafe(no_mangle)]
static ERROR_BUDGET: Global<u32> = Global::new(1000);

/// The number of echo requests that may be answered in a period.
#[unsafe(no_mangle)]
static ECHO_BUDGET: Global<u32> = Global::new(1000);

/// The number of first fragments that may be remembered in a period.
#[unsafe(no_mangle)]
static FRAGMENT_BUDGET: Global<u32> = Global::new(1000);

/// The number of replies in a period that may wait until the kernel resolves a neighbour.
#[unsafe(no_mangle)]
static WAITING_BUDGET: Global<u32> = Global::new(1000);

/// The number of resets and "unreachable" errors that may be sent in a period.
#[unsafe(no_mangle)]
static REJECTION_BUDGET: Global<u32> = Global::new(1000);

/// Whether this CPU may send another "too big" error. Rejected packets do not count against the limit of "too big"
/// errors, because path MTU discovery of all services depends on these errors.
#[inline(always)]
pub(crate) fn may_send_error() -> bool {
    spend(&BUDGET, 0, ERROR_BUDGET.load())
}

/// Whether this CPU may reject another packet with a reset or an "unreachable" error.
#[inline(always)]
pub(crate) fn may_reject() -> bool {
    spend(&BUDGET, 4, REJECTION_BUDGET.load())
}

/// Whether this CPU may answer another echo request.
#[inline(always)]
pub(crate) fn may_answer_echo() -> bool {
    spend(&BUDGET, 1, ECHO_BUDGET.load())
}

/// Whether this CPU may remember another first fragment.
#[inline(always)]
pub(crate) fn may_remember_fragment() -> bool {
    spend(&BUDGET, 2, FRAGMENT_BUDGET.load())
}

/// Whether this CPU may let another reply wait until the kernel resolves a neighbour.
#[inline(always)]
pub(crate) fn may_wait() -> bool {
    spend(&BUDGET, 3, WAITING_BUDGET.load())
}

/// Counts one action against a limit of this CPU. Returns whether this CPU has done the action fewer than `limit` times
/// in this period; row `kind` of `budgets` counts the actions.
#[inline(always)]
pub(crate) fn spend(budgets: &PerCpuArray<Budget>, kind: u32, limit: u32) -> bool {
    let Some(budget) = budgets.get_ptr_mut(kind) else { return false };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let budget = unsafe { &mut *budget };
    // SAFETY: the helper takes no pointer.
    let period = unsafe { bpf_ktime_get_coarse_ns() } >> PERIOD_BITS;
    if budget.period != period {
        budget.period = period;
        budget.used = 0;
    }
    let may = budget.used < u64::from(limit);
    if may {
        budget.used += 1;
    }
    may
}
