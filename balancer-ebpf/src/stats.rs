//! Per-CPU counters.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, PerCpuArray},
};
use balancer_common::{
    map_types::{
        BackendStats, Control, DropStats, InterfaceStats, LISTENER_COUNTERS, ListenerStats, MAX_INTERFACES,
        MemoryStats, NEWCOMER_PERIOD_BITS, NEWCOMER_ROWS, NewcomerBudget, ReplyStats, SampleStats, interface_row,
    },
    memory::Recorded,
    verdict::{CauseIndex, DecisionIndex, DropIndex, Verdict},
};

use crate::cpu_rows;

#[map]
static INTERFACE_STATS: PerCpuArray<InterfaceStats> = PerCpuArray::with_max_entries(MAX_INTERFACES, 0);

/// [`BACKEND_COUNTERS`] rows for each CPU.
#[map]
static BACKEND_STATS: Array<BackendStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A shared row for each backend, for the CPUs and backends that have no row in the map above.
#[map]
static SHARED_BACKENDS: Array<BackendStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// [`LISTENER_COUNTERS`] rows for each CPU.
#[map]
static LISTENER_STATS: Array<ListenerStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A shared row for each listener, for the CPUs and listeners that have no row in the map above.
#[map]
static SHARED_LISTENERS: Array<ListenerStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static DROP_STATS: PerCpuArray<DropStats> = PerCpuArray::with_max_entries(1, 0);

#[map]
static MEMORY_STATS: PerCpuArray<MemoryStats> = PerCpuArray::with_max_entries(1, 0);

#[map]
static NEWCOMERS: Array<NewcomerBudget> = Array::with_max_entries(NEWCOMER_ROWS + 1, 0);

#[map]
static SAMPLE_STATS: PerCpuArray<SampleStats> = PerCpuArray::with_max_entries(1, 0);

#[map]
static REPLY_STATS: PerCpuArray<ReplyStats> = PerCpuArray::with_max_entries(1, 0);

/// The multiplier of the hash of interface indexes; when the controller loads the program, it chooses this multiplier
/// so that no two attached interfaces share a row.
#[unsafe(no_mangle)]
static INTERFACE_MULTIPLIER: Global<u32> = Global::new(1 << 26);

/// The number of backends with counters on each CPU; the controller chooses this number, and the number of blocks, when
/// it loads the program.
#[unsafe(no_mangle)]
static BACKEND_COUNTERS: Global<u32> = Global::new(1);

/// The counter row that only this CPU uses for a backend.
#[inline(always)]
fn backend_row(backend: u16) -> Option<*mut BackendStats> {
    cpu_rows::own(&BACKEND_STATS, BACKEND_COUNTERS.load(), u32::from(backend))
}

/// The counter row that all CPUs share for a backend.
#[inline(always)]
fn shared_row(backend: u16) -> Option<*mut BackendStats> {
    SHARED_BACKENDS.get_ptr_mut(u32::from(backend))
}

/// The counters of a backend on this CPU. If CPUs share the row, other CPUs also change the counters.
#[inline(always)]
pub(crate) fn of_backend(backend: u16) -> Option<&'static BackendStats> {
    // SAFETY: the pointer points to a map value, which lives as long as the program.
    unsafe { backend_row(backend).or_else(|| shared_row(backend))?.as_ref() }
}

/// The counters of dropped packets by reason, on this CPU.
#[inline(always)]
pub(crate) fn drops() -> Option<&'static DropStats> {
    DROP_STATS.get(0)
}

/// The counters of answers that the program sent, on this CPU.
#[inline(always)]
pub(crate) fn replies() -> Option<&'static ReplyStats> {
    REPLY_STATS.get(0)
}

/// The counters of client entries that the program made, replaced or refused, on this CPU.
#[inline(always)]
pub(crate) fn memory() -> Option<&'static MemoryStats> {
    MEMORY_STATS.get(0)
}

/// The counter row of an interface; the row number is below [`MAX_INTERFACES`] for attached interfaces.
#[inline(always)]
pub(crate) fn row(ifindex: u32) -> u32 {
    interface_row(ifindex, INTERFACE_MULTIPLIER.load())
}

