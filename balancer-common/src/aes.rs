//! AES-128 (FIPS 197) with lookup tables, for single blocks: the kernel program has no other implementation of a
//! cipher. Secret bytes select table entries, so another process on the same CPU may learn about the key from the
//! cache.

const ROUNDS: usize = 10;

/// The round keys of encryption or of decryption: four words before the ten rounds, and four words for each round.
pub type RoundKeys = [[u32; 4]; ROUNDS + 1];

/// The round keys for a connection ID format that has no key.
pub const NO_KEYS: RoundKeys = [[0; 4]; ROUNDS + 1];

/// A block; its columns are big-endian, as in the standard.
pub type Block = [u64; 2];

const SBOX: [u8; 256] = sbox();
const INVERSE_SBOX: [u8; 256] = inverse(&SBOX);
/// SubBytes and MixColumns of a byte, for each row of a column.
static ENCRYPT: [[u32; 256]; 4] = tables(&SBOX, [2, 1, 1, 3]);
/// The inverse of MixColumns and SubBytes for a byte, for each row of a column.
static DECRYPT: [[u32; 256]; 4] = tables(&INVERSE_SBOX, [14, 9, 13, 11]);
static LAST_ENCRYPT: [u8; 256] = SBOX;
static LAST_DECRYPT: [u8; 256] = INVERSE_SBOX;

/// Multiplies two elements of the finite field.
const fn product(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut sum) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            sum ^= a;
        }
        let reduced = if a & 0x80 == 0 { 0 } else { 0x1b };
        a = a << 1 ^ reduced;
        b >>= 1;
    }
    sum
}

const fn sbox() -> [u8; 256] {
    let mut sbox = [0; 256];
    // Powers of a generator and of its inverse visit all nonzero elements, so the loop meets each element together with
    // its inverse.
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p = product(p, 3);
        q = product(q, 0xf6);
        let x = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4);
        sbox[p as usize] = x ^ 0x63;
        if p == 1 {
            break;
        }
    }
    sbox[0] = 0x63;
    sbox
}

const fn inverse(sbox: &[u8; 256]) -> [u8; 256] {
    let mut inverse = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        inverse[sbox[byte] as usize] = byte as u8;
        byte += 1;
    }
    inverse
}

const fn tables(sbox: &[u8; 256], factors: [u8; 4]) -> [[u32; 256]; 4] {
    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 256 {
        let s = sbox[byte];
        let [a, b, c, d] = factors;
        let column = u32::from_be_bytes([product(s, a), product(s, b), product(s, c), product(s, d)]);
        let mut row = 0;
        while row < 4 {
            tables[row][byte] = column.rotate_right(8 * row as u32);
            row += 1;
        }
        byte += 1;
    }
    tables
}

/// The byte of `column` in `row`.
#[inline(always)]
const fn byte(column: u32, row: u32) -> usize {
    (column >> (24 - 8 * row) & 0xff) as usize
}

#[inline(always)]
fn mixed(tables: &[[u32; 256]; 4], columns: [u32; 4]) -> u32 {
    let [a, b, c, d] = columns;
    tables[0][byte(a, 0)] ^ tables[1][byte(b, 1)] ^ tables[2][byte(c, 2)] ^ tables[3][byte(d, 3)]
}

#[inline(always)]
fn substituted(sbox: &[u8; 256], columns: [u32; 4]) -> u32 {
    let [a, b, c, d] = columns;
    u32::from_be_bytes([sbox[byte(a, 0)], sbox[byte(b, 1)], sbox[byte(c, 2)], sbox[byte(d, 3)]])
}

