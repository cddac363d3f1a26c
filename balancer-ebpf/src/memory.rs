//! The client table in the kernel.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, PerCpuArray},
};
use balancer_common::{
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry},
    map_types::{Control, NO_BACKEND},
    memory::consult as consult_bucket,
    seen,
    verdict::{DecisionIndex, DropReason},
};

use crate::{
    control, forward, opaque,
    outcome::Step,
    puzzles::{self, Puzzle},
    stats,
    steer::{Choice, Question},
};

/// Buckets, a power of two; the controller sets the real number when it loads the program.
#[map]
static CLIENTS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The number of buckets less one.
#[unsafe(no_mangle)]
static CLIENT_BUCKET_MASK: Global<u32> = Global::new(0);

/// The filter of [`balancer_common::seen`]; the controller sets the real size when it loads the program.
#[map]
static SEEN: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The word of the filter that holds a client's bit, and the bit.
#[inline(always)]
fn seen_place(control: &'static Control, hash: u64) -> Option<(*mut u64, u64)> {
    // SAFETY: a reference is valid for reads; the controller replaces the word in one piece.
    let salt = unsafe { (&raw const control.seen_salt).read_volatile() };
    let (word, bit) = seen::place(hash, salt, CLIENT_BUCKET_MASK.load());
    Some((SEEN.get_ptr_mut(word)?, bit))
}

/// Whether a known client has been seen in this period.
#[inline(always)]
pub(crate) fn seen(control: &'static Control, hash: u64) -> bool {
    // SAFETY: a map value; other CPUs and the controller replace it in one piece.
    seen_place(control, hash).is_some_and(|(word, bit)| unsafe { word.read_volatile() } & bit != 0)
}

/// Notes that a known client has been seen. Another CPU that writes the same word meanwhile may undo this, and the controller
/// that clears it may be undone: an entry that is read once more, and bits that are somebody's under the salt before.
#[inline(always)]
fn mark(control: &'static Control, hash: u64) {
    if let Some((word, bit)) = seen_place(control, hash) {
        // SAFETY: as in `seen`.
        unsafe { word.write_volatile(word.read_volatile() | bit) };
    }
}

/// A bucket that other CPUs and the controller write as well, a word at a time.
struct Shared {
    entries: *mut [u64; BUCKET_ENTRIES],
    read_only: bool,
    /// The verifier does not know it.
    hash: u64,
}

impl Entries for Shared {
    #[inline(always)]
    fn load(&self, index: usize) -> Entry {
        // SAFETY: the pointer is a map value's, and the index is masked to lie within it.
        Entry(unsafe { (&raw const (*self.entries)[index & (BUCKET_ENTRIES - 1)]).read_volatile() })
    }

    #[inline(always)]
    fn store(&self, index: usize, entry: Entry) {
        if !self.read_only {
            // SAFETY: as above.
            unsafe { (&raw mut (*self.entries)[index & (BUCKET_ENTRIES - 1)]).write_volatile(entry.0) };
        }
    }

    #[inline(always)]
    fn forget(&self, number: u64) -> u64 {
        opaque::mixed(number, self.hash)
    }
}

/// A [`Query`] in two words, and the answer in one: what crosses into [`balancer_consult`].
mod words {
    use balancer_common::{map_types::ALL_DOWN, memory::Query};

    use crate::steer::Question;

    const LIVE_IS_HOME: u64 = 1 << 48;
    const OPENS: u64 = 1 << 49;
    const DATAGRAM: u64 = 1 << 50;
    const FAILBACK: u64 = 1 << 51;
    /// Only look.
    pub(super) const PEEK: u64 = 1 << 52;
    const PINNED: u64 = 1 << 53;
    /// The client's bit is to be set.
    pub(super) const MARK: u64 = 1 << 54;

