//! The client table in the kernel.

use aya_ebpf::{Global, bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry, bucket},
    map_types::{Control, NO_BACKEND},
    memory::{self as rule, Recorded},
    query::{PackedQuery, Query},
    seen,
    verdict::{DecisionIndex, DropReason},
};

use crate::{
    backends, control,
    debug_log::{self, Oddity},
    opaque,
    scratch::{self, Row},
    stats,
    step::{Choice, Step, Unchosen},
};

/// Number of buckets of the client table, a power of two; the controller sets this number when it loads the program.
#[map]
static KNOWN_CLIENTS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The number of buckets of the client table, less one.
#[unsafe(no_mangle)]
static CLIENT_BUCKET_MASK: Global<u32> = Global::new(0);

/// The filter of [`balancer_common::seen`]; the controller sets the filter's real size when it loads the program.
#[map]
static SEEN: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The word of the filter that holds a client's bits, and the mask of these bits.
#[inline(always)]
fn seen_place(control: &'static Control, hash: u64) -> Option<(*mut u64, u64)> {
    // SAFETY: a Rust reference is always valid for reads; the controller replaces the word in one store.
    let salt = unsafe { (&raw const control.seen_salt).read_volatile() };
    let (word, bits) = seen::place(hash, salt, CLIENT_BUCKET_MASK.load());
    Some((SEEN.get_ptr_mut(word)?, bits))
}

/// Whether the filter shows that a known client has sent a packet in this period.
#[inline(always)]
pub(crate) fn seen(control: &'static Control, hash: u64) -> bool {
    // SAFETY: the word is a map value that other CPUs and the controller replace in one store.
    seen_place(control, hash).is_some_and(|(word, bits)| unsafe { word.read_volatile() } & bits == bits)
}

/// Records in the filter that a known client has sent a packet. A concurrent write by another CPU may undo this change
/// of the filter, and this change may undo a concurrent clearing by the controller. As a result, the program may read
/// an entry once more than necessary, or the filter may keep bits that belonged to a client under the earlier salt.
#[inline(always)]
fn mark(control: &'static Control, hash: u64) {
    if let Some((word, bits)) = seen_place(control, hash) {
        // SAFETY: the word is a map value that other CPUs and the controller replace in one store.
        unsafe { word.write_volatile(word.read_volatile() | bits) };
    }
}

/// A bucket of the client table; other CPUs and the controller also write to it, one word at a time.
struct Shared {
    entries: *mut [u64; BUCKET_ENTRIES],
    read_only: bool,
    /// The client's hash, as a value that is unknown to the verifier.
    hash: u64,
}

impl Shared {
    /// The bucket of a client's hash.
    #[inline(always)]
    fn of(hash: u64, read_only: bool) -> Option<Self> {
        let index = bucket(hash, CLIENT_BUCKET_MASK.load());
        let Some(bucket) = KNOWN_CLIENTS.get_ptr_mut(index) else {
            debug_log::tell(Oddity::BeyondClients, index);
            return None;
        };
        // SAFETY: the pointer points to a map value of this type.
        Some(Self { entries: unsafe { &raw mut (*bucket).entries }, read_only, hash })
    }
}

impl Entries for Shared {
    #[inline(always)]
    fn load(&self, index: usize) -> Entry {
        // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
        Entry(unsafe { (&raw const (*self.entries)[index & (BUCKET_ENTRIES - 1)]).read_volatile() })
    }

    #[inline(always)]
    fn store(&self, index: usize, entry: Entry) {
        if !self.read_only {
            // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
            unsafe { (&raw mut (*self.entries)[index & (BUCKET_ENTRIES - 1)]).write_volatile(entry.0) };
        }
    }

    #[inline(always)]
    fn forget(&self, number: u64) -> u64 {
        opaque::mixed(number, self.hash)
    }
}

/// Chooses the backend of a packet by client memory. `None`: no backend takes the client.
#[inline(always)]
pub(crate) fn consult(query: &Query) -> Option<Choice> {
    answered(query.packed())
}

#[inline(always)]
fn answered(PackedQuery([hash, first, second]): PackedQuery) -> Option<Choice> {
    choice(balancer_consult(hash, first, second))
}

#[inline(always)]
fn choice(answer: u64) -> Option<Choice> {
    let backend = answer as u16;
    (backend != NO_BACKEND).then_some(Choice { backend, decision: DecisionIndex((answer >> 16) as u8) })
}

/// A query to the client table, postponed until [`resume`], so that the stack of the lookup does not add to the stack
/// of the step that asks.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pending {
    query: PackedQuery,
    step: Unchosen,
    nobody: Step,
    /// The note given to [`remember_later`], or [`ALONE`]; 0: the query came from [`consult_later`].
    note: u64,
}

