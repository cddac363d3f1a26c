//! A bounds-checked view of a frame. All unsafe code that touches packet memory is in this module.

use core::marker::PhantomData;

use bytemuck::Pod;

/// The frame's bytes from `start` to `end`. A check against `end` directly precedes each access, in the form that the
/// kernel's verifier recognizes.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    start: usize,
    end: usize,
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Packet<'a> {
    /// A view of the memory from `start` to `end`.
    ///
    /// # Safety
    /// The memory must be readable and writable for `'a`, and the program may access it only through views made from
    /// this view.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end, bytes: PhantomData }
    }

    /// A view of a byte slice.
    #[must_use]
    pub fn from_slice(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        Self { start: range.start as usize, end: range.end as usize, bytes: PhantomData }
    }

    /// The number of bytes in the view; 0 if a [`Packet::skip`] went beyond the end.
    #[inline(always)]
    #[must_use]
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether the view has no bytes.
    #[inline(always)]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether the view has at least this many bytes.
    #[inline(always)]
    #[must_use]
    pub fn holds(self, bytes: usize) -> bool {
        beyond(self.start, bytes) <= self.end
    }

    /// The view without its first `by` bytes. A view that begins beyond the end is valid; only a load from such a view
    /// is an error.
    #[inline(always)]
    #[must_use]
    pub fn skip(self, by: usize) -> Self {
        Self { start: beyond(self.start, by), ..self }
    }

    #[inline(always)]
    fn pointer<T>(self, at: usize) -> Option<*mut T> {
        let start = beyond(self.start, at);
        if beyond(start, size_of::<T>()) > self.end { None } else { Some(start as *mut T) }
    }

    /// The value at offset `at`, in memory order, at any alignment; `None`: the value extends beyond the end.
    #[inline(always)]
    #[must_use]
    pub fn load<T: Pod>(self, at: usize) -> Option<T> {
        let pointer = self.pointer::<T>(at)?;
        // SAFETY: the check above shows that the value lies within the view, which `new` requires to be readable; any
        // bit pattern is a `T`.
        Some(unsafe { pointer.read_unaligned() })
    }

    /// Writes `value` at offset `at`, in memory order, at any alignment. `None`: the value would extend beyond the end,
    /// and nothing was written.
    #[inline(always)]
    #[must_use]
    pub fn store<T: Pod>(self, at: usize, value: T) -> Option<()> {
        let pointer = self.pointer::<T>(at)?;
        // SAFETY: the check above shows that the value lies within the view, which `new` requires to be writable.
        unsafe { pointer.write_unaligned(value) };
        Some(())
    }
}

/// Adds `by` to an address in a frame. Because the sum cannot wrap around, the compiler can drop a comparison with the
/// end that an earlier comparison implies.
#[inline(always)]
fn beyond(address: usize, by: usize) -> usize {
    // SAFETY: frames lie far below the highest addresses, and every length in them has 16 bits or fewer.
    unsafe { address.unchecked_add(by) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_access_reaches_the_end_then_loads_and_stores_stop() {
        let mut bytes = [1u8, 2, 3, 4, 5];
        let packet = Packet::from_slice(&mut bytes);
        assert_eq!(packet.load::<[u8; 2]>(3), Some([4, 5]));
        assert_eq!(packet.load::<[u8; 2]>(4), None);
        assert_eq!(packet.skip(4).load::<u8>(0), Some(5));
        assert_eq!(packet.skip(6).load::<u8>(0), None);
        assert_eq!(packet.skip(6).len(), 0);
        assert!(packet.holds(5) && !packet.holds(6) && packet.skip(5).holds(0) && !packet.skip(6).holds(0));
        assert_eq!(packet.store(1, [9u8, 8]), Some(()));
        assert_eq!(packet.store(4, [7u8, 7]), None);
        assert_eq!(bytes, [1, 9, 8, 4, 5]);
    }
}
