//! The memory of the maps, the grace periods and the scanning thread of the data path, in the form that a search needs:
//! each access to shared memory is a step, and the search decides who takes the next step.
//!
//! Nobody can stop the production code in the middle of an operation and continue it later. The search therefore
//! repeats an operation from its beginning, and *replays* the values that its first accesses have read. The access after
//! these happens; the operation then ends with values that nobody uses.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Says whether the controller's next access may happen; beforehand, packets take the steps that come first.
type Turn = Rc<dyn Fn() -> bool>;

/// Who accesses memory.
#[derive(Clone)]
enum Actor {
    /// The set-up, whose accesses are no steps.
    SetUp,
    /// A packet or the scanning thread, which replays the values on the tape.
    Taped,
    Controller(Turn),
}

/// The values that an operation has read, and its next one.
#[derive(Clone, Debug, Default)]
struct Tape {
    values: Vec<u64>,
    at: usize,
    is_new: bool,
    is_over: bool,
}

thread_local! {
    static ACTOR: RefCell<Actor> = const { RefCell::new(Actor::SetUp) };
    static TAPE: RefCell<Tape> = RefCell::default();
    /// The values that the controller has read in its present operation.
    static READ: RefCell<Vec<u64>> = RefCell::default();
    static STOPPED: Cell<bool> = const { Cell::new(false) };
}

/// An access to shared memory, which `change` carries out; `value` only reads.
fn access(value: impl FnOnce() -> u64, change: impl FnOnce() -> u64) -> u64 {
    let actor = ACTOR.with_borrow(Actor::clone);
    match actor {
        Actor::SetUp => change(),
        Actor::Taped => TAPE.with_borrow_mut(|tape| {
            let replayed = tape.values.get(tape.at).copied();
            tape.at += 1;
            match replayed {
                Some(value) => value,
                None if tape.is_new => {
                    tape.is_over = true;
                    value()
                }
                None => {
                    tape.is_new = true;
                    tape.values.push(change());
                    tape.values.last().copied().unwrap_or_default()
                }
            }
        }),
        Actor::Controller(turn) => {
            if is_stopped() || !turn() {
                STOPPED.set(true);
                return value();
            }
            let read = change();
            READ.with_borrow_mut(|all| all.push(read));
            read
        }
    }
}

/// Whether the present operation of the controller waits for its next step, so that its further effects do not count.
pub fn is_stopped() -> bool {
    STOPPED.get()
}

fn acting<Done>(actor: Actor, act: impl FnOnce() -> Done) -> Done {
    let before = ACTOR.replace(actor);
    let done = act();
    ACTOR.set(before);
    done
}

/// Takes the next step of `operation`, which has read `values` so far. Returns the operation's result after its last
/// access.
pub fn step<Done>(values: &mut Vec<u64>, operation: impl FnOnce() -> Done) -> Option<Done> {
    let outer = TAPE.replace(Tape { values: std::mem::take(values), ..Tape::default() });
    let done = acting(Actor::Taped, operation);
    let tape = TAPE.replace(outer);
    *values = tape.values;
    (!tape.is_over).then_some(done)
}

/// Lets the controller carry out `operation`; `turn` is asked before each access. Returns the values that the operation
/// has read, and its result if no access is left.
pub fn operate<Done>(turn: impl Fn() -> bool + 'static, operation: impl FnOnce() -> Done) -> (Vec<u64>, Option<Done>) {
    READ.take();
    AWAITED.set(None);
    STOPPED.set(false);
    let done = acting(Actor::Controller(Rc::new(turn)), operation);
    (READ.take(), (!STOPPED.replace(false)).then_some(done))
}

thread_local! {
    static AWAITED: Cell<Option<grace::Grace>> = const { Cell::new(None) };
    static MUTANT: Cell<Mutant> = const { Cell::new(Mutant::NONE) };
}

