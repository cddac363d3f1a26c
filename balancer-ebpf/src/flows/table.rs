//! The table of flows, and the index that finds the flow of a reply.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::Array};
use balancer_common::{
    flows::{self, FLOW_RESTS, FLOW_TAKEN, FlowWord, ReturnWord, Said, TICK_SHIFT, first_bucket, second_bucket},
    map_types::{FLOWS_PER_LINE, FlowControl, FlowLine, FlowReturns, FlowRow, MAX_FLOW_ROWS},
};

use crate::{cpu_rows::swap_shared, opaque};

/// The controller sets the real sizes of this map and the next two maps when it loads the program.
#[map]
static FLOW_LINES: Array<FlowLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// [`FLOWS_PER_LINE`] rows for each line of [`FLOW_LINES`].
#[map]
static FLOWS: Array<FlowRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static FLOW_RETURNS: Array<FlowReturns> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static FLOW_CONTROL: Array<FlowControl> = Array::with_max_entries(1, BPF_F_MMAPABLE);

const ROW_BITS: u32 = MAX_FLOW_ROWS.trailing_zeros();

/// A number that is no valid row number.
pub(super) const NONE: u64 = u64::MAX;

/// The settings common to all flows.
#[inline(always)]
pub(super) fn control() -> Option<&'static FlowControl> {
    FLOW_CONTROL.get(0)
}

/// The current tick of the kernel's clock.
#[inline(always)]
pub(super) fn now() -> u32 {
    // SAFETY: the helper takes no pointer.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// A 64-bit word that other CPUs and the controller replace in one store.
#[derive(Clone, Copy)]
pub(super) struct Word(*mut u64);

impl Word {
    /// The state word of the flow in a row.
    #[inline(always)]
    pub(super) fn of_row(row: u32) -> Option<Self> {
        let line = FLOW_LINES.get_ptr_mut(row / FLOWS_PER_LINE)?;
        // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
        Some(Self(unsafe { &raw mut (*line).words[(row % FLOWS_PER_LINE) as usize] }))
    }

    /// A word of the index of replies, by the position of the word.
    #[inline(always)]
    pub(super) fn of_return(place: u32) -> Option<Self> {
        let line = FLOW_RETURNS.get_ptr_mut(place / FLOWS_PER_LINE)?;
        // SAFETY: the pointer points to a map value, and the index is masked to lie within it.
        Some(Self(unsafe { &raw mut (*line).words[(place % FLOWS_PER_LINE) as usize] }))
    }

    #[inline(always)]
    pub(super) fn load(self) -> u64 {
        // SAFETY: the pointer points to a map value.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub(super) fn store(self, word: u64) {
        // SAFETY: the pointer points to a map value.
        unsafe { self.0.write_volatile(word) };
    }

    /// Replaces the word atomically if it still equals `old`. Returns whether this call has replaced the word.
    #[inline(always)]
    pub(super) fn swap(self, old: u64, new: u64) -> bool {
        // SAFETY: the pointer points to a map value, and map values are aligned.
        unsafe { swap_shared(self.0, old, new) == old }
    }
}

/// A flow with its row number, and the flow's state word as read when the flow was found.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub(super) index: u32,
    pub(super) word: Word,
    pub(super) was: FlowWord,
    row: *mut FlowRow,
}

