//! Sets of table positions as bits, so that searches of whole tables need no branch that processors mispredict.

/// Number of positions in one word.
pub const RUN: usize = 64;

/// A word with one bit for each of up to [`RUN`] positions, the first position in the lowest bit: the bit says whether
/// `is` returns true for the position.
#[inline(always)]
pub fn bits<T>(places: impl IntoIterator<Item = T>, mut is: impl FnMut(T) -> bool) -> u64 {
    let mut all = [0; RUN];
    // Compilers vectorize this loop.
    all.iter_mut().zip(places).for_each(|(one, place)| *one = u8::from(is(place)));
    let (words, _) = all.as_chunks();
    // A product of byte i and 2^(56 - 7i) sets bit 56 + i, and no two other products set the same bit.
    let pack = |word: &[u8; 8]| u64::from_le_bytes(*word).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    words.iter().zip(0..).fold(0, |bits, (word, index)| bits | pack(word) << (8 * index))
}

/// The positions of the set bits in ascending order.
#[inline(always)]
pub fn set(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(first)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_positions_are_packed_then_each_has_its_bit(places in prop::collection::vec(any::<bool>(), 0..=RUN)) {
            let bits = bits(&places, |place| *place);
            let which: Vec<usize> = (0..places.len()).filter(|&index| places[index]).collect();
            prop_assert_eq!(set(bits).collect::<Vec<_>>(), which);
        }
    }
}
