//! QUIC connection IDs that name backends of a service.

use std::{fmt, hash::Hasher as _, str::FromStr};

use balancer_common::quic::MAX_SERVER;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::value::{hex_bytes, quoted};

/// The settings for the QUIC connection IDs of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuicConfig {
    /// The format of the service's connection IDs.
    pub format: Format,
    /// The length of a server ID, 1 to 15 bytes.
    pub server_id_length: u8,
    /// The length of a nonce, at least 4 bytes; server ID and nonce together have at most 19 bytes.
    pub nonce_length: u8,
    /// The configuration number and the key that the servers use now.
    pub current: Keyed,
    /// The previous configuration number with its key; the balancer still understands connection IDs that contain this
    /// number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Keyed>,
    /// Whether the balancer records a client's new address at the backend of a connection that has moved to this
    /// address.
    pub learn: bool,
}

/// A format of QUIC connection IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The format that AWS's network load balancers use: 16 bytes, with eight readable bytes after the first byte.
    Nlb,
    /// The format that draft-ietf-quic-load-balancers defines.
    Draft,
}

impl Format {
    /// The formats, each with its word in the configuration.
    pub const WORDS: [(&'static str, Self); 2] = [("nlb", Self::Nlb), ("draft", Self::Draft)];

    /// Returns the word for this format in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nlb => "nlb",
            Self::Draft => "draft",
        }
    }
}

/// The number of configuration numbers in the draft; the first three bits of a connection ID contain the configuration
/// number. The eighth value of these bits is for servers that have no configuration.
pub const CONFIGS: u8 = 7;
/// The minimum length of server IDs with which the balancer records addresses; an attacker could guess a shorter ID too
/// soon.
pub const LEARNS_FROM: u8 = 4;

/// A configuration number, with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    /// The configuration number, below [`CONFIGS`]: the first three bits of connection IDs.
    pub config: u8,
    /// The key; `None`: the server IDs are not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<QuicKey>,
}

impl QuicConfig {
    /// The length of a connection ID in these settings, in bytes.
    #[must_use]
    pub const fn id_length(&self) -> u8 {
        1 + self.server_id_length + self.nonce_length
    }

    /// The configurations whose connection IDs the balancer understands.
    pub fn live(&self) -> impl Iterator<Item = &Keyed> {
        [&self.current].into_iter().chain(&self.before)
    }

    /// Whether the balancer records addresses because of connection IDs, which an attacker must not be able to forge.
    #[must_use]
    pub fn learns(&self) -> bool {
        self.learn && self.is_secret()
    }

    /// Whether only a server can make connection IDs that name the server: if the server IDs are encrypted and long, an
    /// attacker cannot guess such an ID.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.current.key.is_some() && self.server_id_length >= LEARNS_FROM
    }

    /// Whether the connection IDs of both configurations have the same layout and differ only in their numbers and
    /// keys.
    #[must_use]
    pub fn has_parts_of(&self, other: &Self) -> bool {
        let parts = |of: &Self| (of.format, of.server_id_length, of.nonce_length);
        parts(self) == parts(other)
    }

    /// Whether the configuration number alone distinguishes the connection IDs of `other` from those of these settings.
    #[must_use]
    pub fn goes_beside(&self, other: &Self) -> bool {
        self.has_parts_of(other) && self.format == Format::Draft && self.current.config != other.current.config
    }

    /// The settings with a new key under the next configuration number; the current key becomes the previous key.
    #[must_use]
    pub fn rotated(&self, key: QuicKey) -> Self {
        let config = (self.current.config + 1) % CONFIGS;
        Self { current: Keyed { config, key: Some(key) }, before: Some(self.current), ..self.clone() }
    }

    /// The server ID of a backend for which the configuration contains no server ID.
    #[must_use]
    pub fn derived_id(&self, backend: &str) -> ServerId {
        let half = |half: u64| {
            // Any fixed key is suitable for this hash: the result is not secret, and all members of a fleet get the
            // same result.
            let mut hasher = SipHasher24::new_with_keys(half, 0);
            hasher.write(backend.as_bytes());
            hasher.finish()
        };
        let bytes = (u128::from(half(0)) << 64 | u128::from(half(1))).to_be_bytes();
        ServerId::of(bytes.get(..usize::from(self.server_id_length).min(MAX_SERVER)).unwrap_or_default())
    }
}

/// A key of AES-128. The key is secret: the balancer saves it and gives it to servers, but does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QuicKey(pub [u8; 16]);

