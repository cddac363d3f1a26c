//! The format of states and tallies in the store, which is deflated JSON.

use std::io::{Read as _, Write as _};

use balancer_control::state::{SavedState, VERSION};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use serde::{Serialize, de::DeserializeOwned};

use crate::engine::LONGEST_VALUE;

/// The maximum size in bytes of the inflated JSON, which is several times the largest possible state.
const LARGEST: u64 = 64 << 20;

/// Serializes a state for the store.
///
/// # Errors
/// Fails with one line of text; serializing an exported state never fails.
pub fn write(state: &SavedState) -> Result<Vec<Vec<u8>>, String> {
    let bytes = pack(state, "the state")?;
    Ok(bytes.chunks(LONGEST_VALUE / 2).map(<[u8]>::to_vec).collect())
}

/// Parses a state from the store.
///
/// # Errors
/// Fails if the state cannot be unpacked, or if its format is of a later version; the error is one line.
pub fn read<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<SavedState, String> {
    let bytes: Vec<u8> = parts.flatten().copied().collect();
    let state: SavedState = unpack(&bytes, "the state")?;
    if state.version > VERSION {
        return Err(format!(
            "the state has version {}; this balancer reads up to {VERSION}: upgrade it",
            state.version
        ));
    }
    Ok(state)
}

/// Converts a value into deflated JSON. Error messages call the value `what`.
///
/// # Errors
/// Fails if the value cannot be serialized.
pub fn pack(value: &impl Serialize, what: &str) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(value).map_err(|err| format!("cannot write {what}: {err}"))?;
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&json).map_err(|err| format!("cannot deflate {what}: {err}"))?;
    encoder.finish().map_err(|err| format!("cannot deflate {what}: {err}"))
}

/// Unpacks a value that [`pack`] has made, possibly in another process.
///
/// # Errors
/// Fails if the bytes cannot be inflated, if they are too large, or if they are not JSON of this type; the error is one
/// line.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, String> {
    let mut json = Vec::new();
    let read = DeflateDecoder::new(bytes).take(LARGEST).read_to_end(&mut json);
    read.map_err(|err| format!("{what} cannot be inflated: {err}"))?;
    if json.len() as u64 >= LARGEST {
        return Err(format!("{what} is larger than {} MiB", LARGEST >> 20));
    }
    serde_json::from_slice(&json).map_err(|err| format!("{what} cannot be read: {err}"))
}