impl Flow {
    /// The flow in a row. `None`: the row is empty, or packets no longer find its flow.
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
        // SAFETY: the pointer points to a map value. A CPU writes to a row only while no flow has this row; `is_still`
        // detects that a packet's row now belongs to another flow.
        unsafe { &*self.row }
    }

    /// The name by which later fragments find the flow: the flow's row number and some bits of its tag, which
    /// distinguish this flow from later flows in the same row.
    #[inline(always)]
    pub(super) fn name(&self) -> u32 {
        self.index | self.was.tag() << ROW_BITS
    }

    /// The flow with this [`name`](Self::name).
    #[inline(always)]
    pub(super) fn named(name: u32) -> Option<Self> {
        Self::at(name & (MAX_FLOW_ROWS - 1)).filter(|flow| flow.name() == name)
    }

    /// Whether the row still belongs to the flow that was found in it.
    #[inline(always)]
    pub(super) fn is_still(&self) -> bool {
        let now = FlowWord(self.word.load());
        now.tag() == self.was.tag() && now.state() & FLOW_TAKEN != 0
    }

    /// Stores the new state of the flow.
    #[inline(always)]
    pub(super) fn put(&self, state: u8, now: u32) {
        let new = self.was.with(state, now);
        if new != self.was {
            // If another CPU writes the state first, the information from this packet is lost; the next packet repeats
            // the information.
            self.word.swap(self.was.0, new.0);
        }
    }

    /// Records that a packet of the flow has arrived. Returns whether this packet is the first of its flow in this
    /// tick.
    #[inline(always)]
    pub(super) fn see(&self, now: u32) -> bool {
        let first = self.is_first_in_tick(now);
        if first {
            self.put(self.was.state(), now);
        }
        first
    }

    /// Whether a packet at this time is the first of its flow in this tick.
    #[inline(always)]
    pub(super) fn is_first_in_tick(&self, now: u32) -> bool {
        self.was.with(self.was.state(), now) != self.was
    }

    /// Stores the flow's state after a packet if this state differs from the stored one.
    #[inline(always)]
    pub(super) fn goes_on(&self, said: Said) {
        let state = flows::next(self.was.state(), said);
        if state != self.was.state() {
            self.put(state, now());
        }
    }

    /// Stores the flow's state after a packet and the time of this packet in one write. A second write would fail,
    /// because the word would no longer equal `was`.
    #[inline(always)]
    pub(super) fn hear(&self, said: Said, now: u32) {
        self.put(flows::next(self.was.state(), said), now);
    }

    /// Hides the flow from packets; the flow's address and port stay in use for a while.
    #[inline(always)]
    pub(super) fn rest(&self, now: u32) {
        self.put(self.was.state() | FLOW_RESTS, now);
    }

    /// Counts a packet of this many bytes that goes to the flow's backend. If two CPUs count at the same time, the
    /// counter may miss one packet.
    #[inline(always)]
    pub(super) fn count_there(&self, bytes: usize) {
        // SAFETY: the pointer points to a map value.
        unsafe { (*self.row).bytes_there = (*self.row).bytes_there.wrapping_add(bytes as u64) };
    }

    /// Counts a packet of this many bytes that goes to the flow's client.
    #[inline(always)]
    pub(super) fn count_back(&self, bytes: usize) {
        // SAFETY: the pointer points to a map value.
        unsafe { (*self.row).bytes_back = (*self.row).bytes_back.wrapping_add(bytes as u64) };
    }
}

/// A pointer to a row, for the CPU that owns the row.
#[inline(always)]
pub(super) fn pointer(index: u32) -> Option<*mut FlowRow> {
    FLOWS.get_ptr_mut(index)
}

#[inline(always)]
pub(super) fn row(index: u32) -> Option<&'static FlowRow> {
    FLOWS.get(index)
}

/// The flow with this hash of the client's endpoint and the VIP's endpoint. The function compares only the tag, not the
/// endpoints.
#[inline(always)]
pub(super) fn find(hash: u64) -> Option<Flow> {
    let tag = (hash >> 32) as u32;
    let home = first_bucket(hash, control()?.lines) * FLOWS_PER_LINE + flows::home(tag);
    Flow::at(home).filter(|flow| flow.was.tag() == tag).or_else(|| Flow::at(index(balancer_flow_find(hash))?))
}

/// The row whose flow has this hash of the pool's endpoint and the backend's endpoint. The function compares only the
/// hash, not the endpoints.
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
        // SAFETY: the pointer points to a map value, and the index is below its length.
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

/// Extracts a position from the result of [`balancer_flow_scan`].
#[inline(always)]
const fn place(scanned: u64, shift: u32) -> Option<u32> {
    ((scanned >> shift) as u32).checked_sub(1)
}

/// The positions that matter for a tag in a bucket of the index of replies.
pub(super) struct Scanned {
    /// The position of the entry with the tag.
    pub(super) taken: Option<u32>,
    /// The position of an empty entry.
    pub(super) free: Option<u32>,
}

#[inline(always)]
pub(super) fn scan(bucket: u32, tag: u32) -> Scanned {
    let scanned = balancer_flow_scan(bucket.into(), tag.into());
    Scanned { taken: place(scanned, TAKEN_SHIFT), free: place(scanned, FREE_SHIFT) }
}

/// Returns the position of `tag` in a bucket in the low half of the result, and the position of an empty entry in the
/// high half, both counted from 1; 0 means none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_scan(bucket: u64, tag: u64) -> u64 {
    let Some(line) = FLOW_RETURNS.get_ptr(bucket as u32) else { return 0 };
    let begin = (bucket as u32).wrapping_mul(FLOWS_PER_LINE).wrapping_add(1);
    let (mut taken, mut free) = (0u64, 0u64);
    let mut index = 0;
    while index < FLOWS_PER_LINE {
        // SAFETY: the pointer points to a map value, and the index is below its length.
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