impl fmt::Debug for QuicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuicKey(…)")
    }
}

/// Formats the key as `hex:` and 32 hexadecimal digits.
impl fmt::Display for QuicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hex:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for QuicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.strip_prefix("hex:").and_then(hex_bytes).and_then(|bytes| bytes.try_into().ok());
        // The error message must not repeat the text, which is secret.
        let wrong =
            "the key is not \"hex:\" and 32 hexadecimal digits; make one with: echo hex:$(openssl rand -hex 16)";
        bytes.map(Self).ok_or_else(|| wrong.to_owned())
    }
}

/// The server ID in a QUIC connection ID: 1 to 15 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    bytes: [u8; MAX_SERVER],
    length: u8,
}

impl ServerId {
    fn of(bytes: &[u8]) -> Self {
        let mut id = Self { bytes: [0; MAX_SERVER], length: bytes.len() as u8 };
        id.bytes.iter_mut().zip(bytes).for_each(|(byte, of)| *byte = *of);
        id
    }

    /// The bytes of the server ID.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// Formats the server ID as `0x` and lower-case hexadecimal digits.
impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Parses `0x` or `hex:`, followed by 2 to 30 hexadecimal digits.
impl FromStr for ServerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("hex:"));
        let bytes = digits.and_then(hex_bytes).filter(|bytes| (1..=MAX_SERVER).contains(&bytes.len()));
        let wrong = || format!("{} is no server ID; write \"0x\" and 2 to 30 hexadecimal digits", quoted(text));
        bytes.map(|bytes| Self::of(&bytes)).ok_or_else(wrong)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(QuicKey);
as_text!(ServerId);

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(config: u8, length: u8) -> QuicConfig {
        QuicConfig {
            format: Format::Draft,
            server_id_length: length,
            nonce_length: 8,
            current: Keyed { config, key: Some(QuicKey([7; 16])) },
            before: None,
            learn: true,
        }
    }

    #[test]
    fn when_keys_and_ids_are_written_then_they_are_read_again() {
        let key = "hex:000102030405060708090a0b0c0d0eff";
        assert_eq!(key.parse::<QuicKey>().unwrap().to_string(), key);
        for id in ["0x00", "0x0011223344556677", "0x000102030405060708090a0b0c0d0e"] {
            assert_eq!(id.parse::<ServerId>().unwrap().to_string(), id);
        }
        assert_eq!("hex:AB".parse::<ServerId>().unwrap().to_string(), "0xab");
        for wrong in ["", "0x", "0x0", "00", "0x000102030405060708090a0b0c0d0e0f", "0xgg", "0x+1"] {
            assert!(wrong.parse::<ServerId>().unwrap_err().contains("is no server ID"), "{wrong}");
        }
        let refused = "hex:secret".parse::<QuicKey>().unwrap_err();
        assert!(refused.contains("openssl rand") && !refused.contains("secret"));
    }

    #[test]
    fn when_a_key_is_rotated_then_the_one_before_is_understood_under_its_number() {
        let first = draft(6, 8);
        let second = first.rotated(QuicKey([9; 16]));
        assert_eq!((second.current.config, second.before), (0, Some(first.current)));
        assert_eq!(second.live().map(|of| of.config).collect::<Vec<_>>(), [0, 6]);
        let third = second.rotated(QuicKey([1; 16]));
        assert_eq!(third.live().map(|of| of.config).collect::<Vec<_>>(), [1, 0]);
        assert!(second.goes_beside(&first) && !first.goes_beside(&first) && !draft(1, 7).goes_beside(&first));
    }

    #[test]
    fn when_a_backend_has_no_server_id_then_its_name_gives_it_one() {
        let ids: Vec<String> = [1, 8, 15].map(|length| draft(0, length).derived_id("web1").to_string()).to_vec();
        assert!(ids[2].starts_with(&ids[1]) && ids[1].starts_with(&ids[0]), "{ids:?}");
        assert_ne!(draft(0, 8).derived_id("web1"), draft(0, 8).derived_id("web2"));
        // With any other value, members of a fleet that run different versions would give the same backend different
        // server IDs.
        assert_eq!(ids[1], "0x9523144a0d373984");
    }

    #[test]
    fn when_server_ids_are_readable_or_short_then_nothing_is_learnt_from_them() {
        let readable = QuicConfig { current: Keyed { config: 0, key: None }, ..draft(0, 8) };
        assert!(draft(0, 8).learns() && !readable.learns() && !draft(0, 3).learns());
    }
}
