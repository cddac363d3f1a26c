//! The table of flows, and the index for finding the flow of a reply.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::Array};
use balancer_common::{
    flows::{self, FLOW_RESTS, FLOW_TAKEN, FlowWord, ReturnWord, Said, TICK_SHIFT, first_bucket, second_bucket},
    map_types::{FLOWS_PER_LINE, FlowControl, FlowLine, FlowReturns, FlowRow, MAX_FLOW_ROWS},
};

use crate::{cpu_rows::swap_shared, opaque};

/// The controller sets the real size of this and the next two maps when it loads the program.
#[map]
static FLOW_LINES: Array<FlowLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// [`FLOWS_PER_LINE`] rows for each of [`FLOW_LINES`].
#[map]
static FLOWS: Array<FlowRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static FLOW_RETURNS: Array<FlowReturns> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static FLOW_CONTROL: Array<FlowControl> = Array::with_max_entries(1, BPF_F_MMAPABLE);

const ROW_BITS: u32 = MAX_FLOW_ROWS.trailing_zeros();

/// A number that is no row.
pub(super) const NONE: u64 = u64::MAX;

/// The settings common to all flows.
#[inline(always)]
pub(super) fn control() -> Option<&'static FlowControl> {
    FLOW_CONTROL.get(0)
}

/// The current tick of the kernel's clock.
#[inline(always)]
pub(super) fn now() -> u32 {
    // SAFETY: a plain helper call.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// A word that other CPUs and the controller replace in one store.
#[derive(Clone, Copy)]
pub(super) struct Word(*mut u64);

impl Word {
    /// The word of a row's flow.
    #[inline(always)]
    pub(super) fn of_row(row: u32) -> Option<Self> {
        let line = FLOW_LINES.get_ptr_mut(row / FLOWS_PER_LINE)?;
        // SAFETY: a map value, and the index is masked to lie within it.
        Some(Self(unsafe { &raw mut (*line).words[(row % FLOWS_PER_LINE) as usize] }))
    }

    /// A word of the index of replies, by its position.
    #[inline(always)]
    pub(super) fn of_return(place: u32) -> Option<Self> {
        let line = FLOW_RETURNS.get_ptr_mut(place / FLOWS_PER_LINE)?;
        // SAFETY: as above.
        Some(Self(unsafe { &raw mut (*line).words[(place % FLOWS_PER_LINE) as usize] }))
    }

    #[inline(always)]
    pub(super) fn load(self) -> u64 {
        // SAFETY: the pointer points to a map value.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub(super) fn store(self, word: u64) {
        // SAFETY: as above.
        unsafe { self.0.write_volatile(word) };
    }

    /// Replaces the word if it is still `old`. Returns whether the word was replaced.
    #[inline(always)]
    pub(super) fn swap(self, old: u64, new: u64) -> bool {
        // SAFETY: as above; map values are aligned.
        unsafe { swap_shared(self.0, old, new) == old }
    }
}

/// A flow with its row, and the value of its word when the flow was found.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub(super) index: u32,
    pub(super) word: Word,
    pub(super) was: FlowWord,
    row: *mut FlowRow,
}

impl Flow {
    /// The flow in a row. `None`: the row is empty, or its flow rests.
    #[inline(always)]
    pub(super) fn at(index: u32) -> Option<Self> {
        let word = Word::of_row(index)?;
        let was = FlowWord(word.load());
        if was.state() & (FLOW_TAKEN | FLOW_RESTS) != FLOW_TAKEN {
            return None;
        }
        Some(Self { index, word, was, row: pointer(index)? })
    }

    #[inline(always)]
    pub(super) fn row(&self) -> &'static FlowRow {
        // SAFETY: a map value. A CPU writes to it only while no flow has the row; a packet whose row now belongs to
        // another flow detects this by `is_still`.
        unsafe { &*self.row }
    }

    /// The name by which later fragments find the flow: its row and a part of its tag, which distinguishes this flow
    /// from later ones in the same row.
    #[inline(always)]
    pub(super) fn name(&self) -> u32 {
        self.index | self.was.tag() << ROW_BITS
    }

    /// The flow of this [`name`](Self::name).
    #[inline(always)]
    pub(super) fn named(name: u32) -> Option<Self> {
        Self::at(name & (MAX_FLOW_ROWS - 1)).filter(|flow| flow.name() == name)
    }

    /// Whether the row still belongs to the flow that was found.
    #[inline(always)]
    pub(super) fn is_still(&self) -> bool {
        let now = FlowWord(self.word.load());
        now.tag() == self.was.tag() && now.state() & FLOW_TAKEN != 0
    }

    /// Stores the flow's new state.
    #[inline(always)]
    pub(super) fn put(&self, state: u8, now: u32) {
        let new = self.was.with(state, now);
        if new != self.was {
            // A lost race loses this packet's information; the next packet repeats it.
            self.word.swap(self.was.0, new.0);
        }
    }

    /// Records that a packet of the flow was seen. Returns whether this packet is the first in this tick.
    #[inline(always)]
    pub(super) fn see(&self, now: u32) -> bool {
        let first = self.was.with(self.was.state(), now) != self.was;
        if first {
            self.put(self.was.state(), now);
        }
        first
    }

    /// Stores the state after a packet if it differs from the stored one.
    #[inline(always)]
    pub(super) fn goes_on(&self, said: Said) {
        let state = flows::next(self.was.state(), said);
        if state != self.was.state() {
            self.put(state, now());
        }
    }

    /// Stores the state after a packet and the time of the packet in one write. A second write would find a word other
    /// than `was` and would fail.
    #[inline(always)]
    pub(super) fn hear(&self, said: Said, now: u32) {
        self.put(flows::next(self.was.state(), said), now);
    }

    /// Hides the flow from packets; its address and port stay in use for a while.
    #[inline(always)]
    pub(super) fn rest(&self, now: u32) {
        self.put(self.was.state() | FLOW_RESTS, now);
    }

    /// Counts a packet of this many bytes to the backend. If two CPUs count at the same time, one packet may not be
    /// counted.
    #[inline(always)]
    pub(super) fn count_there(&self, bytes: usize) {
        // SAFETY: a map value.
        unsafe { (*self.row).bytes_there = (*self.row).bytes_there.wrapping_add(bytes as u64) };
    }

    /// Counts a packet of this many bytes to the client.
    #[inline(always)]
    pub(super) fn count_back(&self, bytes: usize) {
        // SAFETY: a map value.
        unsafe { (*self.row).bytes_back = (*self.row).bytes_back.wrapping_add(bytes as u64) };
    }
}