/// Whether the controller, which has stopped, waits for packets at its next access.
pub fn waits() -> bool {
    AWAITED.get().is_some_and(|grace| !grace::GracePeriods.is_over(grace))
}

/// What a mutant changes.
#[derive(Clone, Copy)]
pub struct Mutant {
    /// The flags that the controller writes to a line that no packet reads yet, given the right ones.
    pub flags: fn(u64) -> u64,
    /// Whether a grace period counts as over, given whether it is over.
    pub is_over: fn(bool) -> bool,
}

impl Mutant {
    /// Nothing is changed.
    pub const NONE: Self = Self { flags: |flags| flags, is_over: |is_over| is_over };
}

/// Lets the controller write as the mutant does.
pub fn mutate(mutant: Mutant) {
    MUTANT.set(mutant);
}

fn flags_by_mutant(flags: u64) -> u64 {
    let is_controller = ACTOR.with_borrow(|actor| matches!(actor, Actor::Controller(_)));
    let mutant = if is_controller { MUTANT.get() } else { Mutant::NONE };
    (mutant.flags)(flags)
}

/// Arrays that the kernel program and the controller share.
pub mod mapped {
    use std::{
        fmt,
        marker::PhantomData,
        sync::{
            Arc,
            atomic::{self, Ordering, Ordering::Relaxed},
        },
    };

    use bytemuck::Pod;

    use super::access;

    /// A word of an array.
    #[derive(Debug, Default)]
    pub struct AtomicU64 {
        value: atomic::AtomicU64,
        /// Whether nobody ever writes the word, so that an access is no step.
        is_constant: atomic::AtomicBool,
    }

    impl AtomicU64 {
        pub fn raw(&self) -> u64 {
            self.value.load(Relaxed)
        }

        pub fn keep_constant(&self) {
            self.is_constant.store(true, Relaxed);
        }

        pub fn load(&self, _: Ordering) -> u64 {
            if self.is_constant.load(Relaxed) { self.raw() } else { access(|| self.raw(), || self.raw()) }
        }

        fn change(&self, change: impl FnOnce(u64) -> u64) -> u64 {
            assert!(!self.is_constant.load(Relaxed), "a word was written that was to stay");
            access(
                || self.raw(),
                || {
                    let before = self.raw();
                    self.value.store(change(before), Relaxed);
                    before
                },
            )
        }

        pub fn store(&self, value: u64, _: Ordering) {
            self.change(|_| value);
        }

        pub fn fetch_or(&self, bits: u64, _: Ordering) -> u64 {
            self.change(|before| before | bits)
        }

        pub fn fetch_and(&self, bits: u64, _: Ordering) -> u64 {
            self.change(|before| before & bits)
        }

        pub fn fetch_add(&self, number: u64, _: Ordering) -> u64 {
            self.change(|before| before.wrapping_add(number))
        }

        pub fn compare_exchange(&self, old: u64, new: u64, _: Ordering, _: Ordering) -> Result<u64, u64> {
            let before = self.change(|before| if before == old { new } else { before });
            if before == old { Ok(before) } else { Err(before) }
        }

        pub fn fetch_update(&self, _: Ordering, _: Ordering, update: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
            let before = self.load(Relaxed);
            if update(before).is_none() {
                return Err(before);
            }
            let before = self.change(|before| update(before).unwrap_or(before));
            if update(before).is_some() { Ok(before) } else { Err(before) }
        }
    }

    pub struct MappedArray<T> {
        words: Arc<[AtomicU64]>,
        of: PhantomData<T>,
    }

    impl<T> Clone for MappedArray<T> {
        fn clone(&self) -> Self {
            Self { words: Arc::clone(&self.words), of: PhantomData }
        }
    }

