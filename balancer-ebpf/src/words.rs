//! Copies of addresses.

/// A copy of an address. A copy of the whole array can become a call of `memmove`, which copies bytes in a loop that the
/// verifier follows.
#[inline(always)]
pub(crate) const fn by_words(&[a, b, c, d]: &[u32; 4]) -> [u32; 4] {
    [a, b, c, d]
}