    #[inline(always)]
    pub(super) fn pack(question: &Question) -> [u64; 2] {
        let query = &question.query;
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let live = query.live.unwrap_or(ALL_DOWN);
        [
            u64::from(live)
                | u64::from(query.service) << 16
                | u64::from(query.now) << 32
                | bit(query.live_is_home, LIVE_IS_HOME)
                | bit(query.opens, OPENS)
                | bit(query.datagram, DATAGRAM)
                | bit(query.failback, FAILBACK)
                | bit(query.pinned, PINNED)
                | bit(question.peeks, PEEK)
                | bit(question.marks, MARK),
            u64::from(query.remember) | u64::from(query.idle) << 16,
        ]
    }

    #[inline(always)]
    pub(super) fn unpack(tag: u32, [first, second]: [u64; 2]) -> Query {
        let live = first as u16;
        Query {
            tag,
            service: (first >> 16) as u16,
            live: (live != ALL_DOWN).then_some(live),
            live_is_home: first & LIVE_IS_HOME != 0,
            opens: first & OPENS != 0,
            datagram: first & DATAGRAM != 0,
            failback: first & FAILBACK != 0,
            pinned: first & PINNED != 0,
            now: (first >> 32) as u16,
            remember: second as u16,
            idle: (second >> 16) as u16,
        }
    }
}

/// Steers by memory. `None`: nobody takes the client.
#[inline(always)]
pub(crate) fn consult(question: &Question) -> Option<Choice> {
    let [first, second] = words::pack(question);
    choice(balancer_consult(question.hash, first, second))
}

#[inline(always)]
fn choice(answer: u64) -> Option<Choice> {
    let backend = answer as u16;
    (backend != NO_BACKEND).then_some(Choice { backend, decision: DecisionIndex((answer >> 16) as u8) })
}

/// A question put off until [`resume`], so that the consultation's stack does not come on top of the asking step's.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pending {
    hash: u64,
    words: [u64; 2],
    step: u64,
    nobody: u64,
}

#[map]
static PENDING: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);

/// Puts a question off; `step` is to be taken with the answer, `nobody` if nobody takes the client.
#[inline(always)]
pub(crate) fn consult_later(question: &Question, step: Step, nobody: Step) -> Option<Step> {
    let pending = PENDING.get_ptr_mut(0)?;
    let asked = Pending { hash: question.hash, words: words::pack(question), step: step.0, nobody: nobody.0 };
    // SAFETY: a row of this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe { pending.write(asked) };
    Some(Step::CONSULT)
}

/// The step that [`consult_later`] was given, with the backend, or the end of it.
#[inline(always)]
pub(crate) fn resume() -> Step {
    let Some(pending) = PENDING.get_ptr(0) else { return Step::drop(DropReason::NoBackend) };
    // SAFETY: as in `consult_later`.
    let Pending { hash, words: [first, second], step, nobody } = unsafe { pending.read() };
    match choice(balancer_consult(hash, first, second)) {
        Some(choice) => Step(step).with_choice(choice),
        None => Step(nobody),
    }
}

/// The consultation itself. A global function: the verifier looks at it once, whatever its callers know, and they know
/// nothing of the answer but that it is a number.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_consult(hash: u64, first: u64, second: u64) -> u64 {
    let query = words::unpack((hash >> 32) as u32, [first, second]);
    let Some(control) = control::words() else { return u64::from(NO_BACKEND) };
    let index = hash as u32 & CLIENT_BUCKET_MASK.load();
    let Some(bucket) = CLIENTS.get_ptr_mut(index) else {
        puzzles::tell(Puzzle::BeyondClients, index);
        return u64::from(NO_BACKEND);
    };
    let peek = first & words::PEEK != 0;
    // SAFETY: a map value of this size.
    let shared = Shared { entries: unsafe { &raw mut (*bucket).entries }, read_only: peek, hash };
    let answer = consult_bucket(&shared, &query, forward::facts, || !peek && stats::may_record(control, query.service));
    if !peek {
        stats::count_recorded(answer.recorded);
        if answer.moved_from != NO_BACKEND {
            stats::count_moved(answer.moved_from, answer.cause);
        }
        if answer.known && first & words::MARK != 0 {
            mark(control, hash);
        }
    }
    u64::from(answer.backend.unwrap_or(NO_BACKEND)) | u64::from(DecisionIndex::from(answer.decision).0) << 16
}