/// Runs the ten rounds of the cipher. In each round, a column takes its rows from later columns at the given distances.
#[inline(always)]
fn rounds(
    (tables, sbox): (&[[u32; 256]; 4], &[u8; 256]),
    keys: &RoundKeys,
    block: Block,
    [second, third, fourth]: [usize; 3],
) -> Block {
    let ([a, b], [before, between @ .., after]) = (block, keys);
    let columns = [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32];
    let mut state = [0, 1, 2, 3].map(|at| columns[at] ^ before[at]);
    let from = |state: [u32; 4], at: usize| {
        [state[at], state[(at + second) % 4], state[(at + third) % 4], state[(at + fourth) % 4]]
    };
    for key in between {
        state = [
            mixed(tables, from(state, 0)) ^ key[0],
            mixed(tables, from(state, 1)) ^ key[1],
            mixed(tables, from(state, 2)) ^ key[2],
            mixed(tables, from(state, 3)) ^ key[3],
        ];
    }
    let last = |at: usize| u64::from(substituted(sbox, from(state, at)) ^ after[at]);
    [last(0) << 32 | last(1), last(2) << 32 | last(3)]
}

/// The ciphertext of a block under the keys of [`encryption_keys`].
#[inline(always)]
#[must_use]
pub fn encrypt(keys: &RoundKeys, block: Block) -> Block {
    rounds((&ENCRYPT, &LAST_ENCRYPT), keys, block, [1, 2, 3])
}

/// The plaintext of a block under the keys of [`decryption_keys`].
#[inline(always)]
#[must_use]
pub fn decrypt(keys: &RoundKeys, block: Block) -> Block {
    rounds((&DECRYPT, &LAST_DECRYPT), keys, block, [3, 2, 1])
}

/// The round keys for encryption under a cipher key.
#[must_use]
pub fn encryption_keys(key: [u8; 16]) -> RoundKeys {
    let mut keys = NO_KEYS;
    for (word, bytes) in keys[0].iter_mut().zip(key.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    let mut constant = 1;
    for round in 1..=ROUNDS {
        let before = keys[round - 1];
        let mut word = substituted(&SBOX, [before[3].rotate_left(8); 4]) ^ u32::from(constant) << 24;
        constant = product(constant, 2);
        for (key, before) in keys[round].iter_mut().zip(before) {
            word ^= before;
            *key = word;
        }
    }
    keys
}

/// The round keys for decryption: the keys of the equivalent inverse cipher, in the order of its rounds.
#[must_use]
pub fn decryption_keys(key: [u8; 16]) -> RoundKeys {
    let forward = encryption_keys(key);
    core::array::from_fn(|round| {
        let keys = forward[ROUNDS - round];
        if round == 0 || round == ROUNDS {
            return keys;
        }
        keys.map(|word| {
            // The decryption tables include InvSubBytes; applying SubBytes first cancels InvSubBytes.
            let through = |row| u32::from(SBOX[byte(word, row)]) << (24 - 8 * row);
            mixed(&DECRYPT, [through(0) | through(1) | through(2) | through(3); 4])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: u128) -> Block {
        [(text >> 64) as u64, text as u64]
    }

    #[test]
    fn when_the_examples_of_fips_197_are_encrypted_then_the_blocks_are_those_of_the_standard() {
        for (key, plain, cipher) in [
            (
                0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128,
                0x3243_f6a8_885a_308d_3131_98a2_e037_0734,
                0x3925_841d_02dc_09fb_dc11_8597_196a_0b32,
            ),
            (
                0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f,
                0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
                0x69c4_e0d8_6a7b_0430_d8cd_b780_70b4_c55a,
            ),
        ] {
            let key = key.to_be_bytes();
            assert_eq!(encrypt(&encryption_keys(key), block(plain)), block(cipher));
            assert_eq!(decrypt(&decryption_keys(key), block(cipher)), block(plain));
        }
    }

    proptest::proptest! {
        #[test]
        fn when_a_block_was_encrypted_then_decrypting_gives_it_back(key: [u8; 16], block: Block) {
            let cipher = encrypt(&encryption_keys(key), block);
            proptest::prop_assert_eq!(decrypt(&decryption_keys(key), cipher), block);
        }
    }
}
