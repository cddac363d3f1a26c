//! A body of JSON under a version and a checksum.

use std::borrow::Cow;

use balancer_core::state::{SavedState, VERSION};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::older;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    balancer_state: u32,
    checksum: &'a str,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// What was under a seal that is whole.
pub(super) struct Opened<'a> {
    pub(super) version: u32,
    /// Names the body in what refers to it.
    pub(super) checksum: &'a str,
    pub(super) body: &'a str,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Bad {
    #[error("there is none")]
    Missing,
    #[error("version {0}, newer than {VERSION}")]
    Newer(u32),
    #[error("{0}")]
    Broken(String),
}

/// The CRC-32 of a version and a body.
pub(super) fn checksum(version: u32, body: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&version.to_le_bytes());
    hasher.update(body.as_bytes());
    format!("{:08x}", hasher.finalize())
}

/// `body`, which is JSON, as a line of a file.
pub(crate) fn sealed(version: u32, body: &str) -> String {
    parts(version, &checksum(version, body), body).concat()
}

/// As [`sealed`], where the checksum is known, in parts: a large body is not copied.
pub(super) fn parts<'a>(version: u32, checksum: &str, body: &'a str) -> [Cow<'a, str>; 3] {
    let head = format!("{{\"balancer_state\":{version},\"checksum\":\"{checksum}\",\"body\":");
    [head.into(), body.into(), "}\n".into()]
}

pub(super) fn open(bytes: &[u8]) -> Result<Opened<'_>, Bad> {
    let text = std::str::from_utf8(bytes).map_err(|_| Bad::Broken("it is not text".to_owned()))?;
    let Envelope { balancer_state: version, checksum: found, body } = serde_json::from_str(text).map_err(broken)?;
    if checksum(version, body.get()) != found {
        return Err(Bad::Broken("its checksum is wrong".to_owned()));
    }
    if version > VERSION {
        return Err(Bad::Newer(version));
    }
    Ok(Opened { version, checksum: found, body: body.get() })
}

/// A state under a seal.
pub(crate) fn open_sealed(bytes: &[u8]) -> Result<SavedState, Bad> {
    state(&open(bytes)?)
}

pub(super) fn state(opened: &Opened<'_>) -> Result<SavedState, Bad> {
    if opened.version == VERSION {
        return serde_json::from_str(opened.body).map_err(broken);
    }
    let mut body = serde_json::from_str(opened.body).map_err(broken)?;
    older::upgrade(opened.version, &mut body);
    serde_json::from_value(body).map_err(broken)
}

pub(super) fn broken(error: serde_json::Error) -> Bad {
    Bad::Broken(format!("it is not a state file, or not a whole one: {error}"))
}
