//! QUIC connection IDs that name a server: draft-ietf-quic-load-balancers (of May 2026), and the plain format that
//! AWS's network load balancers use. See <https://quicwg.org/load-balancers/draft-ietf-quic-load-balancers.html>.

use bytemuck::{Pod, Zeroable};

use crate::aes::{self, Block, RoundKeys};

mod issue;

/// The longest connection ID of QUIC version 1, in bytes.
pub const MAX_ID: usize = 20;
/// The longest server ID, in bytes.
pub const MAX_SERVER: usize = 15;
/// The maximum number of connection ID formats that a service can use at a time.
pub const LIVE_FORMATS: usize = 2;
/// The number of rows for services with QUIC listeners; no service uses the first row.
pub const QUIC_ROWS: u32 = 256;
/// The maximum number of services with QUIC listeners: each service needs a second row while its formats change.
pub const MAX_QUIC_SERVICES: usize = QUIC_ROWS as usize / 2 - 1;

/// The description of how to read the connection IDs of a service.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct QuicRow {
    /// The index of a connection ID's format by the ID's first three bits, counted from 1; 0: no format.
    pub format_of: [u8; 8],
    /// The index of the service's QUIC counters.
    pub counters: u32,
    /// The flags: `QUIC_*` bits.
    pub flags: u32,
    /// This field is always zero.
    pub reserved: [u64; 6],
    /// The connection ID formats in use.
    pub formats: [QuicFormat; LIVE_FORMATS],
}

/// `QuicRow::flags`: if an encrypted connection ID names a client's backend, the program records the client at this
/// backend.
pub const QUIC_LEARNS: u32 = 1;
/// `QuicRow::flags`: an attacker cannot make up an encrypted connection ID that names a server, because the server IDs
/// are long.
pub const QUIC_SECRET: u32 = 2;

/// The description of how to read a server ID from a connection ID.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct QuicFormat {
    /// One of the constants `CIPHER_*`.
    pub cipher: u8,
    /// The number of bytes of the server ID.
    pub server: u8,
    /// The number of bytes of server ID and nonce together.
    pub length: u8,
    /// This field is always zero.
    pub reserved: [u8; 5],
    /// The bits of a block that hold the server ID.
    pub server_mask: [u64; 2],
    /// The bits of a block that contain the left half of the plaintext, and the bits that contain the right half.
    pub half_masks: [[u64; 2]; 2],
    /// This field is always zero.
    pub unused: [u64; 1],
    pub encrypt: RoundKeys,
    pub decrypt: RoundKeys,
    /// This field is always zero.
    pub padding: [u64; 4],
}

/// `QuicFormat::cipher`: the server ID is not encrypted.
pub const CIPHER_NONE: u8 = 0;
/// `QuicFormat::cipher`: server ID and nonce are encrypted as one block.
pub const CIPHER_BLOCK: u8 = 1;
/// `QuicFormat::cipher`: encryption takes four passes; to read the server ID, the program undoes three passes.
pub const CIPHER_THREE: u8 = 2;
/// `QuicFormat::cipher`: encryption takes four passes; to read the server ID, the program undoes all four passes.
pub const CIPHER_FOUR: u8 = 3;

/// What a cipher does with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Encrypt,
    Decrypt,
}

/// The key by which the program looks up the server ID of a connection ID.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct QuicServer {
    /// The server ID in big-endian order, padded with zeros.
    pub id: [u64; 2],
    /// Index of the service.
    pub service: u16,
    /// The number of bytes of the server ID.
    pub length: u16,
    /// This field is always zero.
    pub reserved: u32,
}

/// QUIC counters of a service on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct QuicStats {
    /// The number of packets steered by their connection ID.
    pub steered: u64,
    /// The number of packets whose connection ID has a known format but names no server.
    pub unknown: u64,
    /// The number of client addresses recorded at a backend because of a connection ID.
    pub migrated: u64,
    /// This field is always zero.
    pub reserved: u64,
}

impl core::ops::AddAssign<&Self> for QuicStats {
    fn add_assign(&mut self, other: &Self) {
        self.steered += other.steered;
        self.unknown += other.unknown;
        self.migrated += other.migrated;
    }
}

const _: () = {
    assert!(size_of::<QuicRow>() == 64 + LIVE_FORMATS * size_of::<QuicFormat>());
    assert!(size_of::<QuicFormat>() == 448 && size_of::<QuicServer>() == 24 && size_of::<QuicStats>() == 32);
};

/// The first bytes of a connection ID as three big-endian words of eight, eight and four bytes.
pub type IdWords = [u64; 3];

/// A mask of the first `bits` bits of a block.
const fn first_bits(bits: usize) -> [u64; 2] {
    const fn word(bits: usize) -> u64 {
        if bits == 0 { 0 } else { u64::MAX << (64 - bits) }
    }
    if bits <= 64 { [word(bits), 0] } else { [u64::MAX, word(if bits > 128 { 64 } else { bits - 64 })] }
}

#[inline(always)]
const fn masked([a, b]: [u64; 2], [c, d]: [u64; 2]) -> [u64; 2] {
    [a & c, b & d]
}