    impl<T> fmt::Debug for MappedArray<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("array")
        }
    }

    impl<T: Pod> MappedArray<T> {
        const WORDS: usize = size_of::<T>() / size_of::<u64>();

        pub fn zeroed(entries: usize) -> Self {
            Self { words: (0..entries * Self::WORDS).map(|_| AtomicU64::default()).collect(), of: PhantomData }
        }

        #[expect(clippy::len_without_is_empty, reason = "no array of the data path is empty")]
        pub fn len(&self) -> usize {
            self.words.len() / Self::WORDS
        }

        pub fn words(&self) -> &[AtomicU64] {
            &self.words
        }

        /// The search has no array in which the controller writes a half of a word.
        pub fn word32(&self, index: usize, offset: usize) -> &atomic::AtomicU32 {
            unreachable!("half a word at {offset} of {index}")
        }

        fn entry(&self, index: usize) -> &[AtomicU64] {
            &self.words[index * Self::WORDS..(index + 1) * Self::WORDS]
        }

        /// A copy of an entry that no one writes at the same time.
        pub fn load(&self, index: usize) -> T {
            let words: Vec<u64> = self.entry(index).iter().map(AtomicU64::raw).collect();
            bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words))
        }

        /// Replaces an entry that no packet reads at the same time.
        pub fn store(&mut self, index: usize, value: T) {
            if super::is_stopped() {
                return;
            }
            super::written(index);
            let bytes = bytemuck::bytes_of(&value);
            for (word, bytes) in self.entry(index).iter().zip(bytes.chunks_exact(size_of::<u64>())) {
                word.value.store(bytemuck::pod_read_unaligned(bytes), Relaxed);
            }
            // The last word of a line of slots contains the flags.
            if let Some(flags) = self.entry(index).last() {
                flags.value.store(super::flags_by_mutant(flags.raw()), Relaxed);
            }
        }

        pub fn word64(&self, index: usize, offset: usize) -> &AtomicU64 {
            &self.entry(index)[offset / size_of::<u64>()]
        }
    }
}

thread_local! {
    static WRITTEN: RefCell<Vec<usize>> = RefCell::default();
}

fn written(line: usize) {
    WRITTEN.with_borrow_mut(|lines| lines.push(line));
}

/// The lines that the controller has replaced since the last call.
pub fn take_written() -> Vec<usize> {
    WRITTEN.take()
}

/// Grace periods: each is over when all packets have left that were on their way when it began.
pub mod grace {
    use std::{
        cell::{Cell, RefCell},
        fmt,
    };

    thread_local! {
        /// The numbers of the packets on their way.
        static ON_THEIR_WAY: RefCell<Vec<u64>> = RefCell::default();
        static LAST: Cell<u64> = const { Cell::new(0) };
    }

    /// The number of the last packet that was on its way when the grace period began.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Grace(u64);

    /// The packets on their way, in the order of `ON_THEIR_WAY`, for which the grace period waits.
    impl fmt::Debug for Grace {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            ON_THEIR_WAY
                .with_borrow(|all| all.iter().try_for_each(|&packet| write!(f, "{}", u8::from(packet <= self.0))))
        }
    }

    /// Tells which packets are on their way, and the number of the packet that began last.
    pub fn tell(on_their_way: Vec<u64>, last: u64) {
        ON_THEIR_WAY.set(on_their_way);
        LAST.set(last);
    }

    #[derive(Debug)]
    pub struct GracePeriods;

    impl GracePeriods {
        pub fn begin(&self) -> Grace {
            Grace(LAST.get())
        }

        pub fn is_over(&self, grace: Grace) -> bool {
            let is_over = ON_THEIR_WAY.with_borrow(|all| all.iter().all(|&packet| packet > grace.0));
            (super::MUTANT.get().is_over)(is_over)
        }

        /// Waits as an access that must not happen before the end of the grace period.
        pub fn wait(&self, grace: Grace) {
            if !super::is_stopped() {
                super::AWAITED.set(Some(grace));
                super::access(|| 0, || 0);
            }
            if !super::is_stopped() {
                super::AWAITED.set(None);
            }
        }
    }
}
