//! Makes connection IDs in the same formats as servers do.

use super::{CIPHER_BLOCK, CIPHER_NONE, MAX_ID, QuicFormat, masked};
use crate::aes::{self, Block};

/// The bytes of a connection ID after the first byte, padded with zeros.
type Text = [u8; 24];

impl QuicFormat {
    /// A connection ID that begins with the byte `first` and names a server, padded with zeros. Server ID and nonce
    /// must have the lengths of the format.
    #[must_use]
    pub fn id(&self, first: u8, server: &[u8], nonce: &[u8]) -> [u8; MAX_ID] {
        let mut text: Text = [0; 24];
        let plain = server.iter().chain(nonce).take(MAX_ID - 1);
        text.iter_mut().zip(plain).for_each(|(byte, plain)| *byte = *plain);
        match self.cipher {
            CIPHER_NONE => {}
            CIPHER_BLOCK => {
                let block = aes::encrypt(&self.encrypt, block_at(&text, 0));
                put(&mut text, 0, block, [u64::MAX; 2]);
            }
            _ => self.mix(&mut text),
        }
        let mut id = [0; MAX_ID];
        id[0] = first;
        id.iter_mut().skip(1).zip(text).take(self.length.into()).for_each(|(byte, text)| *byte = text);
        id
    }

    fn mix(&self, text: &mut Text) {
        let [left_mask, right_mask] = self.half_masks;
        let at = usize::from(self.length / 2);
        let (mut left, mut right) = (masked(block_at(text, 0), left_mask), masked(block_at(text, at), right_mask));
        for pass in [1, 3] {
            right = self.passed(left, pass, right, right_mask);
            left = self.passed(right, pass + 1, left, left_mask);
        }
        put(text, 0, left, left_mask);
        put(text, at, right, right_mask);
    }

    fn passed(&self, [high, low]: Block, pass: u64, onto: Block, mask: Block) -> Block {
        let key = aes::encrypt(&self.encrypt, [high, low | u64::from(self.length) << 8 | pass]);
        let [a, b] = masked(key, mask);
        [onto[0] ^ a, onto[1] ^ b]
    }
}

/// The block at an offset of the text; if the text ends within the block, zeros follow.
fn block_at(text: &Text, at: usize) -> Block {
    let word = |at: usize| (at..at + 8).fold(0, |word, at| word << 8 | u64::from(text.get(at).copied().unwrap_or(0)));
    [word(at), word(at + 8)]
}

/// Replaces the masked bits of the block at an offset of the text.
fn put(text: &mut Text, at: usize, block: Block, mask: Block) {
    let [bytes, mask] = [block, mask].map(|[a, b]| (u128::from(a) << 64 | u128::from(b)).to_be_bytes());
    for (byte, (new, mask)) in text.iter_mut().skip(at).zip(bytes.into_iter().zip(mask)) {
        *byte = *byte & !mask | new & mask;
    }
}
