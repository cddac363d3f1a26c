//! The comparison of addresses without branches.

#[inline(always)]
pub(super) const fn differ(one: &[u32; 4], other: &[u32; 4]) -> u32 {
    (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3])
}
