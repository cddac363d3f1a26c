//! Which version of a file there is, told without reading it.
//!
//! Inode, size and times tell a new file that was renamed into its place, and one that was written in place; there is
//! nothing to lose where a directory is replaced or a file system is mounted over it.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// The metadata that tell one version of a file from another; `None`: they cannot be read.
pub(crate) type Version = Option<(u64, u64, u64, [i64; 4])>;

/// The version that there is.
pub(crate) fn version(file: &Path) -> Version {
    let of = fs::metadata(file).ok()?;
    Some((of.dev(), of.ino(), of.size(), [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]))
}