impl QuicFormat {
    /// A format for connection IDs with a server ID and a nonce of these lengths. The nonce has at least four bytes,
    /// and server ID and nonce together have at most 19.
    #[must_use]
    pub fn new(server: u8, nonce: u8, key: Option<[u8; 16]>) -> Self {
        let length = server + nonce;
        let half = 4 * usize::from(length);
        let mut right = first_bits(8 * usize::from(length.div_ceil(2)));
        if !length.is_multiple_of(2) {
            right[0] &= u64::MAX >> 4;
        }
        Self {
            cipher: match key {
                None => CIPHER_NONE,
                Some(_) if length == 16 => CIPHER_BLOCK,
                Some(_) if server <= nonce => CIPHER_THREE,
                Some(_) => CIPHER_FOUR,
            },
            server,
            length,
            server_mask: first_bits(8 * usize::from(server)),
            half_masks: [first_bits(half), right],
            encrypt: key.map_or(aes::NO_KEYS, aes::encryption_keys),
            decrypt: key.map_or(aes::NO_KEYS, aes::decryption_keys),
            ..Self::zeroed()
        }
    }

    /// The minimum number of bytes of a connection ID in this format.
    #[inline(always)]
    #[must_use]
    pub const fn id_length(&self) -> usize {
        self.length as usize + 1
    }

    /// Reads the server ID from a connection ID that is long enough.
    #[must_use]
    pub fn server_of(&self, id: IdWords) -> [u64; 2] {
        self.server_by(id, |cipher, block| self.ciphered(cipher, block))
    }

    /// Encrypts or decrypts a block under the format's key.
    #[inline(always)]
    #[must_use]
    pub fn ciphered(&self, cipher: Cipher, block: Block) -> Block {
        match cipher {
            Cipher::Encrypt => aes::encrypt(&self.encrypt, block),
            Cipher::Decrypt => aes::decrypt(&self.decrypt, block),
        }
    }

    /// Like [`QuicFormat::server_of`]; `cipher` does what [`QuicFormat::ciphered`] does.
    #[inline(always)]
    #[must_use]
    pub fn server_by(&self, [a, b, c]: IdWords, cipher: impl Fn(Cipher, Block) -> Block) -> [u64; 2] {
        // The encrypted bytes begin after the first byte of the connection ID.
        let text = [a << 8 | b >> 56, b << 8 | c >> 56, c << 8];
        let [first, second, _] = text;
        let plain = match self.cipher {
            CIPHER_NONE => [first, second],
            CIPHER_BLOCK => cipher(Cipher::Decrypt, [first, second]),
            _ => self.unmixed(text, |block| cipher(Cipher::Encrypt, block)),
        };
        masked(plain, self.server_mask)
    }

    /// Undoes those of the four encryption passes that hide the server ID.
    #[inline(always)]
    fn unmixed(&self, [a, b, c]: [u64; 3], encrypt: impl Fn(Block) -> Block) -> [u64; 2] {
        let [left_mask, right_mask] = self.half_masks;
        // The right half begins with this byte; if the length is odd, this byte belongs to both halves.
        let shift = u32::from(self.length / 2) * 8 % 128;
        let right = if shift < 64 {
            [a << (shift & 63) | carried(b, shift), b << (shift & 63) | carried(c, shift)]
        } else {
            let shift = shift - 64;
            [b << (shift & 63) | carried(c, shift), c << (shift & 63)]
        };
        let (mut from, mut onto) = (masked(right, right_mask), masked([a, b], left_mask));
        let mut masks = (left_mask, right_mask);
        let mut pass = 4;
        let last = if self.cipher == CIPHER_FOUR { 1 } else { 2 };
        while pass >= last {
            let [high, low] = from;
            let end = u64::from(self.length) << 8 | pass;
            let [key_high, key_low] = masked(encrypt([high, low | end]), masks.0);
            let new = [onto[0] ^ key_high, onto[1] ^ key_low];
            (onto, from) = (from, new);
            masks = (masks.1, masks.0);
            pass -= 1;
        }
        // The last undone pass restores the left half, or the right half if all four passes are undone.
        let (left, right) = if last == 1 { (onto, from) } else { (from, [0, 0]) };
        let [high, low] = right;
        let shifted = if shift < 64 {
            [high >> (shift & 63), low >> (shift & 63) | uncarried(high, shift)]
        } else {
            [0, high >> ((shift - 64) & 63)]
        };
        [left[0] | shifted[0], left[1] | shifted[1]]
    }
}

/// The bits that enter from the right when a word is shifted left.
#[inline(always)]
const fn carried(word: u64, shift: u32) -> u64 {
    word >> 1 >> (63 - (shift & 63))
}

/// The bits that enter from the left when a word is shifted right.
#[inline(always)]
const fn uncarried(word: u64, shift: u32) -> u64 {
    word << 1 << (63 - (shift & 63))
}

impl QuicRow {
    /// The format of a connection ID that begins with this byte.
    #[inline(always)]
    #[must_use]
    pub fn format(&self, first: u8) -> Option<&QuicFormat> {
        match self.format_of[(first >> 5) as usize & 7] {
            1 => Some(&self.formats[0]),
            2 => Some(&self.formats[1]),
            _ => None,
        }
    }
}