/// A pointer to a row, for the CPU that owns it.
#[inline(always)]
pub(super) fn pointer(index: u32) -> Option<*mut FlowRow> {
    FLOWS.get_ptr_mut(index)
}

#[inline(always)]
pub(super) fn row(index: u32) -> Option<&'static FlowRow> {
    FLOWS.get(index)
}

/// The row whose flow has this hash of the client's and the VIP's endpoints. Only the hash is compared.
#[inline(always)]
pub(super) fn find(hash: u64) -> Option<u32> {
    index(balancer_flow_find(hash))
}

/// The row whose flow has this hash of the pool's and the backend's endpoints. Only the hash is compared.
#[inline(always)]
pub(super) fn find_reply(hash: u64) -> Option<u32> {
    index(balancer_flow_reply(hash))
}

#[inline(always)]
const fn index(answer: u64) -> Option<u32> {
    if answer == NONE { None } else { Some(answer as u32) }
}

/// This is a global function, so the verifier checks it only once and makes no assumption about its result.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_find(hash: u64) -> u64 {
    let Some(control) = control() else { return NONE };
    let tag = (hash >> 32) as u32;
    let first = first_bucket(hash, control.lines);
    match in_line(first, tag, hash) {
        NONE => in_line(second_bucket(hash, control.lines), tag, hash),
        found => found,
    }
}

#[inline(always)]
fn in_line(bucket: u32, tag: u32, unknown: u64) -> u64 {
    let Some(line) = FLOW_LINES.get_ptr(bucket) else { return NONE };
    let mut index = 0;
    while index < FLOWS_PER_LINE {
        // SAFETY: a map value, and the index is below its length.
        let word = FlowWord(unsafe { (&raw const (*line).words[index as usize]).read_volatile() });
        if word.is_found_by(tag) {
            return opaque::mixed(u64::from(bucket) * u64::from(FLOWS_PER_LINE) + u64::from(index), unknown);
        }
        index += 1;
    }
    NONE
}

/// This is a global function for the same reason as `balancer_flow_find`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_reply(hash: u64) -> u64 {
    let Some(control) = control() else { return NONE };
    let scanned = balancer_flow_scan(first_bucket(hash, control.returns).into(), hash >> 32);
    match place(scanned, TAKEN_SHIFT) {
        Some(place) => match Word::of_return(place) {
            Some(word) => ReturnWord(word.load()).row().into(),
            None => NONE,
        },
        None => NONE,
    }
}

const TAKEN_SHIFT: u32 = 0;
const FREE_SHIFT: u32 = 32;

/// Reads a place from the result of [`balancer_flow_scan`].
#[inline(always)]
const fn place(scanned: u64, shift: u32) -> Option<u32> {
    ((scanned >> shift) as u32).checked_sub(1)
}

/// The places for a tag in a bucket of the index of replies.
pub(super) struct Scanned {
    /// The place that holds the tag.
    pub(super) taken: Option<u32>,
    /// An empty place.
    pub(super) free: Option<u32>,
}

#[inline(always)]
pub(super) fn scan(bucket: u32, tag: u32) -> Scanned {
    let scanned = balancer_flow_scan(bucket.into(), tag.into());
    Scanned { taken: place(scanned, TAKEN_SHIFT), free: place(scanned, FREE_SHIFT) }
}

/// The place of `tag` in a bucket is in the low half of the result, and an empty place in the high half, both counted
/// from 1; 0 means none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_scan(bucket: u64, tag: u64) -> u64 {
    let Some(line) = FLOW_RETURNS.get_ptr(bucket as u32) else { return 0 };
    let begin = (bucket as u32).wrapping_mul(FLOWS_PER_LINE).wrapping_add(1);
    let (mut taken, mut free) = (0u64, 0u64);
    let mut index = 0;
    while index < FLOWS_PER_LINE {
        // SAFETY: a map value, and the index is below its length.
        let word = ReturnWord(unsafe { (&raw const (*line).words[index as usize]).read_volatile() });
        if word.0 == 0 {
            free = u64::from(begin.wrapping_add(index));
        } else if u64::from(word.tag()) == tag & 0xffff_ffff {
            taken = u64::from(begin.wrapping_add(index));
        }
        taken = opaque::mixed(taken, bucket);
        free = opaque::mixed(free, bucket);
        index += 1;
    }
    taken << TAKEN_SHIFT | free << FREE_SHIFT
}