/// The note of a query that only records a client whose packet passes to the host.
const ALONE: u64 = 1 << 63;

/// A flag in the answer to a query: the client's entry is new, or now names another backend than before.
const CHANGED: u64 = 1 << 32;

/// Postpones a query to the client table. The packet continues at `step` with the chosen backend, or at `nobody` if no
/// backend takes the client.
#[inline(always)]
pub(crate) fn consult_later(query: &Query, step: Unchosen, nobody: Step) -> Option<Step> {
    let pending = scratch::place::<Pending>(Row::Pending)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe { pending.write(Pending { query: query.packed(), step, nobody, note: 0 }) };
    Some(Step::CONSULT)
}

/// Restricts the postponed query to known clients: packets of unknown clients pass to the host.
#[inline(always)]
pub(crate) fn ask_for_known() {
    if let Some(pending) = scratch::place::<Pending>(Row::Pending) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe {
            (*pending).query = (*pending).query.of_known_alone();
            (*pending).nobody = Step::PASS;
        }
    }
}

/// Postpones a query that only records a client, whose packet passes to the host whatever the answer is.
#[inline(always)]
pub(crate) fn remember_alone(query: &Query) -> Step {
    let Some(pending) = scratch::place::<Pending>(Row::Pending) else { return Step::PASS };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe { pending.write(Pending { query: query.packed(), step: Unchosen::NONE, nobody: Step::PASS, note: ALONE }) };
    Step::CONSULT
}

/// Postpones a query about a client whose connection ID names a backend. Whatever the answer is, `step` sends the
/// packet to the backend that the connection ID names. If the query records the client at this backend, [`resume`]
/// returns `note`, which is not 0.
#[inline(always)]
pub(crate) fn remember_later(query: &Query, step: Step, note: u64) -> Option<Step> {
    let pending = scratch::place::<Pending>(Row::Pending)?;
    let query = if query.migrates { query.packed() } else { query.packed().of_known_alone() };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe { pending.write(Pending { query, step: Unchosen::NONE, nobody: step, note }) };
    Some(Step::CONSULT)
}

/// Answers the postponed query. After [`consult_later`], this function returns that call's `step` with the chosen
/// backend, or `nobody`. After [`remember_later`], this function returns that call's `step`, with `note` or 0.
#[inline(always)]
pub(crate) fn resume() -> (Step, u64) {
    let Some(pending) = scratch::place::<Pending>(Row::Pending) else { return (Step::drop(DropReason::NoBackend), 0) };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let Pending { query, step, nobody, note } = unsafe { pending.read() };
    if note != 0 {
        let PackedQuery([hash, first, second]) = query;
        let changed = balancer_consult(hash, first, second) & CHANGED != 0 && query.migrates();
        return (nobody, if changed { note } else { 0 });
    }
    match answered(query) {
        Some(choice) => (step.chosen(choice), 0),
        None => (nobody, 0),
    }
}

/// Consults the client table. This is a global function: the verifier checks it only once, independently of the
/// callers, and makes no assumption about the result.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_consult(hash: u64, first: u64, second: u64) -> u64 {
    let packed = PackedQuery([hash, first, second]);
    let query = packed.unpacked();
    let Some(control) = control::words() else { return u64::from(NO_BACKEND) };
    let Some(shared) = Shared::of(hash, query.peeks) else { return u64::from(NO_BACKEND) };
    let may = || !packed.peeks() && stats::may_record(control, query.service);
    let answer = rule::consult_with(&shared, &query, backends::facts, may, |live| {
        if !may() {
            return Recorded::Limited;
        }
        Recorded::of_number(balancer_record(hash, first, second, live.into()) as u8)
    });
    if !packed.peeks() {
        stats::count_recorded(answer.recorded);
        if answer.moved_from != NO_BACKEND {
            if packed.migrates() {
                stats::count_migrated(answer.moved_from);
            } else {
                stats::count_moved(answer.moved_from, answer.cause);
            }
        }
        if answer.settled && packed.marks() {
            mark(control, hash);
        }
    }
    let recorded = matches!(answer.recorded, Recorded::Inserted | Recorded::Evicted);
    u64::from(answer.backend.unwrap_or(NO_BACKEND))
        | u64::from(DecisionIndex::from(answer.decision).0) << 16
        | if recorded || answer.moved_from != NO_BACKEND { CHANGED } else { 0 }
}

/// Records a new client at backend `live`. This is a separate function, because the lookup of known clients took a
/// tenth longer when it also contained this search for a free entry.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_record(hash: u64, first: u64, second: u64, live: u64) -> u64 {
    let query = PackedQuery([hash, first, second]).unpacked();
    let recorded = match Shared::of(hash, false) {
        Some(shared) => rule::record(&shared, &query, live as u16, backends::facts),
        None => Recorded::Full,
    };
    recorded as u64
}
