//! The table of flows, and the index that finds the flow of a reply.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::Array};
use balancer_common::{
    features::Features,
    flows::{
        self, FLOW_RESTS, FLOW_TAKEN, FlowWord, Life, Numbers, ReturnWord, Segment, TICK_SHIFT, first_bucket,
        second_bucket,
    },
    map_types::{FLOWS_PER_LINE, FlowControl, FlowLine, FlowReturns, FlowRow, MAX_FLOW_ROWS},
};

use crate::{cpu_rows::swap_shared, features, flows::held, opaque};

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

/// The name by which later steps and fragments find a flow: the number of the flow's row and some bits of its tag, which
/// distinguish this flow from later flows in the same row.
#[inline(always)]
pub(super) const fn name(index: u32, tag: u32) -> u32 {
    index | tag << ROW_BITS
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

    /// The flow's [`name`].
    #[inline(always)]
    pub(super) fn name(&self) -> u32 {
        name(self.index, self.was.tag())
    }

    /// The flow with this [`name`].
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

    /// The flow's sequence numbers.
    #[inline(always)]
    pub(super) fn numbers(&self) -> Numbers {
        // SAFETY: the pointer points to a map value.
        unsafe {
            Numbers {
                next: (&raw const (*self.row).numbers.next).read_volatile(),
                other: (&raw const (*self.row).numbers.other).read_volatile(),
            }
        }
    }

    /// Replaces those of the flow's sequence numbers that have changed; packets of both directions may arrive at once.
    #[inline(always)]
    fn number(&self, was: Numbers, new: Numbers) {
        // SAFETY: the pointer points to a map value.
        unsafe {
            if was.next != new.next {
                (&raw mut (*self.row).numbers.next).write_volatile(new.next);
            }
            if was.other != new.other {
                (&raw mut (*self.row).numbers.other).write_volatile(new.other);
            }
        }
    }

    /// Records that a packet of the flow has arrived. Returns whether this packet is the first of its flow in this
    /// tick.
    #[inline(always)]
    pub(super) fn see(&self, now: u32) -> bool {
        let first = self.is_first_in_tick(now);
        if first {
            // If another CPU writes the word first, that write stands.
            self.word.swap(self.was.0, self.was.with(self.was.state(), now).0);
        }
        first
    }

    /// Whether a packet at this time is the first of its flow in this tick.
    #[inline(always)]
    pub(super) fn is_first_in_tick(&self, now: u32) -> bool {
        self.was.with(self.was.state(), now) != self.was
    }

    /// Stores what a packet says about its flow, and the time of the packet.
    #[inline(always)]
    pub(super) fn hear(&self, segment: Segment, now: u32) {
        let was = Life { state: self.was.state(), numbers: self.numbers() };
        let life = was.after(segment);
        self.number(was.numbers, life.numbers);
        if life.state == was.state {
            self.see(now);
        } else {
            self.change(life.state, now);
        }
    }

    /// Hides the flow from packets; the flow's address and port stay in use for a while.
    #[inline(always)]
    pub(super) fn rest(&self, now: u32) {
        self.change(self.was.state() | FLOW_RESTS, now);
    }

    /// Gives the flow another state. If another CPU changes the state at the same time, both changes count.
    #[inline(always)]
    fn change(&self, state: u8, now: u32) {
        balancer_flow_state(self.index.into(), self.was.0, u64::from(state) | u64::from(now) << 32);
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

/// Changes the state of a flow as a packet has changed it in the word `was`. The low half of `state_and_now` is the new
/// state, and the high half is the time.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_state(index: u64, was: u64, state_and_now: u64) -> u64 {
    const TRIES: u32 = 3;
    if !features::uses(Features::SNAT) {
        return 0;
    }
    let (Some(word), Some(row)) = (Word::of_row(index as u32), row(index as u32)) else { return 0 };
    let (was, state, now) = (FlowWord(was), state_and_now as u8, (state_and_now >> 32) as u32);
    let (set, cleared) = (state & !was.state(), was.state() & !state);
    for _ in 0..TRIES {
        let there = FlowWord(word.load());
        if !there.is_found_by(was.tag()) {
            return 0;
        }
        let new = there.with((there.state() | set) & !cleared, now);
        if word.swap(there.0, new.0) {
            if there.holds() != new.holds() {
                note_held(row, new.holds());
            }
            return 1;
        }
    }
    0
}

/// Notes whether the flow in a row holds its port.
#[inline(always)]
pub(super) fn note_held(row: &FlowRow, holds: bool) {
    if let Some(control) = control() {
        held::note(control.held_blocks, row, holds);
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
    if !features::uses(Features::SNAT) {
        return 0;
    }
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
