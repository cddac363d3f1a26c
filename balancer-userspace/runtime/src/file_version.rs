//! Versions of files, by their metadata.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// The metadata by which callers distinguish versions of a file; `None` if the metadata cannot be read.
pub type Version = Option<(u64, u64, u64, [i64; 4])>;

/// The current version of a file.
#[must_use]
pub fn version(file: &Path) -> Version {
    let of = fs::metadata(file).ok()?;
    Some((of.dev(), of.ino(), of.size(), [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]))
}
