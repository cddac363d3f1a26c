//! Lines with a JSON body, a version and a checksum (sealed lines).

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, Write},
    os::unix::fs::FileExt as _,
};

use balancer_control::state::{SavedState, VERSION};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    balancer_state: u32,
    checksum: &'a str,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The contents of a sealed line whose checksum is valid.
pub(super) struct Opened<'a> {
    /// The checksum of the body, by which other data refers to the body.
    pub(super) checksum: &'a str,
    pub(super) body: &'a str,
}

/// The reason why a file is unusable.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    #[error("there is none")]
    Missing,
    #[error("version {0}, not {VERSION}")]
    Foreign(u32),
    #[error("{0}")]
    Broken(String),
}

/// The maximum number of bytes of a body that are in memory during a write.
const PIECE: usize = 64 << 10;
/// A placeholder for a checksum that is not known yet.
const UNKNOWN: &str = "00000000";
/// The text of a sealed line after the body.
const END: &str = "}\n";

/// Starts a CRC-32 over a version and a body.
fn begin_checksum(version: u32) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&version.to_le_bytes());
    hasher
}

fn end_checksum(hasher: crc32fast::Hasher) -> String {
    format!("{:08x}", hasher.finalize())
}

fn checksum(version: u32, body: &str) -> String {
    let mut hasher = begin_checksum(version);
    hasher.update(body.as_bytes());
    end_checksum(hasher)
}

/// Returns the text of a sealed line before the checksum, and the text between the checksum and the body.
fn head(version: u32) -> (String, &'static str) {
    (format!("{{\"balancer_state\":{version},\"checksum\":\""), "\",\"body\":")
}

/// Makes a sealed line from `body`, which is JSON.
pub fn sealed(version: u32, body: &str) -> String {
    let (before, after) = head(version);
    [&before, &checksum(version, body), after, body, END].concat()
}

/// Writes `body` as a [`sealed`] line into an empty file, in pieces; returns the checksum and the size in bytes of the
/// line.
pub(super) fn write(mut file: &File, version: u32, body: &impl Serialize) -> io::Result<(String, u64)> {
    let (before, after) = head(version);
    file.write_all([&before, UNKNOWN, after].concat().as_bytes())?;
    let mut pieces = BufWriter::with_capacity(PIECE, Summed { file, hasher: begin_checksum(version) });
    serde_json::to_writer(&mut pieces, body)?;
    let Summed { hasher, .. } = pieces.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.write_all(END.as_bytes())?;
    let checksum = end_checksum(hasher);
    file.write_all_at(checksum.as_bytes(), before.len() as u64)?;
    Ok((checksum, file.stream_position()?))
}

/// A file, and the checksum of the bytes written to it.
struct Summed<'a> {
    file: &'a File,
    hasher: crc32fast::Hasher,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(super) fn open(bytes: &[u8]) -> Result<Opened<'_>, Bad> {
    let text = std::str::from_utf8(bytes).map_err(|_| Bad::Broken("it is not text".to_owned()))?;
    let Envelope { balancer_state: version, checksum: found, body } = serde_json::from_str(text).map_err(broken)?;
    if checksum(version, body.get()) != found {
        return Err(Bad::Broken("its checksum is wrong".to_owned()));
    }
    if version != VERSION {
        return Err(Bad::Foreign(version));
    }
    Ok(Opened { checksum: found, body: body.get() })
}

/// Parses a state that is stored as a sealed line.
pub fn open_sealed(bytes: &[u8]) -> Result<SavedState, Bad> {
    state(&open(bytes)?)
}

pub(super) fn state(opened: &Opened<'_>) -> Result<SavedState, Bad> {
    serde_json::from_str(opened.body).map_err(broken)
}

pub(super) fn broken(error: serde_json::Error) -> Bad {
    Bad::Broken(format!("it is not a state file, or not a whole one: {error}"))
}
