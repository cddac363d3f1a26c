//! Arrays that larger arrays replace while the program runs.
//!
//! While a program with larger arrays replaces the present program, one interface after the other, packets meet either
//! program. The larger array therefore begins with the entries of the present one, and the controller writes to both
//! until the present program is gone.

use std::sync::atomic::Ordering;

use bytemuck::Pod;

use super::mapped::MappedArray;

/// An array, and the larger array that is about to replace it: see the [module](self).
#[derive(Debug)]
pub(super) struct Mirrored<T> {
    present: MappedArray<T>,
    larger: Option<MappedArray<T>>,
}

impl<T: Pod> Mirrored<T> {
    pub(super) const fn new(present: MappedArray<T>) -> Self {
        Self { present, larger: None }
    }

    /// The number of entries that both arrays have.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.present.len()
    }

    /// The entry at `index`.
    #[must_use]
    pub(super) fn load(&self, index: usize) -> T {
        self.present.load(index)
    }

    /// Replaces the entry at `index` in several stores: the kernel program may read a half-written entry.
    pub(super) fn store(&mut self, index: usize, value: T) {
        self.present.store(index, value);
        self.larger.iter_mut().for_each(|larger| larger.store(index, value));
    }

    /// Replaces the 32-bit word at `offset` of the entry at `index` in one store.
    pub(super) fn store32(&self, index: usize, offset: usize, value: u32) {
        self.both().for_each(|array| array.word32(index, offset).store(value, Ordering::Release));
    }

    /// Replaces the 64-bit word at `offset` of the entry at `index` in one store.
    pub(super) fn store64(&self, index: usize, offset: usize, value: u64) {
        self.both().for_each(|array| array.word64(index, offset).store(value, Ordering::Release));
    }

    /// The 64-bit word at `offset` of the entry at `index`. If the program sets bits in this word, the result has the
    /// bits that are set in one of the arrays.
    #[must_use]
    pub(super) fn bits(&self, index: usize, offset: usize) -> u64 {
        self.both().fold(0, |bits, array| bits | array.word64(index, offset).load(Ordering::Acquire))
    }

    /// Whether a bit of a word is set, or not set, in both arrays.
    #[must_use]
    pub(super) fn is(&self, index: usize, offset: usize, bit: u64, set: bool) -> bool {
        self.both().all(|array| (array.word64(index, offset).load(Ordering::Relaxed) & bit != 0) == set)
    }

    /// Sets bits of a word in which the program may set other bits at the same time.
    pub(super) fn set_bits(&self, index: usize, offset: usize, bits: u64) {
        for array in self.both() {
            array.word64(index, offset).fetch_or(bits, Ordering::Release);
        }
    }

    /// Clears bits of a word in which the program may set other bits at the same time.
    pub(super) fn clear_bits(&self, index: usize, offset: usize, bits: u64) {
        for array in self.both() {
            array.word64(index, offset).fetch_and(!bits, Ordering::Release);
        }
    }

    fn both(&self) -> impl Iterator<Item = &MappedArray<T>> {
        std::iter::once(&self.present).chain(&self.larger)
    }

    /// Copies the entries to a larger array that no program uses yet, and writes to both arrays from now on.
    pub(super) fn begin(&mut self, larger: MappedArray<T>) {
        for (to, from) in larger.words().iter().zip(self.present.words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.larger = Some(larger);
    }

    /// Writes to a larger array as well from now on. In this array, which no program uses yet, the program counts from
    /// zero.
    pub(super) fn begin_counting(&mut self, larger: MappedArray<T>) {
        self.larger = Some(larger);
    }

    /// Adds the counts of the present array to those of the larger array.
    pub(super) fn add_up(&self) {
        for (to, from) in self.larger.iter().flat_map(|larger| larger.words().iter().zip(self.present.words())) {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Maps that larger maps can replace.
pub(super) trait Grows {
    /// Drops the present map if there is a larger one, because no program uses the present map any more.
    fn end(&mut self);

    /// Drops the larger map, because no program will use it.
    fn give_up(&mut self);
}

impl<T> Grows for Mirrored<T> {
    fn end(&mut self) {
        if let Some(larger) = self.larger.take() {
            self.present = larger;
        }
    }

    fn give_up(&mut self) {
        self.larger = None;
    }
}