/// Counts the verdict about a packet that arrived by the interface of `row`.
#[inline(always)]
pub fn count_verdict(row: u32, verdict: Verdict) {
    if let Some(stats) = INTERFACE_STATS.get_ptr_mut(row) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).verdicts[verdict.index()] += 1 };
    }
}

/// Counts a packet for a listener, and also a connection if the packet `opens` one.
#[inline(always)]
pub(crate) fn count_listener(row: u32, opens: bool) {
    if let Some(stats) = cpu_rows::own(&LISTENER_STATS, LISTENER_COUNTERS, row) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe {
            (*stats).packets += 1;
            (*stats).connections += u64::from(opens);
        }
    } else {
        balancer_count_shared_listener(u64::from(row), u64::from(opens));
    }
}

/// Like [`count_listener`], for a counter row that CPUs share.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_count_shared_listener(row: u64, opens: u64) -> u64 {
    let Some(stats) = SHARED_LISTENERS.get_ptr_mut(row as u32) else { return 0 };
    // SAFETY: the pointer points to a map value.
    unsafe {
        cpu_rows::add_shared(&raw mut (*stats).packets, 1);
        cpu_rows::add_shared(&raw mut (*stats).connections, opens);
    }
    0
}

#[inline(always)]
pub fn count_drop(reason: DropIndex) {
    if let Some(stats) = DROP_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).reasons[reason.counter()] += 1 };
    }
}

/// Counts an echo request that the program answered.
#[inline(always)]
pub(crate) fn count_echo() {
    if let Some(stats) = REPLY_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).echo += 1 };
    }
}

/// Counts a packet that was too big, after the program has informed its sender.
#[inline(always)]
pub(crate) fn count_too_big() {
    if let Some(stats) = REPLY_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).too_big += 1 };
    }
}

/// Counts a packet that no backend takes, after the program has informed its sender.
#[inline(always)]
pub(crate) fn count_rejected() {
    if let Some(stats) = REPLY_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).rejected += 1 };
    }
}

/// Counts a first fragment whose destination the program does not remember.
#[inline(always)]
pub(crate) fn count_not_remembered() {
    if let Some(stats) = REPLY_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).fragments_not_remembered += 1 };
    }
}

/// Counts a packet of `bytes` forwarded to a backend, and the `decision` if the packet opens a connection. Returns
/// whether to [sample](crate::samples) the packet.
#[inline(always)]
pub(crate) fn count_forwarded(backend: u16, bytes: usize, decision: DecisionIndex) -> bool {
    let Some(stats) = backend_row(backend) else {
        return balancer_count_shared(u64::from(backend), bytes as u64, u64::from(decision.0)) != 0;
    };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let stats = unsafe { &mut *stats };
    stats.packets += 1;
    stats.bytes += bytes as u64;
    if let Some(counter) = decision.counter() {
        stats.connections += 1;
        stats.decisions[counter] += 1;
    }
    stats.packets >= stats.next_sample
}

/// Like [`count_forwarded`], for a counter row that CPUs share. This is a global function, so that the path of other
/// packets needs fewer instructions and no more stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_count_shared(backend: u64, bytes: u64, decision: u64) -> u64 {
    let Some(stats) = shared_row(backend as u16) else { return 0 };
    // SAFETY: the pointer points to a map value; the position of a decision is within its row.
    unsafe {
        cpu_rows::add_shared(&raw mut (*stats).packets, 1);
        cpu_rows::add_shared(&raw mut (*stats).bytes, bytes);
        if let Some(counter) = DecisionIndex(decision as u8).counter() {
            cpu_rows::add_shared(&raw mut (*stats).connections, 1);
            cpu_rows::add_shared((&raw mut (*stats).decisions).cast::<u64>().add(counter), 1);
        }
        u64::from((&raw const (*stats).packets).read_volatile() >= (&raw const (*stats).next_sample).read_volatile())
    }
}

/// Schedules the next sample `gap` packets after this one. Returns whether to sample this packet. The very first packet
/// of a counter row is not sampled, because no random draw chose this packet.
#[inline(always)]
pub(crate) fn sample_after(backend: u16, gap: u32) -> bool {
    let Some(stats) = backend_row(backend).or_else(|| shared_row(backend)) else { return false };
    // SAFETY: the pointer points to a map value; if CPUs share the row, the worst result is one extra or one missing
    // sample.
    let stats = unsafe { &mut *stats };
    let drawn = stats.next_sample != 0;
    stats.next_sample = stats.packets + u64::from(gap);
    drawn
}