/// The position in a datagram of the connection ID that belongs to the receiver (RFC 8999).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The offset of the connection ID's first byte in the datagram.
    pub at: usize,
    /// The length of the connection ID in bytes; `None`: the packet does not state the length.
    pub length: Option<u8>,
}

/// The position in a datagram of the connection ID that a server has issued to its client. `None`: the datagram has no
/// such ID, or the client may have chosen the ID, as in the Initial and 0-RTT packets of known QUIC versions. The
/// arguments `version` and `length` are fields of a long header.
#[inline(always)]
#[must_use]
pub const fn place(first: u8, version: u32, length: u8) -> Option<Place> {
    const LONG: u8 = 0x80;
    if first & LONG == 0 {
        return Some(Place { at: 1, length: None });
    }
    let kind = first >> 4 & 3;
    let by_client = match version {
        // Only servers send packets for version negotiation.
        0 => true,
        VERSION_1 => kind == 0 || kind == 1,
        VERSION_2 => kind == 1 || kind == 2,
        _ => false,
    };
    if by_client { None } else { Some(Place { at: LONG_ID_AT, length: Some(length) }) }
}

/// The number of QUIC version 1 (RFC 9000).
pub const VERSION_1: u32 = 1;
/// The number of QUIC version 2 (RFC 9369).
pub const VERSION_2: u32 = 0x6b33_43cf;
/// The offset of the receiver's connection ID in a long header.
pub const LONG_ID_AT: usize = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    fn words(id: &[u8]) -> IdWords {
        let mut all = [0; 24];
        all[..id.len()].copy_from_slice(id);
        let word = |at: usize| u64::from_be_bytes(all[at..at + 8].try_into().unwrap());
        [word(0), word(8), word(16)]
    }

    fn server(format: &QuicFormat, id: &[u8]) -> Vec<u8> {
        let [a, b] = format.server_of(words(id));
        let all = (u128::from(a) << 64 | u128::from(b)).to_be_bytes();
        assert!(all[usize::from(format.server)..].iter().all(|&byte| byte == 0), "nothing behind the server ID");
        all[..usize::from(format.server)].to_vec()
    }

    #[test]
    fn when_ids_are_those_of_the_draft_then_they_name_its_servers() {
        let key = Some(bytes("8f95f09245765f80256934e50c66207f").try_into().unwrap());
        let example = Some(bytes("fdf726a9893ec05c0632d3956680baf0").try_into().unwrap());
        for (key, first, id, nonce, connection) in [
            (None, 0x07, "c4605e", "4504cc4f", "07c4605e4504cc4f"),
            // The draft prints server ID and nonce as 350d28b420 and 3487d970b: the same bytes, shifted by half a byte.
            (None, 0x20, "a350d28b42", "03487d970b", "20a350d28b4203487d970b"),
            (key, 0x07, "ed793a", "ee080dbf", "0720b1d07b359d3c"),
            (key, 0x2f, "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"),
            (key, 0x50, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
            (key, 0x12, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
            (example, 0x07, "31441a", "9c69c275", "0767947d29be054a"),
        ] {
            let (id, nonce, connection) = (bytes(id), bytes(nonce), bytes(connection));
            let format = QuicFormat::new(id.len() as u8, nonce.len() as u8, key);
            assert_eq!(server(&format, &connection), id);
            assert_eq!(connection.len(), format.id_length());
            assert_eq!(format.id(first, &id, &nonce)[..connection.len()], connection);
        }
    }

    proptest! {
        #[test]
        fn when_a_server_makes_an_id_then_it_names_the_server(
            server_length in 1u8..=15, nonce_length in 4u8..=18, key: Option<[u8; 16]>, id: [u8; 15], nonce: [u8; 18], first: u8
        ) {
            prop_assume!(server_length + nonce_length <= 19);
            let format = QuicFormat::new(server_length, nonce_length, key);
            let (id, nonce) = (&id[..server_length.into()], &nonce[..nonce_length.into()]);
            let mut connection = format.id(first, id, nonce);
            prop_assert_eq!(server(&format, &connection), id);
            // Bytes that a server appends for its own use must not change the result.
            connection[format.id_length()..].fill(0xff);
            prop_assert_eq!(server(&format, &connection), id);
        }
    }

    #[test]
    fn when_a_client_may_have_made_the_id_then_it_names_nobody() {
        let long = |kind: u8, version| place(0xc0 | kind << 4, version, 8);
        let there = Some(Place { at: LONG_ID_AT, length: Some(8) });
        assert_eq!([0, 1, 2, 3].map(|kind| long(kind, VERSION_1)), [None, None, there, there]);
        assert_eq!([0, 1, 2, 3].map(|kind| long(kind, VERSION_2)), [there, None, None, there]);
        assert_eq!([0, 3].map(|kind| long(kind, 0)), [None, None]);
        assert_eq!([0, 1].map(|kind| long(kind, 0xbabababa)), [there, there]);
        assert_eq!(place(0x40, 7, 7), Some(Place { at: 1, length: None }));
    }
}
