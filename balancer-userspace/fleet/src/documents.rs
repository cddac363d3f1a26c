//! States in the store: JSON, deflated, in parts.

use std::io::{Read as _, Write as _};

use balancer_core::state::{SavedState, VERSION};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};

use crate::engine::LONGEST_VALUE;

/// The largest state that is read, in bytes of JSON.
const LARGEST: u64 = 256 << 20;

/// A state as it is stored.
///
/// # Errors
/// In one line; it does not happen with a state that was exported.
pub fn write(state: &SavedState) -> Result<Vec<Vec<u8>>, String> {
    let json = serde_json::to_vec(state).map_err(|err| format!("cannot write the state: {err}"))?;
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&json).map_err(|err| format!("cannot deflate the state: {err}"))?;
    let bytes = encoder.finish().map_err(|err| format!("cannot deflate the state: {err}"))?;
    Ok(bytes.chunks(LONGEST_VALUE / 2).map(<[u8]>::to_vec).collect())
}

/// A stored state.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<SavedState, String> {
    let bytes: Vec<u8> = parts.flatten().copied().collect();
    let mut json = Vec::new();
    let read = DeflateDecoder::new(bytes.as_slice()).take(LARGEST).read_to_end(&mut json);
    read.map_err(|err| format!("the state cannot be inflated: {err}"))?;
    if json.len() as u64 >= LARGEST {
        return Err(format!("the state is larger than {} MiB", LARGEST >> 20));
    }
    let state: SavedState = serde_json::from_slice(&json).map_err(|err| format!("the state cannot be read: {err}"))?;
    if state.version > VERSION {
        return Err(format!(
            "the state has version {}; this balancer reads up to {VERSION}: upgrade it",
            state.version
        ));
    }
    Ok(state)
}