/// Counts a sample by whether the buffer had room for it.
#[inline(always)]
pub(crate) fn count_sample(sent: bool) {
    if let Some(stats) = SAMPLE_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        let stats = unsafe { &mut *stats };
        if sent {
            stats.sent += 1;
        } else {
            stats.lost += 1;
        }
    }
}

/// Counts the choice of a backend for a connection whose packet does not reach the backend.
#[inline(always)]
pub(crate) fn count_decided(backend: u16, decision: DecisionIndex) {
    let Some(counter) = decision.counter() else { return };
    if let Some(stats) = backend_row(backend) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (*stats).decisions[counter] += 1 };
    } else if let Some(stats) = shared_row(backend) {
        // SAFETY: the pointer points to a map value.
        unsafe { cpu_rows::add_shared(&raw mut (*stats).decisions[counter], 1) };
    }
}

/// Counts a known client that moved away from a backend.
#[inline(always)]
pub(crate) fn count_moved(from: u16, cause: CauseIndex) {
    // The mask gives the verifier an upper bound of the index. The counters of moves are the first words of the counter
    // row.
    if let Some(stats) = backend_row(from) {
        // SAFETY: the index is within the row, which belongs to this CPU.
        unsafe { *stats.cast::<u64>().add(cause.counter() & 7) += 1 };
    } else if let Some(stats) = shared_row(from) {
        // SAFETY: the index is within the row.
        unsafe { cpu_rows::add_shared(stats.cast::<u64>().add(cause.counter() & 7), 1) };
    }
}

/// The number of known clients that left each backend, by backend id, because a connection that they moved to a new
/// address names another backend. All CPUs share each row of this map.
#[map]
static MIGRATED: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Counts a client that left backend `from` because its connection names another backend.
#[inline(always)]
pub(crate) fn count_migrated(from: u16) {
    if let Some(count) = MIGRATED.get_ptr_mut(u32::from(from)) {
        // SAFETY: the pointer points to a map value.
        unsafe { cpu_rows::add_shared(count, 1) };
    }
}

/// Whether the program may record another new client of a service in this period, within the service's own limit or the
/// limit common to all services.
#[inline(always)]
pub(crate) fn may_record(control: &'static Control, service: u16) -> bool {
    // SAFETY: the helper takes no pointer; the program reads each word of `control` in one load.
    let (now, own, common) = unsafe {
        let own = (&raw const control.newcomers_own).read_volatile();
        (bpf_ktime_get_coarse_ns(), own, (&raw const control.newcomers_common).read_volatile())
    };
    let period = now >> NEWCOMER_PERIOD_BITS;
    take(u32::from(service) % NEWCOMER_ROWS, period, own) || take(NEWCOMER_ROWS, period, common)
}

/// Counts a new client of `period`, whose limit is `limit`, in a row that all CPUs share. Returns whether the limit
/// allows this new client. The count may exceed the limit by one for each CPU that counts at the same moment.
#[inline(always)]
fn take(row: u32, period: u64, limit: u32) -> bool {
    let Some(budget) = NEWCOMERS.get_ptr_mut(row) else { return false };
    // SAFETY: the pointer points to a map value; the program accesses each of the value's words in one load or store.
    unsafe {
        let (began, used) = (&raw mut (*budget).period, &raw mut (*budget).used);
        // A CPU that has read the clock earlier must not restart the period.
        if period > began.read_volatile() {
            began.write_volatile(period);
            used.write_volatile(0);
        }
        if used.read_volatile() >= u64::from(limit) {
            return false;
        }
        cpu_rows::add_shared(used, 1);
    }
    true
}

/// Counts the result of recording a new client.
#[inline(always)]
pub(crate) fn count_recorded(recorded: Recorded) {
    if recorded == Recorded::Known {
        return;
    }
    if let Some(stats) = MEMORY_STATS.get_ptr_mut(0) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        let stats = unsafe { &mut *stats };
        match recorded {
            Recorded::Known => {}
            Recorded::Inserted => stats.inserted += 1,
            Recorded::Evicted => {
                stats.inserted += 1;
                stats.evicted += 1;
            }
            Recorded::Full => stats.full += 1,
            Recorded::Limited => stats.limited += 1,
        }
    }
}
